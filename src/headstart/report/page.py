"""The page of a report: sections rendered into one HTML file that loads no other.

Templates escape all text that comes from a study. The script gets its data as JSON that cannot close its element.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly
from markupsafe import Markup
from matplotlib.figure import Figure

from headstart.files import plain
from headstart.report.answers import DEFAULT_LEVEL
from headstart.report.facts import Facts, Row
from headstart.report.findings import Findings
from headstart.report.plots import arm_colours
from headstart.report.tables import Number
from headstart.verdict import numbers
from headstart.verdict.paired import t_half_width
from headstart.version import __version__

TEMPLATES = Path(__file__).parent / "templates"
DIGITS = 6  # significant digits of the numbers in page and report.json
MOST_BYTES = 8 * 1024 * 1024
CHARTED = ("stretches", "few", "mistakes")  # data of the script that plotly draws
# The figures' colours, lightened to the same contrast on a dark page.
DARK = {
    "#8e3b8c": "#d993d7",
    "#d55e00": "#ff8f4d",
    "#009e73": "#35c99b",
    "#0072b2": "#62b4ec",
    "#e69f00": "#f2bd4b",
    "#56b4e9": "#93d0f5",
}
INK, TEXT_SHARE = "#1c2126", 0.55  # of the figures' colours, the lightest of which is mixed just dark enough
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")


@dataclass(frozen=True)
class Section:
    """One section of a report: what it adds to page, script, figures, report.json and tables/.

    name is that of its template, sections/NAME.html.j2; link its words in the contents (None: has no entry).
    context holds the template's own variables, data those of the script. figures are functions by file name, summary
    fields of report.json, tables rows by file name.
    """

    name: str
    link: str | None = None
    context: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)


def render(facts: Facts, findings: Findings, sections: Sequence[Section]) -> str:
    """The whole page as HTML."""
    folder = facts.folder
    common = {
        "folder": folder,
        "findings": findings,
        "metric": facts.metric,
        "arms": arms_data(facts),
        "fraction_name": lambda fraction: numbers.fraction_name(fraction, folder.num_images.get(fraction)),
        "figures": [name for section in sections for name in section.figures],
        "tables": [name for section in sections for name in section.tables],
        "version": __version__,
        **_differences(facts),
    }
    data = {
        "arms": common["arms"],
        "fractions": [{"value": f, "name": common["fraction_name"](f)} for f in folder.fractions],
    }
    for section in sections:
        data |= section.data
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            common,
            sections=[
                Markup(templates().get_template(f"sections/{section.name}.html.j2").render(common | section.context))
                for section in sections
            ],
            links=[(section.name, section.link) for section in sections if section.link],
            data=Markup(script_json(data)),
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
            charts=any(section.data.get(name) for section in sections for name in CHARTED),
            plotly=Markup(packed_plotly()),
        )
    )


def _differences(facts: Facts) -> dict[str, Any]:
    """Variables for differences in templates: the interval, a test that it excludes the margin, and a note."""
    rule, seeds = facts.folder.rule, facts.folder.seeds
    level, margin = (rule.look_level, rule.margin) if rule else (DEFAULT_LEVEL, 0.0)

    def half(value: Number) -> float:
        return float(t_half_width(np.array(value.seeds), level))

    def interval(value: Number) -> str:
        low, high = (numbers.signed(value.mean + sign * half(value)) for sign in (-1, 1))
        return f"({low} to {high})"

    return {
        "interval": interval,
        "is_clear": lambda value: abs(value.mean) - half(value) > margin,  # never with one seed: nan
        "as_number": lambda verdict: Number(verdict.mean, verdict.sd, verdict.differences),
        "gap_note": (
            "differences of one seed have no interval"
            if len(seeds) == 1
            else f"differences stand with their {100 * level:g} % interval over seeds"
        )
        + " and are rounded last: by up to 0.1 they may not be those of the rounded scores"
        + ("; of a seed with a score in one arm alone there is none" if len(seeds) > 1 else ""),
    }


@cache
def templates() -> jinja2.Environment:
    """All templates; they escape whatever is put into them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    formats = ("score", "signed", "large", "span", "memory", "minus", "metric_name", "share")
    environment.filters |= {name: getattr(numbers, name) for name in formats}
    return environment


def arms_data(facts: Facts) -> list[dict[str, str]]:
    """Name, colours and mark of each arm."""
    colours = arm_colours(facts.folder)
    return [
        {
            "name": arm,
            "light": colours[arm],
            "dark": DARK[colours[arm]],
            "text": _darker(colours[arm]),
            "symbol": _SYMBOLS[place % len(_SYMBOLS)],
        }
        for place, arm in enumerate(facts.folder.arms)
    ]


def _darker(colour: str) -> str:
    """A colour mixed with the ink of a light page, for text with a contrast of 4.5 (WCAG AA)."""
    parts = [(int(colour[n : n + 2], 16), int(INK[n : n + 2], 16)) for n in (1, 3, 5)]
    return "#" + "".join(f"{round(TEXT_SHARE * own + (1 - TEXT_SHARE) * ink):02x}" for own, ink in parts)


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: no text in it can end the element or open a comment."""
    text = json.dumps(plain(value, digits=DIGITS), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def packed_plotly() -> str:
    """plotly.js of the installed package, compressed by gzip, in base64; the page's script unpacks it."""
    source = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, mtime=0)).decode()
