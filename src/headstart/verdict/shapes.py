"""Scores as curves over labelled images: rising shapes through F points, for R sets of points at once.

A score is offset - a * n^-b (`PowerLaw`) or S-shaped over log n (`SShape`), or its error is piecewise straight on
logarithmic axes (`Piecewise`). The shapes of a study follow from its number of points alone (`shapes`). Images [F]
ascend, scores [R, F] are in 0..1. `at` of a shape gives the scores [R, G] at numbers of images [G]. `reach` gives the
fewest images [R] with at least the scores [R], from the smallest number tried on; inf where the shape stays below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXPONENTS = np.linspace(0, 2, 201)  # b is tried on a grid: offset and a follow by least squares
TWO_POINTS = (0.0, -1.0, 1.0)  # b for two points, which do not determine it; -1 is straight in n
TOPS = np.linspace(0.1, 1, 30) ** 3  # shares of the way from the highest score to 1
_LEAST = 1e-4  # the log-odds of a score of 0 are infinite
_TOP = 1 - 1e-9  # the error of a perfect score has no logarithm


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """score(n) = base + slope * (1 - (n / first)^-b) / b, which is offset - a * n^-b; straight in log n at b = 0."""

    first: float
    base: np.ndarray  # [R]
    slope: np.ndarray  # [R], not negative
    exponent: np.ndarray  # [R]

    def at(self, images: np.ndarray) -> np.ndarray:
        growth = _growth(np.log(np.asarray(images, float) / self.first), self.exponent[:, None])
        return self.base[:, None] + self.slope[:, None] * growth

    def reach(self, scores: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            growth = (scores - self.base) / self.slope
            bent = -np.log(np.maximum(1 - self.exponent * growth, 0)) / self.exponent
            found = np.exp(np.where(self.exponent == 0, growth, bent)) * self.first
        return np.where(scores <= self.base, self.first, found)


@dataclass(frozen=True, eq=False)
class SShape:
    """score(n) = top / (1 + e^-(start + pace * log(n / first))), which is Hill's curve."""

    first: float
    top: np.ndarray  # [R]
    start: np.ndarray  # [R]
    pace: np.ndarray  # [R], not negative

    def at(self, images: np.ndarray) -> np.ndarray:
        odds = self.start[:, None] + self.pace[:, None] * np.log(np.asarray(images, float) / self.first)
        return self.top[:, None] / (1 + np.exp(-odds))

    def reach(self, scores: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            odds = -np.log(np.maximum(self.top / np.maximum(scores, _LEAST) - 1, 0))
            found = self.first * np.exp((odds - self.start) / self.pace)
        return np.where(odds <= self.start, self.first, found)


@dataclass(frozen=True, eq=False)
class Piecewise:
    """The logarithm of 1 - score is straight over log n between points; the last piece goes on."""

    images: np.ndarray  # [F]
    errors: np.ndarray  # [R, F], logarithms, not rising

    def at(self, images: np.ndarray) -> np.ndarray:
        x, at = np.log(self.images), np.log(np.asarray(images, float))
        piece = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
        share = (at - x[piece]) / (x[piece + 1] - x[piece])
        return 1 - np.exp(self.errors[:, piece] * (1 - share) + self.errors[:, piece + 1] * share)

    def reach(self, scores: np.ndarray) -> np.ndarray:
        wanted = np.log1p(-np.minimum(scores, _TOP))
        x, rows = np.log(self.images), np.arange(len(self.errors))
        piece = np.clip((self.errors > wanted[:, None]).sum(1) - 1, 0, len(x) - 2)
        high, low = self.errors[rows, piece], self.errors[rows, piece + 1]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = np.exp(x[piece] + (x[piece + 1] - x[piece]) * (wanted - high) / (low - high))
        return np.where(wanted >= self.errors[:, 0], self.images[0], np.where(high > low, found, np.inf))


@dataclass(frozen=True, eq=False)
class Joined:
    """Pieces through the points that were tried, and a power law beyond them, shifted to meet the last point."""

    pieces: Piecewise
    beyond: PowerLaw

    @property
    def _last(self) -> tuple[np.ndarray, np.ndarray]:
        """Score of the pieces at the most images, [R], and its excess over the power law, [R]."""
        end = 1 - np.exp(self.pieces.errors[:, -1])
        return end, end - self.beyond.at(self.pieces.images[-1:])[:, 0]

    def at(self, images: np.ndarray) -> np.ndarray:
        inside = np.asarray(images, float) <= self.pieces.images[-1]
        return np.where(inside, self.pieces.at(images), self.beyond.at(images) + self._last[1][:, None])

    def reach(self, scores: np.ndarray) -> np.ndarray:
        end, above = self._last
        return np.where(scores <= end, self.pieces.reach(scores), self.beyond.reach(scores - above))


DataCurve = PowerLaw | SShape | Piecewise | Joined


def shapes(images: np.ndarray, scores: np.ndarray) -> tuple[DataCurve, ...]:
    """The shapes for F points, the estimate first; the interval of a reading spans all of them.

    Two points give power laws straight in log n, straight in n, and with b = 1. Three or more give pieces (Jain et al.,
    CVPR 2023) that a power law by bounded least squares continues. The others are that power law alone, the S shape of
    detectors from random values, and the pieces continued by their last one.
    """
    images, scores = np.asarray(images, float), rising(np.atleast_2d(scores))
    if len(images) == 2:
        return tuple(power_law(images, scores, exponents=np.array([b])) for b in TWO_POINTS)
    pieces = Piecewise(images, np.log1p(-np.minimum(scores, _TOP)))
    law = power_law(images, scores)
    return Joined(pieces, law), law, s_shape(images, scores), pieces


def power_law(images: np.ndarray, scores: np.ndarray, *, exponents: np.ndarray = EXPONENTS) -> PowerLaw:
    """Least-squares fit with a slope of at least 0 and an exponent of the grid."""
    growth = _growth(np.log(images / images[0]), exponents[:, None])  # [B, F]
    centred = growth - growth.mean(1, keepdims=True)
    size = np.sqrt((centred**2).sum(1))
    explained = scores @ (centred / size[:, None]).T  # [R, B]: its square is what this exponent explains
    best = explained.argmax(1)
    slope = np.maximum(explained[np.arange(len(scores)), best], 0) / size[best]
    return PowerLaw(images[0], scores.mean(1) - slope * growth.mean(1)[best], slope, exponents[best])


def s_shape(images: np.ndarray, scores: np.ndarray) -> SShape:
    """Fit a line through the log-odds at each top of a grid, and take the top with the least squared errors."""
    scores = np.clip(scores, _LEAST, _TOP)
    highest = scores.max(1)
    tops = highest + (1 - highest) * TOPS[:, None]  # [T, R]
    x = np.log(images / images[0])
    odds = -np.log(tops[..., None] / scores - 1)  # [T, R, F]
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    pace = np.maximum(odds @ weights, 0)
    start = odds.mean(2) - pace * x.mean()
    errors = tops[..., None] / (1 + np.exp(-(start[..., None] + pace[..., None] * x))) - scores
    best = (errors**2).sum(2).argmin(0), np.arange(len(scores))
    return SShape(images[0], tops[best], start[best], pace[best])


def rising(scores: np.ndarray) -> np.ndarray:
    """The nearest scores [R, F] by least squares that never fall (isotonic regression)."""
    number = scores.shape[1]
    sums = np.concatenate([np.zeros((len(scores), 1)), scores.cumsum(1)], 1)

    def mean(first: int, last: int) -> np.ndarray:
        return (sums[:, last + 1] - sums[:, first]) / (last + 1 - first)

    lows = [[np.min([mean(j, k) for k in range(i, number)], 0) for j in range(i + 1)] for i in range(number)]
    return np.stack([np.max(own, 0) for own in lows], 1)


def _growth(log_ratio: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """(1 - e^(-b t)) / b of t = log(n / first), which is t at b = 0."""
    safe = np.where(exponent == 0, 1.0, exponent)
    return np.where(exponent == 0, log_ratio, -np.expm1(-safe * log_ratio) / safe)
