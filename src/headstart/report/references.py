"""Results shown beside those of a study: the paper's (paper.yaml), its count of samples, and an earlier study's.

earlier.yaml is written by benchmarks/studies.py from docs/results/studies and that study's own report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Any

from headstart.recipe.recipe import AnyRecipe, schedule_of
from headstart.recipe.yaml_text import read_yaml
from headstart.report.cost import Cost, public_cost, seen
from headstart.study.spec import StudySpec
from headstart.weights.public import find_training

SOURCE = "He, Girshick, Dollár: Rethinking ImageNet Pre-training, arXiv 1811.08883, table 1 (COCO train2017 to val2017)"
SAMPLES = ("images", "instances", "pixels")
PIXELS = 800 * 1333  # shorter side 800, longer at most 1333: an upper bound for an image

EARLIER = Path(__file__).with_name("earlier.yaml")

Rows = dict[str, dict[str, float]]  # row of the paper, schedule


@dataclass(frozen=True)
class Earlier:
    """A finished study below the curves of another.

    what: its description. sentences: those of its report. scores {arm: {steps at a schedule's end: 0..1 of each seed}}.
    made: its command, processor and date.
    """

    name: str
    what: str
    sentences: tuple[str, ...]
    metric: str
    scores: dict[str, dict[int, list[float]]]
    made: str

    @property
    def places(self) -> dict[int, float]:
        """Place of each number of steps on a logarithmic axis, 0..1."""
        steps = sorted({end for ends in self.scores.values() for end in ends})
        first, last = log(steps[0]), log(steps[-1])
        return {end: (log(end) - first) / (last - first) for end in steps}


def earlier_study(name: str | None) -> Earlier | None:
    """The study of earlier.yaml that a study names in `beside`; None without a name."""
    return None if name is None else Earlier(name, **read_yaml(EARLIER)[name])


@cache
def paper_tables() -> dict[str, dict[str, Rows]]:
    """All tables {name: {metric: {row: {schedule: 0..1}}}}."""
    tables = read_yaml(Path(__file__).with_name("paper.yaml"))
    best = {}
    for backbone in ("R50", "R101"):
        for metric, rows in tables[backbone].items():
            for start, values in rows.items():
                (schedule,) = tables[backbone]["mask.AP"][start]  # table 2 has one schedule a start
                best.setdefault(metric, {})[f"{backbone} {start}"] = {schedule: values[schedule]}
    return tables | {"Table 2": best}


def table_1() -> dict[str, Rows]:
    """Box AP {backbone: {start: {schedule: 0..1}}}."""
    return {backbone: paper_tables()[backbone]["box.AP"] for backbone in ("R50", "R101")}


def sample_figure() -> dict[str, tuple[float, float]]:
    """Images, instances and pixels seen: (pre-training and fine-tuning, scratch), the bars of the paper's figure 2.

    The paper's counts follow from ImageNet 100 times, then 2x, against 6x. A step has 16 images, an image 7 instances
    and 800 x 1333 pixels.
    """
    tuned, scratch = (seen(16 * steps, instances_per_image=7, pixels_per_image=PIXELS) for steps in (180_000, 540_000))
    tuned += public_cost(find_training("rethinking-imagenet"))
    return {name: (getattr(tuned, name), getattr(scratch, name)) for name in SAMPLES}


def account(study: StudySpec, recipes: Mapping[str, AnyRecipe]) -> list[dict[str, Any]]:
    """One row an arm and schedule, in the order of the study, by its section `account`; recipes by arm.

    Rows have arm, schedule, steps, and SAMPLES three times: the arm's own, those of its weights' pre-training, and
    both. ValueError for an arm whose weights have no documented cost.
    """
    rows, part = [], study.account
    assert part is not None
    for arm, recipe in recipes.items():
        before = _pretraining(study, arm)
        for schedule in study.schedules_of(arm, study.fractions[0]):
            steps = schedule_of(recipe, part.num_images, schedule).total
            own = seen(
                steps * recipe.train.batch,
                instances_per_image=part.instances_per_image,
                pixels_per_image=part.pixels_per_image,
            )
            row = {"arm": arm, "schedule": schedule, "steps": steps}
            row |= {f"{name}_own": getattr(own, name) for name in SAMPLES}
            row |= {f"{name}_pretraining": getattr(before, name) for name in SAMPLES}
            rows.append(row | {name: getattr(own + before, name) for name in SAMPLES})
    return rows


def _pretraining(study: StudySpec, arm: str) -> Cost:
    declared = study.public_weights.get(arm)
    if declared is not None:
        return public_cost(find_training(declared.name, f"public_weights.{arm}.name")) * (1 / declared.uses)
    if study.weights_of(arm) is not None:
        raise ValueError(
            f"account: arm {arm!r} starts from {study.weights_of(arm)!r}, whose cost is not declared; "
            f"expected public_weights.{arm}"
        )
    return Cost()
