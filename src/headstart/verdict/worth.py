"""Worth of a start in labelled images, and its sentences: curves of both arms, resampled over seeds and test images.

Letters: S seeds, F numbers of images, R resamples. Nothing is said beyond `HORIZON` times the most images tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt

import numpy as np

from headstart.verdict.numbers import counted, score
from headstart.verdict.shapes import DataCurve, shapes
from headstart.verdict.words import ONE_SEED, margin_text

HORIZON = 2  # times the most images: beyond it extrapolated curves go wrong (Mahmood et al. 2022, Jain et al. 2023)
LIMIT = "twice the images that were tried"  # HORIZON in words
NUM_RESAMPLES = 1_000  # a 95 % percentile interval then rests on 25 values a side
_PLACES = 65  # points of a log scale, between which a crossing is interpolated


@dataclass(frozen=True)
class Estimate:
    """A number of images, and its interval; None beyond the horizon. Without an interval both ends are None."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class StartWorth:
    """Images that the candidate needs to come `within` of the baseline, by the baseline's number, ascending.

    crossing: the images from which the candidate stays that close. Numbers are at least `least`, the fewest images
    tried, and at most `most`, the horizon. other_images: True if the interval also holds for other test images.
    """

    baseline: str
    candidate: str
    level: float
    num_seeds: int
    within: float
    least: int
    most: int
    other_images: bool
    needed: dict[int, Estimate]
    crossing: Estimate

    @property
    def indicative(self) -> bool:
        """True below two seeds, which give no interval."""
        return self.num_seeds < 2

    def is_open(self, images: int) -> bool:
        """True if the interval holds both a positive worth and none."""
        found = self.needed[images]
        above = found.low is None or found.low > images
        return not self.indicative and not above and (found.high is None or found.high > images)


@dataclass(frozen=True)
class HeldOut:
    """Score of an arm at the largest number of images: predicted from its other points, and measured."""

    arm: str
    images: int
    largest_used: int
    predicted: float
    measured: float


def schedules_compared(tried: Sequence[Sequence[str]]) -> list[str]:
    """The schedule of each number of images: the longest that all have, else its own longest; names shortest first."""
    shared = [name for name in tried[0] if all(name in names for names in tried)]
    return [shared[-1] if shared else names[-1] for names in tried]


def start_worth(
    arms: tuple[str, str],
    images: Sequence[int],
    scores: np.ndarray,
    *,
    level: float = 0.95,
    within: float = 0.0,
    resampled: np.ndarray | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> StartWorth:
    """Worth of the baseline's start, from the scores [S, 2, F] of baseline and candidate with F numbers of images.

    resampled [S, 2, F, N]: the same scores on N resamples of the test images, common to all scores. The interval spans
    the percentiles of all shapes of `verdict.shapes`; one seed has no interval. ValueError for fewer than two numbers
    of images, numbers that do not ascend, and scores of another shape.
    """
    numbers, scores = np.asarray(images, float), np.asarray(scores, float)
    if len(numbers) < 2 or np.any(np.diff(numbers) <= 0) or scores.shape[1:] != (2, len(numbers)):
        raise ValueError(
            f"images are {list(images)}, scores {scores.shape}: expected two or more, ascending, [S, 2, F]"
        )
    known, means = len(scores) > 1, scores.mean(0)[None]
    drawn = resampled_means(scores, resampled, num_resamples) if known else means
    estimates = [shapes(numbers, means[:, arm])[0] for arm in range(2)]
    fits = list(zip(*(shapes(numbers, drawn[:, arm]) for arm in range(2)))) if known else []
    most, ends = HORIZON * numbers[-1], [(1 - level) / 2, (1 + level) / 2]

    def found(read: Callable[[DataCurve, DataCurve], np.ndarray]) -> Estimate:
        value = float(read(estimates[0], estimates[1])[0])
        sides = [np.quantile(read(*pair), ends, method="inverted_cdf").tolist() for pair in fits]
        low, high = (pick(value, *ends) for pick, ends in zip((min, max), zip(*sides))) if sides else (np.inf, np.inf)
        return Estimate(*(end if end <= most else None for end in (value, low, high)))

    needed = {}
    for number in images:  # images with which the candidate comes within the margin of the baseline with `number`
        at = np.array([number])
        needed[int(number)] = found(lambda own, other, at=at: other.reach(own.at(at)[:, 0] - within))
    crossing = found(partial(_crossing, images=numbers, within=within))
    least, other_images = round(numbers[0]), resampled is not None and known
    return StartWorth(*arms, level, len(scores), within, least, round(most), other_images, needed, crossing)


def resampled_means(scores: np.ndarray, resampled: np.ndarray | None, number: int) -> np.ndarray:
    """Means over seeds [R, ...] as other seeds, and other test images, would move them; scores [S, ...].

    Each resample weights the deviations of the seeds, one weight a seed for all points: normal numbers over a scaled
    chi. Any weighted sum of the points then has the spread of its t interval. A bootstrap that draws seeds would be too
    narrow for three. The test images add their deviations from the mean of all resamples, [S, ..., N].
    """
    generator, (num_seeds, *shape) = np.random.default_rng(0), scores.shape
    mean, free = scores.mean(0), num_seeds - 1
    deviations = (scores - mean).reshape(num_seeds, -1) / sqrt(num_seeds * free)
    scale = np.sqrt(generator.chisquare(free, (number, 1)) / free)
    drawn = mean + (generator.standard_normal((number, num_seeds)) @ deviations / scale).reshape(number, *shape)
    if resampled is None:
        return drawn
    moved = np.moveaxis(resampled.mean(0), -1, 0)
    return drawn + (moved - moved.mean(0))[generator.integers(0, len(moved), number)]


def held_out(arms: tuple[str, str], images: Sequence[int], scores: np.ndarray) -> tuple[HeldOut, ...]:
    """Predictions of both arms at the largest number of images from the others, scores [S, 2, F]; none below F = 3."""
    if len(images) < 3:
        return ()
    numbers, means = np.asarray(images, float), np.asarray(scores, float).mean(0)
    fits = (shapes(numbers[:-1], own[:-1])[0].at(numbers[-1:]).item() for own in means)
    ends = int(images[-1]), int(images[-2])
    return tuple(HeldOut(arm, *ends, fit, float(own[-1])) for arm, fit, own in zip(arms, fits, means))


def worth_sentence(found: StartWorth, images: int, *, starts_differ: bool = True) -> str:
    """Worth of the start at a number of labelled images, with its interval; open if the interval includes none.

    Of the baseline itself where the arms do not differ in their start.
    """
    needed, candidate = found.needed[images], found.candidate
    near = f"come within {margin_text(found.within)} of it" if found.within else "match it"
    who = f"the {found.baseline} start" if starts_differ else found.baseline
    head, start = f"At {images:,} labelled images", f"{who} is worth"
    if needed.value is None:
        worth, how = f"more than {found.most - images:,}", f"does not {near} with {found.most:,}, {LIMIT}"
    else:
        worth = f"about {needed.value - images:,.0f} more" if round(needed.value) > images else "none"
        least = f"{found.least:,} or fewer" if needed.value <= found.least else f"{needed.value:,.0f}"
        how = f"needs {least} to {near}"
    interval = _interval(found, needed, *(_more(found, end, images) for end in (needed.low, needed.high)))
    if found.is_open(images):
        return f"{head} it is open whether {start} any ({worth}, {interval}): {candidate} {how}."
    return f"{head} {start} {worth} ({interval}): {candidate} {how}."


def crossing_sentence(found: StartWorth) -> str:
    """Labelled images from which the candidate stays within the margin of the baseline, with the interval."""
    near = f"within {margin_text(found.within)} of" if found.within else "level with"
    state, crossing = f"{found.candidate} stays {near} {found.baseline} or ahead", found.crossing
    interval = _interval(found, crossing, *(_at(found, end) for end in (crossing.low, crossing.high)))
    if crossing.value is None:
        limit = f"Up to {found.most:,} labelled images, {LIMIT}"
        return f"{limit}, there is no number from which {state} ({interval})."
    if crossing.value <= found.least:
        return f"From the fewest images tried ({found.least:,}) on, {state} ({interval})."
    return f"From about {crossing.value:,.0f} labelled images on, {state} ({interval})."


def held_out_sentence(found: tuple[HeldOut, ...]) -> str:
    """Scores at the largest number of images as the curves without it predicted them, and as measured."""
    first = found[0]
    told = "; ".join(f"{each.arm} {score(each.predicted)} where {score(each.measured)} was measured" for each in found)
    far = ""
    if first.images > HORIZON * first.largest_used:
        far = f" That is {first.images / first.largest_used:.3g} times the next largest set; answers go to twice."
    return f"Curves fitted without the largest set ({first.images:,} images) predicted: {told}.{far}"


def schedules_sentence(images: Sequence[int], tried: Sequence[Sequence[str]]) -> str:
    """The schedules behind the figures, where some number of images has a longer one; else empty."""
    used = schedules_compared(tried)
    if len(set(used)) == 1:
        is_longest = all(names[-1] == used[0] for names in tried)
        return "" if is_longest else f"All this is at {used[0]}, the longest schedule that every number of images has."
    by_name = {name: [f"{n:,}" for n, own in zip(images, used) if own == name] for name in used}
    told = ", ".join(f"{name} with {' and '.join(numbers)} images" for name, numbers in by_name.items())
    return f"The schedules differ ({told}): part of the gain from more images is gain from longer training."


def _crossing(baseline: DataCurve, candidate: DataCurve, *, images: np.ndarray, within: float) -> np.ndarray:
    """Images [R] from which the candidate stays within the margin up to the horizon; inf if it ends below."""
    x = np.linspace(np.log(images[0]), np.log(HORIZON * images[-1]), _PLACES)
    lead = candidate.at(np.exp(x)) - baseline.at(np.exp(x)) + within
    below, rows = lead < -1e-12, np.arange(len(lead))
    last = np.where(below.any(1), _PLACES - 1 - below[:, ::-1].argmax(1), 0)
    following = np.minimum(last + 1, _PLACES - 1)
    before, after = lead[rows, last], lead[rows, following]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        at = np.exp(x[last] + (x[following] - x[last]) * before / (before - after))
    return np.where(~below.any(1), images[0], np.where(last == _PLACES - 1, np.inf, at))


def _interval(found: StartWorth, own: Estimate, low: str, high: str) -> str:
    if found.indicative:
        return ONE_SEED
    sources = counted(found.num_seeds, "seed") + (" and other test images" if found.other_images else "")
    between = low if low == high or own.low is None else f"{low} to {high}"
    return f"{100 * found.level:g} % interval {between}, {sources}"


def _more(found: StartWorth, end: float | None, images: int) -> str:
    """An end of the interval of the worth."""
    return f"more than {found.most - images:,}" if end is None else f"{max(end - images, 0):,.0f}"


def _at(found: StartWorth, end: float | None) -> str:
    """An end of the interval of the crossing."""
    if end is None:
        return f"beyond {found.most:,}"
    return f"{end:,.0f}" if end > found.least else f"{found.least:,} or fewer"
