"""Does the interval of a start's worth in labelled images hold the truth? Simulated studies, and held-out real points.

    python benchmarks/worth.py [number of studies a setting] [--json FILE] [--page]

150 studies without a number: about two minutes of one core. `--page` only writes the tables of docs/results.md, from
docs/results/calibration/worth.json and the real studies of three or more numbers of images.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from calibration import PAGE
from record import ROOT, keep, rewritten, source
from studies import read_kept

from headstart.recipe.yaml_text import read_yaml
from headstart.verdict.worth import Estimate, held_out, resampled_means, start_worth

KEPT = ROOT / "docs" / "results" / "calibration" / "worth.json"
BEGIN, END = "<!-- tables: python benchmarks/worth.py --page -->\n", "<!-- end of tables of worth -->\n"
PROMISED = 0.90  # of a nominal 95 %
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


def slow(top: float, half: float, pace: float) -> Curve:
    """Score of an S shape over log n, which neither fitted shape has."""
    return lambda n: top / (1 + (half / np.asarray(n, float)) ** pace)


ONE = power(0.62, 3.0, 0.5)
WORLDS: dict[str, tuple[Curve, Curve]] = {
    "power laws, the start worth 1.4 times the images": (ONE, lambda n: ONE(np.asarray(n, float) / 2.4)),
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
    "S shapes, which are neither": (slow(0.45, 200, 0.7), slow(0.45, 300, 1.4)),
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
            scores = scores + test_images(own.image_sd, means.shape, 1, random)[..., 0]
            resampled = scores[..., None] + test_images(own.image_sd, means.shape, 200, random)
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


def test_images(sd: float, shape: tuple[int, ...], number: int, random) -> np.ndarray:
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


def figures_of(num_studies: int) -> dict:
    """All simulated figures, and the processor time that they took."""
    random, started = np.random.default_rng(20190211), time.process_time()
    rows = [asdict(simulate(*setting, num_studies, random)) for setting in settings()]
    means = means_covered(10 * num_studies, random)
    return {"studies": num_studies, "rows": rows, "means": means, "seconds": round(time.process_time() - started)}


def tables(figures: dict) -> str:
    """The tables of coverage as Markdown, and every setting below the promise."""
    rows = figures["rows"]
    heads = [f"{', '.join(map(str, images))} images, {seeds} seeds" for images in IMAGES for seeds in SEEDS]
    lines = [f"| worth: truth | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for world in WORLDS:
        own = [[r for r in rows if key(r) == (world, images, seeds)] for images in IMAGES for seeds in SEEDS]
        cells = [f"{percent(min(worst(r) for r in group))}, {percent(worst_crossing(group))}" for group in own]
        lines.append(f"| {world} | {' | '.join(cells)} |")
    lines += ["", "| noise | the worst | mean | closed above | upper end / lower end |", "|---|---|---|---|---|"]
    for noise in NOISES:
        own = [row for row in rows if row["noise"] == noise]
        mean, closed = (np.mean([share for row in own for share in row[name]]) for name in ("covered", "closed"))
        ratio = np.median([row["ratio"] for row in own if row["ratio"] is not None])
        least = min(min(row["covered"]) for row in own)
        lines.append(f"| {noise} | {percent(least)} | {percent(mean)} | {percent(closed)} | {ratio:.2f} |")
    missed = [
        f"{row['world']}, {', '.join(map(str, row['images']))} images, {row['seeds']} seeds, {row['noise']}: "
        f"{percent(min(row['covered']))} %"
        for row in rows
        if min(row["covered"]) < PROMISED
    ]
    means = "; ".join(
        f"{row['seeds']} seeds {percent(row['ours'])} % (drawing seeds with replacement: {percent(row['drawn'])} %)"
        for row in figures["means"]
    )
    told = f"Missed, below {percent(PROMISED)} %: {'; '.join(missed) or 'none'}."
    return "\n".join(lines) + f"\n\n{told}\n\nThe mean of one cell alone is held in: {means}.\n"


def key(row: dict) -> tuple:
    """World, numbers of images and seeds of a kept row."""
    return row["world"], tuple(row["images"]), row["seeds"]


def worst(row: dict) -> float:
    """The lowest coverage of the worth over the numbers of images."""
    return min(row["covered"][:-1])


def worst_crossing(rows: list[dict]) -> float:
    return min(row["covered"][-1] for row in rows)


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def real_studies() -> dict[str, tuple[tuple[str, str], list[int], np.ndarray]]:
    """Studies of three or more numbers of images: arms, images and scores [S, 2, F]; the paper's as it prints them."""
    printed = read_yaml(ROOT / "src" / "headstart" / "report" / "paper.yaml")
    subsets, arms = {"1k": 1_000, "3.5k": 3_500, "10k": 10_000, "35k": 35_000}, ("pre-trained", "random")
    printed = [printed[name]["box.AP"] for name in subsets]
    rows = [{row.partition(",")[0]: max(own.values()) for row, own in each.items()} for each in printed]
    scores = np.array([[[row[arm] for row in rows] for arm in arms]])
    found = {"the paper's subsets of COCO": (arms, list(subsets.values()), scores)}
    for name, study in read_kept().items():
        figures = study["figures"]
        pair = tuple(dict.fromkeys(cell["arm"] for cell in figures["cells"]))[:2]
        ended: dict[tuple, dict[float, float]] = {}  # by seed and arm, then fraction: the longest schedule
        for cell in sorted(figures["cells"], key=lambda cell: cell["total"]):
            ended.setdefault((cell["seed"], cell["arm"]), {})[cell["fraction"]] = cell["values"][str(cell["total"])]
        shared = sorted(set.intersection(*(set(own) for (_, arm), own in ended.items() if arm in pair)))
        seeds = [seed for seed in sorted({key[0] for key in ended}) if all((seed, arm) in ended for arm in pair)]
        if len(shared) >= 3 and len(pair) == 2 and seeds:
            scores = np.array([[[ended[seed, arm][f] for f in shared] for arm in pair] for seed in seeds])
            found[name] = (pair, [figures["images"][str(fraction)] for fraction in shared], scores)
    return found


def held_out_table() -> str:
    """Scores that curves without the largest set predicted, for each prefix of a study's numbers of images."""
    lines = ["| study | fitted on | predicted for | arm | predicted | measured |", "|---|---|---|---|---|---|"]
    for name, (arms, images, scores) in real_studies().items():
        for number in range(3, len(images) + 1):
            for each in held_out(arms, images[:number], scores[..., :number]):
                fitted = ", ".join(f"{n:,}" for n in images[: number - 1])
                told = f"{100 * each.predicted:.1f} | {100 * each.measured:.1f}"
                lines.append(f"| {name} | {fitted} | {each.images:,} | {each.arm} | {told} |")
    return "\n".join(lines) + "\n"


def page_text(page: str, kept: dict) -> str:
    """The page with the tables of the kept figures between its marks."""
    figures = kept["figures"]
    made = f"{source(kept)}; {figures['studies']:,} studies a setting, {figures['seconds']} s of processor time."
    return rewritten(page, BEGIN, END, f"{made}\n\n{tables(figures)}\n{held_out_table()}")


def main() -> None:
    """Print the tables; exit 1 where an interval holds the truth more rarely than promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=int, nargs="?", default=150)
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--page", action="store_true", help="only write the tables of docs/results.md")
    given = parser.parse_args()
    if given.page:
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8"), kept), encoding="utf-8")
        return
    figures = figures_of(given.studies)
    keep(given.json, figures)
    print(tables(figures), held_out_table(), sep="\n")
    sys.exit(any(min(row["covered"]) < PROMISED for row in figures["rows"]))


if __name__ == "__main__":
    main()
