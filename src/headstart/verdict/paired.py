"""Tests on differences paired by seed: pure functions on arrays, vectorised over all axes but the seeds.

Letters: S seeds on the first axis; other axes are independent problems (cells, points of a curve, simulations).
"""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np
from scipy import special

MOST_FLIPPED = 20  # 2^20 sign patterns take 8 MB for each problem; beyond that the t test is as good
_NODES = 128  # points of the average over the spread: error below 0.002 even at two seeds
_TIE = 1e-12  # sums of the same numbers in another order must count as equal


def t_half_width(differences: np.ndarray, level: float) -> np.ndarray:
    """Half-width of the two-sided t interval of the mean over seeds: [S, ...] -> [...]; nan below two seeds."""
    num_seeds = len(differences)
    if num_seeds < 2:
        return np.full(differences.shape[1:], np.nan)
    return special.stdtrit(num_seeds - 1, (1 + level) / 2) * differences.std(0, ddof=1) / sqrt(num_seeds)


def p_above(differences: np.ndarray, bound: float, *, test: str) -> np.ndarray:
    """One-sided p values against "the true mean is at most `bound`": [S, ...] -> [...].

    test "t" is the paired t test; without any spread it gives 0 above the bound and 1 elsewhere. "sign_flip" counts all
    2^S sign patterns of the differences from the bound: exact for any symmetric noise, at least 2^-S.
    """
    centred = np.asarray(differences, float) - bound
    if test == "sign_flip":
        return _flip_p(centred)
    num_seeds = len(centred)
    mean, error = centred.mean(0), centred.std(0, ddof=1) / sqrt(num_seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = special.stdtr(num_seeds - 1, -mean / error)
    return np.where(error > _TIE, p, np.where(mean > _TIE, 0.0, 1.0))


def t_power(effect: float, num_seeds: int, alpha: float) -> float:
    """Power of a one-sided t test at `alpha` for a true mean of `effect` standard deviations.

    The normal power averaged over the distribution of the sample sd: within 0.002 of the noncentral t, and faster.
    """
    freedom = num_seeds - 1
    critical = special.stdtrit(freedom, 1 - alpha)
    return float(special.ndtr(effect * sqrt(num_seeds) - critical * _seen_spreads(freedom)).mean())


@cache
def _seen_spreads(freedom: int) -> np.ndarray:
    """Equally likely values of the sample standard deviation, in units of the true one."""
    shares = (np.arange(_NODES) + 0.5) / _NODES
    return np.sqrt(special.chdtri(freedom, shares) / freedom)


def _flip_p(centred: np.ndarray) -> np.ndarray:
    """Share of sign patterns whose sum is at least the observed one, the observed one included."""
    if len(centred) > MOST_FLIPPED:
        raise ValueError(
            f"rule.test sign_flip is exact up to {MOST_FLIPPED} seeds, got {len(centred)}, expected test: t"
        )
    sums = np.zeros((1, *centred.shape[1:]))
    for values in centred:  # doubling keeps memory at 2^S sums without a sign matrix
        sums = np.concatenate([sums + values, sums - values])
    tie = _TIE * (1 + np.abs(centred).sum(0))
    return (sums >= centred.sum(0) - tie).mean(0)
