"""Facts of a study, computed once: one flat row a cell, evaluation, class and error type; curves over seeds.

Tables, figures, page, CSV and JSON are pivots of these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headstart.report.cost import COUNTERS, WAYS, CellCost, Cost, StartCost, mean_costs, study_costs
from headstart.study.plan import Cell
from headstart.study.results import LOSS, NAN, Run, StudyFolder
from headstart.tasks import METRIC_KINDS
from headstart.training.rows import training_rows
from headstart.verdict.numbers import TRAIN

Row = dict[str, Any]
Key = tuple[str, str, float]  # arm, schedule, fraction

AXES = ("images", "pixels", "seconds")  # besides steps
KINDS = tuple(kind for kind, own in METRIC_KINDS.items() if own.per_class)
# In the order offered to a reader; recalls are in the CSV only, unless the study is about one.
CURVE_METRICS = tuple(
    f"{kind}.{name}" for kind, own in METRIC_KINDS.items() for name in own.metrics if not name.startswith("AR")
)
# Error types of metrics/errors.py in the order of a reader's interest, with their meaning.
ERROR_TYPES = {
    "classification": "found, but called another class",
    "localisation": "right class, but overlapping by less than half",
    "both": "another class, and overlapping by less than half",
    "duplicate": "found once more",
    "background": "nothing there",
    "missed": "annotated, but not found",
}
MOST_LOSS_POINTS = 150  # a segment: the width of a screen


@dataclass(frozen=True, eq=False)
class Stretch:
    """One segment of an arm at a fraction, over S seeds and the P points that all begun seeds have.

    It begins with the last point of its parent, so that trunk and tails join. schedule is None for a trunk. x holds
    [P] by axis, the mean over seeds; y holds [S][P] by metric (nan: undefined).
    """

    arm: str
    fraction: float
    schedule: str | None
    start: int
    stop: int
    seeds: tuple[int, ...]
    x: dict[str, list[float]]
    y: dict[str, list[list[float]]]

    @cached_property
    def means(self) -> dict[str, list[float]]:
        """Mean over seeds at each point, [P] by metric."""
        return {name: [sum(column) / len(column) for column in zip(*seeds)] for name, seeds in self.y.items()}


@dataclass(frozen=True, eq=False)
class Facts:
    """Tables of a study's folder, each computed when first needed and kept."""

    folder: StudyFolder

    @property
    def metric(self) -> str:
        """The question's metric by the name of its column: "top1" is class.top1."""
        return "class.top1" if self.folder.metric == "top1" else self.folder.metric

    @cached_property
    def _costs(self) -> tuple[dict[str, CellCost], dict[str, StartCost]]:
        return study_costs(self.folder)

    @cached_property
    def cells(self) -> list[Row]:
        """One row a cell: final metrics, variants, cost in all four ways, run, checkpoint and digest of the weights."""
        return [self._cell(cell) for cell in self.folder.plan.cells]

    def _cell(self, cell: Cell) -> Row:
        folder, run = self.folder, self.folder.tail(cell)
        end = run.end or {}
        row: Row = _key(cell) | {"steps": cell.total, "train_images": folder.num_images.get(cell.fraction)}
        row |= {"finished": run.end is not None, "run": run.place(folder.path)}
        row |= {"checkpoint": end.get("checkpoint"), "weights_sha256": end.get("hash")}
        for variant in ("", TRAIN, *folder.study.also_evaluate):
            metrics = (run.final_row(variant) or {}).get("metrics") or {}
            prefix = f"{variant}:" if variant else ""
            row |= {f"{prefix}{kind}.{name}": v for kind, values in metrics.items() for name, v in values.items()}
        ends = [folder.runs[name].end for name in cell.segments]
        memory = max((own["memory"] for own in ends if own and own.get("memory")), default=None)
        row |= {LOSS: run.final_loss, "memory": memory}
        if cost := self._costs[0].get(cell.name):
            row |= {f"{way}.{name}": getattr(getattr(cost, way), name) for way in WAYS for name in COUNTERS}
        return row

    @cached_property
    def costs(self) -> dict[Key, list[CellCost]]:
        """Costs of finished cells by arm, schedule and fraction, one a finished seed."""
        found: dict[Key, list[CellCost]] = {}
        for cost in self._costs[0].values():
            found.setdefault((cost.cell.arm, cost.cell.schedule, cost.cell.fraction), []).append(cost)
        return found

    @cached_property
    def mean_costs(self) -> dict[Key, dict[str, Cost]]:
        """Mean over seeds by arm, schedule and fraction, then by way."""
        return {key: mean_costs(own) for key, own in self.costs.items()}

    @property
    def starts(self) -> dict[str, StartCost]:
        """Pre-training cost by arm."""
        return self._costs[1]

    @cached_property
    def curves(self) -> list[Row]:
        """One row an evaluation of any segment of a cell; training images under "train:" columns."""
        return [row for rows in self._curves.values() for row in rows]

    @cached_property
    def _curves(self) -> dict[str, list[Row]]:
        return {
            name: [_curve_row(run, row, seen) for seen in [_by_step(run.train_evaluations)] for row in run.evaluations]
            for name, run in self.folder.runs.items()
            if run.segment.kind != "pretrain"
        }

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Metrics measured by any segment of a cell, in the order offered to a reader; the question's is among them."""
        last = [rows[-1] for rows in self._curves.values() if rows]
        names = dict.fromkeys((*CURVE_METRICS, self.metric.rpartition(":")[2]))
        return tuple(name for name in names if any(row.get(name, NAN) == row.get(name) for row in last))

    @cached_property
    def train_metrics(self) -> tuple[str, ...]:
        """ "train:METRIC" for the metrics of training images; none where no recipe evaluates them."""
        judged = any(run.train_evaluations for run in self.folder.runs.values() if run.segment.kind != "pretrain")
        return tuple(f"{TRAIN}:{metric}" for metric in self.metrics) if judged else ()

    @cached_property
    def stretches(self) -> list[Stretch]:
        """Evaluations of all cells, over seeds."""
        return self._stretches(lambda run: self._curves[run.segment.name], (*self.metrics, *self.train_metrics))

    @cached_property
    def losses(self) -> list[Stretch]:
        """Training loss of all cells over seeds, at most MOST_LOSS_POINTS a segment."""
        logged = {run.segment.name: _loss_rows(run) for run in self.folder.runs.values()}
        return self._stretches(lambda run: logged[run.segment.name], ("loss",))

    def _stretches(self, rows: Callable[[Run], list[Row]], columns: Iterable[str]) -> list[Stretch]:
        groups: dict[tuple, list[Run]] = {}
        for run in self.folder.runs.values():
            s = run.segment
            if s.kind != "pretrain" and run.rows:
                groups.setdefault((s.arm, s.fraction, s.schedule, s.start, s.stop), []).append(run)
        made = []
        for key, runs in groups.items():
            parents = [self.folder.runs.get(run.segment.parent or "") for run in runs]
            tables = [
                _by_step([*(rows(parent)[-1:] if parent else ()), *rows(run)]) for parent, run in zip(parents, runs)
            ]
            steps = sorted(set.intersection(*(set(table) for table in tables)))
            if steps:
                at = [[table[step] for table in tables] for step in steps]
                x = {axis: [sum(row[axis] for row in own) / len(own) for own in at] for axis in AXES}
                x = {"steps": [float(step) for step in steps]} | x
                y = {name: [[table[step].get(name, NAN) for step in steps] for table in tables] for name in columns}
                made.append(Stretch(*key, tuple(run.segment.seed for run in runs), x, y))
        return made

    @cached_property
    def num_classes(self) -> int | None:
        """Classes of the validation data, by the classes of its evaluations; None before the first."""
        kind = self.folder.metric.rpartition(":")[2].partition(".")[0]
        for run in self.folder.runs.values():
            if run.segment.kind != "pretrain" and run.evaluations:
                per_class = run.evaluations[-1].get("per_class") or {}
                return len(per_class.get(kind) or next(iter(per_class.values()), ())) or None
        return None

    @cached_property
    def classes(self) -> list[Row]:
        """One row a finished cell, kind and class."""
        return [
            _key(cell) | {"kind": kind, "class": name} | values
            for cell in self.folder.plan.cells
            for kind, classes in ((self.folder.tail(cell).final_row() or {}).get("per_class") or {}).items()
            for name, values in classes.items()
        ]

    @cached_property
    def errors(self) -> list[Row]:
        """One row a finished cell, kind and error type: count, AP50 gained by fixing all of them, AP50."""
        rows = []
        for cell in self.folder.plan.cells:
            for kind, found in self.folder.tail(cell).errors.items():
                for name in ERROR_TYPES:
                    own = {"count": getattr(found.counts, name), "AP50_gain": getattr(found.gains, name)}
                    own["AP50"] = found.ap50
                    rows.append(_key(cell) | {"kind": kind, "type": name} | own)
        return rows


def _key(cell: Cell) -> Row:
    return {"arm": cell.arm, "schedule": cell.schedule, "fraction": cell.fraction, "seed": cell.seed}


def _by_step(rows: Iterable[Row]) -> dict[int, Row]:
    return {row["step"]: row for row in rows}


def _positions(row: Row) -> Row:
    """The place of a row on all axes; seconds are those of training, without evaluation."""
    seconds = row.get("seconds", {})
    time = float(seconds.get("train", NAN)) + float(seconds.get("other", 0))
    return {"images": float(row.get("images", NAN)), "pixels": float(row.get("pixels", NAN)), "seconds": time}


def _curve_row(run: Run, row: Row, seen: dict[int, Row]) -> Row:
    s = run.segment
    flat: Row = {"arm": s.arm, "fraction": s.fraction, "seed": s.seed, "segment": s.name, "schedule": s.schedule}
    flat |= {"step": row["step"]} | _positions(row)
    for prefix, own in (("", row), (f"{TRAIN}:", seen.get(row["step"]))):
        for kind, values in own["metrics"].items() if own else ():
            flat |= {f"{prefix}{kind}.{name}": NAN if v is None else float(v) for name, v in values.items()}
    return flat


def _loss_rows(run: Run) -> list[Row]:
    logged = training_rows(run.rows)
    kept = logged[:: max(1, len(logged) // MOST_LOSS_POINTS)]
    return [
        {"step": row["step"], "loss": NAN if row.get("loss") is None else row["loss"]} | _positions(row) for row in kept
    ]
