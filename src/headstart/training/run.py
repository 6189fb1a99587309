"""One run: a directory with everything it was, did and made."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from headstart import hardware
from headstart.files import json_text, locked, remove_unfinished, write_whole
from headstart.model.build import build, input_spec
from headstart.ops import processes as distributed
from headstart.ops.processes import num_processes
from headstart.recipe.load import Provenance, choices_of, settle
from headstart.recipe.recipe import AnyRecipe, schedule_of, to_dict
from headstart.recipe.schedule import Schedule, duration
from headstart.tasks import make_task
from headstart.tasks.task import Task
from headstart.training import loop, memory
from headstart.training.adopt import adopt, trunk_identity
from headstart.training.launch import Send, run_processes
from headstart.training.lineage import RunResult, Span, find_result, last_metrics, run_digest, weights_digest
from headstart.training.precise_bn import live_norms
from headstart.version import __version__
from headstart.weights import checkpoint
from headstart.weights.audit import Audit, audit, tensor_digests
from headstart.weights.files import read_weights
from headstart.weights.freeze import freeze, set_train_mode
from headstart.weights.load import load_weights
from headstart.weights.partial_restore import partial_restore


def train(
    recipe: AnyRecipe,
    out: str | Path = "runs",
    *,
    span: Span | None = None,
    label: dict[str, Any] | None = None,
    provenance: Provenance | None = None,
    progress: loop.Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> RunResult:
    """Train a recipe in its own directory below `out`; a finished run is found again and not repeated.

    The directory's name ends in the digest of everything that can change the result, with the precision that an `auto`
    is on this machine. `label` is written to segment.json.
    ValueError for anything a user gave wrong, before the first step; FloatingPointError for a loss that is not finite.
    """
    if recipe.processes > 1 and num_processes() == 1:
        return _train_on_several(recipe, out, span, label, provenance, progress, say)
    if recipe.processes not in (1, num_processes()):
        raise ValueError(f"processes: {recipe.processes}, but torchrun started {num_processes()}; expected one of them")
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    device = distributed.device(recipe.device)
    if device.type == "cpu":
        memory.keep_freed_memory()
    asked = recipe
    if recipe.train.precision == "auto":
        recipe, provenance = distributed.gather(settle(recipe, provenance))[0]  # the first process decides for all
    task = make_task(recipe)
    span = span or whole_span(recipe, task)
    weights = weights_digest(recipe.start.weights)
    directory = Path(out) / f"{recipe.name}-{run_digest(recipe, task.fingerprint, weights, span)}"
    finished = find_result(directory, span.stop)
    if finished is not None:
        return finished
    settings = settings_of(recipe, task, is_trunk=span.is_trunk, marks=span.marks)
    label = {**(label or {}), "span": span.facts()}
    if span.is_trunk:
        label["trunk"] = trunk_identity(recipe, task.fingerprint, weights, span)
    for field, choice in choices_of(asked).items() if say else ():
        say(choice.line(field))
    with only_process(directory):
        return _train_here(recipe, task, span, settings, device, directory, label, provenance, progress, say)


def _train_on_several(
    recipe: AnyRecipe,
    out: str | Path,
    span: Span | None,
    label: dict[str, Any] | None,
    provenance: Provenance | None,
    progress: loop.Progress | None,
    say: Callable[[str], None] | None,
) -> RunResult:
    """Train in `recipe.processes` new processes; what the first of them reports is reported here."""
    num_gpus = torch.cuda.device_count()
    if hardware.choose_device(recipe.device).value == "cuda" and recipe.processes > num_gpus:
        raise ValueError(f"processes: {recipe.processes}, but this machine has {num_gpus} GPUs; expected at most these")

    def hear(kind: str, *content: Any) -> None:
        listener = {"progress": progress, "say": say}[kind]
        if listener:
            listener(*content)

    return run_processes(recipe.processes, _train_in_process, (recipe, out, span, label, provenance), hear)


def _train_in_process(
    send: Send,
    recipe: AnyRecipe,
    out: str | Path,
    span: Span | None,
    label: dict[str, Any] | None,
    provenance: Provenance | None,
) -> RunResult:
    """One of several processes: its share of the machine's threads, and words from the first process only."""
    distributed.start_processes(recipe.device)
    torch.set_num_threads(hardware.choose_threads(recipe.train.threads, recipe.processes).value)
    first = distributed.is_writer()
    progress = (lambda step, values: send("progress", step, values)) if first else None
    say = (lambda line: send("say", line)) if first else None
    result = train(recipe, out, span=span, label=label, provenance=provenance, progress=progress, say=say)
    distributed.stop_processes()
    return result


def _train_here(
    recipe: AnyRecipe,
    task: Task,
    span: Span,
    settings: loop.Settings,
    device: torch.device,
    directory: Path,
    label: dict[str, Any],
    provenance: Provenance | None,
    progress: loop.Progress | None,
    say: Callable[[str], None] | None,
) -> RunResult:
    keep = {
        "recipe": to_dict(recipe),
        "classes": task.classes,
        "span": span.facts(),
        "fingerprint": task.fingerprint,
        "version": __version__,
    }
    if span.is_trunk:
        if distributed.is_writer() and not checkpoint.steps_saved(directory):
            adopt(directory, span, label["trunk"], keep)
        distributed.barrier()
    start = checkpoint.start_point(directory, branch=span.parent, weights=recipe.start.weights)
    found = None
    if span.parent is None:
        found = prepare_start(task, recipe)
    elif span.carries and start.source == "branch":
        start, found = prepare_branch(task, recipe, span.schedule, start)
    else:
        freeze(task.model, recipe.start.freeze)
    if distributed.is_writer():
        _write_facts(directory, recipe, task, device, found, label, provenance)
    if say:
        for line in task.notes:
            say(line)
    final = loop.run(
        task, span.schedule, settings, directory, start, device=device, stop=span.stop, keep=keep, progress=progress
    )
    return RunResult(directory, final, last_metrics(directory))


@contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Hold a run directory; waits a moment for a killed process's workers to leave, then says who has the run."""
    if not distributed.is_writer():
        yield
        return
    with locked(directory / "lock", taken="this run is being trained", wait=5.0):
        remove_unfinished(directory)
        yield


def whole_span(recipe: AnyRecipe, task: Task) -> Span:
    """The recipe's own schedule, from its start to its end."""
    schedule = schedule_of(recipe, task.num_images)
    return Span(schedule, schedule.total)


def _built_with_another_seed(task: Task, recipe: AnyRecipe) -> dict[str, str]:
    """Digests of the task's model as another seed initialises it."""
    num_classes, num_keypoints = (len(task.classes.get(name, ())) for name in ("names", "keypoints"))
    return tensor_digests(build(recipe.model_copy(update={"seed": recipe.seed + 1}), num_classes, num_keypoints))


def prepare_start(task: Task, recipe: AnyRecipe) -> Audit:
    """Load weights, freeze, and audit the start; ValueError with the audit's errors, one a line."""
    start = recipe.start
    initial = tensor_digests(task.model)
    report = None
    if start.kind != "random":
        report = load_weights(task.model, read_weights(start.weights), scope=start.kind, input=input_spec(recipe))
    freeze(task.model, start.freeze)
    set_train_mode(task.model, start.freeze)
    found = audit(
        task.model,
        start=start.kind,
        freeze=start.freeze,
        input=input_spec(recipe),
        report=report,
        initial=initial,
        other_seed=_built_with_another_seed(task, recipe),
    )
    found.check()
    return found


def prepare_branch(
    task: Task, recipe: AnyRecipe, schedule: Schedule, start: checkpoint.StartPoint
) -> tuple[checkpoint.StartPoint, Audit]:
    """The start of a branch with a model of its own, and its audit; ValueError with the audit's errors, one a line."""
    initial = tensor_digests(task.model)
    freeze(task.model, recipe.start.freeze)
    set_train_mode(task.model, recipe.start.freeze)
    optimizer = loop.make_optimizer(task.model, schedule, settings_of(recipe, task))
    state, report = partial_restore(start.state, start.path, task.model, optimizer)
    task.model.load_state_dict(state["model"])
    found = audit(
        task.model,
        start="branch",
        freeze=recipe.start.freeze,
        input=input_spec(recipe),
        report=report,
        initial=initial,
        other_seed=_built_with_another_seed(task, recipe),
    )
    found.check()
    return replace(start, state=state), found


def settings_of(recipe: AnyRecipe, task: Task, *, is_trunk: bool = False, marks: tuple[int, ...] = ()) -> loop.Settings:
    """The loop's plain values of a recipe."""
    if recipe.evaluate.precise_bn and not live_norms(task.model, recipe.start.freeze):
        raise ValueError(
            f"evaluate.precise_bn: {recipe.evaluate.precise_bn}, but start.freeze {recipe.start.freeze!r} leaves no "
            "BatchNorm whose statistics follow the batches; expected 0"
        )
    part, options = recipe.train, {"batch": recipe.train.batch, "num_images": task.num_images}
    return loop.Settings(
        batch=part.batch,
        momentum=part.momentum,
        weight_decay=part.weight_decay,
        norm_weight_decay=part.norm_weight_decay,
        clip_norm=part.clip_norm,
        bf16=part.bf16,
        compile=part.compile,
        log_every=part.log_every,
        eval_every=duration(recipe.evaluate.every, field="evaluate.every", **options),
        save_every=duration(recipe.checkpoint.every, field="checkpoint.every", **options),
        freeze=recipe.start.freeze,
        precise_bn=recipe.evaluate.precise_bn,
        is_trunk=is_trunk,
        marks=marks,
    )


def _write_facts(
    directory: Path,
    recipe: AnyRecipe,
    task: Task,
    device: torch.device,
    found: Audit | None,
    label: dict[str, Any],
    provenance: Provenance | None,
) -> None:
    """Recipe, audit, environment, image ids and segment label, before the first step."""
    origins = "".join(
        f"# {key}: {origin}\n"
        for key, origin in (provenance or {}).items()
        if origin not in ("base.yaml", "base_classify.yaml")
    )
    segment = {
        **label,
        "num_images": task.num_images,
        "classes": task.classes,
        "fingerprint": task.fingerprint,
        "notes": task.notes,
    }
    write_whole(directory / "recipe.yaml", origins + yaml.safe_dump(to_dict(recipe), sort_keys=False))
    write_whole(directory / "image_ids.txt", "".join(f"{image_id}\n" for image_id in task.image_ids))
    write_whole(directory / "environment.json", json_text(environment(device), indent=1))
    write_whole(directory / "segment.json", json_text(segment, indent=1))
    if found is not None:
        write_whole(directory / "audit.json", json_text(found.to_json(), indent=1))


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions and the device of a run, as written beside it."""
    import torchvision

    return {
        "headstart": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
        "processor": hardware.processor(),
        "features": " ".join(hardware.features()),
        "device": device.type,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
