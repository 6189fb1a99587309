"""Results of a study as plain data: the rows of its segments, and the scores of its cells. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from headstart.recipe.dotted import flatten
from headstart.recipe.load import stored_recipe
from headstart.recipe.recipe import AnyRecipe
from headstart.recipe.yaml_text import read_yaml
from headstart.study.plan import Cell, Plan, Segment
from headstart.study.spec import StudySpec
from headstart.training.rows import Row, end_row, evaluations, judged_weights, read_rows, training_rows
from headstart.training.stored import ErrorsOfKinds
from headstart.typed_json import Record, read_json
from headstart.verdict.looks import Look
from headstart.verdict.numbers import TRAIN
from headstart.verdict.rule import Rule

QUESTION_FILE = "question.json"  # of a study that `headstart ask` designed: its data, hours, and words of the command
NAN = float("nan")
LOSS = "train.loss"  # the last training loss, in place of a metric
_AGAINST = " against "
VARIANTS_FILE = "variants.jsonl"  # in the directory of a tail: evaluations of its final checkpoint in other ways


@dataclass(frozen=True, eq=False)
class Run:
    """The results of a segment: directory None and no rows for one that has not begun."""

    segment: Segment
    directory: Path | None
    rows: tuple[Row, ...]
    variants: dict[str, Row] = field(default_factory=dict)  # the evaluation of the final checkpoint, by variant

    @cached_property
    def end(self) -> Row | None:
        """The row of the segment's last step, with checkpoint and hash; None before that."""
        return end_row(self.rows, self.segment.stop)

    @cached_property
    def weights(self) -> str:
        """The weights that the run is judged by (`judged_weights`)."""
        return judged_weights(self.rows)

    @cached_property
    def evaluations(self) -> list[Row]:
        """Rows of evaluations of the judged weights on the validation images, in order of steps."""
        return evaluations(self.rows, weights=self.weights)

    @cached_property
    def train_evaluations(self) -> list[Row]:
        """Rows of evaluations on training images, in order of steps; none where a recipe does not ask for them.

        Averaged weights are not evaluated on training images.
        """
        return evaluations(self.rows, "train", self.weights)

    def final_row(self, variant: str = "") -> Row | None:
        """The evaluation at the last step of a finished segment, plain or a variant; None before that."""
        if self.end is None:
            return None
        if variant and variant != TRAIN:
            return self.variants.get(variant)
        rows = self.train_evaluations if variant else self.evaluations
        return next((row for row in reversed(rows) if row["step"] == self.segment.stop), None)

    @cached_property
    def final_loss(self) -> float | None:
        """The last training loss of a finished segment; None before that."""
        logged = training_rows(self.rows) if self.end else []
        return logged[-1]["loss"] if logged else None

    def score(self, metric: str) -> float:
        """A metric at the last step of a finished segment, or LOSS; nan where it is not there."""
        if metric == LOSS:
            return NAN if self.final_loss is None else self.final_loss
        variant, _, name = metric.rpartition(":")
        row = self.final_row(variant)
        return NAN if row is None else metric_of(row, name)

    def place(self, folder: Path) -> str | None:
        """The directory relative to the study's folder; None before the run has begun."""
        return None if self.directory is None else Path(os.path.relpath(self.directory, folder)).as_posix()

    @property
    def last_step(self) -> int:
        """The last step of any row; the segment's start if there is none."""
        return max((row["step"] for row in self.rows), default=self.segment.start)

    def fact(self, name: str, kind: type[Record]) -> Record | None:
        """A JSON file of the run, such as audit.json, as a typed record; None where there is no such file."""
        path = None if self.directory is None else self.directory / name
        return None if path is None or not path.is_file() else read_json(path, kind)

    @cached_property
    def errors(self) -> ErrorsOfKinds:
        """Error types at the end of a finished segment, by kind; none where they were not counted."""
        return (self.fact(f"errors-{self.segment.stop}.json", ErrorsOfKinds) if self.end else None) or {}

    @cached_property
    def recipe(self) -> AnyRecipe | None:
        """The recipe of the run by its recipe.yaml; None where there is none."""
        path = None if self.directory is None else self.directory / "recipe.yaml"
        return None if path is None or not path.is_file() else stored_recipe(read_yaml(path), str(path))


@dataclass(frozen=True, eq=False)
class StudyFolder:
    """A study's results: study.yaml, its plan, and one Run a segment, by segment name.

    num_images are training images by fraction. differences are rows of the difference sheet: field, values by arm, and
    declared. overrides are the command line's patch on every recipe. looks are those made before.
    """

    path: Path
    study: StudySpec
    plan: Plan
    runs: dict[str, Run]
    num_images: dict[float, int]
    batch: int
    differences: tuple[dict[str, Any], ...]
    overrides: dict[str, Any]
    looks: tuple[Look, ...]

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def rule(self) -> Rule | None:
        return self.study.rule

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Arms in the order of the study file."""
        return tuple(self.study.arms)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(cell.seed for cell in self.plan.cells))

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        """Fractions, the largest first."""
        return tuple(sorted({cell.fraction for cell in self.plan.cells}, reverse=True))

    @cached_property
    def random_arms(self) -> tuple[str, ...]:
        """Arms that start without any weights, by the difference sheet, else by the study file."""
        sheet = next((row["values"] for row in self.differences if row["field"] == "start.kind"), None)
        if sheet is not None:
            return tuple(arm for arm in self.arms if sheet.get(arm) == "random")
        common = flatten(self.study.set)
        kinds = {arm: (common | self.study.patch_of(arm)).get("start.kind", "random") for arm in self.arms}
        return tuple(arm for arm, kind in kinds.items() if kind == "random" and not self.study.weights_of(arm))

    @property
    def baseline(self) -> str | None:
        """The reference arm: the rule's, else the first with weights; None with a single arm."""
        if self.rule:
            return self.rule.baseline
        return None if len(self.arms) < 2 else next((a for a in self.arms if a not in self.random_arms), self.arms[0])

    @property
    def candidate(self) -> str | None:
        """The arm that the question is about: the rule's, else the first other than the baseline."""
        if self.rule:
            return self.rule.candidate
        others = [arm for arm in self.arms if arm != self.baseline]
        return next((a for a in others if a in self.random_arms), others[0]) if self.baseline else None

    @property
    def num_finished(self) -> int:
        """Segments that reached their last step."""
        return sum(run.end is not None for run in self.runs.values())

    @property
    def is_finished(self) -> bool:
        return self.num_finished == len(self.runs) > 0

    def schedules(self, fraction: float, *arms: str) -> tuple[str, ...]:
        """Names of the schedules that all these arms (default: any arm) have at a fraction, shortest first."""
        # Of these arms alone: another arm's 2x may be longer than their 3x.
        cells = [c for c in self.plan.cells if c.fraction == fraction and (not arms or c.arm in arms)]
        totals = {c.schedule: c.total for c in cells}
        common = [{c.schedule for c in cells if c.arm == arm} for arm in arms]
        return tuple(name for name in sorted(totals, key=totals.get) if all(name in names for names in common))

    @cached_property
    def _cells(self) -> dict[tuple[str, str, float, int], Cell]:
        return {(c.arm, c.schedule, c.fraction, c.seed): c for c in self.plan.cells}

    @property
    def metric(self) -> str:
        """The metric that the study is about: the rule's, else box AP."""
        return self.rule.metric if self.rule else "box.AP"

    def common_schedules(self, fraction: float) -> tuple[str, ...]:
        """Schedules that both arms of the question have at a fraction, shortest first; none with a single arm.

        Arms without a common schedule are compared at the longest of each: "9x against 6x", the
        candidate's first. `own_schedule` splits such a name.
        """
        if not self.baseline:
            return ()
        common = self.schedules(fraction, self.baseline, self.candidate)
        longest = [self.schedules(fraction, arm)[-1:] for arm in (self.candidate, self.baseline)]
        return common or ((_AGAINST.join(name for (name,) in longest),) if all(longest) else ())

    def own_schedule(self, arm: str, schedule: str, fraction: float) -> str:
        """The schedule that a name of `common_schedules` means for an arm; other arms have their longest."""
        candidate, _, baseline = schedule.partition(_AGAINST)
        if not baseline or arm == self.candidate:
            return candidate
        return baseline if arm == self.baseline else next(reversed(self.schedules(fraction, arm)), schedule)

    def cells_at(self, arm: str, schedule: str, fraction: float) -> dict[int, Cell]:
        """The cells of an arm at a schedule and fraction, by seed."""
        own = self.own_schedule(arm, schedule, fraction)
        found = {seed: self._cells.get((arm, own, fraction, seed)) for seed in self.seeds}
        return {seed: cell for seed, cell in found.items() if cell}

    @property
    def headline_cell(self) -> tuple[str, float] | None:
        """Schedule and fraction of the headline: the longest that both arms have, on the most data."""
        names = self.common_schedules(self.fractions[0]) if self.fractions else ()
        return (names[-1], self.fractions[0]) if names else None

    def total(self, arm: str, schedule: str, fraction: float) -> int | None:
        """Steps of a schedule; None where the arm does not have it."""
        return next((cell.total for cell in self.cells_at(arm, schedule, fraction).values()), None)

    def tail(self, cell: Cell) -> Run:
        """The last segment of a cell, in which its schedule ends."""
        return self.runs[cell.segments[-1]]

    def ends(self, arm: str, schedule: str, fraction: float) -> list[Run | None]:
        """The last segment of a cell for each seed; None for a seed without this cell."""
        cells = self.cells_at(arm, schedule, fraction)
        return [self.tail(cells[seed]) if seed in cells else None for seed in self.seeds]

    def scores(self, metric: str, arm: str, schedule: str, fraction: float) -> np.ndarray:
        """The metric at the end of a schedule, float [S] in 0..1; nan where it is not there yet.

        "tta:box.AP" is box.AP of the variant "tta", "train:box.AP" that on training images.
        """
        runs = self.ends(arm, schedule, fraction)
        return np.array([NAN if run is None else run.score(metric) for run in runs], float)


def metric_of(row: Mapping[str, Any], metric: str) -> float:
    """ "box.AP" of an evaluation row, or "top1" of whichever kind has it; nan where it is absent or undefined."""
    kind, _, name = metric.rpartition(".")
    metrics = row.get("metrics") or {}
    found = [values.get(name) for key, values in metrics.items() if not kind or key == kind]
    return next((float(value) for value in found if value is not None), NAN)


def read_variants(directory: Path) -> list[Row]:
    """Evaluation variants of a run's final checkpoint, a row a variant; empty without variants.jsonl."""
    return read_rows(directory / VARIANTS_FILE, "variant", "patch")
