"""The answers to the questions that people ask of a study, in words and numbers.

The statistics are those of curves.py; here they meet the cells of a folder. Points of curves are the ends of schedules,
never evaluations inside a run, which would mix in where its rate happened to drop. S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headstart.report.facts import last_loss
from headstart.report.spending import Bills, StartCost, mean_cost, outside_weights
from headstart.study.cost import CellCost, Cost
from headstart.study.folder import NAN, TRAIN, StudyFolder
from headstart.verdict.curves import Crossover, Curve, compare_at, crossover, images_worth, overfit_onset
from headstart.verdict.numbers import counted, fraction_name, large, points, span
from headstart.verdict.paired import t_half_width
from headstart.verdict.verdict import Verdict
from headstart.verdict.words import sentence

DEFAULT_LEVEL = 0.95
EFFORTS = ("images", "pixels", "seconds")


@dataclass(frozen=True)
class Comparison:
    """The verdict on one schedule at one fraction."""

    fraction: float
    schedule: str
    verdict: Verdict


@dataclass(frozen=True)
class Answer:
    """One question of a reader and its answer, a line an arm or fraction; from_clock: it holds measured seconds."""

    question: str
    lines: tuple[str, ...]
    from_clock: bool = False


@dataclass(frozen=True)
class EqualEffort:
    """Both arms with the same effort spent, interpolated between the ends of schedules; scores are means over seeds."""

    effort: str
    at: float
    baseline: float
    candidate: float
    verdict: Verdict


def _ends(folder: StudyFolder, arm: str, fraction: float, *, x: dict[str, float] | None = None) -> Curve:
    """Scores at the ends of schedules as a curve over total steps, or over `x` by schedule."""
    schedules = folder.common_schedules(fraction)
    x = x or {name: float(folder.total(arm, name, fraction)) for name in schedules}
    scores = [folder.scores(folder.metric, arm, name, fraction) for name in schedules]
    return Curve(arm, [x[name] for name in schedules], np.stack(scores, 1)[_complete(folder, fraction)])


def _complete(folder: StudyFolder, fraction: float) -> np.ndarray:
    """Seeds, bool [S], that have a score for every common schedule in both arms."""
    pairs = [(arm, name) for arm in (folder.baseline, folder.candidate) for name in folder.common_schedules(fraction)]
    return np.isfinite([folder.scores(folder.metric, arm, name, fraction) for arm, name in pairs]).all(0)


def _level(folder: StudyFolder) -> float:
    return folder.rule.level if folder.rule else DEFAULT_LEVEL


def find_crossover(folder: StudyFolder) -> Crossover | None:
    """Where the candidate catches up, over the ends of schedules of the largest fraction; None with fewer than two."""
    largest = folder.fractions[0] if folder.fractions else 1.0
    if len(folder.common_schedules(largest)) < 2 or not _complete(folder, largest).any():
        return None
    return crossover(
        _ends(folder, folder.baseline, largest), _ends(folder, folder.candidate, largest), level=_level(folder)
    )


def find_answers(
    folder: StudyFolder,
    bills: Bills,
    starts: dict[str, StartCost],
    comparisons: tuple[Comparison, ...],
    crossing: Crossover | None,
) -> list[Answer]:
    """All questions that the finished cells can answer; none with a single arm."""
    if not folder.baseline or not folder.fractions:
        return []
    level, largest, answers = _level(folder), folder.fractions[0], []
    at_most = [entry for entry in comparisons if entry.fraction == largest]
    if len(at_most) > 1:
        answers.append(Answer("Who is ahead early?", (_brief(at_most[0].verdict),)))
    if crossing:
        answers.append(Answer(f"When does {folder.candidate} catch up?", (sentence(crossing),)))
    for fraction in folder.fractions[1:]:
        last = [entry for entry in comparisons if entry.fraction == fraction][-1:]
        answers += [Answer(f"And with {100 * fraction:g} % of the data?", (_brief(entry.verdict),)) for entry in last]
    answers += _worth(folder, level)
    answers += _overfitting(folder, level)
    answers += _price(folder, bills, starts)
    return answers


def _brief(verdict: Verdict) -> str:
    """The outcome alone: what it would take to decide, and other images, are said once, in the headline."""
    first, stop, _ = sentence(verdict).partition(". ")
    return first + stop.strip()


def _worth(folder: StudyFolder, level: float) -> list[Answer]:
    """What the start is worth in labelled images: the longest common schedule of every fraction, smallest first."""
    fractions = [f for f in reversed(folder.fractions) if f in folder.num_images and folder.common_schedules(f)]
    if len(fractions) < 2:
        return []
    used = np.all([_complete(folder, fraction) for fraction in fractions], 0)
    if not used.any():
        return []
    curves = [
        Curve(
            arm,
            [folder.num_images[f] for f in fractions],
            np.stack(
                [folder.scores(folder.metric, arm, folder.common_schedules(f)[-1], f)[used] for f in fractions], 1
            ),
        )
        for arm in (folder.baseline, folder.candidate)
    ]
    found = [images_worth(*curves, images=folder.num_images[fraction], level=level) for fraction in fractions[:-1]]
    return [Answer("How many labelled images is the start worth?", tuple(sentence(each) for each in found))]


def _overfitting(folder: StudyFolder, level: float) -> list[Answer]:
    """Whether longer schedules lose on validation while training still improves, arm by arm, and how far both part.

    Training is judged by the same metric on training images where the recipe has them judged, else by its loss.
    """
    sentences, on_training = [], f"{TRAIN}:{folder.metric.rpartition(':')[2]}"
    for fraction in folder.fractions:
        names = folder.common_schedules(fraction)
        used = _complete(folder, fraction)
        if len(names) < 2 or not used.any():
            continue
        where = (
            "" if len(folder.fractions) == 1 else f"With {fraction_name(fraction, folder.num_images.get(fraction))}, "
        )
        for arm in (folder.baseline, folder.candidate):
            validation = _ends(folder, arm, fraction)
            seen = np.stack([folder.scores(on_training, arm, name, fraction) for name in names], 1)[used]
            losses = np.stack([_final_losses(folder, arm, name, fraction) for name in names], 1)[used]
            judged = bool(np.isfinite(seen).all())
            if judged or np.isfinite(losses).all():
                train = Curve(arm, validation.x, seen if judged else -losses)
                found = overfit_onset(train, validation, level=level, judged=judged)
                sentences.append(where + sentence(found))
            if judged:
                sentences.append(where + _parting(arm, names[-1], seen[:, -1] - validation.scores[:, -1], level))
    return [Answer("Does longer training hurt?", tuple(sentences))] if sentences else []


def _parting(arm: str, schedule: str, gaps: np.ndarray, level: float) -> str:
    """How much better an arm is on training images than on validation images at the end of a schedule."""
    half = float(t_half_width(gaps, level))
    spread = "1 seed, indicative only"
    if len(gaps) > 1:
        low, high = (points(float(gaps.mean()) + sign * half) for sign in (-1, 1))
        spread = f"{100 * level:g} % interval {low} to {high}, {counted(len(gaps), 'seed')}"
    return f"{arm} at {schedule}: {points(float(gaps.mean()))} points on training against validation images ({spread})."


def _final_losses(folder: StudyFolder, arm: str, schedule: str, fraction: float) -> np.ndarray:
    """The last logged training loss of a schedule, float [S]."""
    cells = folder.cells_at(arm, schedule, fraction)
    losses = [last_loss(folder.tail(cells[seed])) if seed in cells else None for seed in folder.seeds]
    return np.array([NAN if loss is None else loss for loss in losses], float)


def _price(folder: StudyFolder, bills: Bills, starts: dict[str, StartCost]) -> list[Answer]:
    """What the pre-training cost, and the longest common schedule of either arm with it."""
    lines = []
    for arm in (folder.baseline, folder.candidate):
        start = starts.get(arm)
        if start and start.whole.images > 0:
            lines.append(_start_sentence(arm, start))
    for arm in (folder.baseline, folder.candidate) if lines and folder.headline_cell else ():
        schedule, fraction = folder.own_schedule(arm, *folder.headline_cell), folder.headline_cell[1]
        cells = bills.get((arm, schedule, fraction))
        if cells:
            alone, whole = (mean_cost([getattr(bill, way) for bill in cells]) for way in ("alone", "whole"))
            lines.append(f"{schedule} of {arm} takes {_effort(alone)}; all in {_effort(whole)}.")
    outside = [arm for arm in outside_weights(folder) if arm in (folder.baseline, folder.candidate)]
    lines += [f"{arm} starts from weights made elsewhere, whose cost is not counted here." for arm in outside]
    return [Answer("What does the start cost?", tuple(lines), from_clock=True)] if lines else []


def _start_sentence(arm: str, start: StartCost) -> str:
    what = f"The start of {arm}" if start.public is None else f"The start of {arm} (public weights {start.public})"
    took = f"{what} took {_effort(start.whole)} of pre-training"
    if start.uses == 1:
        return f"{took}, counted to one use."
    return f"{took}; declared for {start.uses:,g} uses, so one has {_effort(start.share)} of it."


def _effort(cost: Cost) -> str:
    """Images, pixels and seconds, as far as they are known."""
    seconds = "" if np.isnan(cost.seconds) else f" and {span(cost.seconds)}"
    return f"{large(cost.images)} images, {large(cost.pixels)} pixels{seconds}"


def _bills(folder: StudyFolder, bills: Bills, arm: str, schedule: str) -> list[CellCost]:
    """What a schedule of an arm cost on the most data, a bill a seed."""
    fraction = folder.fractions[0]
    return bills[arm, folder.own_schedule(arm, schedule, fraction), fraction]


def equal_efforts(folder: StudyFolder, bills: Bills) -> list[EqualEffort]:
    """Both arms at equal steps, and at equal whole cost, pre-training included, for the largest fraction."""
    if folder.rule is None or folder.headline_cell is None:
        return []
    fraction, arms = folder.fractions[0], (folder.baseline, folder.candidate)
    names = folder.common_schedules(fraction)
    if not _complete(folder, fraction).any():
        return []
    curves = {"steps": [_ends(folder, arm, fraction) for arm in arms]}
    for effort in EFFORTS:
        spent = [
            {name: getattr(mean_cost([b.whole for b in _bills(folder, bills, arm, name)]), effort) for name in names}
            for arm in arms
        ]
        if all(np.all(np.diff(list(x.values())) > 0) and np.isfinite(list(x.values())).all() for x in spent):
            curves[f"{effort}, pre-training included"] = [
                _ends(folder, arm, fraction, x=x) for arm, x in zip(arms, spent)
            ]
    made = []
    for effort, (baseline, candidate) in curves.items():
        at = min(baseline.x[-1], candidate.x[-1])
        verdict = compare_at(folder.rule, baseline, candidate, axis=effort)
        made.append(EqualEffort(effort, at, float(baseline.at(at).mean()), float(candidate.at(at).mean()), verdict))
    return made
