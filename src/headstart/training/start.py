"""Starts of runs: where one begins or resumes, weights, frozen stages, partial restores, and their audit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.files import file_digest
from headstart.model.build import build, input_spec
from headstart.recipe.recipe import AnyRecipe
from headstart.recipe.schedule import Schedule
from headstart.tasks.task import Task
from headstart.training.lineage import Span, load_checked
from headstart.training.optimizer import make_optimizer
from headstart.training.rows import missing_rows, read_rows
from headstart.weights import checkpoint
from headstart.weights.audit import audit, tensor_digests
from headstart.weights.audits.record import Audit
from headstart.weights.files import COUNTER, DamagedError
from headstart.weights.freeze import freeze, set_train_mode
from headstart.weights.input import parse_input_spec
from headstart.weights.load import load_weights, open_weights
from headstart.weights.mismatch import LoadReport

MOMENTUM = ("momentum_buffer",)  # state of torch's SGD, by parameter
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of Adam and AdamW


def prepare_run(
    task: Task, recipe: AnyRecipe, span: Span, directory: Path
) -> tuple[checkpoint.StartPoint, Audit | None]:
    """The point at which a run starts or resumes, its model ready; with an audit where weights were set."""
    start = start_point(directory, branch=span.parent, weights=recipe.start.weights)
    if span.parent is None:
        return start, prepare_start(task.model, recipe, task.classes)
    if span.partial_restore and start.source == "branch":
        return prepare_branch(task, recipe, span.schedule, start)
    freeze(task.model, recipe.start.freeze)
    return start, None


def start_point(directory: Path, *, branch: Path | None, weights: str | None) -> checkpoint.StartPoint:
    """Own checkpoint > given branch point > given weights > random, in that order.

    A checkpoint that is damaged, or counts on rows that are missing, is skipped for the one before; `note` names it.
    ValueError where all are damaged, and where one cannot be read now or is of a newer format: then nothing changes.
    """
    problems, damaged, steps = [], 0, checkpoint.steps_saved(directory)
    for step in reversed(steps):
        path = checkpoint.path_of(directory, step)
        try:
            state = load_checked(path)
        except DamagedError as error:
            problems.append(str(error))
            damaged += 1
            continue
        missing = missing_rows(read_rows(directory / "rows.jsonl"), state)
        if not missing:
            return checkpoint.StartPoint("checkpoint", path, step, state, _note(problems, step))
        problems.append(f"{directory / 'rows.jsonl'}: lacks {missing}, on which {path.name} counts")
    if steps and damaged == len(steps):
        raise ValueError(
            f"{problems[0]}, and no older checkpoint of this run is whole; nothing was changed: expected one to "
            "continue from, or no checkpoints at all for a new start"
        )
    if branch is not None:
        state = load_checked(branch)
        return checkpoint.StartPoint("branch", Path(branch), state["step"], state, _note(problems, state["step"]))
    if weights is not None:
        return checkpoint.StartPoint("weights", Path(weights), 0, None, _note(problems, 0))
    return checkpoint.StartPoint("random", None, 0, None, _note(problems, 0))


def _note(problems: list[str], step: int) -> str:
    return f"{'; '.join(problems)}; the run continues at step {step}" if problems else ""


def prepare_start(model: nn.Module, recipe: AnyRecipe, classes: Mapping[str, Sequence[Any]]) -> Audit:
    """Load weights, freeze, and audit the start of a model for the `classes` of a task.

    ValueError with the audit's errors, one a line.
    """
    start, initial, report = recipe.start, tensor_digests(model), None
    if start.kind != "random":
        file, spec = open_weights(start.weights), input_spec(recipe)
        report = load_weights(model, file, scope=start.kind, input=spec, stem=start.stem)
    freeze(model, start.freeze)
    set_train_mode(model, start.freeze)
    return _audited(model, recipe, start.kind, report, initial, classes)


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
    return replace(start, state=state), _audited(task.model, recipe, "branch", report, initial, task.classes)


def partial_restore(
    state: dict[str, Any], path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], LoadReport]:
    """A checkpoint's state made to fit a fresh `model` and `optimizer`, and a report on each tensor.

    Tensors of equal name and shape are restored, with their momentum (of Adam: both moments and the step). All others
    keep their initial values, with a momentum of zero; all of them after another kind of optimizer. The optimizer keeps
    its own settings. Losses that the parent had gathered for its next row are dropped: they belong to another model.
    """
    own, theirs = model.state_dict(), state["model"]
    fits = {name: name in theirs and theirs[name].shape == value.shape for name, value in own.items()}
    kept = _kept_state(state["optimizer"], fits, optimizer)
    restored = {
        "model": {name: theirs[name] if fits[name] else value for name, value in own.items()},
        "optimizer": _with_state(optimizer, kept, dict(model.named_parameters())),
        "window": {},
    }
    return state | restored, _report(state, path, own, fits, "their" if kept else "no")


def _kept_state(
    state: dict[str, Any], fits: dict[str, bool], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """State of the parameters that fit, by name; empty where the run had none, or another kind of optimizer's."""
    slots = MOMENTUM if isinstance(optimizer, torch.optim.SGD) else MOMENTS
    entries = {name: state["state"].get(index, {}) for name, index in _places(state).items() if fits.get(name)}
    kept = {name: {slot: entry.get(slot) for slot in slots} for name, entry in entries.items()}
    return {name: entry for name, entry in kept.items() if all(value is not None for value in entry.values())}


def _places(state: dict[str, Any]) -> dict[str, int]:
    """{parameter: its number in an optimizer's state}."""
    return {name: at for group in state["param_groups"] for at, name in zip(group["params"], group["param_names"])}


def _with_state(
    optimizer: torch.optim.Optimizer, kept: dict[str, dict[str, Tensor]], parameters: dict[str, nn.Parameter]
) -> dict[str, Any]:
    """State of an optimizer with the entries `kept`, in the memory layout of the parameters.

    Fused optimizers walk through memory: in another layout they would give each element the momentum of another. Fused
    SGD needs a momentum for all parameters or for none. Adam begins afresh with a parameter that has no entry.
    """
    state = optimizer.state_dict()
    places = _places(state)
    entries = {
        places[name]: {
            slot: torch.empty_like(parameters[name]).copy_(value) if value.dim() else value
            for slot, value in entry.items()
        }
        for name, entry in kept.items()
        if name in places
    }
    if entries and isinstance(optimizer, torch.optim.SGD):
        new = {index: name for name, index in places.items() if index not in entries}
        entries |= {index: {"momentum_buffer": torch.zeros_like(parameters[name])} for index, name in new.items()}
    return state | {"state": {index: entries[index] for index in sorted(entries)}}


def _report(
    state: dict[str, Any], path: Path, own: dict[str, Tensor], fits: dict[str, bool], momentum: str
) -> LoadReport:
    theirs = {name: value for name, value in state["model"].items() if not name.endswith(COUNTER)}
    fits = {name: value for name, value in fits.items() if not name.endswith(COUNTER)}
    loaded = {name: name for name, fit in fits.items() if fit}
    new = tuple(name for name in fits if name not in theirs)
    reshaped = {
        name: (tuple(theirs[name].shape), tuple(own[name].shape))
        for name, fit in fits.items()
        if not fit and name in theirs
    }
    left = tuple(name for name in theirs if name not in own)
    return LoadReport(
        path=str(path),
        hash=file_digest(path),
        layout="headstart",
        scope="branch",
        loaded=loaded,
        missing=new,
        mismatched=reshaped,
        left_out=left,
        notes=(
            f"continues {path} at step {state['step']:,}: {len(loaded)} tensors carried over with {momentum} momentum, "
            f"{len(new)} new, {len(reshaped)} of another shape, {len(left)} left behind",
        ),
        source_input=parse_input_spec(state["recipe"]["input"]),
    )


def _audited(
    model: nn.Module,
    recipe: AnyRecipe,
    start: str,
    report: LoadReport | None,
    initial: dict[str, str],
    classes: Mapping[str, Sequence[Any]],
) -> Audit:
    """The audit of a start without errors; ValueError otherwise."""
    counts = len(classes.get("names", ())), len(classes.get("keypoints", ()))
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
