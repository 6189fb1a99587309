"""Decide the observations of "Rethinking ImageNet Pre-training" by kept studies: the table in docs/results.md.

    python benchmarks/observations.py

Claims, margins and studies stand in OBSERVATIONS. Studies are kept by `benchmarks/studies.py --add`; an observation
whose study is not kept is not tried.
"""

import argparse
from collections import Counter
from dataclasses import replace

import numpy as np
from claims import LONGEST, Conclusion, Observation, Part, Value, conclude
from record import rewritten
from studies import PAGE, Kept, provenance, read_kept

from headstart.verdict.curves import falls_of
from headstart.verdict.numbers import counted

BEGIN = "<!-- tables: python benchmarks/observations.py -->\n"
END = "<!-- end of observations -->\n"
HEAD = (
    "| # | the paper observes | design here | result, points with interval | conclusion |",
    "|---|---|---|---|---|",
)
MARGIN = 0.02

BCCD = "blood cells, Faster R-CNN on EfficientNet-Lite0"
SHAPES = "built-in shapes, a net of four blocks, pre-trained on shapes"
SCRATCH, IMAGENET = Value("bccd_more", "scratch"), Value("bccd_more", "imagenet")  # bccd with four more seeds
FEW = Value("bccd", "imagenet", fraction=0.1), Value("bccd", "scratch", fraction=0.1)


def at(schedule: str, *values: Value) -> tuple[Value, ...]:
    """The values at another schedule."""
    return tuple(replace(value, schedule=schedule) for value in values)


def curve(value: Value) -> tuple[Value, ...]:
    """All evaluations of a value's arm."""
    return (replace(value, of="curve"),)


def twin(study: str, schedule: str, *arms: str, metric: str = "box.AP") -> tuple[Value, ...]:
    """The ends of arms of a small twin."""
    return tuple(Value(f"{study}-small", arm, schedule, metric) for arm in arms)


def equivalent(name: str, *values: Value) -> Part:
    """The claim that two values differ by less than the margin."""
    return Part(name, values, above=-MARGIN, below=MARGIN)


def more(name: str, *values: Value, by: float = 0.0) -> Part:
    """The claim that the first of two values is larger, or of four that the first difference is, by a number."""
    return Part(name, values, above=by, difference=np.subtract if len(values) == 2 else second_difference)


def second_difference(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The difference of the first two values less that of the others."""
    return (a - b) - (c - d)


def earlier_falls(scores: np.ndarray) -> np.ndarray:
    """Best evaluation before the end, chosen by the other seeds, less the end: scores [S,P] -> [S].

    Negative without overfitting. With the end among the candidates all seeds would be 0, without a spread.
    """
    return falls_of(scores[:, :-1]) + scores[:, -2] - scores[:, -1]


def drop_at(schedule: str) -> Part:
    """The claim that a schedule ends above the longest one at the same step, which is still at its full rate."""
    values = *at(schedule, SCRATCH, IMAGENET), *(replace(value, of=schedule) for value in (SCRATCH, IMAGENET))
    name = f"mean of both arms, end of {schedule} - {LONGEST} at this step"
    return Part(name, values, above=0.0, difference=lambda *ends: (ends[0] + ends[1] - ends[2] - ends[3]) / 2)


OBSERVATIONS = (
    Observation(
        1,
        "scratch is 3.5 behind at 2x, the lag shrinks, level by 5x to 6x",
        f"{BCCD} with BatchNorm, by AdamW at a rate searched for each arm, up to 32x",
        (
            more("imagenet - scratch at 2x", *at("2x", IMAGENET, SCRATCH), by=MARGIN),
            more(f"imagenet - scratch, 2x - {LONGEST}", *at("2x", IMAGENET, SCRATCH), IMAGENET, SCRATCH),
            equivalent(f"imagenet - scratch at {LONGEST}", IMAGENET, SCRATCH),
        ),
    ),
    Observation(
        2,
        "the pre-trained arm is near its best at 2x to 3x",
        f"{BCCD}; near its best at 4x, and scratch not",
        (
            equivalent(f"imagenet, {LONGEST} - 4x", IMAGENET, *at("4x", IMAGENET)),
            more(f"scratch, {LONGEST} - 4x", SCRATCH, *at("4x", SCRATCH), by=MARGIN),
        ),
    ),
    Observation(
        3,
        "AP jumps where the learning rate drops",
        f"{BCCD}; against the shared trunk at the full rate",
        (
            drop_at("4x"),
            drop_at("8x"),
        ),
    ),
    Observation(
        4,
        "scratch is better at high IoU: AP75 +1.0, AP50 +0.1",
        f"{BCCD}; boxes only",
        (
            more(
                f"AP75 - AP50, scratch - imagenet at {LONGEST}",
                *(replace(arm, metric=f"box.{name}") for arm in (SCRATCH, IMAGENET) for name in ("AP75", "AP50")),
            ),
        ),
    ),
    Observation(
        5,
        "augmentation lowers the value of pre-training",
        f"{SHAPES}; e01 at one scale, the plain arms of e06 at five",
        (
            more(
                "pretrained - scratch at 6x, without - with scale augmentation",
                *twin("e01", "6x", "pretrained", "scratch"),
                *twin("e06", "6x", "pretrained", "scratch"),
            ),
        ),
    ),
    Observation(
        6,
        "cascade brings no benefit back to pre-training",
        f"{SHAPES}; cascade in the last 3x of 6x",
        (
            Part(
                "pretrained - scratch at 6x, with - without cascade",
                twin("e06", "6x", "cascade_pretrained", "cascade_scratch", "pretrained", "scratch"),
                below=MARGIN,
                difference=second_difference,
            ),
        ),
    ),
    Observation(
        7,
        "the largest network (ResNeXt-152) from scratch does not overfit",
        "built-in shapes, a net of five bottlenecks in 4 groups",
        (
            Part(
                "scratch at 4x, best earlier evaluation - end",
                curve(*twin("e08", "4x", "scratch")),
                below=MARGIN,
                difference=earlier_falls,
            ),
        ),
    ),
    Observation(
        8,
        "keypoints: level without a longer schedule",
        f"{SHAPES}; keypoint AP of five points an object",
        (equivalent("pretrained - scratch at 3x", *twin("e09", "3x", "pretrained", "scratch", metric="keypoints.AP")),),
    ),
    Observation(
        9,
        "35k images with the settings of all overfit, pre-trained too",
        f"{BCCD}; a tenth of the images with the settings of all",
        (
            Part(
                f"imagenet at {LONGEST}, best earlier evaluation - end",
                curve(FEW[0]),
                above=MARGIN,
                difference=earlier_falls,
            ),
        ),
    ),
    Observation(
        10,
        "below 10k images the training loss from scratch is as low, and generalisation fails",
        f"{BCCD}; a tenth of the images, loss of the last tenth of the steps",
        (
            Part(
                f"loss of scratch / loss of imagenet - 1 at {LONGEST}",
                tuple(replace(value, of="loss") for value in FEW),
                above=-0.1,
                below=0.1,
                difference=lambda imagenet, scratch: scratch / imagenet - 1,
                in_points=False,
            ),
            more(f"imagenet - scratch at {LONGEST}", *FEW, by=MARGIN),
        ),
    ),
    Observation(
        11,
        "BatchNorm fails at a small batch, GroupNorm does not",
        "built-in shapes, a net of four blocks from scratch, 2 images a step, 2x",
        (
            more(
                "group_of_2 - batch_of_2 at 2x",
                *twin("e03", "2x", "group_of_2"),
                replace(*twin("e03", "2x", "batch_of_2"), may_fail=True),
                by=MARGIN,
            ),
        ),
    ),
)


def again(observation: Observation, study: str) -> Observation:
    """An observation with the same claims on another study."""

    def moved(part: Part) -> Part:
        return replace(part, values=tuple(replace(value, study=study) for value in part.values))

    return replace(observation, parts=tuple(map(moved, observation.parts)))


# Few images trained as long as all, run when the table was known: its claims on them are shown and not counted.
LONGER = tuple(again(observation, "bccd_few") for observation in OBSERVATIONS if observation.number in (9, 10))


def row(conclusion: Conclusion, kept: Kept) -> str:
    """The line of an observation in the table."""
    observation = conclusion.observation
    design = f"{_images(observation, kept)}: {observation.design}"
    if conclusion.findings:
        design += f"; {counted(conclusion.num_seeds, 'seed')}"
    result = conclusion.missing or "<br>".join(finding.sentence for finding in conclusion.findings)
    return f"| {observation.number} | {observation.paper} | {design} | {result} | {conclusion.text} |"


def _images(observation: Observation, kept: Kept) -> str:
    """The studies of an observation, with their training images where they are kept."""
    used = dict.fromkeys((value.study, value.fraction) for part in observation.parts for value in part.values)
    images = {study: kept[study]["figures"]["images"].get(str(fraction)) for study, fraction in used if study in kept}
    return " and ".join(f"`{s}`" + (f" ({images[s]:,} images)" if images.get(s) else "") for s in observation.studies)


def render(kept: Kept) -> str:
    """The table, how many observations are decided, and how each study was made."""
    conclusions = [conclude(observation, kept) for observation in OBSERVATIONS]
    counts = Counter(conclusion.text for conclusion in conclusions if conclusion.is_decided)
    lines = [
        *HEAD,
        *(row(conclusion, kept) for conclusion in conclusions),
        "",
        f"Decided: {counts.total()} of {len(OBSERVATIONS)} ({counts['confirmed']} confirmed, "
        f"{counts['contradicted']} contradicted).",
        "",
        "The claims of 9 and 10 on longer training, which was added when the table above was known and is not counted:",
        "",
        *HEAD,
        *(row(conclude(observation, kept), kept) for observation in LONGER),
        "",
    ]
    studies = dict.fromkeys(study for observation in (*OBSERVATIONS, *LONGER) for study in observation.studies)
    lines += [f"- {study}: {provenance(kept[study])}".rstrip() for study in studies if study in kept]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rewritten(page, BEGIN, END, render(read_kept())), encoding="utf-8")


if __name__ == "__main__":
    main()
