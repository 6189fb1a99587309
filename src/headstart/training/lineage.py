"""Lineages of runs: span and digest of a run, the search for finished runs, and the reuse of trunks.

A trunk keeps checkpoints where schedules of a whole number of base lengths would leave it (`Span.marks`). A study
planned again with another schedule continues from the last of them before its own cut.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headstart.recipe.recipe import AnyRecipe, digest, fraction_seed
from headstart.recipe.schedule import Schedule
from headstart.tasks import data_fingerprint
from headstart.training.rows import Row, Rows, end_row, evaluations, missing_rows, read_rows, work_rows
from headstart.training.stored import SEGMENT_FILE, RunFacts, torn_files
from headstart.typed_json import read_json
from headstart.weights import checkpoint
from headstart.weights.files import DamagedError, tensors_digest
from headstart.weights.input import input_text
from headstart.weights.load import open_weights


@dataclass(frozen=True)
class Span:
    """The part of a lineage that a run is, when it is a segment of a study.

    It follows `schedule` up to `stop`, continuing the checkpoint `parent` if there is one. A trunk is not evaluated at
    its end, because its learning rate has not dropped yet; it keeps its checkpoints at `marks` for schedules planned
    later. With `partial_restore` it has a recipe of its own and restores what fits of the parent; otherwise all must
    fit.
    """

    schedule: Schedule
    stop: int
    parent: Path | None = None
    is_trunk: bool = False
    partial_restore: bool = False
    marks: tuple[int, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The span as plain data, for checkpoints and segment.json; the parent by its run directory's name and step."""
        return {
            "schedule": {**asdict(self.schedule), "drops": list(self.schedule.drops)},
            "stop": self.stop,
            "parent": load_identity(self.parent) if self.parent else None,
            "is_trunk": self.is_trunk,
            "carries": self.partial_restore,  # the key of files written so far
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any], out: Path) -> "Span":
        """The inverse of `facts`, for run directories below `out`."""
        parent = None
        if facts["parent"] is not None:
            name, step = facts["parent"].rsplit("/", 1)
            parent = checkpoint.path_of(out / name, int(step))
        partial = facts.get("carries", False)
        return cls(Schedule(**facts["schedule"]), facts["stop"], parent, facts["is_trunk"], partial)


@dataclass(frozen=True)
class RunResult:
    """The directory of a run, its final checkpoint, and the metrics of its last evaluation."""

    directory: Path
    checkpoint: Path
    metrics: dict[str, dict[str, float]]


def run_digest(recipe: AnyRecipe, fingerprint: str, weights: str | None, span: Span) -> str:
    """The digest of a run: recipe, data, weights (see `weights_digest`), schedule, and the lineage it continues.

    Paths are not part of it.
    """
    schedule = json.dumps([asdict(span.schedule), span.stop, span.is_trunk], sort_keys=True)
    return digest(recipe, fingerprint, str(weights), schedule, load_identity(span.parent) if span.parent else "")


def weights_digest(path: str | Path | None) -> str | None:
    """The digest of a file's tensors, not of the file: a checkpoint also holds the seconds that it took.

    The input that a converted file states is added, because the first convolution is adapted to it. DamagedError for a
    checkpoint whose run ended with other weights.
    """
    if path is None:
        return None
    file = open_weights(path)
    check_end(Path(path), file.tensors)
    stated = "" if file.input is None or file.recipe else input_text(file.input)
    return tensors_digest(file.tensors) + stated


def load_identity(path: Path) -> str:
    """The identity of a checkpoint in digests: its run directory's name and its step."""
    return f"{path.parent.parent.name}/{path.stem}"


def find_result(directory: Path, stop: int, *, whole: bool = False) -> RunResult | None:
    """The result of a finished run in this directory, or None; None also where a file beside its rows is torn.

    With `whole` the final checkpoint is read, and compared with its digest and with the hash in the end row.
    """
    final = checkpoint.path_of(directory, stop)
    if end_row(read_rows(directory / "rows.jsonl")) is None or not checkpoint.is_there(final) or torn_files(directory):
        return None
    try:
        if whole:
            load_checked(final)
    except DamagedError:
        return None
    return RunResult(directory, final, last_metrics(directory))


def fault_of(directory: Path, stop: int) -> str:
    """The reason why a run that reached its end is not whole, with the file; "" for a whole or unfinished one."""
    if end_row(read_rows(directory / "rows.jsonl"), stop) is None:
        return ""
    for fault in torn_files(directory).values():
        return fault
    try:
        load_checked(checkpoint.path_of(directory, stop))
    except ValueError as error:
        return str(error)
    return ""


def load_checked(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; DamagedError where its run's end row names other weights."""
    state = checkpoint.load(path)
    check_end(path, state["model"])
    return state


def check_end(path: Path, weights: dict[str, Any]) -> None:
    """DamagedError where the end row of a checkpoint's run has another hash than these weights of it.

    A checkpoint that no end row names, and weights outside a run directory, are not checked.
    """
    path = path.absolute()
    run = path.parent.parent
    end = end_row(read_rows(run / "rows.jsonl")) if path.parent.name == "checkpoints" else None
    if end is None or path != run / end.get("checkpoint", ""):
        return
    if tensors_digest(weights) != end.get("hash"):
        raise DamagedError(f"{path}: its weights are not those that its run ended with (the hash in rows.jsonl)")


def last_metrics(directory: Path) -> dict[str, dict[str, float]]:
    """The metrics of the last evaluation of validation images; empty when there was none."""
    rows = evaluations(read_rows(directory / "rows.jsonl"))
    return rows[-1]["metrics"] if rows else {}


@dataclass
class Finder:
    """Finds finished runs without building models; each data set and each weights file is read once."""

    data: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str | None] = field(default_factory=dict)

    def place(self, recipe: AnyRecipe, out: str | Path, span: Span) -> Path:
        """The directory of a run of a recipe below `out`, whether it has begun or not."""
        # A keypoint head takes fewer images; the seed may draw the fraction, and a transform change the images.
        parts = (recipe.data.model_dump_json(), recipe.model.model_dump_json(), fraction_seed(recipe))
        key = " ".join(map(str, (*parts, getattr(recipe.input, "transform", None))))
        if key not in self.data:
            self.data[key] = data_fingerprint(recipe)
        path = str(recipe.start.weights)
        if path not in self.weights:
            self.weights[path] = weights_digest(recipe.start.weights)
        name = run_digest(recipe, self.data[key], self.weights[path], span)
        return Path(out) / f"{recipe.name}-{name}"


def trunk_identity(recipe: AnyRecipe, fingerprint: str, weights: str | None, span: Span) -> list[str]:
    """The recipe, data, weights and learning rate that parts of one trunk share, and what the first part continues.

    The second entry, of what it continues, is "" for a lineage that begins at step 0.
    """
    rate = json.dumps([span.schedule.base_rate, span.schedule.warmup, span.schedule.warmup_from])
    own = digest(recipe, fingerprint, str(weights), rate)
    if span.parent is None:
        return [own, ""]
    file = span.parent.parent.parent / SEGMENT_FILE
    before = read_json(file, RunFacts).trunk if file.exists() else None
    return [own, before[1] if before and before[0] == own else load_identity(span.parent)]


def reuse_trunk(directory: Path, span: Span, identity: list[str], keep: dict[str, Any]) -> None:
    """Give a trunk that has not begun the furthest checkpoint in its span that another run of its lineage kept.

    The rows up to that step are copied too. The run then continues as after a kill, and ends the same bit for bit.
    `keep` replaces the checkpoint's description of its run.
    """
    begin = int(span.parent.stem) if span.parent else 0
    for step, source_run in _source_runs(directory, identity, begin, span.stop):
        rows = _rows(source_run, begin, step)
        if rows is None:
            continue
        try:
            state = load_checked(checkpoint.path_of(source_run, step))
        except ValueError:  # damaged: take the one before it
            continue
        if missing_rows(read_rows(source_run / "rows.jsonl"), state):
            continue
        source = Path(os.path.relpath(checkpoint.path_of(source_run, step), directory)).as_posix()
        file = Rows(directory, after_step=None)
        for row in (Row(kind="start", step=begin, source="trunk", path=source, stop=span.stop), *rows):
            file.write(row)
        file.close()
        checkpoint.save(checkpoint.path_of(directory, step), state | keep | {"rows": file.steps})
        return


def _source_runs(directory: Path, identity: list[str], begin: int, stop: int) -> list[tuple[int, Path]]:
    """(step, run directory) of all kept checkpoints of the lineage in begin+1..stop, the furthest first."""
    found = []
    for other in sorted(directory.parent.iterdir()):
        facts = None if other == directory else _facts(other)
        if facts and facts.trunk == tuple(identity):
            found += [(step, other) for step in checkpoint.steps_saved(other) if begin < step <= stop]
    return sorted(found, key=lambda pair: -pair[0])


def _rows(run: Path, begin: int, step: int) -> list[Row] | None:
    """Train and eval rows of the steps begin+1..step, collected along a run's parents; None where some are gone."""
    rows: list[Row] = []
    while True:
        facts = _facts(run)
        if facts is None or facts.span is None:
            return None
        rows = work_rows(read_rows(run / "rows.jsonl"), begin, step) + rows
        parent = facts.span.parent
        if parent is None or int(parent.rsplit("/", 1)[1]) <= begin:
            return rows
        run = run.parent / parent.rsplit("/", 1)[0]


def _facts(directory: Path) -> RunFacts | None:
    """The facts of a run; None where absent or torn: torn ones are reported by the study that the run belongs to."""
    try:
        return read_json(directory / SEGMENT_FILE, RunFacts)
    except ValueError:
        return None
