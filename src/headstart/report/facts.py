"""Flat rows for report.json and the CSV files: everything that a number on the page can be derived from by hand."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from headstart.report.series import position
from headstart.report.spending import Bills
from headstart.study.cost import Cost
from headstart.study.folder import TRAIN, Run, StudyFolder, final_row, metric_of
from headstart.study.plan import Cell
from headstart.training.rows import training_rows


def cell_rows(folder: StudyFolder, bills: Bills) -> list[dict[str, Any]]:
    """One flat row a cell: all final metrics, the costs in all four ways, and where they can be traced to."""
    rows = []
    for cell in folder.plan.cells:
        run = folder.tail(cell)
        final = final_row(run)
        row: dict[str, Any] = {
            "arm": cell.arm,
            "schedule": cell.schedule,
            "fraction": cell.fraction,
            "seed": cell.seed,
            "steps": cell.total,
            "train_images": folder.num_images.get(cell.fraction),
        }
        row |= {
            "finished": run.end is not None,
            "run": run.place(folder.path),
        }
        row |= {"checkpoint": (run.end or {}).get("checkpoint"), "weights_sha256": (run.end or {}).get("hash")}
        row |= {
            f"{kind}.{name}": value
            for kind, values in ((final or {}).get("metrics") or {}).items()
            for name, value in values.items()
        }
        row |= {
            f"{variant}:{kind}.{name}": value
            for variant in (TRAIN, *folder.variants)
            for kind, values in (final_row(run, variant) or {"metrics": {}})["metrics"].items()
            for name, value in values.items()
        }
        row |= {"train.loss": last_loss(run), "memory": cell_memory(folder, cell)}
        own = [bill for bill in bills.get((cell.arm, cell.schedule, cell.fraction), ()) if bill.seed == cell.seed]
        for bill in own:
            for way in ("alone", "whole", "as_spent", "whole_as_spent"):
                row |= {f"{way}.{f.name}": getattr(getattr(bill, way), f.name) for f in fields(Cost)}
        rows.append(row)
    return rows


def last_loss(run: Run) -> float | None:
    """The last logged training loss of a finished segment."""
    logged = training_rows(run.rows) if run.end else []
    return logged[-1]["loss"] if logged else None


def cell_memory(folder: StudyFolder, cell: Cell) -> int | None:
    """Bytes at the highest point of any of a cell's segments, as far as they are known."""
    ends = [folder.runs[name].end for name in cell.segments]
    return max((end["memory"] for end in ends if end and end.get("memory")), default=None)


def curve_rows(folder: StudyFolder) -> list[dict[str, Any]]:
    """One flat row an evaluation of any cell's segments."""
    rows = []
    for run in folder.runs.values():
        s = run.segment
        seen = {row["step"]: row for row in run.train_evaluations}
        for row in run.evaluations if s.kind != "pretrain" else ():
            flat = {
                "arm": s.arm,
                "fraction": s.fraction,
                "seed": s.seed,
                "segment": s.name,
                "schedule": s.schedule,
                "step": row["step"],
            }
            flat |= {axis: position(row, axis) for axis in ("images", "pixels", "seconds")}
            for prefix, own in (("", row), (f"{TRAIN}:", seen.get(row["step"], {"metrics": {}}))):
                names = [f"{kind}.{name}" for kind, values in own["metrics"].items() for name in values]
                flat |= {prefix + name: metric_of(own, name) for name in names}
            rows.append(flat)
    return rows


def class_rows(folder: StudyFolder) -> list[dict[str, Any]]:
    """One flat row a finished cell and class."""
    rows = []
    for cell in folder.plan.cells:
        final = final_row(folder.tail(cell)) or {}
        for kind, classes in (final.get("per_class") or {}).items():
            for name, values in classes.items():
                key = {"arm": cell.arm, "schedule": cell.schedule, "fraction": cell.fraction, "seed": cell.seed}
                rows.append(key | {"kind": kind, "class": name} | values)
    return rows


def resample_rows(folder: StudyFolder, differences: np.ndarray) -> list[dict[str, Any]]:
    """One flat row a resample of the test images: candidate minus baseline at the headline cell, by seed."""
    return [
        {"resample": number} | {f"seed {seed}": float(value) for seed, value in zip(folder.seeds, values)}
        for number, values in enumerate(differences.T)
    ]


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows with whatever columns they have, in order of first use; unknown values stay empty. Replaces `path` whole."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(
            {name: "" if value is None or value != value else value for name, value in row.items()} for row in rows
        )
    os.replace(temporary, path)
