"""A study prepared to run: its recipes resolved once, schedules, plan, and the difference sheet."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

from headstart.recipe.augment import RUNG_FIELDS
from headstart.recipe.dotted import flatten
from headstart.recipe.load import Provenance, resolve
from headstart.recipe.recipe import AnyRecipe, scaled_rate, schedule_of, to_dict
from headstart.recipe.schedule import Schedule, duration, multiple_of
from headstart.study.checks import check_arms_differ, check_lengths, check_measured
from headstart.study.forecast import load_key
from headstart.study.plan import Plan, Segment, expand, schedule_names
from headstart.study.sections import Tuning, refuse_missing_data
from headstart.study.spec import PRETRAIN_PREFIX, StudySpec
from headstart.study.variants import check_variants
from headstart.tasks import data_fingerprint, num_training_images
from headstart.tasks.settle import settle
from headstart.training.lineage import RunResult, Span
from headstart.weights.public import find_training

Patch = dict[str, Any]
Resolved = tuple[AnyRecipe, Provenance]
# Overrides about the machine rather than the study: pre-training takes them too.
MACHINE = ("processes", "device", "train.threads", "train.precision", "train.compile", "data.num_workers")
MOST_MARKS = 8  # checkpoints that a trunk keeps for schedules planned later: a checkpoint is twice the weights' size


@dataclass(frozen=True)
class Prepared:
    """A study with its plan, and the recipes, schedules and data that the plan rests on.

    recipes {arm or "pretrain:NAME": (recipe, origin of each value)} have every `auto` settled on this machine. asked
    are the same recipes as written. schedules {arm: {name: Schedule}}; num_images {fraction: images}; pretrain_images
    {pre-training: {fraction: images}}. differences are rows of `difference_sheet`. overrides are the command line's
    patch on every recipe.
    """

    study: StudySpec
    plan: Plan
    asked: dict[str, AnyRecipe]
    recipes: dict[str, Resolved]
    schedules: dict[str, dict[str, Schedule]]
    pretrain_schedules: dict[str, Schedule]
    num_images: dict[float, int]
    pretrain_images: dict[str, dict[float, int]]
    differences: list[dict[str, Any]]
    overrides: Patch

    @property
    def first_recipe(self) -> AnyRecipe:
        """The recipe of the first arm: for fields that all arms share."""
        return next(iter(self.recipes.values()))[0]

    def plan_arms(self) -> list[str]:
        """The names under which loads are given: arms, and "pretrain:NAME"."""
        return list(dict.fromkeys(load_key(segment) for segment in self.plan.segments))


def prepare(study: StudySpec, overrides: Patch | None = None) -> Prepared:
    """Resolve the recipes, read the data and expand the study into segments; ValueError for whatever could not run."""
    overrides = overrides or {}
    for arm, entry in study.public_weights.items():
        find_training(entry.name, f"public_weights.{arm}.name")
    asked = {arm: arm_recipe(study, arm, overrides) for arm in study.arms}
    used = dict.fromkeys(name for arm in study.arms if (name := study.pretraining_of(arm)))
    asked |= {f"{PRETRAIN_PREFIX}{name}": pretrain_recipe(study, name, overrides) for name in used}
    first = next(iter(asked.values()))[0]  # the data are the same for all arms
    try:
        recipes = {name: settle(*found) for name, found in asked.items()}
    except ValueError:
        refuse_missing_data(study.name, first.data.train)
        raise
    arms = {arm: recipes[arm][0] for arm in study.arms}
    _check_recipes(study, arms)
    first = arms[next(iter(arms))]
    try:
        if any(entry.images for entry in study.fractions):
            study = study.on(num_training_images(on_fraction(first, 1.0)))
        num_images = {e.fraction: num_training_images(on_fraction(first, e.fraction)) for e in study.fractions}
    except ValueError:
        refuse_missing_data(study.name, first.data.train)
        raise
    # A base in epochs means epochs of the largest fraction: the other fractions run the same number of steps.
    full, names = num_images[max(num_images)], schedule_names(study)
    schedules = {arm: {name: schedule_of(recipe, full, name) for name in names} for arm, recipe in arms.items()}
    for chosen in schedules.values():
        check_lengths(chosen, f"study {study.name}")
    pretrain_schedules, pretrain_images = {}, {}
    for name in used:
        recipe = recipes[f"{PRETRAIN_PREFIX}{name}"][0]
        if "data.fraction" in study.pretrain[name].follows:
            images = {share: num_training_images(on_fraction(recipe, share)) for share in num_images}
        else:
            images = {1.0: num_training_images(recipe)}
        pretrain_schedules[name], pretrain_images[name] = schedule_of(recipe, images[max(images)]), images
    plan = expand(
        study,
        next(iter(schedules.values())),
        arm_schedules=schedules,
        pretrain_steps={name: schedule.total for name, schedule in pretrain_schedules.items()},
        branch_steps={arm: _branch_steps(study, arm, arms[arm], full) for arm in study.arms if study.branch_of(arm)},
    )
    return Prepared(
        study,
        plan,
        {name: recipe for name, (recipe, _) in asked.items()},
        recipes,
        schedules,
        pretrain_schedules,
        num_images,
        pretrain_images,
        difference_sheet(study, arms),
        overrides,
    )


def arm_recipe(study: StudySpec, arm: str, overrides: Patch) -> Resolved:
    """The resolved recipe of an arm with `auto` as written, and the origin of each value."""
    return resolve(study.recipe, [("study", study.set), (f"arm {arm}", study.patch_of(arm)), ("override", overrides)])


def pretrain_recipe(study: StudySpec, name: str, overrides: Patch) -> Resolved:
    """The resolved recipe of a pre-training, as `arm_recipe`; ValueError for one that starts from another.

    An own recipe takes only MACHINE fields of the overrides; the study's recipe takes all, but `set` prevails.
    """
    entry, label = study.pretrain[name], ("segment", {"name": f"pretrain-{name}"})
    if entry.recipe is None:
        patches = [("study", study.set), ("override", overrides), (f"pretrain {name}", entry.set), label]
    else:
        machine = {key: value for key, value in overrides.items() if key in MACHINE}
        patches = [("study", entry.set), ("override", machine), label]
    found = resolve(study.recipe if entry.recipe is None else entry.recipe, patches)
    if str(found[0].start.weights).startswith(PRETRAIN_PREFIX):
        raise ValueError(
            f"study {study.name}: pretrain.{name}: start.weights = {found[0].start.weights}: expected a file, or "
            "start.kind random: a pre-training cannot start from another"
        )
    return found


def segment_recipe(prepared: Prepared, segment: Segment, weights: Path | None = None) -> Resolved:
    """The recipe of a segment: its arm's, with the segment's name, seed and fraction, and weights made by the study."""
    recipe, origins = prepared.recipes[load_key(segment)]
    changes: dict[str, Any] = {"name": segment.name}
    seed, follows = segment.seed, ("seed", "data.fraction")
    if segment.kind == "pretrain":
        follows = prepared.study.pretrain[segment.arm].follows
    else:
        # Added, so that arms of another seed, as an A/A study has them, stay so.
        seed += prepared.study.patch_of(segment.arm).get("seed", 0)
        if weights is not None and str(recipe.start.weights).startswith(PRETRAIN_PREFIX):
            changes["start"] = recipe.start.model_copy(update={"weights": str(weights)})
    if "seed" in follows:
        changes["seed"] = seed
    if "data.fraction" in follows:
        changes["data"] = on_fraction(recipe, segment.fraction).data
    return recipe.model_copy(update=changes), Provenance(origins | dict.fromkeys(("name", *follows), "segment"))


def segment_run(
    prepared: Prepared, segment: Segment, done: Mapping[str, RunResult]
) -> tuple[AnyRecipe, Provenance, Span]:
    """The recipe of a segment, the origin of its values, and its span; `done` holds the segments that it needs."""
    weights = done[segment.weights_from].checkpoint if segment.weights_from else None
    recipe, origins = segment_recipe(prepared, segment, weights)
    parent = done[segment.parent].checkpoint if segment.parent else None
    if segment.kind == "trunk":
        some = next(iter(prepared.schedules[segment.arm].values()))  # all of an arm share the constant part
        constant = Schedule(
            total=segment.stop, warmup=some.warmup, warmup_from=some.warmup_from, base_rate=scaled_rate(recipe)
        )
        span = Span(constant, segment.stop, parent, is_trunk=True, marks=marks_of(recipe, prepared, segment))
        return recipe, origins, span
    if segment.kind == "pretrain":
        return recipe, origins, Span(prepared.pretrain_schedules[segment.arm], segment.stop)
    partial = prepared.study.branch_of(segment.arm) is not None
    schedule = prepared.schedules[segment.arm][segment.schedule]
    return recipe, origins, Span(schedule, segment.stop, parent, partial_restore=partial)


def difference_sheet(study: StudySpec, recipes: Mapping[str, AnyRecipe]) -> list[dict[str, Any]]:
    """Rows of fields in which the arms' recipes differ: the field, its values by arm, and if an arm declares it."""
    rows: list[dict[str, Any]] = []
    branches = {arm: study.branch_of(arm) for arm in study.arms}
    if any(branches.values()):  # a difference that no field of a recipe states
        values = {arm: branch and f"{branch.parent}, until the last {branch.last}" for arm, branch in branches.items()}
        rows.append({"field": "branch_of", "values": values, "declared": True})
    if study.tuning:  # 0 for an arm of which the study states none
        efforts = {arm: study.tuning.get(arm, Tuning(trials=0, steps=0)) for arm in study.arms}
        for name in ("trials", "steps", "note"):
            values = {arm: getattr(own, name) for arm, own in efforts.items()}
            rows.append({"field": f"tuning: {name}", "values": values, "declared": True})
    resolved = {arm: flatten(to_dict(recipe)) for arm, recipe in recipes.items()}
    declared = {field for arm in study.arms for field in study.patch_of(arm)}
    declared |= RUNG_FIELDS if "augment" in declared else set()
    for field in dict.fromkeys(field for values in resolved.values() for field in values):
        values = {arm: values.get(field) for arm, values in resolved.items()}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            rows.append({"field": field, "values": values, "declared": field in declared})
    return rows


def refuse_undeclared(prepared: Prepared) -> None:
    """ValueError for the first field in which arms differ without declaring it: no valid comparison then."""
    for row in prepared.differences:
        if not row["declared"]:
            raise ValueError(
                f"study {prepared.study.name}: the arms differ in {row['field']} ({row['values']}) undeclared; "
                "expected the same value, or the field in an arm"
            )


def rehash(prepared: Prepared) -> None:
    """Read every image of a study's data anew, so that segments are found by its present content."""
    most, done = max(prepared.num_images), set()
    for name, (recipe, _) in prepared.recipes.items():
        if not name.startswith(PRETRAIN_PREFIX):
            recipe = on_fraction(recipe, most)
        key = recipe.data.model_dump_json()
        if key not in done:
            data_fingerprint(recipe, rehash=True)
            done.add(key)


def on_fraction(recipe: AnyRecipe, fraction: float) -> AnyRecipe:
    """The recipe on a share of its training images."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"fraction": fraction})})


def _branch_steps(study: StudySpec, arm: str, recipe: AnyRecipe, num_images: int) -> int:
    """Steps that a branch runs by itself: its `last`, where "3x" means three times its base."""
    last, options = study.branch_of(arm).last, {"batch": recipe.train.batch, "num_images": num_images}
    if isinstance(last, str) and last.endswith("x"):
        base = duration(recipe.train.base, field="train.base", **options)
        return round(multiple_of(last, base) * base)
    return duration(last, field=f"arms.{arm}.last", **options)


def marks_of(recipe: AnyRecipe, prepared: Prepared, segment: Segment) -> tuple[int, ...]:
    """Steps within a trunk at which 1x, 2x, 3x ... would leave it; of many, every second, third ..."""
    images, found = max(prepared.num_images.values()), []
    base = duration(recipe.train.base, batch=recipe.train.batch, num_images=images, field="train.base")
    for n in count(1):
        cut = Schedule.nx(n, base, base_rate=1.0, warmup=0, warmup_from=1.0).first_drop
        if cut >= segment.stop:
            return tuple(found[:: ceil(len(found) / MOST_MARKS) or 1])
        if cut > segment.start:
            found.append(cut)


def _check_recipes(study: StudySpec, arms: Mapping[str, AnyRecipe]) -> None:
    """ValueError for arms that are the same, variants that no recipe knows, and metrics that nothing measures."""
    others = {
        arm: (study.branch_of(arm), [study.schedules_of(arm, entry) for entry in study.fractions]) for arm in arms
    }
    check_arms_differ(arms, others, f"study {study.name}")
    for recipe in arms.values():
        check_variants(study.also_evaluate, recipe, source=f"study {study.name}")
    rule, search = study.rule, study.search
    for arm in (rule.baseline, rule.candidate) if rule else ():
        check_measured(rule.metric, arms[arm], study.also_evaluate, f"study {study.name}: rule.metric")
    if search:
        check_measured(search.metric, arms[search.arm], {}, f"study {study.name}: search.metric")
