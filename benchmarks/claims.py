"""Claims on differences between arms of kept studies, fixed in advance and decided by t intervals over paired seeds.

Scores are in 0..1. A claim is a range of differences. It holds if the interval lies wholly in the range: the 95 %
interval, and the 90 % one for a range with two ends (two one-sided tests at 5 %). It fails if the 95 % interval lies
wholly outside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import Any

import numpy as np
from studies import Kept

from headstart.verdict.numbers import counted, points, score
from headstart.verdict.paired import t_half_width, t_power
from headstart.verdict.rule import MOST_SEEDS, POWER

LEVEL = 0.95
LEARNT = 0.20  # the AP that both arms must reach: below it a network is still at its beginning
LONGEST = "the longest"  # schedule of a study at a fraction


class NotTried(Exception):
    """A study, cell, score or seed that a claim needs and that is not kept."""


@dataclass(frozen=True)
class Value:
    """One number, or one curve, of each seed of an arm in a kept study.

    of: "end" is the score at the end, "curve" all evaluations, "loss" the last training loss; the name of a shorter
    schedule is the score at the step where that one ends. may_fail: the arm need not learn.
    """

    study: str
    arm: str
    schedule: str = LONGEST
    metric: str = "box.AP"
    fraction: float = 1.0
    of: str = "end"
    may_fail: bool = False


@dataclass(frozen=True)
class Part:
    """A claim that the differences, made of the values seed by seed, lie between two bounds."""

    name: str
    values: tuple[Value, ...]
    above: float = -inf
    below: float = inf
    difference: Callable[..., np.ndarray] = np.subtract
    in_points: bool = True

    @property
    def level(self) -> float:
        """Level of the interval that confirms the claim."""
        return 2 * LEVEL - 1 if isfinite(self.above) and isfinite(self.below) else LEVEL

    @property
    def claim(self) -> str:
        """The claim as an inequality."""
        above, below = (f"{100 * bound if self.in_points else bound:g}" for bound in (self.above, self.below))
        left, right = f"{above} < " * (self.level < LEVEL), f" > {above}" if below == "inf" else f" < {below}"
        return f"{left}{self.name}{right}"

    def text(self, value: float) -> str:
        return points(value) if self.in_points else f"{value:+.2f}"


@dataclass(frozen=True, eq=False)
class Finding:
    """The differences [S] of a part, its longest schedule, and the arms that did not learn."""

    part: Part
    differences: np.ndarray
    longest: str
    failed: tuple[str, ...]

    @cached_property
    def mean(self) -> float:
        return float(self.differences.mean())

    def interval(self, level: float) -> tuple[float, float]:
        """The t interval of the mean over seeds; nan with one seed."""
        half = float(t_half_width(self.differences, level))
        return self.mean - half, self.mean + half

    @cached_property
    def outcome(self) -> str:
        """ "holds", "fails" or "open"; one seed leaves every claim open."""
        (low, high), part = self.interval(self.part.level), self.part
        if part.above < low and high < part.below:
            return "holds"
        low, high = self.interval(LEVEL)
        return "fails" if high <= part.above or low >= part.below else "open"

    @cached_property
    def seeds_needed(self) -> int | None:
        """Seeds that decide the claim with a power of 80 % at this mean and spread; None above 1,000."""
        sd, ends = float(self.differences.std(ddof=1)), (self.mean - self.part.above, self.part.below - self.mean)
        inside = min(ends) > 0
        rooms = [abs(room) for room in ends if isfinite(room) and (inside or room <= 0)]
        alpha = (1 - (self.part.level if inside else LEVEL)) / 2
        power = (sum(t_power(room / sd, n, alpha) for room in rooms) - len(rooms) + 1 for n in range(2, MOST_SEEDS + 1))
        return next((n for n, enough in enumerate(power, start=2) if enough >= POWER), None)

    @property
    def sentence(self) -> str:
        """The mean with the interval that confirms, and the outcome of the claim."""
        low, high = (self.part.text(end) for end in self.interval(self.part.level))
        known = f"({low} to {high}), {self.outcome}" if len(self.differences) > 1 else "(no interval)"
        return f"{self.part.claim.replace(LONGEST, self.longest)}: **{self.part.text(self.mean)}** {known}"


@dataclass(frozen=True)
class Observation:
    """What the paper observes, the design here with what differs from the paper, and the claims that decide it."""

    number: int
    paper: str
    design: str
    parts: tuple[Part, ...]

    @property
    def studies(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value.study for part in self.parts for value in part.values))


@dataclass(frozen=True)
class Conclusion:
    """An observation with the findings of its parts, or what is missing."""

    observation: Observation
    findings: tuple[Finding, ...]
    missing: str = ""

    @property
    def num_seeds(self) -> int:
        return min((len(finding.differences) for finding in self.findings), default=0)

    @property
    def text(self) -> str:
        """ "confirmed", "contradicted", or why neither is known."""
        if self.missing:
            return "not tried"
        if failed := dict.fromkeys(arm for finding in self.findings for arm in finding.failed):
            return f"not decidable: {' and '.join(failed)}, below {100 * LEARNT:g}"
        seeds = counted(self.num_seeds, "seed")
        if self.num_seeds < 2:
            return f"not decidable with {seeds}"
        outcomes = [finding.outcome for finding in self.findings]
        if "fails" in outcomes:
            return "contradicted"
        if "open" not in outcomes:
            return "confirmed"
        needed = [finding.seeds_needed for finding in self.findings if finding.outcome == "open"]
        enough = f"more than {MOST_SEEDS:,}" if None in needed else f"about {max(needed)}"
        return f"not decidable with {seeds}, {enough} would do at this spread"

    @property
    def is_decided(self) -> bool:
        return self.text in ("confirmed", "contradicted")


def conclude(observation: Observation, kept: Kept) -> Conclusion:
    """The findings of all parts of an observation in kept studies."""
    try:
        return Conclusion(observation, tuple(find(part, kept) for part in observation.parts))
    except NotTried as error:
        return Conclusion(observation, (), str(error))


def find(part: Part, kept: Kept) -> Finding:
    """The differences of a part over the seeds that all its values have; NotTried where something is not kept."""
    found = [read(kept, value) for value in part.values]
    seeds = sorted(set.intersection(*(set(values) for values in found)))
    if not seeds:
        raise NotTried(f"no common seed of {', '.join(dict.fromkeys(value.arm for value in part.values))}")
    differences = part.difference(*(np.stack([values[seed] for seed in seeds]) for values in found))
    failed = []
    for value in part.values:
        ends = _scores(cells_of(kept, value), value, f"{value.metric.partition('.')[0]}.AP")
        end = float(np.mean([ends[seed][-1] for seed in seeds]))
        if end < LEARNT and not value.may_fail:
            failed.append(f"{value.arm} ends at {score(end)} AP")
    open_ended = [cells_of(kept, value) for value in part.values if value.schedule == LONGEST]
    longest = next((cell["schedule"] for cells in open_ended for cell in cells.values()), "")
    return Finding(part, differences, longest, tuple(dict.fromkeys(failed)))


def read(kept: Kept, value: Value) -> dict[int, Any]:
    """A value by seed; NotTried where it is not kept."""
    cells = cells_of(kept, value)
    if value.of == "loss":
        found = {seed: cell["loss"] for seed, cell in cells.items() if "loss" in cell}
        if not found:
            raise NotTried(f"`{value.study}` is kept without loss")
        return found
    curves = _scores(cells, value, value.metric)
    if value.of == "curve":
        return curves
    if value.of == "end":
        return {seed: curve[-1] for seed, curve in curves.items()}
    (step,) = {cell["total"] for cell in cells_of(kept, value, value.of).values()}
    if any(cell["total"] <= step for cell in cells.values()):
        raise NotTried(f"`{value.study}` has no schedule beyond {value.of}")
    steps = {seed: [int(at) for at in cells[seed]["metrics"][value.metric]] for seed in curves}
    return {seed: np.interp(step, steps[seed], curve) for seed, curve in curves.items()}


def cells_of(kept: Kept, value: Value, schedule: str = "") -> dict[int, dict[str, Any]]:
    """The cells of a value's arm by seed, of another schedule if one is given; NotTried where there is none."""
    if value.study not in kept:
        raise NotTried(f"study `{value.study}` is not kept")
    cells = [cell for cell in kept[value.study]["figures"]["cells"] if cell["fraction"] == value.fraction]
    name = schedule or value.schedule
    if name == LONGEST and cells:
        name = max(cells, key=lambda cell: cell["total"])["schedule"]
    found = {cell["seed"]: cell for cell in cells if (cell["arm"], cell["schedule"]) == (value.arm, name)}
    if not found:
        raise NotTried(f"`{value.study}` has no {value.arm} at {name} with {100 * value.fraction:g} % of the images")
    return found


def _scores(cells: dict[int, dict[str, Any]], value: Value, metric: str) -> dict[int, np.ndarray]:
    """Scores of all evaluations in order of steps, by seed, of the cells that have one at their end."""
    kept = {seed: cell.get("metrics", {}).get(metric, {}) for seed, cell in cells.items()}
    found = {seed: np.array(list(curve.values())) for seed, curve in kept.items() if str(cells[seed]["total"]) in curve}
    if not found:
        raise NotTried(f"`{value.study}` is kept without {metric} of {value.arm}")
    return found
