"""Statistics of learning curves: comparison at equal effort, crossover, and overfitting.

Letters: S seeds, P points of a curve. Scores in 0..1, higher is better, both arms paired by seed.
Curves are linear between points and are not extrapolated. For verdicts the points are ends of schedules (x: total,
score: final). Points inside a run depend on where its learning rate dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from headstart.verdict.earned import Obstacle
from headstart.verdict.numbers import amount
from headstart.verdict.paired import t_half_width
from headstart.verdict.rule import Rule
from headstart.verdict.verdict import Verdict, judge

REFINED = 16  # parts of the interval between two points: the standard deviation over seeds is not linear there


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores [S, P] of one arm over x [P], ascending: steps, images, or any cost in one unit."""

    arm: str
    x: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", np.asarray(self.x, float))
        object.__setattr__(self, "scores", np.atleast_2d(np.asarray(self.scores, float)))
        if self.scores.shape[1] != len(self.x) or not len(self.x):
            raise ValueError(f"curve {self.arm}: {self.scores.shape[1]} scores a seed for {len(self.x)} points")
        if np.any(np.diff(self.x) <= 0):
            raise ValueError(f"curve {self.arm}: x is {self.x.tolist()}, expected ascending values")

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """Scores at x by linear interpolation: [S, ...] for x [...]; nan outside the curve."""
        return np.stack([np.interp(x, self.x, seed, left=np.nan, right=np.nan) for seed in self.scores])


@dataclass(frozen=True)
class Crossover:
    """Point x from which the candidate stays within `within` of the baseline or above; None beyond the budget.

    low..high is a confidence interval of the crossing by inverted pointwise t intervals: all x at which the difference
    may be -within. The interval is open above where high is None. One seed gives no interval: indicative.
    reached: True if the candidate comes that close anywhere, also if it falls back by the end.
    """

    baseline: str
    candidate: str
    level: float
    num_seeds: int
    start: float
    budget: float
    within: float
    reached: bool
    x: float | None
    low: float | None
    high: float | None

    @property
    def indicative(self) -> bool:
        """True below two seeds, which give no interval."""
        return self.num_seeds < 2


@dataclass(frozen=True)
class Overfit:
    """Best point of validation (`onset`), its fall from there to the end, and whether that is overfitting.

    The fall of a seed is measured from the peak of the *other* seeds, so selecting a peak from noise adds no bias.
    decided: the interval of the fall lies above the tolerance while training still improves.
    """

    arm: str
    level: float
    num_seeds: int
    onset: float
    fall: float
    half_width: float
    train_gain: float
    decided: bool
    judged: bool

    @property
    def indicative(self) -> bool:
        """True below two seeds, which give no interval."""
        return self.num_seeds < 2


def compare_at(
    rule: Rule,
    baseline: Curve,
    candidate: Curve,
    *,
    axis: str = "steps",
    at: float | None = None,
    seeds: Sequence[int] | None = None,
    num_classes: int | None = None,
    obstacle: Obstacle | None = None,
) -> Verdict:
    """Verdict at equal x (`judge`, with seeds and num_classes): both curves at `at`, by default the largest x of both.

    With total costs on the axis a pre-trained curve begins after its pre-training. Curves that do not overlap give
    "not decidable", with the reason.
    """
    x = min(baseline.x[-1], candidate.x[-1]) if at is None else at
    where = f"at {amount(x)} {axis}"
    verdict = judge(rule, baseline.at(x), candidate.at(x), where=where, seeds=seeds, num_classes=num_classes)
    outside = [curve for curve in (baseline, candidate) if not curve.x[0] <= x <= curve.x[-1]]
    if not outside:
        return verdict.against(obstacle) if obstacle else verdict
    curve = outside[0]
    state = "has not begun" if x < curve.x[0] else "has ended"
    reason = f"{curve.arm} {state}: it spans {amount(curve.x[0])} to {amount(curve.x[-1])} {axis}"
    return replace(verdict.against(Obstacle("outside", "no common effort", reason)), num_left_out=0)


def crossover(
    baseline: Curve, candidate: Curve, *, level: float = 0.95, within: float = 0.0, floor: float = -inf
) -> Crossover:
    """Crossover of two curves over steps: the candidate is not below the baseline (less `within`) from x to the end.

    First points at which the candidate is that close although it has not learnt anything, with a score of at most
    `floor`, are left out: neither arm has learnt there. The last point always counts.
    ValueError for curves that do not overlap or have different numbers of seeds.
    """
    grid, difference = _difference(baseline, candidate)
    difference = difference + within
    tells = ((difference.mean(0) < 0) | (candidate.at(grid).mean(0) > floor))[::REFINED]  # at the points of the curves
    first = REFINED * int(tells.argmax()) if tells.any() else len(grid) - 1
    grid, difference = grid[first:], difference[:, first:]
    mean = difference.mean(0)
    half = t_half_width(difference, level)
    known = len(difference) > 1
    return Crossover(
        baseline=baseline.arm,
        candidate=candidate.arm,
        level=level,
        num_seeds=len(difference),
        start=float(grid[0]),
        budget=float(grid[-1]),
        within=within,
        reached=bool((mean >= 0).any()),
        x=_stays_up_from(grid, mean),
        low=_first_up(grid, mean + half) if known else None,
        high=_stays_up_from(grid, mean - half) if known else None,
    )


def falls_of(scores: np.ndarray) -> np.ndarray:
    """Fall of each seed from the peak of the other seeds (of its own if alone) to its end: scores [S,P] -> [S]."""
    if len(scores) == 1:
        return scores.max(1) - scores[:, -1]
    peaks = [np.delete(scores, seed, 0).mean(0).argmax() for seed in range(len(scores))]
    return scores[np.arange(len(scores)), peaks] - scores[:, -1]


def overfit_onset(
    train: Curve,
    validation: Curve,
    *,
    level: float = 0.95,
    tolerance: float = 0.0,
    judged: bool = False,
) -> Overfit:
    """Peak of validation, and whether it falls from there by more than `tolerance` while training still improves.

    judged: `train` holds scores on training images, otherwise negated losses. One seed is indicative, never decided.
    ValueError for curves of different x.
    """
    scores, num_seeds = validation.scores, len(validation.scores)
    if not np.array_equal(train.x, validation.x):
        raise ValueError(f"curve {train.arm}: training and validation have other x, expected the same points")
    onset = int(scores.mean(0).argmax())
    falls = falls_of(scores)
    half = float(t_half_width(falls, level))
    gain = float((train.scores[:, -1] - train.scores[:, onset]).mean())
    return Overfit(
        arm=validation.arm,
        level=level,
        num_seeds=num_seeds,
        onset=float(validation.x[onset]),
        fall=float(falls.mean()),
        half_width=half,
        train_gain=gain,
        decided=bool(falls.mean() - half > tolerance and gain > 0),
        judged=judged,
    )


def _difference(baseline: Curve, candidate: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Points [G] within both curves, every x of either among them, and candidate minus baseline there, [S, G]."""
    if len(baseline.scores) != len(candidate.scores):
        raise ValueError(
            f"curves {baseline.arm} and {candidate.arm} have {len(baseline.scores)} and {len(candidate.scores)} seeds, "
            "expected pairs"
        )
    grid = np.union1d(baseline.x, candidate.x)
    grid = grid[(grid >= max(baseline.x[0], candidate.x[0])) & (grid <= min(baseline.x[-1], candidate.x[-1]))]
    if not len(grid):
        raise ValueError(f"curves {baseline.arm} and {candidate.arm} do not overlap: nothing to compare")
    places = np.arange(REFINED * (len(grid) - 1) + 1) / REFINED
    fine = np.interp(places, np.arange(len(grid)), grid)
    return fine, candidate.at(fine) - baseline.at(fine)


def _stays_up_from(x: np.ndarray, y: np.ndarray) -> float | None:
    """The x from which straight lines through y never fall below 0 again; None where they end below."""
    below = np.flatnonzero(~(y >= 0))
    if not len(below):
        return float(x[0])
    last = below[-1]
    return None if last == len(x) - 1 else _zero(x[last : last + 2], y[last : last + 2])


def _first_up(x: np.ndarray, y: np.ndarray) -> float | None:
    """The first x at which straight lines through y reach 0; None where they never do."""
    up = np.flatnonzero(y >= 0)
    if not len(up):
        return None
    first = up[0]
    return float(x[0]) if first == 0 else _zero(x[first - 1 : first + 1], y[first - 1 : first + 1])


def _zero(x: np.ndarray, y: np.ndarray) -> float:
    return float(x[0] + (x[1] - x[0]) * -y[0] / (y[1] - y[0]))
