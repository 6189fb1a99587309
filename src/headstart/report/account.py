"""What the arms of a study would see by their recipes, pre-training included: no data is read, nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.files import write_csv
from headstart.recipe.recipe import schedule_of
from headstart.report.cost import Cost, public_cost, seen
from headstart.study.prepare import arm_recipe
from headstart.study.spec import Study
from headstart.weights.public import find_training

COUNTS = ("images", "instances", "pixels")


@dataclass(frozen=True)
class Seen:
    """What one arm sees in one schedule: itself, and its share of the pre-training of its weights."""

    arm: str
    schedule: str
    steps: int
    own: Cost
    pretraining: Cost

    def total(self, count: str) -> float:
        """Images, instances or pixels, pre-training included."""
        return getattr(self.own, count) + getattr(self.pretraining, count)


def account(study: Study, overrides: dict[str, Any] | None = None) -> list[Seen]:
    """One entry an arm and schedule, in the order of the study, by its section `account`.

    ValueError for an arm whose weights have no documented cost.
    """
    part = study.account
    assert part is not None
    rows = []
    for arm in study.arms:
        recipe = arm_recipe(study, arm, overrides or {})[0]
        before = _pretraining(study, arm)
        for name in study.schedules_of(arm, study.fractions[0]):
            steps = schedule_of(recipe, part.num_images, name).total
            own = seen(
                steps * recipe.train.batch,
                instances_per_image=part.instances_per_image,
                pixels_per_image=part.pixels_per_image,
            )
            rows.append(Seen(arm, name, steps, own, before))
    return rows


def _pretraining(study: Study, arm: str) -> Cost:
    declared = study.public_weights.get(arm)
    if declared is not None:
        return public_cost(find_training(declared.name, f"public_weights.{arm}.name")).times(1 / declared.uses)
    if study.weights_of(arm) is not None:
        raise ValueError(
            f"account: arm {arm!r} starts from {study.weights_of(arm)!r}, whose cost is not declared; "
            f"expected public_weights.{arm}"
        )
    return Cost()


def table(rows: list[Seen]) -> list[dict[str, Any]]:
    """Flat rows: counts of the arm itself, of the pre-training, and of both."""
    return [
        {"arm": row.arm, "schedule": row.schedule, "steps": row.steps}
        | {f"{count}_own": getattr(row.own, count) for count in COUNTS}
        | {f"{count}_pretraining": getattr(row.pretraining, count) for count in COUNTS}
        | {count: row.total(count) for count in COUNTS}
        for row in rows
    ]


def write_account(study: Study, directory: Path, overrides: dict[str, Any] | None = None) -> list[Seen]:
    """The account of a study, written to account.csv in its directory too."""
    rows = account(study, overrides)
    directory.mkdir(parents=True, exist_ok=True)
    write_csv(directory / "account.csv", table(rows))
    return rows
