"""What a study's segments are made of: recipes, spans, difference sheet; and one segment, run."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

from headstart.files import json_text, write_whole
from headstart.recipe.load import Provenance, resolve, settle
from headstart.recipe.recipe import AnyRecipe, flatten, scaled_rate, schedule_of, to_dict
from headstart.recipe.schedule import Schedule, duration, multiple_of
from headstart.study.forecast import load_key
from headstart.study.plan import Plan, Segment, expand, schedule_names
from headstart.study.spec import PRETRAIN_PREFIX, WEIGHTS_FIELD, Study, Tuning
from headstart.study.variants import check_variants, evaluate_variants, missing_variants
from headstart.tasks import num_training_images
from headstart.training.lineage import Finder, RunResult, Span
from headstart.training.run import train
from headstart.weights.public import find_training

Patch = dict[str, Any]
# What a command line says about the machine rather than the study: pre-training takes it too.
MACHINE = ("processes", "device", "train.threads", "train.precision", "train.compile", "data.num_workers")
MOST_MARKS = 8  # checkpoints that a trunk keeps for schedules planned later: a checkpoint is twice the weights' size
Progress = Callable[[Segment, int, dict[str, Any]], None]


@dataclass(frozen=True)
class Prepared:
    """A study with its plan and what the plan rests on.

    schedules {arm: {name: Schedule}}; num_images {fraction: images}; overrides are the command line's patch on every
    recipe.
    """

    study: Study
    plan: Plan
    schedules: dict[str, dict[str, Schedule]]
    pretrain_schedules: dict[str, Schedule]
    num_images: dict[float, int]
    overrides: Patch

    def plan_arms(self) -> list[str]:
        """The names under which loads are given: arms, and "pretrain:NAME"."""
        return list(dict.fromkeys(load_key(segment) for segment in self.plan.segments))


def prepare(study: Study, overrides: Patch | None = None) -> Prepared:
    """Read the data and expand the study into segments; ValueError for whatever could not run."""
    overrides = overrides or {}
    for arm, entry in study.public_weights.items():
        find_training(entry.name, f"public_weights.{arm}.name")
    if any(entry.images for entry in study.fractions):
        study = study.on(count_images(study, 1.0, overrides))
    num_images = {entry.fraction: count_images(study, entry.fraction, overrides) for entry in study.fractions}
    # A base in epochs means epochs of the largest fraction: the other fractions run the same number of steps.
    full = num_images[max(num_images)]
    schedules = {
        arm: _schedules(arm_recipe(study, arm, overrides)[0], schedule_names(study), full) for arm in study.arms
    }
    for arm in study.arms:
        recipe = arm_recipe(study, arm, overrides)[0]
        check_variants(study.also_evaluate, recipe, source=f"study {study.name}")
        _check_metric(study, recipe)
    used = dict.fromkeys(name for arm in study.arms if (name := study.pretraining_of(arm)))
    pretrain = {name: pretrain_recipe(study, name, overrides)[0] for name in used}
    pretrain_schedules = {name: schedule_of(recipe, num_training_images(recipe)) for name, recipe in pretrain.items()}
    steps = {name: schedule.total for name, schedule in pretrain_schedules.items()}
    branches = {arm: _branch_steps(study, arm, overrides, full) for arm in study.arms if study.branch_of(arm)}
    plan = expand(
        study, next(iter(schedules.values())), arm_schedules=schedules, pretrain_steps=steps, branch_steps=branches
    )
    return Prepared(study, plan, schedules, pretrain_schedules, num_images, overrides)


def _schedules(recipe: AnyRecipe, names: tuple[str, ...], num_images: int) -> dict[str, Schedule]:
    return {name: schedule_of(recipe, num_images, name) for name in names}


def _branch_steps(study: Study, arm: str, overrides: Patch, num_images: int) -> int:
    """How many steps a branch runs by itself: its `last`, where "3x" means three times its base."""
    recipe, last = arm_recipe(study, arm, overrides)[0], study.branch_of(arm).last
    options = {"batch": recipe.train.batch, "num_images": num_images}
    if isinstance(last, str) and last.endswith("x"):
        base = duration(recipe.train.base, field="train.base", **options)
        return round(multiple_of(last, base) * base)
    return duration(last, field=f"arms.{arm}.last", **options)


def count_images(study: Study, fraction: float, overrides: Patch) -> int:
    """Training images at a fraction; the same for all arms."""
    recipe = arm_recipe(study, next(iter(study.arms)), {**overrides, "data.fraction": fraction})[0]
    return num_training_images(recipe)


def arm_recipe(
    study: Study, arm: str, overrides: Patch, segment: Segment | None = None, weights: Path | None = None
) -> tuple[AnyRecipe, Provenance]:
    """The resolved recipe of an arm, or of one of its segments, and where each value comes from; `auto` is settled."""
    return settle(*_arm_as_asked(study, arm, overrides, segment, weights))


def _arm_as_asked(
    study: Study, arm: str, overrides: Patch, segment: Segment | None = None, weights: Path | None = None
) -> tuple[AnyRecipe, Provenance]:
    patch = study.patch_of(arm)
    if str(patch.get(WEIGHTS_FIELD, "")).startswith(PRETRAIN_PREFIX) and weights is not None:
        patch[WEIGHTS_FIELD] = str(weights)
    own = {}
    if segment is not None:
        seed = segment.seed + patch.get("seed", 0)  # arms of another seed, as an A/A study has them, stay so
        own = {"name": segment.name, "seed": seed, "data.fraction": segment.fraction}
    layers = [("study", study.set), (f"arm {arm}", patch), ("override", overrides), ("segment", own)]
    return resolve(study.recipe, layers)


def pretrain_recipe(study: Study, name: str, overrides: Patch) -> tuple[AnyRecipe, Provenance]:
    """The resolved recipe of a pre-training; of the command line's patch it takes what is about the machine only."""
    return settle(*_pretrain_as_asked(study, name, overrides))


def _pretrain_as_asked(study: Study, name: str, overrides: Patch) -> tuple[AnyRecipe, Provenance]:
    entry = study.pretrain[name]
    machine = {key: value for key, value in overrides.items() if key in MACHINE}
    layers = [("study", entry.set), ("override", machine), ("segment", {"name": f"pretrain-{name}"})]
    return resolve(entry.recipe, layers)


def asked_recipes(prepared: Prepared) -> dict[str, AnyRecipe]:
    """The recipes of arms and of "pretrain:NAME" as they are written, before this machine settles their `auto`."""
    study, overrides = prepared.study, prepared.overrides
    found = {arm: _arm_as_asked(study, arm, overrides)[0] for arm in study.arms}
    for name in prepared.pretrain_schedules:
        found[f"{PRETRAIN_PREFIX}{name}"] = _pretrain_as_asked(study, name, overrides)[0]
    return found


def difference_sheet(prepared: Prepared) -> list[dict[str, Any]]:
    """Every field in which the arms' resolved recipes differ, its value in each arm, and whether an arm declares it."""
    study = prepared.study
    resolved = {arm: flatten(to_dict(arm_recipe(study, arm, prepared.overrides)[0])) for arm in study.arms}
    declared = {field for arm in study.arms for field in study.patch_of(arm)}
    fields = dict.fromkeys(field for values in resolved.values() for field in values)
    rows = [*_branch_rows(study), *_tuning_rows(study)]
    for field in fields:
        values = {arm: values.get(field) for arm, values in resolved.items()}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            rows.append({"field": field, "values": values, "declared": field in declared})
    return rows


def _branch_rows(study: Study) -> list[dict[str, Any]]:
    """That an arm is another one until its last steps is a difference, although no field of a recipe says so."""
    branches = {arm: study.branch_of(arm) for arm in study.arms}
    if not any(branches.values()):
        return []
    values = {arm: branch and f"{branch.parent}, until the last {branch.last}" for arm, branch in branches.items()}
    return [{"field": "branch_of", "values": values, "declared": True}]


def _tuning_rows(study: Study) -> list[dict[str, Any]]:
    """The effort that went into each arm's settings: nought where the study states none for that arm alone."""
    if not study.tuning:
        return []
    efforts = {arm: study.tuning.get(arm, Tuning(trials=0, steps=0)) for arm in study.arms}
    return [
        {
            "field": f"tuning: {what}",
            "values": {arm: getattr(own, what) for arm, own in efforts.items()},
            "declared": True,
        }
        for what in ("trials", "steps", "note")
    ]


def _check_metric(study: Study, recipe: AnyRecipe) -> None:
    """ValueError for a rule about VOC's AP that no evaluation of the study measures."""
    metric = study.rule.metric if study.rule else ""
    variant, _, plain = metric.rpartition(":")
    measured = flatten(to_dict(recipe)) | flatten(study.also_evaluate.get(variant, {}))
    if plain.startswith("voc.") and not measured.get("evaluate.voc"):
        raise ValueError(f"study {study.name}: rule.metric is {metric}, which evaluate.voc=false does not measure")


def refuse_undeclared(prepared: Prepared) -> None:
    """ValueError for the first field in which arms differ without declaring it: no valid comparison then."""
    for row in difference_sheet(prepared):
        if not row["declared"]:
            raise ValueError(
                f"study {prepared.study.name}: the arms differ in {row['field']} ({row['values']}) undeclared; "
                "expected the same value, or the field in an arm"
            )


def segment_run(prepared: Prepared, segment: Segment, done: dict[str, RunResult]) -> tuple[AnyRecipe, Provenance, Span]:
    """What a segment is to train: its recipe, where the values come from, and its part of the lineage.

    Its parent and its weights are in `done`.
    """
    study = prepared.study
    if segment.kind == "pretrain":
        recipe, origins = pretrain_recipe(study, segment.arm, prepared.overrides)
        schedule = prepared.pretrain_schedules[segment.arm]
    else:
        weights = done[segment.weights_from].checkpoint if segment.weights_from else None
        recipe, origins = arm_recipe(study, segment.arm, prepared.overrides, segment, weights)
        schedule = (
            _trunk_schedule(recipe, prepared, segment)
            if segment.kind == "trunk"
            else prepared.schedules[segment.arm][segment.schedule]
        )
    parent = done[segment.parent].checkpoint if segment.parent else None
    carries = segment.kind == "tail" and study.branch_of(segment.arm) is not None
    marks = _marks(recipe, prepared, segment) if segment.kind == "trunk" else ()
    return recipe, origins, Span(schedule, segment.stop, parent, segment.kind == "trunk", carries, marks)


def find_segments(
    prepared: Prepared,
    directory: Path,
    finder: Finder | None = None,
    *,
    segments: Iterable[Segment] | None = None,
) -> tuple[dict[str, RunResult], dict[str, Path]]:
    """The finished segments and the directories of those only begun, by name, found by digest; no model is built.

    A tail is finished when it has been judged in all ways that the study asks for. `segments` (all by default) come
    after what they need.
    """
    finder, done, begun = finder or Finder(), {}, {}
    out, variants = segments_folder(prepared, directory), prepared.study.also_evaluate
    for segment in prepared.plan.segments if segments is None else segments:
        if needs(segment) <= set(done):
            recipe, _, span = segment_run(prepared, segment, done)
            found, place = finder.find(recipe, out, span), finder.place(recipe, out, span)
            is_tail = segment.kind == "tail"
            if found is not None and not (is_tail and missing_variants(variants, found.directory)):
                done[segment.name] = found
            elif place.is_dir():
                begun[segment.name] = place
    return done, begun


def needs(segment: Segment) -> set[str]:
    """The segments that must be finished before this one begins."""
    return {name for name in (segment.parent, segment.weights_from) if name}


def ancestors(plan: Plan, segment: Segment) -> list[Segment]:
    """All that must be finished before a segment begins, in the order of the plan."""
    wanted = needs(segment)
    for other in reversed(plan.segments):
        if other.name in wanted:
            wanted |= needs(other)
    return [other for other in plan.segments if other.name in wanted]


def run_segment(
    prepared: Prepared,
    segment: Segment,
    directory: Path,
    done: dict[str, RunResult],
    *,
    progress: Progress | None = None,
) -> RunResult:
    """Run one segment whose parent and weights are in `done`, or find it finished."""
    recipe, origins, span = segment_run(prepared, segment, done)
    report = None if progress is None else (lambda step, values: progress(segment, step, values))
    out = segments_folder(prepared, directory)
    result = train(recipe, out, span=span, label=asdict(segment), provenance=origins, progress=report)
    if segment.kind == "tail":
        evaluate_variants(prepared.study.also_evaluate, result.directory, result.checkpoint)
    return result


def _trunk_schedule(recipe: AnyRecipe, prepared: Prepared, segment: Segment) -> Schedule:
    """The constant part that all schedules of an arm share, up to the end of a segment."""
    some = next(iter(prepared.schedules[segment.arm].values()))
    return Schedule(total=segment.stop, warmup=some.warmup, warmup_from=some.warmup_from, base_rate=scaled_rate(recipe))


def _marks(recipe: AnyRecipe, prepared: Prepared, segment: Segment) -> tuple[int, ...]:
    """Steps within a trunk at which 1x, 2x, 3x ... would leave it; of many, every second, third ..."""
    images, found = max(prepared.num_images.values()), []
    base = duration(recipe.train.base, batch=recipe.train.batch, num_images=images, field="train.base")
    for n in count(1):
        cut = Schedule.nx(n, base, base_rate=1.0, warmup=0, warmup_from=1.0).first_drop
        if cut >= segment.stop:
            return tuple(found[:: ceil(len(found) / MOST_MARKS) or 1])
        if cut > segment.start:
            found.append(cut)


def write_plan(
    prepared: Prepared, directory: Path, done: dict[str, RunResult], begun: dict[str, Path] | None = None
) -> None:
    """study.yaml and plan.json: what the report reads. A segment that has not begun has no directory."""
    import yaml

    directory.mkdir(parents=True, exist_ok=True)
    found = (begun or {}) | {name: result.directory for name, result in done.items()}
    places = {name: Path(os.path.relpath(place, directory)).as_posix() for name, place in found.items()}
    recipe = arm_recipe(prepared.study, next(iter(prepared.study.arms)), prepared.overrides)[0]
    content = {
        "cells": [asdict(cell) for cell in prepared.plan.cells],
        "segments": [
            {**asdict(segment), "directory": places.get(segment.name), "finished": segment.name in done}
            for segment in prepared.plan.segments
        ],
        "notes": list(prepared.plan.notes),
        "num_images": {str(fraction): count for fraction, count in prepared.num_images.items()},
        "batch": recipe.train.batch,
        "differences": difference_sheet(prepared),
        "data": {"val": recipe.data.val, "val_images": getattr(recipe.data, "val_images", None)},
    }
    study = yaml.safe_dump(prepared.study.model_dump(mode="json"), sort_keys=False)
    for name, text in {"study.yaml": study, "plan.json": json_text(content, indent=1)}.items():
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # else it keeps its time: see is_current
            write_whole(path, text)


def segments_folder(prepared: Prepared, directory: Path) -> Path:
    """Where the segments of a study lie: in its own directory, or in one that several studies share."""
    return directory if prepared.study.runs is None else directory.parent / prepared.study.runs
