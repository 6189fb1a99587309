"""Learning curves as series: what every segment measured along its way, all seeds beside each other.

A trunk is one stretch, every tail another that begins with the last point of what it continues, so that all schedules
of an arm can be drawn over each other without drawing their common part twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from headstart.study.folder import NAN, TRAIN, Run, StudyFolder, metric_of
from headstart.training.rows import training_rows

AXES = ("steps", "images", "pixels", "seconds")
# In the order offered to a reader; recalls are in the CSV only.
CURVE_METRICS = tuple(
    f"{kind}.{name}"
    for kind in ("box", "mask", "keypoints", "class", "semantic")
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "top1", "mIoU", "accuracy")
) + ("voc.AP", "voc.AP07")
MOST_LOSS_POINTS = 150  # a segment: what fits on a screen, whatever a study logs


@dataclass(frozen=True, eq=False)
class Stretch:
    """One segment of an arm at a fraction, over S seeds and P points that all begun seeds have.

    schedule is None for a trunk. x holds [P] by axis, the mean over seeds; y holds [S][P] by metric (nan: undefined).
    """

    arm: str
    fraction: float
    schedule: str | None
    start: int
    stop: int
    seeds: tuple[int, ...]
    x: dict[str, list[float]]
    y: dict[str, list[list[float]]]

    def mean(self, metric: str) -> list[float]:
        """Mean over seeds at each point, [P]."""
        return [sum(column) / len(column) for column in zip(*self.y[metric])]


def metrics_of(folder: StudyFolder) -> tuple[str, ...]:
    """Metrics that any finished or running segment of a cell has measured, in the order in which to offer them."""
    seen = {
        f"{kind}.{name}"
        for run in folder.runs.values()
        if run.segment.kind != "pretrain"
        for row in run.evaluations[-1:]
        for kind, values in row["metrics"].items()
        for name, value in values.items()
        if value is not None
    }
    return tuple(metric for metric in CURVE_METRICS if metric in seen)


def train_metrics_of(folder: StudyFolder) -> tuple[str, ...]:
    """ "train:METRIC" for the metrics that training images were judged by; none where no recipe asked for it."""
    judged = any(run.train_evaluations for run in folder.runs.values() if run.segment.kind != "pretrain")
    return tuple(f"{TRAIN}:{metric}" for metric in metrics_of(folder)) if judged else ()


def evaluation_stretches(folder: StudyFolder) -> list[Stretch]:
    """All evaluations of all cells; "train:METRIC" beside the metrics where training images were judged too."""
    values: dict[str, Callable[[dict[str, Any]], float]] = {}
    for name in metrics_of(folder):
        values[name] = lambda row, name=name: metric_of(row, name)
    for name in train_metrics_of(folder):
        plain = name.removeprefix(f"{TRAIN}:")
        values[name] = lambda row, plain=plain: metric_of(row[TRAIN], plain)
    return _stretches(folder, _judged, values)


def _judged(run: Run) -> list[dict[str, Any]]:
    seen = {row["step"]: row for row in run.train_evaluations}
    return [row | {TRAIN: seen.get(row["step"], {})} for row in run.evaluations]


def loss_stretches(folder: StudyFolder) -> list[Stretch]:
    """The training loss of all cells, thinned to what a screen can show."""

    def rows(run: Run) -> list[dict[str, Any]]:
        logged = training_rows(run.rows)
        return logged[:: max(1, len(logged) // MOST_LOSS_POINTS)]

    return _stretches(folder, rows, {"loss": lambda row: NAN if row.get("loss") is None else row["loss"]})


def position(row: dict[str, Any], axis: str) -> float:
    """Where a row lies on an axis; seconds are those of training, evaluation left out."""
    if axis == "seconds":
        seconds = row.get("seconds", {})
        return float(seconds.get("train", NAN)) + float(seconds.get("other", 0))
    return float(row["step"] if axis == "steps" else row.get(axis, NAN))


def _stretches(
    folder: StudyFolder,
    rows: Callable[[Run], Iterable[dict[str, Any]]],
    values: dict[str, Callable[[dict[str, Any]], float]],
) -> list[Stretch]:
    groups: dict[tuple, list[Run]] = {}
    for run in folder.runs.values():
        s = run.segment
        if s.kind != "pretrain" and run.rows:
            groups.setdefault((s.arm, s.fraction, s.schedule, s.start, s.stop), []).append(run)
    made = []
    for (arm, fraction, schedule, start, stop), runs in groups.items():
        tables = [_with_parent(folder, run, rows) for run in runs]
        steps = sorted(set.intersection(*(set(table) for table in tables)))
        if not steps:
            continue
        x = {
            axis: [sum(position(table[step], axis) for table in tables) / len(tables) for step in steps]
            for axis in AXES
        }
        y = {name: [[value(table[step]) for step in steps] for table in tables] for name, value in values.items()}
        made.append(Stretch(arm, fraction, schedule, start, stop, tuple(run.segment.seed for run in runs), x, y))
    return made


def _with_parent(
    folder: StudyFolder, run: Run, rows: Callable[[Run], Iterable[dict[str, Any]]]
) -> dict[int, dict[str, Any]]:
    """Rows of a segment by step, with the last of its parent before them."""
    parent = folder.runs.get(run.segment.parent or "")
    before = list(rows(parent))[-1:] if parent else []
    return {row["step"]: row for row in (*before, *rows(run))}
