"""The page: everything of a report in one HTML file that needs nothing else and asks nothing of any network.

All text that comes from a study is escaped by the template; the script gets its data as JSON that
cannot end its element.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly
from markupsafe import Markup

from headstart.files import plain
from headstart.report.differences import compared, difference_rows, starts_differ, tuning_rows
from headstart.report.findings import Findings, rule_sentence
from headstart.report.mistakes import MistakeRow
from headstart.report.page_data import DIGITS, arms_data
from headstart.report.paper import SOURCE, TABLE_1
from headstart.report.pictures import Samples
from headstart.report.spending import Bills, StartCost, mean_cost
from headstart.report.tables import ScheduleTable, class_table, fraction_table, size_table
from headstart.study.cost import sample_figure
from headstart.study.folder import Run, StudyFolder
from headstart.verdict import numbers
from headstart.verdict.curves import Crossover
from headstart.version import __version__

TEMPLATES = Path(__file__).parent / "templates"
MOST_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Tile:
    """One number at the top: what it is, the number, what it means, and the arm whose colour it has (or None)."""

    label: str
    value: str
    note: str
    arm: str | None = None


def render(
    folder: StudyFolder,
    findings: Findings,
    *,
    data: dict[str, Any],
    cells: Sequence[dict[str, Any]],
    tables: Sequence[ScheduleTable],
    bills: Bills,
    starts: dict[str, StartCost],
    mistakes: dict[str, list[MistakeRow]],
    samples: Samples,
    pictures: Sequence[Path],
) -> str:
    """The whole page. data is for the script (page_data), pictures are the figures' SVG files."""
    return template("report.html.j2").render(
        fraction_name=lambda fraction: numbers.fraction_name(fraction, folder.num_images.get(fraction)),
        folder=folder,
        findings=findings,
        rule=rule_sentence(folder.rule) if folder.rule else None,
        arms=arms_data(folder),
        schedules=list(dict.fromkeys(name for fraction in folder.fractions for name in folder.schedules(fraction))),
        metrics=[entry["id"] for entry in data["metrics"]],
        metric=folder.metric,
        data_present=bool(data["stretches"]),
        data_pretraining=bool(data["pretraining"]),
        few=len({point["images"] for point in data["few"]}) > 1,
        cells=cells,
        tiles=_tiles(folder, findings, starts),
        starts=starts,
        mistakes=mistakes,
        paper_bars=sample_figure() if folder.settings.get("paper") else None,
        question="Do you need the head start?" if starts_differ(folder) else f"{' or '.join(folder.arms)}?",
        differences=difference_rows(folder),
        same=compared(folder),
        tuning=tuning_rows(folder),
        has_flops=any(bill.alone.flops > 0 for own in bills.values() for bill in own),
        verdicts={(entry.fraction, entry.schedule): entry.verdict for entry in findings.comparisons},
        tables=tables,
        fractions=fraction_table(folder) if folder.baseline else [],
        costs=_cost_lines(folder, bills, cells),
        classes={
            kind: rows
            for kind in ("box", "mask", "keypoints", "class", "semantic")
            if folder.baseline and (rows := class_table(folder, kind))
        },
        sizes=size_table(folder),
        headline_schedule=folder.headline_cell[0] if folder.headline_cell else None,
        samples=samples,
        audits=_audits(folder),
        environments=_environments(folder),
        paper=TABLE_1,
        paper_source=SOURCE,
        figures=[path.name for path in pictures],
        version=__version__,
        data=Markup(script_json(data)),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_source()),
    )


@cache
def template(name: str) -> jinja2.Template:
    """A template that escapes whatever is put into it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters = (
        numbers.score,
        numbers.signed,
        numbers.large,
        numbers.span,
        numbers.memory,
        numbers.minus,
        numbers.metric_name,
    )
    environment.filters |= {each.__name__: each for each in filters}
    return environment.get_template(name)


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: no text in it can end the element or open a comment."""
    text = json.dumps(plain(value, digits=DIGITS), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def plotly_source() -> str:
    """plotly.js as the installed package ships it."""
    source = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    assert "</script" not in source.lower(), "would end the script element"
    return source


def _tiles(folder: StudyFolder, findings: Findings, starts: dict[str, StartCost]) -> list[Tile]:
    most = [entry for entry in findings.comparisons if folder.fractions and entry.fraction == folder.fractions[0]]
    tiles = [
        _lead_tile(f"at {entry.schedule}", entry.verdict, when)
        for entry, when in zip(most[:1] + most[1:][-1:], ("early", "at the end"))
    ]
    if findings.crossover:
        tiles.append(_crossover_tile(findings.crossover))
    for fraction in folder.fractions[1:]:
        last = [entry for entry in findings.comparisons if entry.fraction == fraction][-1:]
        tiles += [
            _lead_tile(f"{100 * fraction:g} % of the data", entry.verdict, f"at {entry.schedule}") for entry in last
        ]
    tiles += [_start_tile(arm, start) for arm, start in starts.items() if start.whole.images]
    return tiles


def _start_tile(arm: str, start: StartCost) -> Tile:
    took = "public weights" if start.public else f"{numbers.span(start.whole.seconds)} of pre-training"
    shared = "counted to one use" if start.uses == 1 else f"for {start.uses:,g} uses"
    return Tile(f"start of {arm}", f"{numbers.large(start.whole.images)} images", f"{took}, {shared}", arm)


def _lead_tile(label: str, verdict: Any, when: str) -> Tile:
    shown = numbers.signed(abs(verdict.mean)).replace("+", "")
    leader = verdict.rule.candidate if verdict.mean > 0 else verdict.rule.baseline
    if shown == "0.0":
        return Tile(label, "level", f"neither is ahead {when}")
    return Tile(label, f"{shown} points", f"{leader} is ahead {when}", leader)


def _crossover_tile(found: Crossover) -> Tile:
    label = f"{found.candidate} catches up"
    if found.x is None:
        return Tile(label, "not yet", f"not within {numbers.amount(found.budget)} {found.axis}", found.baseline)
    if found.x == found.start:
        return Tile(
            label, "at once", f"level or ahead from {numbers.amount(found.start)} {found.axis} on", found.candidate
        )
    return Tile(label, f"≈ {numbers.amount(found.x)} {found.axis}", "between the ends of schedules", found.candidate)


def _cost_lines(folder: StudyFolder, bills: Bills, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line an arm, schedule and fraction: the mean over seeds of what it cost in the four ways; largest memory."""
    peaks: dict[tuple, int] = {}
    for row in rows:
        key = (row["arm"], row["schedule"], row["fraction"])
        peaks[key] = max(peaks.get(key, 0), row["memory"] or 0)
    lines = []
    for fraction in folder.fractions:
        for arm in folder.arms:
            for schedule in folder.schedules(fraction, arm):
                cells = bills.get((arm, schedule, fraction))
                if cells:
                    ways = {
                        way: mean_cost([getattr(bill, way) for bill in cells])
                        for way in ("alone", "whole", "as_spent", "whole_as_spent")
                    }
                    key = {"arm": arm, "schedule": schedule, "fraction": fraction}
                    lines.append(key | ways | {"memory": peaks[arm, schedule, fraction]})
    return lines


def _audits(folder: StudyFolder) -> list[dict[str, Any]]:
    """The audit of each arm and pre-training: that of the first run which has one, and which others differ from it."""
    found: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in folder.runs.values():
        audit = run.fact("audit.json") if run.directory else None
        if audit:
            label = f"pre-training {run.segment.arm}" if run.segment.kind == "pretrain" else run.segment.arm
            found.setdefault(label, []).append((run, audit))
    return [
        {
            "label": label,
            "run": entries[0][0].place(folder.path),
            "audit": entries[0][1],
            "num": len(entries),
            "others": [run.place(folder.path) for run, audit in entries if audit["rows"] != entries[0][1]["rows"]],
        }
        for label, entries in found.items()
    ]


def _environments(folder: StudyFolder) -> list[dict[str, Any]]:
    """Distinct environments of the runs, with how many runs were made in each."""
    found: dict[str, dict[str, Any]] = {}
    for run in folder.runs.values():
        facts = run.fact("environment.json")
        if facts:
            entry = found.setdefault(json.dumps(facts, sort_keys=True), {"facts": facts, "num": 0})
            entry["num"] += 1
    return list(found.values())
