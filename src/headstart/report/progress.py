"""How far a running study is, and when it will be done: from its rows and their files' times alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headstart.study.folder import Run, StudyFolder
from headstart.study.forecast import time_to_finish
from headstart.study.plan import Segment
from headstart.training.rows import work_rows

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
        """Of its own steps, 0..1."""
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
        """Seconds since the last row of any unfinished segment; None where there is none."""
        return min((s.quiet for s in self.segments if s.state != "finished" and s.quiet is not None), default=None)


def study_progress(folder: StudyFolder, now: float | None = None) -> StudyProgress:
    """Progress at the time `now` (of time.time(), by default this moment).

    What has not begun is expected to go at the pace of what is most like it: the same arm and fraction, the same arm,
    any other. As many segments at a time are expected as run now.
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
    like = [
        s for s in folder.plan.segments if s.name in paces and (s.kind == "pretrain") == (segment.kind == "pretrain")
    ]
    same_arm = [s for s in like if s.arm == segment.arm]
    same_data = [s for s in same_arm if s.fraction == segment.fraction]
    return _mean([paces[s.name] for s in same_data or same_arm or like])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
