"""Verdict on two arms: a pre-registered decision rule on scores paired by seed.

Letters: S seeds, N independent studies, R resamples of the test images.
Scores are in 0..1, higher is better; a difference is candidate minus baseline. The seed is the unit: schedules of one
seed share a trunk, so cells are not samples. The decision is conditional on the test images; their sampling noise is
estimated by a bootstrap and reported apart.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import ceil, hypot, isnan, log2
from typing import Literal

import numpy as np
from scipy import special

from headstart.verdict.paired import p_above, t_half_width, t_power

POWER = 0.8  # chance of a decision at the number of seeds advised (Cohen's convention)
MOST_SEEDS = 1_000  # more are not advised: the mean then lies on the edge of the margin
KINDS = ("equivalence", "non_inferiority", "superiority")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Decision rule, fixed before the first run: metric, arms, margin (in 0..1), level and test.

    kind "equivalence" tests for a difference below the margin (two one-sided tests), "non_inferiority" that the
    candidate is not worse by more than the margin, "superiority" that one is better by more than it (0 is allowed).
    Claims about the margin are tested one-sided at 1 - level, claims of a difference two-sided at 1 - level.
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
            raise ValueError(f"rule.margin is {self.margin}, expected above 0 and below 1: 0.01 is one AP point")
        if not 0.5 < self.level < 1:
            raise ValueError(f"rule.level is {self.level}, expected a share between 0.5 and 1 such as 0.95")
        if self.min_seeds < 2:
            raise ValueError(
                f"rule.min_seeds is {self.min_seeds}, expected at least 2: one seed has no standard deviation"
            )
        for field, value, known in (("test", self.test, ("t", "sign_flip")), ("kind", self.kind, KINDS)):
            if value not in known:
                raise ValueError(f"rule.{field} is {value!r}, expected one of {', '.join(known)}")

    @property
    def alpha(self) -> float:
        """Error rate, 1 - level without its rounding error."""
        return round(1 - self.level, 12)

    @property
    def lead(self) -> float:
        """Smallest difference that counts as better: the margin for superiority, else 0."""
        return self.margin if self.kind == "superiority" else 0.0


@dataclass(frozen=True)
class ImageNoise:
    """Bootstrap of the test images: standard deviation and percentile interval of the mean difference."""

    sd: float
    low: float
    high: float
    num_images: int | None


@dataclass(frozen=True)
class Verdict:
    """One decision and its evidence; differences are candidate minus baseline, in 0..1.

    half_width belongs to the two-sided interval at the rule's level, margin_half_width to the narrower one compared
    with the margin; both are nan for one seed. p_difference is two-sided, p_margin is that of the claim on the margin.
    leaning is the outcome suggested by the mean alone; indicative: fewer seeds than the rule requires.
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
    def general_half_width(self) -> float:
        """Half-width over seeds and test images (added in quadrature); nan without a bootstrap."""
        return self._with_images(self.half_width, (1 + self.rule.level) / 2)

    @property
    def holds_for_other_images(self) -> bool | None:
        """True if the outcome also holds with the noise of the test images added; None where that is unknown."""
        width = self.general_half_width
        if self.outcome in ("equivalent", "not worse"):
            width = self._with_images(self.margin_half_width, 1 - self.rule.alpha)
        return None if isnan(width) or self.outcome == "not decidable" else width < self._distance()

    @property
    def images_to_decide(self) -> int | None:
        """Test images needed for the outcome to hold with their noise; None if it does, or no number suffices."""
        if self.holds_for_other_images is not False or not self.images.num_images:
            return None
        claim = self.outcome in ("equivalent", "not worse")
        seeds = self.margin_half_width if claim else self.half_width
        room = self._distance() ** 2 - seeds**2
        share = special.ndtri(1 - self.rule.alpha if claim else (1 + self.rule.level) / 2) * self.images.sd
        return ceil(self.images.num_images * share**2 / room) if room > 0 else None

    def _with_images(self, half_width: float, quantile: float) -> float:
        return hypot(half_width, special.ndtri(quantile) * self.images.sd) if self.images else float("nan")

    def _distance(self) -> float:
        """Distance from the mean to the nearest value that contradicts the outcome."""
        margin = self.rule.margin
        return {
            "better": self.mean - self.rule.lead,
            "worse": -self.mean - self.rule.lead,
            "equivalent": margin - abs(self.mean),
            "not worse": margin + self.mean,
        }[self.outcome]


def fewest_seeds(rule: Rule) -> int:
    """Fewest seeds with which the rule's test can reach its level.

    A sign-flip p value cannot go below 2 / 2^S two-sided, 1 / 2^S for the one-sided claims about a margin.
    """
    sides = 2 if rule.kind == "superiority" else 1
    return 2 if rule.test == "t" else max(2, ceil(log2(sides / rule.alpha) - 1e-9))


def decide(rule: Rule, differences: np.ndarray) -> np.ndarray:
    """Outcomes of N problems: differences [S, N] -> str [N].

    "equivalent" takes precedence over "better" and "worse": a difference below the margin does not matter.
    With fewer seeds than the rule requires every outcome is "not decidable".
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
    """Verdict on one cell from the scores [S] of both arms, paired by seed; `where` names it in sentences.

    Pairs with a score that is not finite are left out and counted. bootstrap [S, R]: differences on R resamples of the
    num_images test images, the same resample for both arms and all seeds.
    """
    pairs = np.asarray(candidate, float) - np.asarray(baseline, float)
    used = np.isfinite(pairs)
    differences = pairs[used]
    num_seeds = len(differences)
    outcome = str(decide(rule, differences[:, None])[0]) if num_seeds > 1 else "not decidable"
    mean = float(differences.mean()) if num_seeds else float("nan")
    sd = float(differences.std(ddof=1)) if num_seeds > 1 else float("nan")
    p_difference = p_margin = float("nan")
    if num_seeds > 1:
        sides = [p_above(sign * differences, rule.lead, test=rule.test) for sign in (1, -1)]
        p_difference, p_margin = min(1.0, 2 * float(min(sides))), float(_p_margin(rule, differences))
    images = None
    if bootstrap is not None and num_seeds:
        means = np.asarray(bootstrap)[used].mean(
            0
        )  # all seeds see the same resample: more seeds do not average it away
        low, high = np.quantile(means, [rule.alpha / 2, 1 - rule.alpha / 2])
        images = ImageNoise(float(means.std(ddof=1)), float(low), float(high), num_images)
    leaning = "not decidable" if isnan(mean) else "better" if mean > 0 else "worse"
    return Verdict(
        rule=rule,
        where=where,
        outcome=outcome,
        leaning="equivalent" if abs(mean) <= rule.margin else leaning,
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
        images=images,
    )


def seeds_needed(rule: Rule, mean: float, sd: float) -> int | None:
    """Seeds for a power of at least 80 % if the true mean and standard deviation were as observed.

    None where they are unknown or over 1,000 seeds would be needed. The sd of few seeds is a rough estimate: read the
    number as an order of magnitude.
    """
    if isnan(mean) or isnan(sd):
        return None
    fewest = max(rule.min_seeds, fewest_seeds(rule))
    if sd < 1e-12:
        return fewest
    counts = range(fewest, MOST_SEEDS + 1)
    place = bisect_left(counts, True, key=lambda n: _power(rule, mean / sd, rule.margin / sd, n) >= POWER)
    return counts[place] if place < len(counts) else None


def _power(rule: Rule, mean: float, margin: float, num_seeds: int) -> float:
    """Power with means in units of the sd: that of the likelier claim, a lower bound."""
    lead = margin if rule.kind == "superiority" else 0.0
    difference = t_power(abs(mean) - lead, num_seeds, rule.alpha / 2)
    below, above = (t_power(room, num_seeds, rule.alpha) for room in (margin + mean, margin - mean))
    by_margin = {"equivalence": max(0.0, below + above - 1), "non_inferiority": below, "superiority": 0.0}
    return max(difference, by_margin[rule.kind])


def _p_margin(rule: Rule, differences: np.ndarray) -> np.ndarray:
    """p value of the claim about the margin: both sides for equivalence, the lower side otherwise."""
    below = p_above(differences, -rule.margin, test=rule.test)
    if rule.kind != "equivalence":
        return below
    return np.maximum(below, p_above(-differences, -rule.margin, test=rule.test))


def _reason(rule: Rule, num_seeds: int, outcome: str) -> str:
    if num_seeds == 0:
        return "no seed has a score in both arms"
    if num_seeds < rule.min_seeds:
        return f"{num_seeds} of the {rule.min_seeds} seeds that the rule requires"
    if num_seeds < fewest_seeds(rule):
        return f"{num_seeds} seeds cannot reach the level with the sign-flip test, {fewest_seeds(rule)} can"
    if outcome != "not decidable":
        return ""
    return "the variation between seeds is compatible with a difference and with none"
