"""Studies with a known truth: does the verdict err as rarely as its level promises?

Letters: S seeds, N simulated studies. Everything is drawn from the generator given.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from headstart.verdict.curves import Curve, crossover
from headstart.verdict.paired import t_half_width
from headstart.verdict.rule import Rule
from headstart.verdict.verdict import decide, judge

BLOCK = 1_000  # studies at a time: the sign flips of 10 seeds take 8 MB


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A world to simulate: true mean difference, spread of one arm's seeds, how alike paired seeds are.

    noise "skewed" has the shape of an exponential (skewness 2), shared by no arm, so that differences are symmetric;
    "right" and "left" are differences of that shape themselves; "heavy" is Student's t with 3 degrees of freedom.
    image_sd moves all seeds of a study together, as its test images do: with it the truth is the mean over
    test sets, which a verdict on one set does not claim to know.
    """

    rule: Rule
    num_seeds: int
    true_difference: float
    seed_sd: float = 0.005
    correlation: float = 0.0
    noise: Literal["normal", "skewed", "heavy", "right", "left"] = "normal"
    image_sd: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Shares of the simulated studies: each outcome, claims that are wrong, intervals that hold the truth."""

    num_studies: int
    outcomes: dict[str, float]
    wrong: float
    covered: float

    @property
    def error(self) -> float:
        """Standard error of a share of 5 % at this many studies."""
        return sqrt(0.05 * 0.95 / self.num_studies)


def simulate(setting: Setting, num_studies: int, generator: np.random.Generator) -> Rates:
    """Judge `num_studies` simulated studies; the outcome shares, wrong claims and the interval's coverage."""
    differences = draw(setting, num_studies, generator)
    names, counts = np.unique(decide(setting.rule, differences), return_counts=True)
    outcomes = {str(name): float(count / num_studies) for name, count in zip(names, counts)}
    half = t_half_width(differences, setting.rule.level)
    return Rates(
        num_studies=num_studies,
        outcomes=outcomes,
        wrong=sum(share for name, share in outcomes.items() if is_wrong(setting.rule, name, setting.true_difference)),
        covered=float((np.abs(differences.mean(0) - setting.true_difference) <= half).mean()),
    )


@dataclass(frozen=True)
class LookRates:
    """Shares of simulated studies that make a wrong claim, and a right one; shares decided at each look; mean seeds."""

    wrong: float
    right: float
    decided: tuple[float, ...]
    seeds: float


def simulate_looks(
    setting: Setting, counts: tuple[int, ...], num_studies: int, generator: np.random.Generator
) -> LookRates:
    """Apply a rule at each number of seeds in turn until it decides, in `num_studies` simulated studies."""
    wrong, decided, seeds = 0, np.zeros(len(counts)), 0
    for start in range(0, num_studies, BLOCK):
        differences = draw(setting, min(BLOCK, num_studies - start), generator)
        for look, count in enumerate(counts):
            seeds += differences.shape[1] * (count - (counts[look - 1] if look else 0))
            outcomes = decide(setting.rule, differences[:count])
            for name, number in zip(*np.unique(outcomes, return_counts=True)):
                wrong += number * is_wrong(setting.rule, str(name), setting.true_difference)
            open_ = outcomes == "not decidable"
            decided[look] += (~open_).sum()
            differences = differences[:, open_]
    shares = decided / num_studies
    error = wrong / num_studies
    return LookRates(float(error), float(shares.sum() - error), tuple(shares.tolist()), seeds / num_studies)


def draw(setting: Setting, num_studies: int, generator: np.random.Generator) -> np.ndarray:
    """Differences [S, N] of paired seeds: each arm has its own noise and, correlated, a part that both share."""
    shape = (setting.num_seeds, num_studies)
    if setting.noise in ("right", "left"):
        side = sqrt(2) * setting.seed_sd * (1 if setting.noise == "right" else -1)
        return side * _noise("skewed", shape, generator) + setting.true_difference
    own, shared = sqrt(1 - setting.correlation), sqrt(setting.correlation)
    pair = _noise(setting.noise, shape, generator)
    baseline, candidate = (
        setting.seed_sd * (own * _noise(setting.noise, shape, generator) + shared * pair) for _ in range(2)
    )
    images = setting.image_sd * generator.standard_normal(num_studies)
    return candidate - baseline + setting.true_difference + images


def wrong_for_other_images(
    setting: Setting, num_studies: int, generator: np.random.Generator, *, num_resamples: int = 200
) -> tuple[float, float]:
    """Shares of studies whose claim is wrong and said to hold for other images, and whose claim is right and so said.

    The resampled test images have the spread that test images really have in the setting.
    """
    wrong = right = 0
    drawn = draw(setting, num_studies, generator)
    for differences in drawn[:, decide(setting.rule, drawn) != "not decidable"].T:
        moved = setting.image_sd * generator.standard_normal(num_resamples)
        verdict = judge(setting.rule, 0 * differences + 0.5, differences + 0.5, bootstrap=differences[:, None] + moved)
        if verdict.holds_for_other_images:
            mistaken = is_wrong(setting.rule, verdict.outcome, setting.true_difference)
            wrong, right = wrong + mistaken, right + (not mistaken)
    return wrong / num_studies, right / num_studies


def is_wrong(rule: Rule, outcome: str, truth: float) -> bool:
    """Whether a claim contradicts the true difference; "not decidable" claims nothing and is never wrong."""
    return {
        "better": truth <= rule.lead,
        "worse": truth >= -rule.lead,
        "equivalent": abs(truth) >= rule.margin,
        "not worse": truth <= -rule.margin,
        "not decidable": False,
    }[outcome]


def crossover_coverage(
    num_seeds: int, num_studies: int, generator: np.random.Generator, *, seed_sd: float = 0.003, level: float = 0.95
) -> float:
    """Share of simulated crossings whose interval holds the true one.

    The truth has the shape of the paper's R50 table: scratch rises onto a flat pre-trained curve and meets it at 5.5 of
    2..8 base lengths.
    """
    x = np.arange(2.0, 9.0)
    truth = np.array([-0.035, -0.02, -0.01, -0.004, 0.004, 0.006, 0.007])
    hits = 0
    for _ in range(num_studies):
        baseline = 0.4 + seed_sd * generator.standard_normal((num_seeds, len(x)))
        candidate = 0.4 + truth + seed_sd * generator.standard_normal((num_seeds, len(x)))
        found = crossover(Curve("baseline", x, baseline), Curve("candidate", x, candidate), level=level)
        low, high = np.inf if found.low is None else found.low, np.inf if found.high is None else found.high
        hits += low <= 5.5 <= high
    return hits / num_studies


def _noise(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and sd 1."""
    if kind == "skewed":
        return generator.standard_exponential(shape) - 1
    if kind == "heavy":
        return generator.standard_t(3, shape) / sqrt(3)
    return generator.standard_normal(shape)
