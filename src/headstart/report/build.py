"""The report of a study: one report.html that stands alone, and figures, tables and report.json beside it.

It reads files only (study.yaml, plan.json, rows and the facts of runs), never a model, and may be made at any time:
of a study that has not begun, that is running, or that is finished.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headstart.report.differences import compared, difference_rows
from headstart.report.facts import cell_rows, class_rows, curve_rows, resample_rows, write_csv
from headstart.report.figures import write_figures
from headstart.report.findings import Findings, find, settled_schedule
from headstart.report.mistakes import mistake_rows, mistake_tables
from headstart.report.page import MOST_BYTES, render
from headstart.report.page_data import page_data, plain
from headstart.report.pictures import make_samples
from headstart.report.series import evaluation_stretches, loss_stretches
from headstart.report.spending import Bills, cell_bills, mean_cost, segment_bills, start_costs
from headstart.report.tables import schedule_tables
from headstart.study.folder import StudyFolder, read_study_folder
from headstart.verdict.words import sentence


def build_report(study_dir: str | Path) -> Path:
    """Write report.html, report.json, figures/ and tables/ into a study's directory; returns the path of report.html.

    Everything is written beside its old version and renamed. ValueError naming the file where the study cannot be read.
    """
    folder = read_study_folder(study_dir)
    costs = segment_bills(folder)
    bills = cell_bills(folder, costs)
    starts = start_costs(folder, costs)
    findings = find(folder, bills, starts)
    stretches, losses, mistakes = evaluation_stretches(folder), loss_stretches(folder), mistake_tables(folder)
    bars = _cost_bars(folder, bills)
    pictures = write_figures(folder, stretches, bars, folder.path / "figures", losses=losses, mistakes=mistakes)
    tables = schedule_tables(folder)
    cells = cell_rows(folder, bills)
    (folder.path / "tables").mkdir(exist_ok=True)
    written = {"curves": curve_rows(folder), "classes": class_rows(folder), "errors": mistake_rows(folder)}
    if findings.resampled is not None:
        written["resamples"] = resample_rows(folder, findings.resampled)
    for name, rows in {"cells": cells, **written}.items():
        write_csv(folder.path / "tables" / f"{name}.csv", rows)
    _replace(
        folder.path / "report.json",
        json.dumps(plain(_summary(folder, findings, cells, written["errors"])), indent=1, allow_nan=False),
    )
    data = page_data(folder, stretches, losses, starts, bills, mistakes)
    page = render(
        folder,
        findings,
        data=data,
        cells=cells,
        tables=tables,
        bills=bills,
        starts=starts,
        mistakes=mistakes,
        samples=make_samples(folder),
        pictures=pictures,
    )
    assert len(page.encode()) <= MOST_BYTES, f"the page has {len(page.encode()):,} bytes"
    return _replace(folder.path / "report.html", page)


def _cost_bars(folder: StudyFolder, bills: Bills) -> list[tuple]:
    """Both arms, each at the shortest schedule that comes near its own best, at the largest fraction."""
    bars = []
    for arm in (folder.baseline, folder.candidate) if folder.baseline else ():
        schedule = settled_schedule(folder, arm, folder.fractions[0])
        cells = bills.get((arm, schedule, folder.fractions[0]))
        if cells:
            bars.append(
                (
                    arm,
                    f"{arm} {schedule}",
                    mean_cost([bill.alone for bill in cells]),
                    mean_cost([bill.pretraining for bill in cells]),
                )
            )
    return bars


def _summary(
    folder: StudyFolder, findings: Findings, cells: list[dict[str, Any]], errors: list[dict[str, Any]]
) -> dict[str, Any]:
    """What report.json holds. Whatever was read from a clock stands under a name with "seconds" in it."""
    return {
        "study": folder.name,
        "settings": folder.settings,
        "segments": len(folder.runs),
        "finished": folder.num_finished,
        "state": findings.state,
        "title": findings.title,
        "text": findings.text,
        "comparisons": [
            {"fraction": e.fraction, "schedule": e.schedule} | _verdict(e.verdict) for e in findings.comparisons
        ],
        "answers": [{"question": a.question, "lines": a.lines} for a in findings.answers if not a.from_clock],
        "answers_with_seconds": [{"question": a.question, "lines": a.lines} for a in findings.answers if a.from_clock],
        "at_equal_effort": [_effort(e) for e in findings.equal if "seconds" not in e.effort],
        "at_equal_seconds": [_effort(e) for e in findings.equal if "seconds" in e.effort],
        "differences": difference_rows(folder),
        "compared": compared(folder),
        "notes": list(folder.plan.notes),
        "cells": cells,
        "errors": errors,
    }


def _verdict(verdict: Any) -> dict[str, Any]:
    own = asdict(verdict)
    return {name: own[name] for name in own if name != "rule"} | {"sentence": sentence(verdict)}


def _effort(entry: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(entry).items() if name != "verdict"} | _verdict(entry.verdict)


def _replace(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
