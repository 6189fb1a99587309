"""Looks: a rule's test on the seeds so far. Error rates of several looks, and the record of those that were made.

Without a true difference the test statistics of all looks depend on the noise alone. Their joint distribution is
therefore simulated once, at fixed random numbers. Letters: L looks, N simulated studies, n seeds at a look.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cache
from math import floor, log10, sqrt
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace
from scipy import special

STUDIES = 100_000  # the error rate of three looks then has a standard error below 0.05 %
SCARCE = 0.005  # below it too few simulated studies err: the sum over looks, an upper bound, replaces the simulation
STEPS = 16  # halvings of the interval that holds a nominal rate: to a thousandth of it
SEED = 20190211
Count = Annotated[int, Meta(ge=0)]


class Look(Struct, frozen=True, forbid_unknown_fields=True):
    """One look at a study: the seeds judged at a schedule and fraction, error rate of the test, and outcome.

    obstacle is the code of the obstacle to a conclusion; None where a conclusion was stated. rule is what was asked
    (`Rule.claim`); None for looks noted without it.
    """

    date: datetime.date
    schedule: str
    fraction: Annotated[float, Meta(gt=0, le=1)]
    seeds: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=1000)]
    alpha: Annotated[float, Meta(gt=0, lt=1)]
    outcome: Literal["better", "worse", "equivalent", "not worse", "not decidable"]
    obstacle: str | None
    rule: str | None = None


def dated(looks: Sequence[Look], own: Look) -> Look:
    """The latest of these looks at the seeds of `own` where it is equal but for the date; else `own`."""
    latest = next((look for look in reversed(looks) if set(look.seeds) == set(own.seeds)), own)
    return latest if replace(latest, date=own.date, rule=latest.rule or own.rule) == own else own


@cache
def nominal_rate(looks: tuple[int, ...], alpha: float, *, test: str, sides: tuple[int, ...]) -> float:
    """Largest error rate of each look, to 3 digits, with which all looks together err in at most `alpha` of studies.

    sides: 2 for claims of a difference, 1 for claims about a margin; with both, each kind of claim keeps the rate.
    """
    if len(looks) == 1:
        return alpha
    low, high = alpha / len(looks), alpha
    for _ in range(STEPS if alpha >= SCARCE else 0):
        middle = (low + high) / 2
        fits = error_rate([(n, middle) for n in looks], test=test, sides=sides) <= alpha
        low, high = (middle, high) if fits else (low, middle)
    digit = 10.0 ** (floor(log10(low)) - 2)
    return round(floor(low / digit + 1e-9) * digit, 12)


def error_rate(looks: Sequence[tuple[int, float]], *, test: str, sides: tuple[int, ...]) -> float:
    """Share of studies that err at any look, looks given as (seeds, error rate of this look), ascending by seeds."""
    counts, rates = zip(*looks)
    if max(rates) < SCARCE:
        return sum(rates)
    return max(_error_rate(counts, np.array(rates)[:, None], test, side) for side in sides)


def _error_rate(counts: tuple[int, ...], rates: np.ndarray, test: str, side: int) -> float:
    """The rates of single looks, which are known, less those of studies that err at several, which are simulated."""
    if test == "t":
        bounds = special.stdtrit(np.array(counts)[:, None] - 1, 1 - rates / side)
        statistics = _t_statistics(counts)
        errs = np.abs(statistics) >= bounds if side == 2 else statistics >= bounds
        single = rates.sum()
    else:
        above, below = _flip_p(counts)
        errs = np.minimum(above, below) <= rates / 2 if side == 2 else above <= rates
        single = errs.mean(1).sum()
    return float(single - np.maximum(errs.sum(0, dtype=np.int16) - 1, 0).mean())


@cache
def _t_statistics(looks: tuple[int, ...]) -> np.ndarray:
    """Statistics [L, N] of studies without a difference.

    The normal noise is drawn as its mean and sum of squares: the cost is that of the looks, not of the seeds.
    """
    generator, num_studies = np.random.default_rng(SEED), min(STUDIES, 10 * STUDIES // len(looks))
    mean, squares, before, found = np.zeros(num_studies), np.zeros(num_studies), 0, []
    for n in looks:
        new = n - before
        apart = generator.standard_normal(num_studies) / sqrt(new) - mean
        squares = squares + 2 * generator.standard_gamma((new - 1) / 2, num_studies) + apart**2 * before * new / n
        mean, before = mean + apart * new / n, n
        found.append(mean / np.sqrt(squares / (n - 1) / n))
    return np.stack(found)


@cache
def _flip_p(looks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """One-sided p values [L, N], in both directions: all sign patterns, equally likely, of drawn differences."""
    most, generator = looks[-1], np.random.default_rng(SEED)
    sums = np.zeros((max(1, STUDIES // 2 ** (most + 1)), 1))
    sizes, found = np.abs(generator.standard_normal((most, len(sums), 1))), []
    for n, values in enumerate(sizes, start=1):
        sums = np.concatenate([sums + values, sums - values], 1)  # pattern i of n seeds is i modulo 2^n of later ones
        if n in looks:
            ranks = np.argsort(np.argsort(-sums, 1), 1) + 1
            found.append(np.tile(ranks / 2**n, 2 ** (most - n)).ravel())
    above = np.stack(found)
    if above.shape[1] > STUDIES:  # over 16 seeds: some of the patterns
        above = above[:, generator.integers(0, above.shape[1], STUDIES)]
    return above, 1 + 0.5 ** np.array(looks, float)[:, None] - above
