"""The tables of a report as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.report.paper import paper_rows
from headstart.report.series import metrics_of
from headstart.study.folder import StudyFolder

# The metrics of the paper's tables, in its order; a study without boxes has its own first.
TABLE_METRICS = (
    "box.AP",
    "mask.AP",
    "keypoints.AP",
    "class.top1",
    "voc.AP",
    "voc.AP07",
    "semantic.mIoU",
    "box.AP50",
    "box.AP75",
    "mask.AP50",
    "mask.AP75",
    "keypoints.AP50",
    "keypoints.AP75",
)
SIZES = tuple(f"{kind}.AP{size}" for kind in ("box", "mask", "keypoints") for size in "sml")


@dataclass(frozen=True)
class Number:
    """A score or a difference of scores over seeds in 0..1: mean, spread (nan for one seed), and each seed's value."""

    mean: float
    sd: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """One line of a table: of an arm, of the gap of an arm to the baseline, or of the paper."""

    kind: str
    label: str
    values: tuple[Number | None, ...]


@dataclass(frozen=True)
class Block:
    """All lines of one metric (or class); columns belong to the table that it is part of."""

    name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class ScheduleTable:
    """Scores at the end of each schedule at one fraction, metric by metric."""

    fraction: float
    schedules: tuple[str, ...]
    totals: tuple[int | None, ...]
    blocks: tuple[Block, ...]


def number(values: np.ndarray) -> Number | None:
    """The summary of the finite ones among seeds' values; None if there is none."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    return Number(
        float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else float("nan"), tuple(known.tolist())
    )


def schedule_tables(folder: StudyFolder) -> list[ScheduleTable]:
    """One table a fraction, the largest first; the paper's rows where the study says which of its models it follows."""
    plain = [name for name in TABLE_METRICS if name in metrics_of(folder)]
    metrics = plain + [f"{variant}:{name}" for variant in folder.variants for name in plain]
    made = []
    for fraction in folder.fractions:
        schedules = folder.schedules(fraction)
        blocks = [
            Block(name, (*_lines(folder, name, schedules, fraction), *_paper(folder, name, schedules, fraction)))
            for name in metrics
        ]
        totals = tuple(
            next((t for arm in folder.arms if (t := folder.total(arm, name, fraction))), None) for name in schedules
        )
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
    table = folder.settings.get("paper")
    if not table or fraction != folder.fractions[0]:
        return []
    rows = paper_rows(str(table)).get(name, {})
    columns = {
        label: tuple(Number(v, float("nan"), (v,)) if (v := row.get(s)) else None for s in schedules)
        for label, row in rows.items()
        if any(s in row for s in schedules)
    }
    lines = [Line("paper", f"{label} ({table})", values) for label, values in columns.items()]
    pairs = list(zip(columns.get("random", ()), columns.get("pre-trained", ())))
    gap = tuple(number(np.array([a.mean - b.mean])) if a and b else None for a, b in pairs)
    return [*lines, *([Line("paper gap", "random", gap)] if any(gap) else [])]


def fraction_table(folder: StudyFolder) -> list[dict[str, Any]]:
    """For each fraction the metric of both arms at the longest common schedule, and at each arm's own best."""
    rows, name = [], folder.metric
    for fraction in folder.fractions:
        schedules = folder.common_schedules(fraction)
        if not schedules:
            continue
        row: dict[str, Any] = {
            "fraction": fraction,
            "images": folder.num_images.get(fraction),
            "schedule": schedules[-1],
            "longest": {},
            "best": {},
        }
        for arm in (folder.baseline, folder.candidate):
            row["longest"][arm] = number(folder.scores(name, arm, schedules[-1], fraction))
            every = [(number(folder.scores(name, arm, s, fraction)), s) for s in folder.schedules(fraction, arm)]
            known = [pair for pair in every if pair[0]]
            row["best"][arm] = max(known, key=lambda pair: pair[0].mean) if known else None
        base, own = (folder.scores(name, arm, schedules[-1], fraction) for arm in (folder.baseline, folder.candidate))
        row["gap"] = number(own - base)
        rows.append(row)
    return rows


def class_table(folder: StudyFolder, kind: str) -> list[dict[str, Any]]:
    """AP of each class at the headline cell in both arms, the candidate's largest lead first, undefined ones last."""
    pairs = [_per_class(folder, arm, kind) for arm in (folder.baseline, folder.candidate)]
    rows = []
    for name in dict.fromkeys(name for arm in pairs for row in arm for name in row):
        base, own = (np.array([row.get(name, float("nan")) for row in arm], float) for arm in pairs)
        rows.append({"class": name, "baseline": number(base), "candidate": number(own), "gap": number(own - base)})
    return sorted(rows, key=lambda row: (row["gap"] is None, -row["gap"].mean if row["gap"] else 0, row["class"]))


def _per_class(folder: StudyFolder, arm: str, kind: str) -> list[dict[str, float]]:
    """For each seed {class: AP} at the longest common schedule of the largest fraction."""
    rows = folder.final_rows(arm, *folder.headline_cell) if folder.headline_cell else []
    names = {"class": "top1", "semantic": "IoU"}
    found = []
    for row in rows:
        classes = ((row or {}).get("per_class") or {}).get(kind, {})
        values = {name: metrics.get(names.get(kind, "AP")) for name, metrics in classes.items()}
        found.append({name: float("nan") if value is None else value for name, value in values.items()})
    return found


def size_table(folder: StudyFolder) -> list[dict[str, Any]]:
    """AP by size of objects at the headline cell in both arms."""
    if folder.headline_cell is None:
        return []
    rows = []
    for name in [size for size in SIZES if size in metrics_of(folder)]:
        base, own = (folder.scores(name, arm, *folder.headline_cell) for arm in (folder.baseline, folder.candidate))
        rows.append({"metric": name, "baseline": number(base), "candidate": number(own), "gap": number(own - base)})
    return rows
