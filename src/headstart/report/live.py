"""A page that follows a running study: it is written anew every few seconds, and reloads itself from the disk.

No server and no network: a browser opens the file. It ends when the study does, with the report.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
from markupsafe import Markup

from headstart.files import write_whole
from headstart.report.build import build_report
from headstart.report.figures import STYLE, training_figure
from headstart.report.page import TEMPLATES, template
from headstart.report.page_data import arms_data
from headstart.report.progress import study_progress
from headstart.report.series import evaluation_stretches, loss_stretches
from headstart.study.folder import StudyFolder, read_study_folder
from headstart.verdict import numbers
from headstart.version import __version__

PAGE = "live.html"


def watch(study_dir: str | Path, *, every: float = 10.0, wait: Callable[[float], None] = time.sleep) -> Path:
    """Keep live.html of a study up to date until the study is finished, then write its report; returns its path.

    ValueError naming the file where there is no study.
    """
    drawn: tuple[int, list[tuple[str, str]]] = (-1, [])
    while True:
        folder = read_study_folder(study_dir)
        num_rows = sum(len(run.rows) for run in folder.runs.values())
        if drawn[0] != num_rows:  # drawing takes longer than all the rest
            drawn = num_rows, _pictures(folder)
        report = build_report(study_dir) if folder.is_finished else None
        write_live(folder, drawn[1], every=every, report=report)
        if report:
            return report
        wait(every)


def write_live(folder: StudyFolder, pictures: list[tuple[str, str]], *, every: float, report: Path | None) -> Path:
    """Write live.html; with a report it says so and leads there."""
    text = template("live.html.j2").render(
        folder=folder,
        progress=study_progress(folder),
        arms=arms_data(folder),
        pictures=pictures,
        every=max(1, round(every)),
        report=report.name if report else None,
        time=time.strftime("%H:%M:%S"),
        span=numbers.span,
        version=__version__,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )
    return write_whole(folder.path / PAGE, text)


def _pictures(folder: StudyFolder) -> list[tuple[str, str]]:
    """(fraction in words, data URI) of loss and metric so far, a picture a fraction that has begun."""
    stretches, losses, made = evaluation_stretches(folder), loss_stretches(folder), []
    for fraction in folder.fractions:
        logged = [s for s in losses if s.fraction == fraction]
        if logged:
            own = [s for s in stretches if s.fraction == fraction]
            buffer = io.BytesIO()
            with matplotlib.rc_context(STYLE):
                figure = training_figure(folder, own, logged, fraction)
                figure.savefig(buffer, format="svg", metadata={"Date": None})
            uri = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
            made.append((numbers.fraction_name(fraction, folder.num_images.get(fraction)), uri))
    return made
