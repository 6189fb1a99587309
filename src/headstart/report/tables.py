"""Tables of a report: pivots of the facts over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstart.report.facts import ERROR_TYPES, KINDS, Facts, Row
from headstart.report.references import paper_tables
from headstart.study.results import NAN, StudyFolder
from headstart.tasks import METRIC_KINDS

# The metrics of the paper's tables, in its order; a study without boxes has its own first.
TABLE_METRICS = (
    *("box.AP", "mask.AP", "keypoints.AP", "class.top1", "voc.AP", "voc.AP07", "semantic.mIoU"),
    *("box.AP50", "box.AP75", "mask.AP50", "mask.AP75", "keypoints.AP50", "keypoints.AP75"),
)
SIZES = tuple(f"{kind}.AP{size}" for kind in KINDS[:3] for size in "sml")


@dataclass(frozen=True)
class Number:
    """A score or difference over seeds in 0..1: mean, standard deviation (nan for one seed), value of each seed."""

    mean: float
    sd: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """One line of a table: of an arm, of its gap to the baseline, or of the paper."""

    kind: str
    label: str
    values: tuple[Number | None, ...]


@dataclass(frozen=True)
class MetricLines:
    """All lines of one metric; the columns are those of its table."""

    name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class ScheduleTable:
    """All schedules of a fraction, shortest first, and the lines of each metric over them.

    totals are their steps; None where the arms take different numbers.
    """

    fraction: float
    schedules: tuple[str, ...]
    totals: tuple[int | None, ...]
    blocks: tuple[MetricLines, ...]


@dataclass(frozen=True)
class ErrorRow:
    """One error type in all arms: AP50 gained by fixing it, and its count; gap: candidate's gain minus baseline's."""

    name: str
    meaning: str
    gains: dict[str, Number | None]
    counts: dict[str, Number | None]
    gap: Number | None


def number(values: np.ndarray | Sequence[float]) -> Number | None:
    """Values of seeds as a Number, without undefined ones; None where none is defined."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    sd = float(known.std(ddof=1)) if len(known) > 1 else NAN
    return Number(float(known.mean()), sd, tuple(known.tolist()))


def schedule_tables(facts: Facts) -> list[ScheduleTable]:
    """One table a fraction, the largest first; with the paper's rows where the study names one of its models."""
    folder = facts.folder
    names = dict.fromkeys((*TABLE_METRICS, facts.metric.rpartition(":")[2]))
    plain = [name for name in names if name in facts.metrics]
    metrics = plain + [f"{variant}:{name}" for variant in folder.study.also_evaluate for name in plain]
    made = []
    for fraction in folder.fractions:
        schedules = folder.schedules(fraction)
        blocks = [
            MetricLines(name, (*_lines(folder, name, schedules, fraction), *_paper(folder, name, schedules, fraction)))
            for name in metrics
        ]
        steps = [{folder.total(arm, name, fraction) for arm in folder.arms} - {None} for name in schedules]
        totals = tuple(own.pop() if len(own) == 1 else None for own in steps)
        made.append(ScheduleTable(fraction, schedules, totals, tuple(blocks)))
    return made


def _lines(folder: StudyFolder, name: str, schedules: Sequence[str], fraction: float) -> list[Line]:
    scores = {arm: [folder.scores(name, arm, schedule, fraction) for schedule in schedules] for arm in folder.arms}
    lines = [Line("arm", arm, tuple(number(values) for values in scores[arm])) for arm in folder.arms]
    others = [arm for arm in folder.arms if folder.baseline and arm != folder.baseline]
    return lines + [
        Line("gap", arm, tuple(number(own - base) for own, base in zip(scores[arm], scores[folder.baseline])))
        for arm in others
    ]


def _paper(folder: StudyFolder, name: str, schedules: Sequence[str], fraction: float) -> list[Line]:
    """The paper's rows of a metric, on the largest fraction; rows without a schedule of this study are left out."""
    table = folder.study.paper
    if not table or fraction != folder.fractions[0]:
        return []
    rows = paper_tables()[table].get(name, {})
    columns = {
        label: tuple(Number(v, NAN, (v,)) if (v := row.get(s)) else None for s in schedules)
        for label, row in rows.items()
        if any(s in row for s in schedules)
    }
    lines = [Line("paper", f"{label} ({table})", values) for label, values in columns.items()]
    pairs = list(zip(columns.get("random", ()), columns.get("pre-trained", ())))
    gap = tuple(number(np.array([a.mean - b.mean])) if a and b else None for a, b in pairs)
    return [*lines, *([Line("paper gap", "random", gap)] if any(gap) else [])]


def fraction_table(folder: StudyFolder) -> list[Row]:
    """For each fraction the metric of both arms at the longest common schedule, and at each arm's own best."""
    rows = []
    for fraction in folder.fractions if folder.baseline else ():
        schedules = folder.common_schedules(fraction)
        if not schedules:
            continue
        scores, best = {}, {}
        for arm in (folder.baseline, folder.candidate):
            scores[arm] = folder.scores(folder.metric, arm, schedules[-1], fraction)
            every = [
                (number(folder.scores(folder.metric, arm, s, fraction)), s) for s in folder.schedules(fraction, arm)
            ]
            known = [pair for pair in every if pair[0]]
            best[arm] = max(known, key=lambda pair: pair[0].mean) if known else None
        rows.append(
            {
                "fraction": fraction,
                "images": folder.num_images.get(fraction),
                "schedule": schedules[-1],
                "longest": {arm: number(values) for arm, values in scores.items()},
                "best": best,
                "gap": number(scores[folder.candidate] - scores[folder.baseline]),
            }
        )
    return rows


def settled_schedule(folder: StudyFolder, arm: str, fraction: float) -> str | None:
    """The shortest schedule of an arm within the rule's margin (without a rule: a point) of its own best.

    None where none has a score of every seed.
    """
    means = {s: folder.scores(folder.metric, arm, s, fraction).mean() for s in folder.schedules(fraction, arm)}
    known = {name: value for name, value in means.items() if np.isfinite(value)}
    margin = folder.rule.margin if folder.rule else 0.01
    return next((name for name, value in known.items() if value >= max(known.values()) - margin), None)


def cost_lines(facts: Facts) -> list[Row]:
    """One line an arm, schedule and fraction: the mean over seeds of its cost in all ways; largest memory."""
    peaks: dict[tuple, int] = {}
    for row in facts.cells:
        key = (row["arm"], row["schedule"], row["fraction"])
        peaks[key] = max(peaks.get(key, 0), row["memory"] or 0)
    folder = facts.folder
    keys = [(arm, s, f) for f in folder.fractions for arm in folder.arms for s in folder.schedules(f, arm)]
    return [
        {"arm": key[0], "schedule": key[1], "fraction": key[2], "memory": peaks[key]} | facts.mean_costs[key]
        for key in keys
        if key in facts.mean_costs
    ]


def class_tables(folder: StudyFolder) -> dict[str, list[Row]]:
    """By kind: AP of each class at the headline cell in both arms, the candidate's largest lead first.

    Classes without a gap come last.
    """
    if folder.headline_cell is None:
        return {}
    runs = [folder.ends(arm, *folder.headline_cell) for arm in (folder.baseline, folder.candidate)]
    ends = [[(run.final_row() or {}).get("per_class") or {} if run else {} for run in own] for own in runs]
    tables = {}
    for kind in KINDS:
        column, found = METRIC_KINDS[kind].per_class, [[end.get(kind, {}) for end in own] for own in ends]
        rows = [
            _compared("class", name, *(_array([end.get(name, {}).get(column) for end in own]) for own in found))
            for name in {name for own in found for end in own for name in end}
        ]
        if rows:
            tables[kind] = sorted(
                rows, key=lambda row: (row["gap"] is None, -row["gap"].mean if row["gap"] else 0, row["class"])
            )
    return tables


def size_table(facts: Facts) -> list[Row]:
    """AP by size of objects at the headline cell in both arms."""
    folder = facts.folder
    if folder.headline_cell is None:
        return []
    pairs = {
        name: [folder.scores(name, arm, *folder.headline_cell) for arm in (folder.baseline, folder.candidate)]
        for name in SIZES
        if name in facts.metrics
    }
    return [_compared("metric", name, base, own) for name, (base, own) in pairs.items()]


def error_tables(folder: StudyFolder) -> dict[str, list[ErrorRow]]:
    """By kind, boxes and masks where counted: one row for each error type at the headline cell."""
    if folder.headline_cell is None:
        return {}
    runs = {arm: folder.ends(arm, *folder.headline_cell) for arm in folder.arms}
    errors = {arm: [run.errors if run else {} for run in own] for arm, own in runs.items()}

    def values(kind: str, name: str, column: str) -> dict[str, np.ndarray]:
        found = {arm: [end.get(kind) for end in own] for arm, own in errors.items()}
        return {arm: _array([end and getattr(getattr(end, column), name) for end in own]) for arm, own in found.items()}

    def row_of(kind: str, name: str) -> ErrorRow:
        gains, counts = values(kind, name, "gains"), values(kind, name, "counts")
        gap = number(gains[folder.candidate] - gains[folder.baseline])
        numbers = [{arm: number(seeds) for arm, seeds in column.items()} for column in (gains, counts)]
        return ErrorRow(name, ERROR_TYPES[name], *numbers, gap)

    kinds = [kind for kind in KINDS[:2] if any(kind in end for own in errors.values() for end in own)]
    return {kind: [row_of(kind, name) for name in ERROR_TYPES] for kind in kinds}


def _compared(key: str, name: str, base: np.ndarray, own: np.ndarray) -> Row:
    return {key: name, "baseline": number(base), "candidate": number(own), "gap": number(own - base)}


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([NAN if value is None else value for value in values], float)
