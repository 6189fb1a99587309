"""The report of a study: one report.html that stands alone; figures, tables and report.json beside it.

Only files are read (study.yaml, plan.json, rows and facts of runs), never a model. The study may not have begun, be
running, or be finished. The report of a finished study is a look, which plan.json notes.
"""

from __future__ import annotations

from pathlib import Path

from headstart.files import json_text, write_csv, write_whole
from headstart.report.facts import Facts
from headstart.report.findings import find
from headstart.report.page import DIGITS, MOST_BYTES, render
from headstart.report.pictures import pictures
from headstart.report.plots import write_figures
from headstart.report.sections import (
    answers,
    audit,
    classes,
    cost,
    curves,
    data,
    mistakes,
    plan,
    schedules,
    trace,
    verdict,
)
from headstart.study.folder import inputs_digest, note_look, read_study_folder
from headstart.typed_json import collector_paused

# In the order of the page. Each takes the facts and findings, and has a template of its name in templates/sections.
SECTIONS = (verdict, answers, curves, schedules, data, cost, classes, mistakes, pictures, audit, plan, trace)


@collector_paused()
def build_report(study_dir: str | Path) -> Path:
    """Write report.html, report.json, figures/ and tables/ into a study's directory; returns the path of report.html.

    Everything is written beside its old version and renamed. ValueError naming the file where the study cannot be read.
    """
    inputs = inputs_digest(Path(study_dir))  # first: rows that come later must not count as shown
    folder = read_study_folder(study_dir)
    facts = Facts(folder)
    findings = find(facts)
    if findings.look:
        note_look(folder.path, findings.look)
    sections = [make(facts, findings) for make in SECTIONS]
    write_figures(
        {name: draw for section in sections for name, draw in section.figures.items()}, folder.path / "figures"
    )
    (folder.path / "tables").mkdir(exist_ok=True)
    summary = {
        "study": folder.name,
        "inputs": inputs,
        "settings": folder.study.model_dump(mode="json"),
        "segments": len(folder.runs),
        "finished": folder.num_finished,
    } | findings.summary()
    for section in sections:
        summary |= section.summary
        for name, rows in section.tables.items():
            write_csv(folder.path / "tables" / f"{name}.csv", rows)
    page = render(facts, findings, sections)
    assert len(page.encode()) <= MOST_BYTES, f"the page has {len(page.encode()):,} bytes"
    written = write_whole(folder.path / "report.html", page)
    # Last: its `inputs` says what everything beside it was made from (`study.folder.is_current`).
    write_whole(folder.path / "report.json", json_text(summary, indent=1, digits=DIGITS))
    return written
