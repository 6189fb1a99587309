"""A page that follows a running study: its progress, rewritten every few seconds; it reloads itself from the disk.

No server and no network: a browser opens the file. Updates end with the study, with a link to the report. Progress is
read from the rows and the times of their files alone.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
from markupsafe import Markup

from headstart.files import write_whole
from headstart.report.build import build_report
from headstart.report.facts import Facts
from headstart.report.figures import training_figure
from headstart.report.page import TEMPLATES, arms_data, templates
from headstart.report.plots import STYLE
from headstart.study.folder import is_current, read_plan, read_study_folder
from headstart.study.forecast import time_to_finish
from headstart.study.plan import Segment
from headstart.study.results import Run, StudyFolder
from headstart.training.rows import work_rows
from headstart.verdict import numbers
from headstart.version import __version__

PAGE = "live.html"
QUIET = 900.0  # seconds without a row after which a segment no longer counts as running; an evaluation may take minutes

State = Literal["finished", "running", "begun", "waiting"]


@dataclass(frozen=True)
class SegmentProgress:
    """One segment: its last step, its state, seconds since its last row (None: has none), and expected seconds left."""

    segment: Segment
    step: int
    state: State
    quiet: float | None
    left: float | None

    @property
    def share(self) -> float:
        """Share of its own steps that is done, 0..1."""
        return (self.step - self.segment.start) / self.segment.steps if self.segment.steps else 1.0


@dataclass(frozen=True)
class StudyProgress:
    """A whole study: its segments, the share of its steps that is done, and expected seconds left (None: not known)."""

    segments: tuple[SegmentProgress, ...]
    share: float
    left: float | None
    jobs: int

    @property
    def quiet(self) -> float | None:
        """Seconds since the last row of any segment; None where there is none."""
        return min((s.quiet for s in self.segments if s.quiet is not None), default=None)


def watch(study_dir: str | Path, *, every: float = 10.0, wait: Callable[[float], None] = time.sleep) -> Path:
    """Rewrite live.html of a study until the study is finished, then write its report; returns the report's path.

    ValueError naming the file where there is no study.
    """
    drawn: tuple[int, list[tuple[str, str]]] = (-1, [])
    while True:
        facts = Facts(read_study_folder(study_dir))
        folder = facts.folder
        num_rows = sum(len(run.rows) for run in folder.runs.values())
        if drawn[0] != num_rows:  # drawing takes longer than all the rest
            drawn = num_rows, _pictures(facts)
        report = None
        if folder.is_finished:
            report = folder.path / "report.html" if is_current(folder.path) else build_report(study_dir)
        if report and folder.rule and len(folder.seeds) < max(folder.rule.looks, default=0):
            report = None if read_plan(folder.path).is_open else report  # the study goes on to the next look
        write_live(facts, drawn[1], every=every, report=report)
        if report:
            return report
        wait(every)


def write_live(facts: Facts, pictures: list[tuple[str, str]], *, every: float, report: Path | None) -> Path:
    """Write live.html, with a link to the report if there is one; returns its path."""
    text = (
        templates()
        .get_template("live.html.j2")
        .render(
            folder=facts.folder,
            progress=study_progress(facts.folder),
            quiet=QUIET,
            arms=arms_data(facts),
            pictures=pictures,
            every=max(1, round(every)),
            report=report.name if report else None,
            time=time.strftime("%H:%M:%S"),
            version=__version__,
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        )
    )
    return write_whole(facts.folder.path / PAGE, text)


def study_progress(folder: StudyFolder, now: float | None = None) -> StudyProgress:
    """Progress at the time `now` (of time.time(), by default this moment).

    A segment that has not begun is expected at the mean pace of similar ones: same arm and fraction, else same arm,
    else any. As many segments at a time are expected as run now.
    """
    now = time.time() if now is None else now
    paces = {name: pace for name, run in folder.runs.items() if (pace := _pace(run)) is not None}
    segments = tuple(_progress(run, _expected(folder, run.segment, paces), now) for run in folder.runs.values())
    steps = sum(s.segment.steps for s in segments)
    done = sum(s.step - s.segment.start for s in segments)
    jobs = max(1, sum(s.state == "running" for s in segments))
    left = {s.segment.name: s.left for s in segments}
    known = None not in left.values()
    return StudyProgress(
        segments, done / steps if steps else 1.0, time_to_finish(folder.plan, left, jobs) if known else None, jobs
    )


def _progress(run: Run, pace: float | None, now: float) -> SegmentProgress:
    s = run.segment
    quiet = now - (run.directory / "rows.jsonl").stat().st_mtime if run.rows else None
    if run.end:
        return SegmentProgress(s, s.stop, "finished", quiet, 0.0)
    step = min(run.last_step, s.stop)
    state: State = "waiting" if not run.rows else "running" if quiet < QUIET else "begun"
    return SegmentProgress(s, step, state, quiet, None if pace is None else pace * (s.stop - step))


def _pace(run: Run) -> float | None:
    """Seconds a step of a lineage up to a segment's last row, evaluation included; None before the first such row."""
    timed = [row for row in work_rows(run.rows, after=0) if row.get("seconds")]
    return sum(timed[-1]["seconds"].values()) / timed[-1]["step"] if timed else None


def _expected(folder: StudyFolder, segment: Segment, paces: dict[str, float]) -> float | None:
    if segment.name in paces:
        return paces[segment.name]
    pretrain = segment.kind == "pretrain"
    like = [s for s in folder.plan.segments if s.name in paces and (s.kind == "pretrain") == pretrain]
    same_arm = [s for s in like if s.arm == segment.arm]
    same_data = [s for s in same_arm if s.fraction == segment.fraction]
    known = [paces[s.name] for s in same_data or same_arm or like]
    return sum(known) / len(known) if known else None


def _pictures(facts: Facts) -> list[tuple[str, str]]:
    """(fraction in words, data URI) of loss and metric so far, a picture a fraction that has begun."""
    made = []
    for fraction in facts.folder.fractions:
        losses, own = ([s for s in every if s.fraction == fraction] for every in (facts.losses, facts.stretches))
        if losses:
            buffer = io.BytesIO()
            with matplotlib.rc_context(STYLE):
                training_figure(facts, own, losses).savefig(buffer, format="svg", metadata={"Date": None})
            uri = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
            made.append((numbers.fraction_name(fraction, facts.folder.num_images.get(fraction)), uri))
    return made
