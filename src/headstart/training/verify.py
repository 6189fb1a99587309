"""Repeat the last part of a run, and compare rows and weights bit for bit."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headstart.ops import processes as distributed
from headstart.recipe.load import stored_recipe
from headstart.recipe.recipe import AnyRecipe
from headstart.tasks import make_task
from headstart.tasks.task import Task
from headstart.training import loop
from headstart.training.lineage import Span, load_checked
from headstart.training.rows import Row, read_rows, work_rows
from headstart.training.start import prepare_branch, prepare_start
from headstart.training.stored import AUDIT_FILE, ENVIRONMENT_FILE, Environment
from headstart.typed_json import read_json
from headstart.weights import checkpoint
from headstart.weights.audits.record import Audit
from headstart.weights.files import bits
from headstart.weights.freeze import freeze


@dataclass(frozen=True)
class Verification:
    """A repeated part of a run: steps start..stop, numbers of compared rows and tensors, and all differences."""

    directory: Path
    start: int
    stop: int
    num_rows: int
    num_tensors: int
    differences: tuple[str, ...]

    def line(self) -> str:
        """The outcome in one line."""
        what = f"{self.directory}: steps {self.start} to {self.stop} run again"
        if self.differences:
            more = f" (and {len(self.differences) - 1} more)" if len(self.differences) > 1 else ""
            return f"{what}: NOT the same: {self.differences[0]}{more}"
        return f"{what}: {self.num_rows} rows and {self.num_tensors} tensors are equal bit for bit"


def verify(run: str | Path, device: str | None = None) -> Verification:
    """Run from a run's second-newest checkpoint to its newest again, in a temporary folder, and compare.

    With one checkpoint only, the stretch begins where the run began: at its parent's end, its weights, or at random.
    Rows are compared apart from seconds; weights, optimizer state and counters bit for bit.
    It runs on the kind of device that the run was on, or on `device` (auto, cpu, cuda, mps).
    ValueError for a run without checkpoints, for data or weights of its start that have changed since, and for a device
    that is not there.
    """
    directory = checkpoint.followed(run)
    steps = checkpoint.steps_saved(directory)
    if not steps:
        raise ValueError(f"{directory}: holds no checkpoints, expected a run directory")
    stop, newest = steps[-1], checkpoint.path_of(directory, steps[-1])
    kept = checkpoint.load(newest)
    if "span" not in kept:
        raise ValueError(f"{newest}: does not say which schedule it followed")
    recipe, span = stored_recipe(kept["recipe"], str(newest)), Span.from_facts(kept["span"], directory.parent)
    environment = _environment(directory)
    # Sums on a CPU depend on how many threads share them: use as many as the run did.
    threads, used = (environment.threads, environment.device) if environment else (None, None)
    own = distributed.device(device or used or recipe.device)
    task = make_task(recipe)
    if task.fingerprint != kept["fingerprint"]:
        raise ValueError(
            f"{directory}: the data of its recipe has changed since, expected {recipe.data.train} as it was"
        )
    start = _stretch_start(directory, steps, span, recipe, task)
    # An unfinished run is not evaluated at its last checkpoint, nor is a trunk.
    part = replace(span, stop=stop, is_trunk=span.is_trunk or stop < span.stop)
    with tempfile.TemporaryDirectory() as folder:
        out, keep = Path(folder), {"recipe": {}}
        with distributed.threads(recipe.train.threads or threads):
            again = loop.run(task, recipe, part, out, start, device=own, keep=keep)
        new_rows, new = read_rows(out / "rows.jsonl"), checkpoint.load(again)
    old_rows = _compared(read_rows(directory / "rows.jsonl"), start.step, stop)
    new_rows = _compared(new_rows, start.step, stop)
    old, new = (_state(content) for content in (kept, new))
    differences = [f"{a['kind']} row of step {a['step']}" for a, b in zip(old_rows, new_rows) if a != b]
    differences += [f"{len(old_rows)} rows are now {len(new_rows)}"] if len(old_rows) != len(new_rows) else []
    differences += state_differences(old, new)
    return Verification(directory, start.step, stop, len(old_rows), _num_tensors(old), tuple(differences))


def _state(content: dict[str, Any]) -> dict[str, Any]:
    """The compared parts of a checkpoint; the averaged weights where it has any."""
    averaged = {"average": content["average"]["weights"]} if "average" in content else {}
    return {key: content[key] for key in ("model", "optimizer", "counters", "window")} | averaged


def _environment(directory: Path) -> Environment | None:
    """Environment that a run wrote; ValueError for a run of several processes, on whose number sums depend."""
    path = directory / ENVIRONMENT_FILE
    environment = read_json(path, Environment) if path.exists() else None
    if environment and environment.processes != 1:
        raise ValueError(
            f"{directory}: was trained by {environment.processes} processes, whose sums one process does not repeat "
            "bit for bit; expected a run of one process"
        )
    return environment


def _stretch_start(
    directory: Path, steps: list[int], span: Span, recipe: AnyRecipe, task: Task
) -> checkpoint.StartPoint:
    path = checkpoint.path_of(directory, steps[-2]) if len(steps) > 1 else span.parent
    if path is None:
        found, audit = prepare_start(task.model, recipe, task.classes), directory / AUDIT_FILE
        if audit.exists() and (known := read_json(audit, Audit)).hash != found.hash:
            raise ValueError(
                f"{directory}: start.weights = {recipe.start.weights} has changed since: its sha256 is "
                f"{str(found.hash)[:12]}, expected {str(known.hash)[:12]} as {AUDIT_FILE} has it"
            )
        return checkpoint.StartPoint("weights" if recipe.start.weights else "random", None, 0, None)
    state = load_checked(path)
    start = checkpoint.StartPoint("checkpoint", path, state["step"], state)
    if span.partial_restore and path == span.parent:
        return prepare_branch(task, recipe, span.schedule, start)[0]
    freeze(task.model, recipe.start.freeze)
    return start


def _compared(rows: list[Row], start: int, stop: int) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in work_rows(rows, start, stop)]


def state_differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Dotted names of the values in which two checkpoints' contents differ in any bit."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in state_differences(old.get(key), new.get(key), f"{name}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for at, (a, b) in enumerate(zip(old, new)) for line in state_differences(a, b, f"{name}.{at}")]
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        same = old.dtype == new.dtype and old.shape == new.shape and bits(old) == bits(new)
    else:
        same = type(old) is type(new) and old == new
    return [] if same else [name.removeprefix(".")]


def _num_tensors(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, torch.Tensor) + sum(_num_tensors(part) for part in parts)
