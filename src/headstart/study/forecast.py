"""Forecast of a plan before anything runs: steps, images, epochs and expected seconds, alone and shared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headstart.study.plan import Cell, Plan, Segment
from headstart.study.spec import PRETRAIN_PREFIX
from headstart.verdict.numbers import span

LEAST, MOST = 10.0, 60.0  # seconds between two lines of progress

_COLUMNS = ("kind", "arm", "fraction", "seed", "schedule", "start", "stop")


@dataclass(frozen=True, kw_only=True)
class Load:
    """The work of one arm, or one pre-training, in a step and in an evaluation.

    num_images are training images by fraction ({1.0: n} for a pre-training that does not follow it). Seconds are
    measured on this machine, seconds_to_start before the first step. With num_eval_images 0 nothing is evaluated, with
    eval_every 0 only the end of a run. variants is the cost of all evaluation variants of a final checkpoint, in plain
    evaluations. checkpoint_bytes are those of a checkpoint, which is saved each save_every steps (0: at the end).
    peak_bytes is the memory that the timed steps and evaluation took, 0 where it is not known.
    """

    batch: int
    num_images: Mapping[float, int]
    seconds_per_step: float
    seconds_per_eval_image: float = 0.0
    num_eval_images: int = 0
    eval_every: int = 0
    variants: float = 0.0
    seconds_to_start: float = 0.0
    checkpoint_bytes: int = 0
    save_every: int = 0
    peak_bytes: int = 0


def load_key(segment: Segment) -> str:
    """The name of a segment's load and recipe: its arm, or "pretrain:NAME"."""
    return f"{PRETRAIN_PREFIX}{segment.arm}" if segment.kind == "pretrain" else segment.arm


def num_evaluations(start: int, stop: int, every: int, *, at_end: bool = True) -> int:
    """Evaluations in the steps start..stop of one run: each `every` steps (0: none of these), and `at_end`."""
    regular = stop // every - start // every if every else 0
    return regular + (at_end and (not every or stop % every != 0))


def expected_seconds(start: int, stop: int, load: Load, *, is_trunk: bool = False) -> float:
    """Seconds of the steps start..stop in one run, its start and its evaluations; a trunk's end is not evaluated."""
    evaluated = num_evaluations(start, stop, load.eval_every, at_end=not is_trunk) * load.num_eval_images
    return load.seconds_to_start + (stop - start) * load.seconds_per_step + evaluated * load.seconds_per_eval_image


def variant_seconds(load: Load) -> float:
    """Seconds of all variants at the end of one schedule."""
    return load.variants * load.num_eval_images * load.seconds_per_eval_image


def segment_rows(plan: Plan, loads: Mapping[str, Load]) -> list[dict[str, Any]]:
    """One row for each segment, in the order of the plan, with the number of its cells; loads by `load_key`."""
    users = plan.cells_of()
    return [
        {
            "segment": segment.name,
            **{name: getattr(segment, name) for name in _COLUMNS},
            "cells": len(users[segment.name]),
            **_work(segment.steps, segment.fraction, load),
            "seconds": expected_seconds(segment.start, segment.stop, load, is_trunk=segment.kind == "trunk")
            + (variant_seconds(load) if segment.kind == "tail" else 0.0),
        }
        for segment in plan.segments
        for load in [loads[load_key(segment)]]
    ]


def cell_rows(plan: Plan, loads: Mapping[str, Load]) -> list[dict[str, Any]]:
    """One row for each cell as if run alone, without pre-training; steps before a branch have its parent's load."""
    by_name = {segment.name: segment for segment in plan.segments}
    return [
        {
            "cell": cell.name,
            **{name: getattr(cell, name) for name in ("arm", "schedule", "fraction", "seed")},
            **_alone(cell, [by_name[name] for name in cell.segments], loads),
        }
        for cell in plan.cells
    ]


def _alone(cell: Cell, segments: list[Segment], loads: Mapping[str, Load]) -> dict[str, float]:
    """Steps, images, epochs and seconds of a cell; a branch is its parent until it begins, without an evaluation."""
    own, parent = loads[cell.arm], loads[segments[0].arm]
    begin = next(segment.start for segment in segments if segment.arm == cell.arm)
    work, before = _work(cell.total - begin, cell.fraction, own), _work(begin, cell.fraction, parent)
    evaluated = parent.num_eval_images * (begin // parent.eval_every if parent.eval_every else 0)
    seconds = expected_seconds(begin, cell.total, own) + begin * parent.seconds_per_step
    return {
        **{name: value + before[name] for name, value in work.items()},
        "seconds": seconds + evaluated * parent.seconds_per_eval_image + variant_seconds(own),
    }


def totals(plan: Plan, loads: Mapping[str, Load]) -> dict[str, Any]:
    """The plan in one row: counts, steps, images and seconds if run alone and as shared, and what sharing saves.

    seconds and images of "alone" and "shared" leave pre-training out; it is done once and has its own entries.
    """
    segments = segment_rows(plan, loads)
    own = [row for row in segments if row["kind"] == "pretrain"]
    shared = [row for row in segments if row["kind"] != "pretrain"]
    alone = cell_rows(plan, loads)
    sums = {
        f"{field}_{name}": sum(row[field] for row in rows)
        for name, rows in (("alone", alone), ("shared", shared), ("pretrain", own))
        for field in ("steps", "images", "seconds")
    }
    return {"cells": len(plan.cells), "segments": len(plan.segments), "saving": plan.saving, **sums}


def _work(steps: int, fraction: float, load: Load) -> dict[str, float]:
    images = steps * load.batch
    return {"steps": steps, "images": images, "epochs": images / load.num_images[fraction]}


def makespan(plan: Plan, loads: Mapping[str, Load], jobs: int) -> float:
    """Expected seconds of a whole plan with `jobs` segments at a time."""
    return time_to_finish(plan, {row["segment"]: row["seconds"] for row in segment_rows(plan, loads)}, jobs)


def time_to_finish(plan: Plan, seconds: Mapping[str, float], jobs: int) -> float:
    """Seconds until the whole plan is done, given the seconds of each segment and `jobs` segments at a time.

    Segments begin in the order of the plan, each after those it needs, as in `study run`. A finished one takes 0 s.
    """
    assert jobs >= 1
    waiting, ends, running, now = list(plan.segments), {}, [], 0.0
    while waiting or running:
        ready = [s for s in waiting if all(ends.get(need, now + 1) <= now for need in s.needs)]
        for segment in ready[: jobs - len(running)]:
            waiting.remove(segment)
            ends[segment.name] = now + seconds[segment.name]
            running.append(segment.name)
        now = min(ends[name] for name in running)
        running = [name for name in running if ends[name] > now]
    return now


class WorkDone:
    """Share of a study's expected seconds that is done, in percent, and the part done before this run."""

    def __init__(self, seconds: Mapping[str, float]):
        self.seconds, self.shares = dict(seconds), dict.fromkeys(seconds, 0.0)
        self.first: dict[str, float] = {}  # shares that an earlier run had done

    def update(self, segment: str, share: float, *, found: bool = False) -> tuple[float, float]:
        """Record `share` (0..1) of a segment as done; returns the study's percent done, and the percent found done.

        A segment counts as found up to its first share, unless that is its end, which `found` tells apart. One that was
        not expected, such as a damaged run of an earlier seed, counts nothing.
        """
        if segment in self.seconds:
            self.shares[segment] = share
            self.first.setdefault(segment, share if found or share < 1 else 0.0)
        return self._percent(self.shares), self._percent(self.first)

    def _percent(self, shares: Mapping[str, float]) -> float:
        done = sum(self.seconds[name] * part for name, part in shares.items())
        return round(100 * done / sum(self.seconds.values()), 1)


class ProgressLines:
    """Progress as lines for logs and notebooks: percent, a note, time left; every 10 s at first, later once a minute.

    ends: the first call and the one at 100 % give a line too.
    """

    def __init__(
        self,
        name: str,
        say: Callable[[str], None] = print,
        *,
        ends: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.say, self.ends, self.clock = name, say, ends, clock
        self.begun: tuple[float, float] | None = None  # time and percent done here of the first call
        self.due = 0.0
        self.is_over = False

    def __call__(self, percent: float, note: str, found: float = 0.0) -> None:
        """Tell that `percent` is done, `found` of it by an earlier run, which says nothing about the time left."""
        now = self.clock()
        if self.begun is None:
            self.begun, self.due = (now, percent - found), now if self.ends else now + LEAST
        if self.is_over or (now < self.due and not (self.ends and percent >= 100)):
            return
        spent, gained = now - self.begun[0], percent - found - self.begun[1]
        self.is_over = percent >= 100
        self.due = now + min(MOST, max(LEAST, spent / 10))
        left = f", {span(spent * (100 - percent) / gained)} left" if gained > 0 and percent < 100 else ""
        self.say(f"{self.name}: {percent:.0f} %, {note}{left}")
