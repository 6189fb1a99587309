"""Conditions for a conclusion that a test on scores does not check: learnt, no longer rising, enough images.

Letters: S seeds, P schedules. Scores in 0..1, higher is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, sqrt

import numpy as np

from headstart.verdict.numbers import metric_name, points, score
from headstart.verdict.rule import Rule, fewest_seeds

LEAST = 0.01  # a point: less comes from single boxes that are right by luck (0.0 to 0.3 AP after a few steps)
COLLAPSED = 0.5  # of the arm's median: far outside the spread of seeds that trained (at most a third of the mean)
SAME = 1e-12  # differences of seeds that are equal but for rounding
# Standard deviation of a difference of AP from the choice of the validation images, times the square root of their
# number, by resampling: 0.05 and 0.09 in `bccd` and `demo` (docs/results.md), 0.10 and 0.25 in two studies before; the
# largest.
IMAGE_SPREAD = 0.25
TOO_FEW = 0.1  # shift of a difference by other images, from which the images are too few
WANTED = 0.04  # difference for which a number of images is advised
LEAST_SHARE = 0.1  # validation images of all, from which further images are divided likewise (Ultralytics: 10 %)
# Obstacles under which scores say nothing of the arms: one learnt nothing, or the data differ.
BLIND = ("floor", "images", "collapsed", "undeclared", "unaudited", "overlap")
LARGER_SET = "measure on a larger set of the same kind"


@dataclass(frozen=True)
class Obstacle:
    """A reason why no conclusion is stated: its code, words for the title, and a clause with the numbers."""

    code: str
    title: str
    reason: str


def floor_of(rule: Rule, num_classes: int | None = None) -> float:
    """The score that an arm must exceed to have learnt something: chance plus the margin, at least a point.

    By the rule's own measure a score within the margin of chance is that of an untrained network. Chance is 0 for AP
    and AR. For accuracy and mIoU it is 1 / num_classes, the score of a constant answer, or 0 without their number.
    """
    is_accuracy = not rule.metric.rpartition(".")[2].startswith(("AP", "AR"))
    chance = 1 / num_classes if is_accuracy and num_classes else 0.0
    return chance + max(LEAST, rule.margin)


def collapsed(scores: np.ndarray, floor: float, margin: float) -> np.ndarray:
    """Seeds, bool [S], that failed to train while others of their arm did.

    A seed fails at or below the floor. It also fails below half of the median, if its deficit alone moves the mean over
    seeds by more than the margin. None is marked where all of them fail.
    """
    median, num_seeds = np.median(scores), len(scores)
    outlier = (scores < COLLAPSED * median) & (median - scores > num_seeds * margin)
    found = (scores <= floor) | outlier
    return found if not found.all() else np.zeros(num_seeds, bool)


def last_doubling(x: np.ndarray, scores: np.ndarray) -> float:
    """Gain of the mean over seeds in the last doubling of x: scores [S,P], ascending x [P]; nan with one point.

    Scores are interpolated on a log scale. Where x spans less than a doubling, the gain is scaled to a doubling.
    """
    if len(x) < 2:
        return float("nan")
    half, mean = max(x[-1] / 2, x[0]), scores.mean(0)
    return float(mean[-1] - np.interp(np.log(half), np.log(x), mean)) / log2(x[-1] / half)


def rising(rule: Rule, gains: dict[str, float]) -> Obstacle | None:
    """The obstacle of arms whose last doubling of the schedule adds more than the margin; nan: unknown, no obstacle."""
    margin = max(rule.margin, LEAST)
    steep = {arm: gain for arm, gain in gains.items() if gain > margin}
    if not steep:
        return None
    fine = points(min(steep.values())) == points(margin)  # never "2.0 points, more than 2.0"
    added = " and ".join(f"{points(gain, fine=fine)[1:]} points to {arm}" for arm, gain in steep.items())
    title = f"{' and '.join(steep)} still rise{'s' if len(steep) == 1 else ''}"
    reason = f"the last doubling of the schedule adds {added}, more than {points(margin, fine=fine)[1:]}"
    return Obstacle("rising", title, reason)


def find_obstacle(
    rule: Rule, baseline: np.ndarray, candidate: np.ndarray, *, seeds: Sequence[int], floor: float
) -> Obstacle | None:
    """The first obstacle in the scores [S] of both arms, paired by seed; None where the rule's test may decide."""
    num_seeds = len(baseline)
    if not num_seeds:
        return Obstacle("scores", "no seed has a score in both arms", "no seed has a score in both arms")
    arms = {rule.baseline: np.asarray(baseline, float), rule.candidate: np.asarray(candidate, float)}
    low = [arm for arm, scores in arms.items() if scores.max() <= floor]
    if low:
        ends = " and ".join(f"{arm} at {score(scores.mean())}" for arm, scores in arms.items())
        title = "neither arm has learnt anything" if len(low) == 2 else f"{low[0]} has learnt nothing"
        reason = f"{ends} {metric_name(rule.metric)}, and a conclusion needs more than {score(floor)} in both arms"
        return Obstacle("floor", title, reason)
    failed = {arm: np.flatnonzero(collapsed(scores, floor, rule.margin)) for arm, scores in arms.items()}
    for arm, places in failed.items():
        if len(places):
            named = (
                f"seed{'s' if len(places) > 1 else ''} {' and '.join(str(seeds[place]) for place in places)} of {arm}"
            )
            ends = " and ".join(score(arms[arm][place]) for place in places)
            if arms[arm].max() - arms[arm][places].max() <= max(LEAST, rule.margin):  # the others are hardly better
                reason = f"{named} reached {ends} {metric_name(rule.metric)}, and a conclusion needs more than"
                return Obstacle("floor", f"{arm} has hardly learnt anything", f"{reason} {score(floor)} in every seed")
            title = f"{named} collapsed"
            reason = f"{title}, ending at {ends} where the median of its seeds is {score(float(np.median(arms[arm])))}"
            return Obstacle("collapsed", title, reason)
    if num_seeds < rule.min_seeds:
        title = f"{num_seeds} of {rule.min_seeds} seeds"
        return Obstacle("seeds", title, f"{num_seeds} of the {rule.min_seeds} seeds that the rule requires")
    if num_seeds < fewest_seeds(rule):
        reason = f"{num_seeds} seeds cannot reach the level with the sign-flip test, {fewest_seeds(rule)} can"
        return Obstacle("seeds", f"{num_seeds} of {fewest_seeds(rule)} seeds", reason)
    differences = arms[rule.candidate] - arms[rule.baseline]
    if np.ptp(differences) < SAME:
        reason = "the difference is the same in every seed, and without spread any test is certain"
        return Obstacle("spread", "the seeds do not differ", reason)
    return None


@dataclass(frozen=True)
class ImageCounts:
    """Images of a study: those to validate on, and all."""

    num_val: int
    num_all: int

    @property
    def width(self) -> float:
        """Largest shift of a difference by other validation images, either way, at 95 %."""
        return 1.96 * IMAGE_SPREAD / sqrt(self.num_val)

    @property
    def are_few(self) -> bool:
        """True if other images could move a difference by TOO_FEW or more."""
        return self.width >= TOO_FEW

    def cannot_tell(self, difference: float, margin: float) -> bool:
        """True if the images are few and others could bring this difference within the margin."""
        return self.are_few and abs(difference) < self.width + margin

    @property
    def are_divided(self) -> bool:
        """True if the images to validate on are at least LEAST_SHARE of all."""
        return self.num_val >= LEAST_SHARE * self.num_all

    @property
    def wanted(self) -> int:
        """Images that resolve differences of WANTED: all at the present division, or those to validate on alone."""
        share = self.num_val / self.num_all if self.are_divided else 1.0
        return ceil((1.96 * IMAGE_SPREAD / WANTED) ** 2 / share / 10) * 10

    @property
    def more(self) -> str:
        """Words on how many more to label."""
        if self.are_divided:
            return f"about {self.wanted - self.num_all:,} more images"
        return f"about {10 * ceil((self.wanted - self.num_val) / 10):,} more validation images"

    @property
    def obstacle(self) -> Obstacle:
        """The obstacle of too few images."""
        who = "with {:,} of them to validate on, " if self.are_divided else ""
        reason = (
            f"{who.format(self.num_val)}other images of the same kind could move the difference by "
            f"{points_up(self.width)} points either way"
        )
        count = f"{self.num_all:,} images" if self.are_divided else f"{self.num_val:,} validation images"
        return Obstacle("images", f"{count} cannot tell", reason)

    def until_then(self, *, starts_differ: bool) -> str:
        """Words on what to do meanwhile; pre-trained weights where they are an arm and images to train on are few."""
        weights = (
            "use pre-trained weights, which few images need most, or " if starts_differ and self.are_divided else ""
        )
        return f"until then {weights}{LARGER_SET}"

    @property
    def remedy(self) -> str:
        """Words on how many images would suffice, in a study of starts."""
        until = self.until_then(starts_differ=True)
        images = "images" if self.are_divided else "validation images"
        return f"label about {self.wanted:,} {images}, for differences of {100 * WANTED:g} points; {until}"


def points_up(value: float) -> str:
    """Points with two digits."""
    return f"{100 * value:.2g}" if value < 0.1 else f"{100 * value:.0f}"
