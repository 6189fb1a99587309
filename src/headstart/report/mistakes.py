"""What kinds of mistakes each arm makes, from the error types that were sorted when a schedule's end was judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.report.tables import Number, number
from headstart.study.folder import NAN, StudyFolder
from headstart.study.plan import Cell

KINDS = ("box", "mask")
# In the order of a reader's interest; the same as evaluate/errors.py, with what each means.
TYPES = {
    "classification": "found, but called another class",
    "localisation": "right class, but overlapping by less than half",
    "both": "another class, and overlapping by less than half",
    "duplicate": "found once more",
    "background": "nothing there",
    "missed": "annotated, but not found",
}


@dataclass(frozen=True)
class MistakeRow:
    """One type in all arms: AP50 that it costs, and how many; gap: by how much it costs the candidate more."""

    name: str
    meaning: str
    gains: dict[str, Number | None]
    counts: dict[str, Number | None]
    gap: Number | None


def mistakes_of(folder: StudyFolder, cell: Cell) -> dict[str, Any]:
    """{kind: {ap50, counts, gains}} at the end of a finished cell; empty where it was not kept."""
    run = folder.tail(cell)
    return (run.fact(f"errors-{run.segment.stop}.json") or {}) if run.end else {}


def mistake_tables(folder: StudyFolder) -> dict[str, list[MistakeRow]]:
    """For boxes and masks, as far as they are known, one row a type at the headline cell."""
    if folder.headline_cell is None:
        return {}
    found = {arm: _by_seed(folder, arm) for arm in folder.arms}
    tables = {}
    for kind in KINDS:
        if any(kind in seed for seeds in found.values() for seed in seeds):
            tables[kind] = [_row(folder, found, kind, name) for name in TYPES]
    return tables


def mistake_rows(folder: StudyFolder) -> list[dict[str, Any]]:
    """One flat row a finished cell, kind and type."""
    rows = []
    for cell in folder.plan.cells:
        key = {"arm": cell.arm, "schedule": cell.schedule, "fraction": cell.fraction, "seed": cell.seed}
        for kind, values in mistakes_of(folder, cell).items():
            for name in TYPES:
                own = {"count": values["counts"][name], "AP50_gain": values["gains"][name], "AP50": values["ap50"]}
                rows.append(key | {"kind": kind, "type": name} | own)
    return rows


def _by_seed(folder: StudyFolder, arm: str) -> list[dict[str, Any]]:
    cells = folder.cells_at(arm, *folder.headline_cell)
    return [mistakes_of(folder, cells[seed]) if seed in cells else {} for seed in folder.seeds]


def _row(folder: StudyFolder, found: dict[str, list[dict[str, Any]]], kind: str, name: str) -> MistakeRow:
    gains = {arm: _values(seeds, kind, "gains", name) for arm, seeds in found.items()}
    counts = {arm: _values(seeds, kind, "counts", name) for arm, seeds in found.items()}
    return MistakeRow(
        name=name,
        meaning=TYPES[name],
        gains={arm: number(values) for arm, values in gains.items()},
        counts={arm: number(values) for arm, values in counts.items()},
        gap=number(gains[folder.candidate] - gains[folder.baseline]),
    )


def _values(seeds: list[dict[str, Any]], kind: str, field: str, name: str) -> np.ndarray:
    values = [(seed.get(kind) or {}).get(field, {}).get(name) for seed in seeds]
    return np.array([NAN if value is None else value for value in values], float)
