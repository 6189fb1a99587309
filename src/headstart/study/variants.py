"""Evaluation variants: the final checkpoint evaluated again, e.g. with test-time augmentation (`also_evaluate`).

A variant changes no training, so its rows lie beside the run's own, in variants.jsonl, one a variant.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.files import write_whole
from headstart.ops import processes as distributed
from headstart.recipe.dotted import flatten, unflatten
from headstart.recipe.recipe import AnyRecipe, Recipe
from headstart.recipe.refusal import validate
from headstart.study.results import VARIANTS_FILE, read_variants
from headstart.tasks import TASKS
from headstart.tasks.detection import validation_data
from headstart.tasks.predict import evaluate, load_trained
from headstart.training.rows import Row, judged_weights, line_of, read_rows

Variants = Mapping[str, Mapping[str, Any]]


def check_variants(variants: Variants, recipe: AnyRecipe, *, source: str) -> None:
    """ValueError unless this recipe can be evaluated in all these ways."""
    if variants and not TASKS[recipe.task].has_variants:
        name = next(iter(variants))
        raise ValueError(
            f"{source}: also_evaluate.{name}: only detections can be evaluated in other ways, this study is about "
            f"{recipe.task}; expected no also_evaluate"
        )
    own = flatten(recipe.model_dump(mode="json"))
    for name, patch in variants.items():
        where = f"{source}: also_evaluate.{name}"
        if validate(Recipe, unflatten({**own, **flatten(dict(patch))}), where) == recipe:
            raise ValueError(f"{where}: is what the study evaluates anyway, expected a change")


def variants_worth(variants: Variants, recipe: AnyRecipe) -> float:
    """The cost of all variants together in plain evaluations, by the pixels of their images.

    With test-time augmentation masks and keypoints need a second pass over every view.
    """
    worth = 0.0
    for patch in variants.values():
        flat = flatten(recipe.model_dump(mode="json")) | flatten(dict(patch))
        sides, passes = [flat["input.test_short"]], 1
        if flat["evaluate.tta.enabled"]:
            passes = (2 if flat["evaluate.tta.flip"] else 1) * (
                2 if flat["model.mask.enabled"] or flat.get("model.keypoint.enabled") else 1
            )
            sides = flat["evaluate.tta.shorts"]
        worth += passes * sum(side**2 for side in sides) / recipe.input.test_short**2
    return worth


def missing_variants(variants: Variants, directory: Path) -> list[str]:
    """The variants that a finished run has not been evaluated by yet.

    A patch of the same name that differs is another variant: studies may share runs.
    """
    known = [(row["variant"], row["patch"]) for row in read_variants(directory)]
    return [name for name, patch in variants.items() if (name, flatten(dict(patch))) not in known]


def evaluate_variants(variants: Variants, directory: Path, checkpoint: Path, recipe: AnyRecipe) -> None:
    """Evaluate a finished run's last checkpoint by every missing variant; each row is written atomically.

    The images are those of `recipe`: the paths that the run itself names may hold other data by now.
    """
    data = validation_data(recipe)
    weights = judged_weights(read_rows(directory / "rows.jsonl"))
    for name in distributed.gather(missing_variants(variants, directory))[0]:  # all processes evaluate the same
        patch = flatten(dict(variants[name]))
        since = time.perf_counter()
        trained = load_trained(checkpoint, patch, weights=weights)
        with distributed.threads(trained.recipe.train.threads):
            result, _ = evaluate(trained, data)
        row = Row(
            kind="eval",
            variant=name,
            patch=patch,
            step=trained.step,
            split="val",
            metrics=result.metrics,
            per_class=result.per_class,
            seconds={"eval": round(time.perf_counter() - since, 3)},
        )
        if distributed.is_writer():
            write_whole(directory / VARIANTS_FILE, "".join(map(line_of, [*read_variants(directory), row])))
