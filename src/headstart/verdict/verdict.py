"""Verdict on two arms: a pre-registered decision rule on scores paired by seed.

Letters: S seeds, N independent studies, R resamples of the test images.
Scores are in 0..1, higher is better; a difference is candidate minus baseline. The seed is the unit: schedules of one
seed share a trunk, so cells are not samples. The decision is conditional on the test images; their sampling noise is
estimated by a bootstrap and reported apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, hypot, isnan

import numpy as np
from scipy import special

from headstart.verdict.earned import Obstacle, find_obstacle, floor_of
from headstart.verdict.paired import p_above, t_half_width
from headstart.verdict.rule import Rule, fewest_seeds, seeds_needed


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

    half_width is that of the two-sided interval at the level of a look. margin_half_width is that of the narrower
    interval compared with the margin. Both are nan for one seed. p_difference is two-sided; p_margin is that of the
    claim on the margin.
    obstacle says why the outcome is "not decidable"; it is None for every other outcome.
    """

    rule: Rule
    where: str
    outcome: str
    obstacle: Obstacle | None
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
        """Seeds with a score in both arms."""
        return len(self.differences)

    def against(self, obstacle: Obstacle) -> Verdict:
        """The same evidence without a conclusion, which the obstacle forbids."""
        return replace(self, outcome="not decidable", obstacle=obstacle, seeds_to_decide=None)

    @property
    def is_small(self) -> bool:
        """True if the mean difference lies within the margin."""
        return abs(self.mean) <= self.rule.margin

    @property
    def interval(self) -> tuple[float, float]:
        """Half-width and level of the interval over seeds that the outcome rests on."""
        if self.outcome in ("equivalent", "not worse"):
            return self.margin_half_width, 1 - 2 * self.rule.alpha
        return self.half_width, self.rule.look_level

    @property
    def p(self) -> float:
        """The p value of the outcome."""
        return self.p_margin if self.outcome in ("equivalent", "not worse") else self.p_difference

    @property
    def widths(self) -> tuple[float, float]:
        """Half-widths of `interval` over seeds and over test images, the latter nan without a bootstrap."""
        half, level = self.interval
        return half, float(special.ndtri((1 + level) / 2)) * (self.images.sd if self.images else float("nan"))

    @property
    def holds_for_other_images(self) -> bool | None:
        """True if the outcome also holds with the noise of the test images added; None where that is unknown."""
        width = hypot(*self.widths)
        return None if isnan(width) or self.outcome == "not decidable" else width < self.distance

    @property
    def images_to_decide(self) -> int | None:
        """Test images needed for the outcome to hold with their noise; None if it does, or no number suffices."""
        if self.holds_for_other_images is not False or not self.images.num_images:
            return None
        seeds, images = self.widths
        room = self.distance**2 - seeds**2
        return ceil(self.images.num_images * images**2 / room) if room > 0 else None

    @property
    def distance(self) -> float:
        """Distance from the mean to the nearest value that contradicts the outcome, which is a decision."""
        margin = self.rule.margin
        return {
            "better": self.mean - self.rule.lead,
            "worse": -self.mean - self.rule.lead,
            "equivalent": margin - abs(self.mean),
            "not worse": margin + self.mean,
        }[self.outcome]


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
    seeds: Sequence[int] | None = None,
    num_classes: int | None = None,
    bootstrap: np.ndarray | None = None,
    num_images: int | None = None,
) -> Verdict:
    """Verdict on one cell from the scores [S] of both arms, paired by seed; `where` names it in sentences.

    Pairs with a score that is not finite are left out and counted. A conclusion is stated only where
    `earned.find_obstacle` finds no obstacle. seeds are the names of the seeds (default 0..S-1), num_classes is that of
    the data. bootstrap [S, R]: differences on R resamples of the num_images test images, the same for both arms and all
    seeds.
    """
    arms = np.asarray(baseline, float), np.asarray(candidate, float)
    pairs = arms[1] - arms[0]
    used = np.isfinite(pairs)
    differences = pairs[used]
    num_seeds = len(differences)
    names = [name for name, ok in zip(range(len(pairs)) if seeds is None else seeds, used) if ok]
    scores = [values[used] for values in arms]
    obstacle = find_obstacle(rule, *scores, seeds=names, floor=floor_of(rule, num_classes))
    outcome = "not decidable" if obstacle else str(decide(rule, differences[:, None])[0])
    if obstacle is None and outcome == "not decidable":
        reason = "the variation between seeds is compatible with a difference and with none"
        obstacle = Obstacle("open", f"{num_seeds} seeds leave it open", reason)
    mean = float(differences.mean()) if num_seeds else float("nan")
    sd = float(differences.std(ddof=1)) if num_seeds > 1 else float("nan")
    p_difference = p_margin = float("nan")
    if num_seeds > 1:
        sides = [p_above(sign * differences, rule.lead, test=rule.test) for sign in (1, -1)]
        p_difference, p_margin = min(1.0, 2 * float(min(sides))), float(_p_margin(rule, differences))
    images = None
    if bootstrap is not None and num_seeds:
        means = np.asarray(bootstrap)[used].mean(0)  # the same resample for all seeds: more do not average it away
        low, high = np.quantile(means, [rule.alpha / 2, 1 - rule.alpha / 2])
        images = ImageNoise(float(means.std(ddof=1)), float(low), float(high), num_images)
    needed = seeds_needed(rule, mean, sd) if obstacle is not None and obstacle.code in ("open", "seeds") else None
    if needed is not None and obstacle.code == "open":
        needed = max(needed, num_seeds + 1) if num_seeds < rule.most_seeds else None  # these have left it open
    return Verdict(
        rule=rule,
        where=where,
        outcome=outcome,
        obstacle=obstacle,
        differences=tuple(differences.tolist()),
        num_left_out=int((~used).sum()),
        mean=mean,
        sd=sd,
        half_width=float(t_half_width(differences, rule.look_level)),
        margin_half_width=float(t_half_width(differences, 1 - 2 * rule.alpha)),
        p_difference=p_difference,
        p_margin=p_margin,
        seeds_to_decide=needed,
        images=images,
    )


def _p_margin(rule: Rule, differences: np.ndarray) -> np.ndarray:
    """p value of the claim about the margin: both sides for equivalence, the lower side otherwise."""
    below = p_above(differences, -rule.margin, test=rule.test)
    if rule.kind != "equivalence":
        return below
    return np.maximum(below, p_above(-differences, -rule.margin, test=rule.test))
