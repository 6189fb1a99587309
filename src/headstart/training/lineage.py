"""What a run is: its part of a lineage, its digest, and where a finished one is found again."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headstart.recipe.recipe import AnyRecipe, digest
from headstart.recipe.schedule import Schedule
from headstart.tasks import data_fingerprint
from headstart.training.rows import read_rows
from headstart.weights import checkpoint
from headstart.weights.files import read_weights, tensors_digest


@dataclass(frozen=True)
class Span:
    """Which part of which lineage a run is, when it is a segment of a study.

    It follows `schedule` up to `stop`, continuing the checkpoint `parent` where there is one. A trunk is not judged at
    its end, because its rate has not dropped yet; it keeps its checkpoints at `marks` for schedules planned later. One
    that `carries` has a recipe of its own and takes over what fits of the parent's; any other must fit as a whole.
    """

    schedule: Schedule
    stop: int
    parent: Path | None = None
    is_trunk: bool = False
    carries: bool = False
    marks: tuple[int, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The span as plain data, for checkpoints and segment.json; the parent by its run directory's name and step."""
        return {
            "schedule": {**asdict(self.schedule), "drops": list(self.schedule.drops)},
            "stop": self.stop,
            "parent": load_identity(self.parent) if self.parent else None,
            "is_trunk": self.is_trunk,
            "carries": self.carries,
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any], out: Path) -> "Span":
        """The inverse of `facts`, for run directories below `out`."""
        parent = None
        if facts["parent"] is not None:
            name, step = facts["parent"].rsplit("/", 1)
            parent = checkpoint.path_of(out / name, int(step))
        return cls(Schedule(**facts["schedule"]), facts["stop"], parent, facts["is_trunk"], facts.get("carries", False))


@dataclass(frozen=True)
class RunResult:
    """Where a run lies, its final checkpoint and the metrics of its last evaluation."""

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
    """The digest of a file's tensors, not of the file: a checkpoint also holds the seconds that it took."""
    return None if path is None else tensors_digest(read_weights(path).tensors)


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
    """The metrics of the last evaluation of validation images; empty when there was none."""
    rows = [row for row in read_rows(directory / "rows.jsonl") if row["kind"] == "eval" and row["split"] == "val"]
    return rows[-1]["metrics"] if rows else {}


@dataclass
class Finder:
    """Finds finished runs without building models; each data set and each weights file is read once."""

    data: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str | None] = field(default_factory=dict)

    def find(self, recipe: AnyRecipe, out: str | Path, span: Span) -> RunResult | None:
        """The finished run of a recipe below `out`, or None."""
        return find_result(self.place(recipe, out, span), span.stop)

    def place(self, recipe: AnyRecipe, out: str | Path, span: Span) -> Path:
        """The directory of a run of a recipe below `out`, whether it has begun or not."""
        key = recipe.data.model_dump_json() + recipe.model.model_dump_json()  # a keypoint head takes fewer images
        if key not in self.data:
            self.data[key] = data_fingerprint(recipe)
        path = str(recipe.start.weights)
        if path not in self.weights:
            self.weights[path] = weights_digest(recipe.start.weights)
        name = run_digest(recipe, self.data[key], self.weights[path], span)
        return Path(out) / f"{recipe.name}-{name}"
