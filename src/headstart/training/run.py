"""One run: a recipe trained in its own directory, with its recipe, audit, environment, rows and checkpoints."""

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from headstart import hardware
from headstart.files import json_text, locked, remove_unfinished, write_whole
from headstart.ops import memory
from headstart.ops import processes as distributed
from headstart.ops.processes import num_processes
from headstart.recipe.load import Provenance, choices_of
from headstart.recipe.recipe import AnyRecipe, schedule_of, to_dict
from headstart.tasks import make_task
from headstart.tasks.settle import asks_for_masks, mask_choice, settle
from headstart.tasks.task import Task
from headstart.training import loop
from headstart.training.lineage import (
    RunResult,
    Span,
    find_result,
    last_metrics,
    reuse_trunk,
    run_digest,
    trunk_identity,
    weights_digest,
)
from headstart.training.loggers import Logged, open_loggers, refuse_missing
from headstart.training.optimizer import factor_lines
from headstart.training.rows import OnRow, Row
from headstart.training.start import prepare_run
from headstart.training.stored import AUDIT_FILE, ENVIRONMENT_FILE, FORMAT, SEGMENT_FILE, torn_files
from headstart.training.workers import Send, run_processes
from headstart.version import __version__
from headstart.weights import checkpoint
from headstart.weights.audits.record import Audit

PATIENCE = 5.0  # seconds that a run waits for a killed process to leave its directory
TURN = 60.0  # seconds between two answers of a process that waits longer; SILENCE ends a group


def train(
    recipe: AnyRecipe,
    out: str | Path = "runs",
    *,
    span: Span | None = None,
    label: dict[str, Any] | None = None,
    provenance: Provenance | None = None,
    progress: loop.Progress | None = None,
    say: Callable[[str], None] | None = None,
    on_row: OnRow | None = None,
    wait: float = PATIENCE,
) -> RunResult:
    """Train a recipe in its own directory below `out`; a finished run is found again and not repeated.

    The directory's name ends in the digest of everything that can change the result, with the precision that an `auto`
    is on this machine. `label` is written to segment.json, `provenance` above recipe.yaml. Another process that trains
    the same run is waited for, at most `wait` seconds. Checkpoints that cannot be continued from are named through
    `say`, or else in a warning. `on_row` gets a copy of each row (training.rows.Row) as it is written; a finished run
    writes none.
    ValueError for anything a user gave wrong, before the first step; FloatingPointError for a loss or weights that are
    not finite.
    """
    refuse_missing(recipe.train.loggers)
    if recipe.processes > 1 and num_processes() == 1:
        same = {"out": out, "span": span, "label": label, "provenance": provenance, "wait": wait}
        return _train_on_several(recipe, same, {"progress": progress, "say": say, "row": on_row})
    if recipe.processes not in (1, num_processes()):
        raise ValueError(f"processes: {recipe.processes}, but torchrun started {num_processes()}; expected one of them")
    device = distributed.device(recipe.device)
    if device.type == "cpu":
        memory.keep_freed_memory()
    asked = recipe
    if recipe.train.precision == "auto" or asks_for_masks(recipe):
        recipe, provenance = distributed.gather(settle(recipe, provenance))[0]  # the first process decides for all
    task = make_task(recipe)
    if span is None:
        schedule = schedule_of(recipe, task.num_images)
        span = Span(schedule, schedule.total)
    weights = weights_digest(recipe.start.weights)
    directory = Path(out) / f"{recipe.name}-{run_digest(recipe, task.fingerprint, weights, span)}"
    finished = distributed.gather(find_result(directory, span.stop, whole=True))[0]  # another study may just finish it
    if finished is not None:
        return finished
    loop.periods(recipe, task)  # refuses what the loop would, before anything is written
    keep = {
        "recipe": to_dict(recipe),
        "classes": task.classes,
        "span": span.facts(),
        "run": directory.name,
        "fingerprint": task.fingerprint,
        "version": __version__,
    }
    facts = {**(label or {}), "span": keep["span"]}
    if span.is_trunk:
        facts["trunk"] = trunk_identity(recipe, task.fingerprint, weights, span)
    chosen = choices_of(asked) | mask_choice(asked, recipe, provenance or Provenance())
    for field, choice in chosen.items() if say else ():
        say(choice.line(field))
    with distributed.threads(recipe.train.threads), only_process(directory, wait):
        finished = distributed.gather(find_result(directory, span.stop, whole=True))[0]  # by the process waited for
        if finished is not None:
            return finished
        if span.is_trunk:
            if distributed.is_writer() and not checkpoint.steps_saved(directory):
                reuse_trunk(directory, span, facts["trunk"], keep)
            distributed.barrier()
        start, found = prepare_run(task, recipe, span, directory)
        if distributed.is_writer():
            if start.note:
                (say or warnings.warn)(start.note)
            _write_facts(directory, recipe, task, span, device, found, facts, provenance)
        for line in (*task.notes, *factor_lines(task.model, recipe.train)) if say else ():
            say(line)
        if task.overlap and label is None and distributed.is_writer():  # a study reports it itself
            part = f"{len(task.overlap):,} of {task.num_eval_images:,} validation images are training images too"
            (say or warnings.warn)(f"{part} (first: {task.overlap[0]}): their scores say nothing of new images")
        logged = Logged(directory, to_dict(recipe), start.step if start.source == "checkpoint" else None)
        with open_loggers(recipe.train.loggers if distributed.is_writer() else (), logged) as log:

            def heard(row: Row) -> None:
                log(row)
                if on_row is not None:
                    on_row(row)

            final = loop.run(
                task, recipe, span, directory, start, device=device, keep=keep, progress=progress, on_row=heard
            )
        return RunResult(directory, final, last_metrics(directory))


def _train_on_several(
    recipe: AnyRecipe, same: dict[str, Any], listeners: dict[str, Callable[..., None] | None]
) -> RunResult:
    """Train in `recipe.processes` new processes, with the `same` arguments; the first one's messages are passed on.

    Its warnings are repeated here.
    """
    num, num_gpus = recipe.processes, torch.cuda.device_count()
    if hardware.choose_device(recipe.device).value == "cuda" and num > num_gpus:
        raise ValueError(f"processes: {num}, but this machine has {num_gpus} GPUs; expected at most these")

    def hear(kind: str, *content: Any) -> None:
        if kind == "warning":
            warnings.warn(*content, stacklevel=1)
        elif listener := listeners[kind]:
            listener(*content)

    arguments = recipe, same, listeners["say"] is not None
    return run_processes(num, _train_in_process, arguments, hear, silence=distributed.SILENCE)


def _train_in_process(send: Send, recipe: AnyRecipe, same: dict[str, Any], says: bool) -> RunResult:
    """Train as one of several processes, with its share of the threads; only the first sends messages."""
    distributed.start_processes(recipe.device)
    torch.set_num_threads(hardware.choose_threads(recipe.train.threads, recipe.processes).value)
    first = distributed.is_writer()
    if first:
        warnings.showwarning = lambda message, *where: send("warning", str(message))
    result = train(
        recipe,
        **same,
        progress=(lambda step, values: send("progress", step, values)) if first else None,
        say=(lambda line: send("say", line)) if first and says else None,
        on_row=(lambda row: send("row", row)) if first else None,
    )
    distributed.stop_processes()
    return result


@contextmanager
def only_process(directory: Path, wait: float = PATIENCE) -> Iterator[None]:
    """Hold a run directory; waits up to `wait` seconds for another process, then ValueError naming the holder.

    In a group the first process holds it. It answers the others at every TURN: they fail after SILENCE without answer.
    """
    deadline = time.monotonic() + wait
    with ExitStack() as held:
        while True:
            left, refusal = deadline - time.monotonic(), ""
            if distributed.is_writer():
                turn = locked(directory / "lock", taken="this run is being trained", wait=min(max(left, 0.0), TURN))
                try:
                    held.enter_context(turn)
                    remove_unfinished(directory)
                except ValueError as error:
                    refusal = str(error)
            refusal, is_last = distributed.gather((refusal, left <= TURN))[0]
            if not refusal:
                break
            if is_last:
                raise ValueError(refusal)
        yield


def _write_facts(
    directory: Path,
    recipe: AnyRecipe,
    task: Task,
    span: Span,
    device: torch.device,
    found: Audit | None,
    facts: dict[str, Any],
    provenance: Provenance | None,
) -> None:
    """Write recipe, audit, environment, image ids and segment.json, before the first step."""
    origins = "".join(f"# {key}: {origin}\n" for key, origin in provenance.beyond_base().items()) if provenance else ""
    facts |= {
        "num_images": task.num_images,
        "num_val_images": task.num_eval_images,
        "classes": task.classes,
        "fingerprint": task.fingerprint,
    }
    is_start = span.parent is None or span.partial_restore  # of an arm; resumed or not, unlike the audit `found`
    facts |= {"overlap": len(task.overlap)}
    facts |= {"weights_cost": checkpoint.cost_of(recipe.start.weights) if is_start else None}
    write_whole(directory / "recipe.yaml", origins + yaml.safe_dump(to_dict(recipe), sort_keys=False))
    write_whole(directory / "image_ids.txt", "".join(f"{image_id}\n" for image_id in task.image_ids))
    write_whole(directory / ENVIRONMENT_FILE, json_text(environment(device), indent=1))
    write_whole(directory / SEGMENT_FILE, json_text({"format": FORMAT, **facts, "notes": task.notes}, indent=1))
    if found is not None:
        write_whole(directory / AUDIT_FILE, json_text(found.to_json(), indent=1))
    elif directory / AUDIT_FILE in torn_files(directory):
        (directory / AUDIT_FILE).unlink()  # of the start that this run continues, which only the start itself can audit


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions and the device of a run, as written beside it."""
    return {
        "headstart": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "machine": platform.machine(),
        "processor": hardware.processor(),
        "features": " ".join(hardware.features()),
        "device": device.type,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
