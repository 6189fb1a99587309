"""One run: a directory with everything it was, did and made."""

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import headstart
from headstart.model.audit import Audit, audit, fingerprint
from headstart.model.freeze import freeze, set_train_mode
from headstart.model.input_spec import InputSpec
from headstart.model.weight_files import read_weights
from headstart.model.weights import load_weights
from headstart.recipe import AnyRecipe, Recipe, digest, schedule_of, to_dict
from headstart.resolve import Provenance
from headstart.schedule import Schedule, duration
from headstart.train import checkpoint, distributed, loop
from headstart.train.classification import classification_task, training_folders
from headstart.train.detection import detection_task, training_data
from headstart.train.record import read_rows
from headstart.train.task import Task


@dataclass(frozen=True)
class Span:
    """Which part of which lineage a run is, when it is a segment of a study.

    It follows `schedule` up to `stop`, continuing the checkpoint `parent` where there is one. A trunk is not judged at
    its end, because its rate has not dropped yet.
    """

    schedule: Schedule
    stop: int
    parent: Path | None = None
    is_trunk: bool = False

    def facts(self) -> dict[str, Any]:
        """The span as plain data, for checkpoints and segment.json; the parent by its run directory's name and step."""
        return {
            "schedule": {**asdict(self.schedule), "drops": list(self.schedule.drops)},
            "stop": self.stop,
            "parent": load_identity(self.parent) if self.parent else None,
            "is_trunk": self.is_trunk,
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any], out: Path) -> "Span":
        """The inverse of `facts`, for run directories below `out`."""
        parent = None
        if facts["parent"] is not None:
            name, step = facts["parent"].rsplit("/", 1)
            parent = checkpoint.path_of(out / name, int(step))
        return cls(Schedule(**facts["schedule"]), facts["stop"], parent, facts["is_trunk"])


@dataclass(frozen=True)
class RunResult:
    """Where a run lies, its final checkpoint and the metrics of its last evaluation."""

    directory: Path
    checkpoint: Path
    metrics: dict[str, dict[str, float]]


def make_task(recipe: AnyRecipe) -> Task:
    """The task of a recipe of either kind."""
    return detection_task(recipe) if isinstance(recipe, Recipe) else classification_task(recipe)


def num_training_images(recipe: AnyRecipe) -> int:
    """Images that a recipe trains on, without building its model."""
    return (training_data(recipe) if isinstance(recipe, Recipe) else training_folders(recipe)).num_images


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

    The directory's name ends in the digest of everything that can change the result. `label` is written to
    segment.json.
    ValueError for anything a user gave wrong, before the first step; FloatingPointError for a loss that is not finite.
    """
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    task = make_task(recipe)
    span = span or whole_span(recipe, task)
    directory = Path(out) / f"{recipe.name}-{run_digest(recipe, task, span)}"
    finished = find_result(directory, span.stop)
    if finished is not None:
        return finished
    settings = settings_of(recipe, task, is_trunk=span.is_trunk)
    with only_process(directory):
        return _train_here(recipe, task, span, settings, directory, label or {}, provenance, progress, say)


def _train_here(
    recipe: AnyRecipe,
    task: Task,
    span: Span,
    settings: loop.Settings,
    directory: Path,
    label: dict[str, Any],
    provenance: Provenance | None,
    progress: loop.Progress | None,
    say: Callable[[str], None] | None,
) -> RunResult:
    found = None if span.parent else prepare_start(task, recipe)
    if span.parent:
        freeze(task.model, recipe.start.freeze)
    if distributed.is_writer():
        _write_facts(directory, recipe, task, found, {**label, "span": span.facts()}, provenance)
    if say:
        for line in task.notes:
            say(line)
    start = checkpoint.start_point(directory, branch=span.parent, weights=recipe.start.weights)
    keep = {
        "recipe": to_dict(recipe),
        "classes": task.classes,
        "span": span.facts(),
        "fingerprint": task.fingerprint,
        "version": headstart.__version__,
    }
    final = loop.run(task, span.schedule, settings, directory, start, stop=span.stop, keep=keep, progress=progress)
    return RunResult(directory, final, last_metrics(directory))


@contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Hold a run directory; waits a moment for a killed process's workers to leave, then says that the run is taken."""
    if not distributed.is_writer():
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as file:
        for attempt in range(20):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 19:
                    raise ValueError(f"{directory}: another process is training this run") from None
                time.sleep(0.25)
        yield


def whole_span(recipe: AnyRecipe, task: Task) -> Span:
    """The recipe's own schedule, from its start to its end."""
    schedule = schedule_of(recipe, task.num_images)
    return Span(schedule, schedule.total)


def run_digest(recipe: AnyRecipe, task: Task, span: Span) -> str:
    """The digest of a run: recipe, data, weights, schedule, and the lineage that it continues.

    Paths are not part of it.
    """
    weights = recipe.start.weights
    # Of the tensors, not of the file: a checkpoint also holds the seconds that it took.
    content = None if weights is None else loop.tensors_digest(read_weights(weights).tensors)
    schedule = json.dumps([asdict(span.schedule), span.stop, span.is_trunk], sort_keys=True)
    return digest(recipe, task.fingerprint, str(content), schedule, load_identity(span.parent) if span.parent else "")


def load_identity(path: Path) -> str:
    """What a checkpoint is, for digests: its run directory's name and its step."""
    return f"{path.parent.parent.name}/{path.stem}"


def find_result(directory: Path, stop: int) -> RunResult | None:
    """The result of a finished run in this directory, or None."""
    final = checkpoint.path_of(directory, stop)
    if not final.exists() or not any(row["kind"] == "end" for row in read_rows(directory / "rows.jsonl")):
        return None
    return RunResult(directory, final, last_metrics(directory))


def last_metrics(directory: Path) -> dict[str, dict[str, float]]:
    """The metrics of the last evaluation row; empty when there was none."""
    rows = [row for row in read_rows(directory / "rows.jsonl") if row["kind"] == "eval"]
    return rows[-1]["metrics"] if rows else {}


def prepare_start(task: Task, recipe: AnyRecipe) -> Audit:
    """Load weights, freeze, and audit the start; ValueError with the audit's errors, one a line."""
    start = recipe.start
    initial = fingerprint(task.model)
    report = None
    if start.kind != "random":
        report = load_weights(task.model, read_weights(start.weights), scope=start.kind, input=input_spec(recipe))
    freeze(task.model, start.freeze)
    set_train_mode(task.model, start.freeze)
    found = audit(
        task.model, start=start.kind, freeze=start.freeze, input=input_spec(recipe), report=report, initial=initial
    )
    found.check()
    return found


def input_spec(recipe: AnyRecipe) -> InputSpec:
    """How a recipe normalises its images."""
    return InputSpec(recipe.input.mean, recipe.input.std, recipe.input.order)


def settings_of(recipe: AnyRecipe, task: Task, *, is_trunk: bool = False) -> loop.Settings:
    """The loop's plain values of a recipe."""
    part, options = recipe.train, {"batch": recipe.train.batch, "num_images": task.num_images}
    return loop.Settings(
        batch=part.batch,
        momentum=part.momentum,
        weight_decay=part.weight_decay,
        norm_weight_decay=part.norm_weight_decay,
        clip_norm=part.clip_norm,
        bf16=part.precision == "bf16",
        compile=part.compile,
        log_every=part.log_every,
        eval_every=duration(recipe.evaluate.every, field="evaluate.every", **options),
        save_every=duration(recipe.checkpoint.every, field="checkpoint.every", **options),
        freeze=recipe.start.freeze,
        is_trunk=is_trunk,
    )


def _write_facts(
    directory: Path,
    recipe: AnyRecipe,
    task: Task,
    found: Audit | None,
    label: dict[str, Any],
    provenance: Provenance | None,
) -> None:
    """Recipe, audit, environment, image ids and segment label, before the first step."""
    directory.mkdir(parents=True, exist_ok=True)
    origins = "".join(
        f"# {key}: {origin}\n"
        for key, origin in (provenance or {}).items()
        if origin not in ("base.yaml", "base_classify.yaml")
    )
    (directory / "recipe.yaml").write_text(origins + yaml.safe_dump(to_dict(recipe), sort_keys=False))
    (directory / "image_ids.txt").write_text("".join(f"{image_id}\n" for image_id in task.image_ids))
    (directory / "environment.json").write_text(json.dumps(environment(), indent=1))
    (directory / "segment.json").write_text(
        json.dumps(
            {
                **label,
                "num_images": task.num_images,
                "classes": task.classes,
                "fingerprint": task.fingerprint,
                "notes": task.notes,
            },
            indent=1,
        )
    )
    if found is not None:
        (directory / "audit.json").write_text(json.dumps(found.to_json(), indent=1))


def environment() -> dict[str, Any]:
    """Machine and versions, as written beside a run."""
    import torchvision

    return {
        "headstart": headstart.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
