"""Starts of runs: settings of the loop, weights, frozen stages, a branch's partial restore, and their audit."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from headstart.model.build import build, input_spec
from headstart.recipe.recipe import AnyRecipe
from headstart.recipe.schedule import Schedule, duration
from headstart.tasks.task import Task
from headstart.training import loop
from headstart.training.averages import live_norms
from headstart.training.lineage import Span
from headstart.training.optimizer import make_optimizer, part_factors
from headstart.training.resume import start_point
from headstart.weights import checkpoint
from headstart.weights.audit import audit, tensor_digests
from headstart.weights.audits.record import Audit
from headstart.weights.freeze import freeze, set_train_mode
from headstart.weights.load import load_weights, open_weights
from headstart.weights.mismatch import LoadReport
from headstart.weights.partial_restore import partial_restore


def prepare_run(
    task: Task, recipe: AnyRecipe, span: Span, directory: Path
) -> tuple[checkpoint.StartPoint, Audit | None]:
    """The point at which a run starts or resumes, its model ready; with an audit where weights were set."""
    start = start_point(directory, branch=span.parent, weights=recipe.start.weights)
    if span.parent is None:
        return start, prepare_start(task, recipe)
    if span.partial_restore and start.source == "branch":
        return prepare_branch(task, recipe, span.schedule, start)
    freeze(task.model, recipe.start.freeze)
    return start, None


def prepare_start(task: Task, recipe: AnyRecipe) -> Audit:
    """Load weights, freeze, and audit the start; ValueError with the audit's errors, one a line."""
    return start_model(task.model, recipe, *_counts(task))


def start_model(model: nn.Module, recipe: AnyRecipe, num_classes: int, num_keypoints: int = 0) -> Audit:
    """`prepare_start` of a model without its data."""
    start, initial, report = recipe.start, tensor_digests(model), None
    if start.kind != "random":
        file, spec = open_weights(start.weights), input_spec(recipe)
        report = load_weights(model, file, scope=start.kind, input=spec, stem=start.stem)
    freeze(model, start.freeze)
    set_train_mode(model, start.freeze)
    return _audited(model, recipe, start.kind, report, initial, (num_classes, num_keypoints))


def prepare_branch(
    task: Task, recipe: AnyRecipe, schedule: Schedule, start: checkpoint.StartPoint
) -> tuple[checkpoint.StartPoint, Audit]:
    """A partial restore of a branch's parent, and its audit; ValueError with the audit's errors, one a line."""
    initial = tensor_digests(task.model)
    freeze(task.model, recipe.start.freeze)
    set_train_mode(task.model, recipe.start.freeze)
    optimizer = make_optimizer(task.model, recipe.train, schedule.base_rate)
    state, report = partial_restore(start.state, start.path, task.model, optimizer)
    task.model.load_state_dict(state["model"])
    return replace(start, state=state), _audited(task.model, recipe, "branch", report, initial, _counts(task))


def _audited(
    model: nn.Module,
    recipe: AnyRecipe,
    start: str,
    report: LoadReport | None,
    initial: dict[str, str],
    counts: tuple[int, int],
) -> Audit:
    """The audit of a start without errors, of a model with counts of classes and keypoints; ValueError otherwise."""
    found = audit(
        model,
        start=start,
        freeze=recipe.start.freeze,
        input=input_spec(recipe),
        report=report,
        initial=initial,
        other_seed=tensor_digests(build(recipe.model_copy(update={"seed": recipe.seed + 1}), *counts)),
    )
    found.check()
    return found


def _counts(task: Task) -> tuple[int, int]:
    """Numbers of classes and keypoints of a task's data."""
    return len(task.classes.get("names", ())), len(task.classes.get("keypoints", ()))


def settings_of(recipe: AnyRecipe, task: Task, *, is_trunk: bool = False, marks: tuple[int, ...] = ()) -> loop.Settings:
    """A recipe with its periods in steps; ValueError for values that its model has no use for."""
    if recipe.evaluate.precise_bn and not live_norms(task.model, recipe.start.freeze):
        raise ValueError(
            f"evaluate.precise_bn: {recipe.evaluate.precise_bn}, but start.freeze {recipe.start.freeze!r} leaves no "
            "BatchNorm whose statistics follow the batches; expected 0"
        )
    part_factors(task.model, recipe.train)
    options = {"batch": recipe.train.batch, "num_images": task.num_images}
    eval_every = duration(recipe.evaluate.every, field="evaluate.every", **options)
    save_every = duration(recipe.checkpoint.every, field="checkpoint.every", **options)
    return loop.Settings(recipe, eval_every, save_every, is_trunk, marks)
