"""Simulated studies of two starts over numbers of images, with known curves: does the interval of the worth hold?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from headstart.verdict.worth import Estimate, resampled_means, start_worth

LEVEL, MARGIN = 0.95, 0.01
NUM_RESAMPLES = 400
PLACES = 20_001  # at which the truth is looked up
ARMS = ("pretrained", "scratch")

Curve = Callable[[np.ndarray], np.ndarray]


def power(offset: float, a: float, b: float) -> Curve:
    """Score of a power law with an offset."""
    return lambda n: offset - a * np.asarray(n, float) ** -b


def pieces(*points: tuple[float, float]) -> Curve:
    """Score whose error is piecewise straight through three points on logarithmic axes."""
    x, errors = np.log([n for n, _ in points]), np.log([1 - score for _, score in points])
    slopes = np.diff(errors) / np.diff(x)

    def at(n: np.ndarray) -> np.ndarray:
        t = np.log(n) - x[1]
        return 1 - np.exp(errors[1] + np.where(t < 0, slopes[0], slopes[1]) * t)

    return at


def gompertz(top: float, half: float, pace: float) -> Curve:
    """Score of an S shape over log n that no fitted shape has: half of the top with `half` images."""
    return lambda n: top * 0.5 ** ((half / np.asarray(n, float)) ** pace)


def hill(top: float, half: float, pace: float) -> Curve:
    """Score of an S shape over log n, straight in its log-odds."""
    return lambda n: top / (1 + (half / np.asarray(n, float)) ** pace)


ONE = power(0.62, 3.0, 0.5)
WORLDS: dict[str, tuple[Curve, Curve]] = {
    "power laws, scratch needs 2.4 times the images": (ONE, lambda n: ONE(np.asarray(n, float) / 2.4)),
    "power laws that meet": (power(0.60, 1.2, 0.35), power(0.62, 4.5, 0.55)),
    "the same power law": (ONE, ONE),
    "pieces, bent at 200 images": (
        pieces((50, 0.30), (200, 0.45), (1000, 0.60)),
        pieces((50, 0.06), (200, 0.20), (1000, 0.50)),
    ),
    "pieces, bent at 300 images": (
        pieces((50, 0.30), (300, 0.48), (1000, 0.57)),
        pieces((50, 0.10), (300, 0.40), (1000, 0.54)),
    ),
    "S shapes (Hill)": (hill(0.45, 200, 0.7), hill(0.45, 300, 1.4)),
    "S shapes (Gompertz), which are not fitted": (gompertz(0.50, 120, 0.6), gompertz(0.50, 250, 1.0)),
}
IMAGES = ((200, 800), (50, 200, 800), (100, 200, 400, 800))
SEEDS = (3, 5)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of a score: between seeds, the factor of it with the fewest images, and of test images."""

    seed_sd: float
    fewest: float = 1.0
    image_sd: float = 0.0
    heavy: bool = False


NOISES = {
    "0.3 points": Noise(0.003),
    "0.8 points": Noise(0.008),
    "0.6 points, heavy tails, twice that with the fewest images": Noise(0.006, fewest=2.0, heavy=True),
    "0.3 points, test images 1 point": Noise(0.003, image_sd=0.01),
}


@dataclass(frozen=True)
class Row:
    """A setting and its shares of studies: interval holds the truth, and is closed above; width as a ratio.

    Entries of `covered` and `closed` are those of each number of images, ascending, then that of the crossing.
    """

    world: str
    images: tuple[int, ...]
    seeds: int
    noise: str
    truth: tuple[float | None, ...]
    covered: tuple[float, ...]
    closed: tuple[float, ...]
    ratio: float | None


def settings() -> Iterator[tuple[str, tuple[int, ...], int, str]]:
    """All settings of the tables."""
    return ((w, images, seeds, noise) for w in WORLDS for images in IMAGES for seeds in SEEDS for noise in NOISES)


def truths(world: str, images: tuple[int, ...]) -> list[float]:
    """Images that the candidate truly needs for each number, then the true crossing; inf beyond twice the most."""
    grid = np.exp(np.linspace(np.log(images[0]), np.log(2 * images[-1]), PLACES))
    first, second = (curve(grid) for curve in WORLDS[world])
    at = [second >= WORLDS[world][0](np.array([n])) - MARGIN for n in images]
    below = np.flatnonzero(second < first - MARGIN)
    place = below[-1] + 1 if len(below) else 0
    return [grid[up.argmax()] if up.any() else np.inf for up in at] + [grid[place] if place < PLACES else np.inf]


def simulate(world: str, images: tuple[int, ...], seeds: int, noise: str, num_studies: int, random) -> Row:
    """Intervals of `num_studies` studies against the truth."""
    own, expected = NOISES[noise], np.array(truths(world, images))
    means = np.stack([curve(np.array(images)) for curve in WORLDS[world]])
    spread = own.seed_sd * np.where(np.arange(len(images)) == 0, own.fewest, 1.0)
    lows, highs = np.zeros((2, num_studies, len(expected)))
    for study in range(num_studies):
        shape = (seeds, *means.shape)
        luck = random.standard_t(3, shape) / np.sqrt(3) if own.heavy else random.standard_normal(shape)
        scores, resampled = means + spread * luck, None
        if own.image_sd:
            scores = scores + image_noise(own.image_sd, means.shape, 1, random)[..., 0]
            resampled = scores[..., None] + image_noise(own.image_sd, means.shape, 200, random)
        given = {"level": LEVEL, "within": MARGIN, "resampled": resampled, "num_resamples": NUM_RESAMPLES}
        found = start_worth(ARMS, images, scores, **given)
        lows[study], highs[study] = np.transpose([ends(each) for each in (*found.needed.values(), found.crossing)])
    near = 1 + 1e-3  # the truth lies on a grid
    covered = (lows <= expected * near) & (expected <= highs * near)
    closed = np.isfinite(highs)
    ratios = highs[:, :-1][closed[:, :-1]] / lows[:, :-1][closed[:, :-1]]
    return Row(
        world,
        images,
        seeds,
        noise,
        tuple(float(value) if np.isfinite(value) else None for value in expected),
        tuple(covered.mean(0).tolist()),
        tuple(closed.mean(0).tolist()),
        float(np.median(ratios)) if len(ratios) else None,
    )


def ends(found: Estimate) -> tuple[float, float]:
    """Both ends of an interval, inf beyond the horizon."""
    return tuple(np.inf if end is None else end for end in (found.low, found.high))


def image_noise(sd: float, shape: tuple[int, ...], number: int, random) -> np.ndarray:
    """Noise of test images [*shape, number]: 0.8 of it common to both arms and all numbers of images, 0.6 to none."""
    return sd * (0.8 * random.standard_normal(number) + 0.6 * random.standard_normal((*shape, number)))


def means_covered(num_studies: int, random) -> list[dict]:
    """How often 95 % intervals hold the mean of normal seeds: by `resampled_means`, and by drawing seeds."""
    rows = []
    for seeds in SEEDS:
        hits = np.zeros(2)
        for _ in range(num_studies):
            scores = random.standard_normal(seeds)
            drawn = scores[random.integers(0, seeds, (NUM_RESAMPLES, seeds))].mean(1)
            for place, every in enumerate((resampled_means(scores, None, NUM_RESAMPLES), drawn)):
                low, high = np.quantile(every, [0.025, 0.975])
                hits[place] += low <= 0 <= high
        rows.append({"seeds": seeds, "ours": hits[0] / num_studies, "drawn": hits[1] / num_studies})
    return rows
