"""Samples that the arms of a study would see by their recipes, pre-training included; no data is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstart.recipe.recipe import AnyRecipe, schedule_of
from headstart.report.cost import Cost, public_cost, seen
from headstart.study.spec import StudySpec
from headstart.weights.public import find_training

COUNTED = ("images", "instances", "pixels")


def account(study: StudySpec, recipes: Mapping[str, AnyRecipe]) -> list[dict[str, Any]]:
    """One row an arm and schedule, in the order of the study, by its section `account`; recipes by arm.

    Rows have arm, schedule, steps, and COUNTED three times: the arm's own, those of its weights' pre-training, and
    both. ValueError for an arm whose weights have no documented cost.
    """
    rows, part = [], study.account
    assert part is not None
    for arm, recipe in recipes.items():
        before = _pretraining(study, arm)
        for name in study.schedules_of(arm, study.fractions[0]):
            steps = schedule_of(recipe, part.num_images, name).total
            own = seen(
                steps * recipe.train.batch,
                instances_per_image=part.instances_per_image,
                pixels_per_image=part.pixels_per_image,
            )
            row = {"arm": arm, "schedule": name, "steps": steps}
            row |= {f"{counted}_own": getattr(own, counted) for counted in COUNTED}
            row |= {f"{counted}_pretraining": getattr(before, counted) for counted in COUNTED}
            rows.append(row | {counted: getattr(own.plus(before), counted) for counted in COUNTED})
    return rows


def _pretraining(study: StudySpec, arm: str) -> Cost:
    declared = study.public_weights.get(arm)
    if declared is not None:
        return public_cost(find_training(declared.name, f"public_weights.{arm}.name")).times(1 / declared.uses)
    if study.weights_of(arm) is not None:
        raise ValueError(
            f"account: arm {arm!r} starts from {study.weights_of(arm)!r}, whose cost is not declared; "
            f"expected public_weights.{arm}"
        )
    return Cost()
