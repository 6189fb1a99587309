"""The verdict on two arms: arrays in, a decision with its uncertainty and a sentence out.

Letters: S seeds, C cells, N independent studies, R resamples of the test images.
Scores are in 0..1, higher is better; a difference is candidate minus baseline, paired by seed. Seeds are the unit: the
schedules of one seed share a trunk, so cells are never counted as samples. What seeds decide holds for the test
images at hand; what other images could change is a second source of noise, reported apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, hypot, isnan, log2
from typing import Literal

import numpy as np
from scipy import special

from headstart.verdict.paired import p_above, t_half_width, t_power

POWER = 0.8  # chance of a decision at the number of seeds advised (Cohen's convention)
MOST_SEEDS = 1_000  # beyond this the honest advice is that seeds will not decide it
KINDS = ("equivalence", "non_inferiority", "superiority")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What decides, written before the first run: metric, arms, margin (in 0..1), level and test.

    kind "equivalence" asks whether the two differ by less than the margin (two one-sided tests), "non_inferiority"
    whether the candidate is not worse by more than it, "superiority" whether one is better by more than it (0 is fine).
    A claim about the margin is tested one-sided at 1 - level, a claim of a difference two-sided at the same.
    """

    metric: str
    baseline: str
    candidate: str
    margin: float
    level: float = 0.95
    test: Literal["t", "sign_flip"] = "t"
    min_seeds: int = 3
    kind: Literal["equivalence", "non_inferiority", "superiority"] = "equivalence"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1 or (self.margin == 0 and self.kind != "superiority"):
            raise ValueError(
                f"rule.margin is {self.margin}, expected a share above 0 and below 1: 0.01 is one AP point"
            )
        if not 0.5 < self.level < 1:
            raise ValueError(f"rule.level is {self.level}, expected a share between 0.5 and 1 such as 0.95")
        if self.min_seeds < 2:
            raise ValueError(f"rule.min_seeds is {self.min_seeds}, expected at least 2: one seed shows no spread")
        for field, value, known in (("test", self.test, ("t", "sign_flip")), ("kind", self.kind, KINDS)):
            if value not in known:
                raise ValueError(f"rule.{field} is {value!r}, expected one of {', '.join(known)}")

    @property
    def alpha(self) -> float:
        """The error rate that the level leaves, free of the rounding in 1 - 0.95."""
        return round(1 - self.level, 12)

    @property
    def lead(self) -> float:
        """By how much one arm must be ahead to be called better: the margin for superiority, else nothing."""
        return self.margin if self.kind == "superiority" else 0.0


@dataclass(frozen=True)
class ImageNoise:
    """How far resampled test images move the mean difference: sd, and a percentile interval at the rule's level."""

    sd: float
    low: float
    high: float
    num_images: int | None


@dataclass(frozen=True)
class Verdict:
    """One decision and what it rests on; differences are candidate minus baseline, in 0..1.

    half_width belongs to the two-sided interval at the rule's level, margin_half_width to the narrower one that is held
    against the margin; both are nan for one seed. p_difference is two-sided, p_margin belongs to the margin's claim.
    leaning is the outcome that the mean alone suggests; indicative means fewer seeds than the rule asks for.
    """

    rule: Rule
    where: str
    outcome: str
    leaning: str
    indicative: bool
    reason: str
    differences: tuple[float, ...]
    num_left_out: int
    mean: float
    sd: float
    half_width: float
    margin_half_width: float
    p_difference: float
    p_margin: float
    seeds_to_decide: int | None
    images: ImageNoise | None

    @property
    def num_seeds(self) -> int:
        return len(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided t interval of the mean difference over seeds, for these test images."""
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def general_half_width(self) -> float:
        """Half-width over seeds and test images together (added in quadrature); nan without resampled images."""
        return self._with_images(self.half_width, (1 + self.rule.level) / 2)

    @property
    def holds_for_other_images(self) -> bool | None:
        """Whether the outcome stands when the noise of the test images is added; None where that is not known."""
        width = self.general_half_width
        if self._is_margin_claim():
            width = self._with_images(self.margin_half_width, 1 - self.rule.alpha)
        return None if isnan(width) or self.outcome == "not decidable" else width < self._distance()

    @property
    def images_to_decide(self) -> int | None:
        """Test images with which the outcome would stand for other images too; None if it does, or none would do."""
        if self.holds_for_other_images is not False or not self.images.num_images:
            return None
        claim = self._is_margin_claim()
        seeds = self.margin_half_width if claim else self.half_width
        room = self._distance() ** 2 - seeds**2
        share = special.ndtri(1 - self.rule.alpha if claim else (1 + self.rule.level) / 2) * self.images.sd
        return ceil(self.images.num_images * share**2 / room) if room > 0 else None

    def _with_images(self, half_width: float, quantile: float) -> float:
        return hypot(half_width, special.ndtri(quantile) * self.images.sd) if self.images else float("nan")

    def _is_margin_claim(self) -> bool:
        return self.outcome in ("equivalent", "not worse")

    def _distance(self) -> float:
        """Room between the mean and the nearest value that would contradict the outcome."""
        margin = self.rule.margin
        return {
            "better": self.mean - self.rule.lead,
            "worse": -self.mean - self.rule.lead,
            "equivalent": margin - abs(self.mean),
            "not worse": margin + self.mean,
        }[self.outcome]


def fewest_seeds(rule: Rule) -> int:
    """The least number of seeds with which the rule's test can ever decide.

    A sign-flip p value cannot go below 2 / 2^S two-sided, 1 / 2^S for the one-sided claims about a margin.
    """
    sides = 2 if rule.kind == "superiority" else 1
    return 2 if rule.test == "t" else max(2, ceil(log2(sides / rule.alpha) - 1e-9))


def decide(rule: Rule, differences: np.ndarray) -> np.ndarray:
    """Outcomes of many problems at once: differences [S, N] -> N names.

    "equivalent" goes before "better" and "worse": a real difference smaller than the margin does not matter.
    With fewer seeds than the rule asks for nothing is decidable.
    """
    differences = np.asarray(differences, float)
    outcome = np.full(differences.shape[1:], "not decidable")
    if len(differences) < max(rule.min_seeds, fewest_seeds(rule)):
        return outcome
    outcome[p_above(-differences, rule.lead, test=rule.test) <= rule.alpha / 2] = "worse"
    if rule.kind == "non_inferiority":
        outcome[_p_margin(rule, differences) <= rule.alpha] = "not worse"
    outcome[p_above(differences, rule.lead, test=rule.test) <= rule.alpha / 2] = "better"
    if rule.kind == "equivalence":
        outcome[_p_margin(rule, differences) <= rule.alpha] = "equivalent"
    return outcome


def judge(
    rule: Rule,
    baseline: np.ndarray,
    candidate: np.ndarray,
    *,
    where: str = "",
    bootstrap: np.ndarray | None = None,
    num_images: int | None = None,
) -> Verdict:
    """The verdict on one cell from the scores [S] of both arms, paired by seed; `where` names it in sentences.

    Pairs with a score that is not finite are left out and counted. bootstrap [S, R] holds the differences on R
    resamples of the num_images test images, the same resample for both arms and all seeds.
    """
    pairs = np.asarray(candidate, float) - np.asarray(baseline, float)
    used = np.isfinite(pairs)
    differences = pairs[used]
    num_seeds = len(differences)
    outcome = str(decide(rule, differences[:, None])[0]) if num_seeds > 1 else "not decidable"
    mean = float(differences.mean()) if num_seeds else float("nan")
    sd = float(differences.std(ddof=1)) if num_seeds > 1 else float("nan")
    p_difference, p_margin = _p_values(rule, differences)
    return Verdict(
        rule=rule,
        where=where,
        outcome=outcome,
        leaning=_leaning(rule, mean),
        indicative=num_seeds < rule.min_seeds,
        reason=_reason(rule, num_seeds, outcome),
        differences=tuple(differences.tolist()),
        num_left_out=int((~used).sum()),
        mean=mean,
        sd=sd,
        half_width=float(t_half_width(differences, rule.level)),
        margin_half_width=float(t_half_width(differences, 1 - 2 * rule.alpha)),
        p_difference=p_difference,
        p_margin=p_margin,
        seeds_to_decide=seeds_needed(rule, mean, sd) if outcome == "not decidable" else None,
        images=None if bootstrap is None else _image_noise(rule, np.asarray(bootstrap)[used], num_images),
    )


def judge_cells(rule: Rule, baseline: np.ndarray, candidate: np.ndarray, cells: Sequence[str]) -> tuple[Verdict, ...]:
    """One verdict for each of C cells from scores [S, C]; each has its own level, not adjusted for looking at C."""
    return tuple(
        judge(rule, baseline[:, column], candidate[:, column], where=cell) for column, cell in enumerate(cells)
    )


def seeds_needed(rule: Rule, mean: float, sd: float) -> int | None:
    """Seeds with which the rule decides in at least 80 % of studies, were the true mean and sd as observed.

    None where they are unknown or more than 1,000 seeds would be needed (a mean on the very edge of the margin).
    A spread estimated from few seeds is itself rough; take the number as an order of magnitude.
    """
    if isnan(mean) or isnan(sd):
        return None
    low = max(rule.min_seeds, fewest_seeds(rule))
    if sd < 1e-12 or _power(rule, mean / sd, rule.margin / sd, low) >= POWER:
        return low
    high = MOST_SEEDS
    if _power(rule, mean / sd, rule.margin / sd, high) < POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if _power(rule, mean / sd, rule.margin / sd, middle) >= POWER:
            high = middle
        else:
            low = middle
    return high


def _power(rule: Rule, mean: float, margin: float, num_seeds: int) -> float:
    """Chance of a decision with means in units of the sd: the likelier of the ways to one, so a lower bound."""
    lead = margin if rule.kind == "superiority" else 0.0
    difference = t_power(abs(mean) - lead, num_seeds, rule.alpha / 2)
    below, above = (t_power(room, num_seeds, rule.alpha) for room in (margin + mean, margin - mean))
    by_margin = {"equivalence": max(0.0, below + above - 1), "non_inferiority": below, "superiority": 0.0}
    return max(difference, by_margin[rule.kind])


def _p_margin(rule: Rule, differences: np.ndarray) -> np.ndarray:
    """p of the claim about the margin: both sides for equivalence, the lower one otherwise."""
    below = p_above(differences, -rule.margin, test=rule.test)
    return (
        np.maximum(below, p_above(-differences, -rule.margin, test=rule.test)) if rule.kind == "equivalence" else below
    )


def _p_values(rule: Rule, differences: np.ndarray) -> tuple[float, float]:
    if len(differences) < 2:
        return float("nan"), float("nan")
    sides = [p_above(sign * differences, rule.lead, test=rule.test) for sign in (1, -1)]
    return min(1.0, 2 * float(min(sides))), float(_p_margin(rule, differences))


def _leaning(rule: Rule, mean: float) -> str:
    if isnan(mean):
        return "not decidable"
    if abs(mean) <= rule.margin:
        return "equivalent"
    return "better" if mean > 0 else "worse"


def _reason(rule: Rule, num_seeds: int, outcome: str) -> str:
    if num_seeds == 0:
        return "no seed has a score in both arms"
    if num_seeds < rule.min_seeds:
        return f"{num_seeds} of the {rule.min_seeds} seeds that the rule asks for"
    if num_seeds < fewest_seeds(rule):
        return f"{num_seeds} seeds cannot reach the level with the sign-flip test, {fewest_seeds(rule)} can"
    if outcome != "not decidable":
        return ""
    return "the spread between seeds leaves both a difference and its absence possible"


def _image_noise(rule: Rule, bootstrap: np.ndarray, num_images: int | None) -> ImageNoise | None:
    """Noise of the mean over seeds: all seeds see the same resample, so more seeds do not average it away."""
    if not len(bootstrap):
        return None
    means = bootstrap.mean(0)
    low, high = np.quantile(means, [rule.alpha / 2, 1 - rule.alpha / 2])
    return ImageNoise(float(means.std(ddof=1)), float(low), float(high), num_images)
