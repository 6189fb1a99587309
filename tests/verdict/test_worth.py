"""Worth of a start in labelled images: exact curves, refusals, intervals, and the calibration that is shown."""

import json

import numpy as np
import pytest
from scipy import optimize, stats
from simulate_worth import MARGIN, settings, simulate, truths
from worth import KEPT, PAGE, PROMISED, page_text

from headstart.verdict.shapes import Piecewise, SShape, power_law, rising, s_shape, shapes
from headstart.verdict.worth import (
    crossing_sentence,
    held_out,
    held_out_sentence,
    resampled_means,
    schedules_compared,
    schedules_sentence,
    start_worth,
    worth_sentence,
)

ARMS = ("imagenet", "scratch")
IMAGES = (73, 146, 292, 584)


def power(n, *, less=1.0, offset=0.6, a=3.0, b=0.5):
    """A power law, and that of a start that needs `less` times the images."""
    return offset - a * (np.asarray(n, float) / less) ** -b


def line(n, *, less=1.0):
    """An error that is straight on logarithmic axes, so by pieces and by the power law."""
    return power(n, less=less, offset=1.0, a=2.0, b=0.25)


def piecewise(n, *, less=1.0):
    """An error that falls faster from 146 images on, where a point is measured."""
    x = np.log(np.asarray(n, float) / less / 146)
    return 1 - 0.7 * np.exp(np.where(x < 0, -0.1 * x, -0.4 * x))


def worth(images, curve, *, factor=1.8, num_seeds=3, **given):
    scores = np.tile([curve(images), curve(images, less=factor)], (num_seeds, 1, 1))
    return start_worth(ARMS, images, scores, **given)


@pytest.mark.parametrize("images", [IMAGES[1:], IMAGES])
def test_a_start_that_stands_for_a_factor_is_worth_exactly_that(images):
    found = worth(images, line)
    for number, needed in list(found.needed.items())[:-1]:
        assert needed.value == pytest.approx(1.8 * number) and needed.low <= needed.value <= needed.high
    assert found.needed[584].value == pytest.approx(1.8 * 584)  # extrapolated, and within twice the images tried
    assert found.crossing.value is None
    told = worth_sentence(found, 292)
    assert told.startswith("At 292 labelled images the imagenet start is worth about 234 more (95 % interval 2")
    assert told.endswith(", 3 seeds): scratch needs 526 to match it.")


def test_two_numbers_of_images_are_straight_in_log_images():
    straight = {"curve": lambda n, less=1.0: 0.1 * np.log(np.asarray(n) / less)}
    found = worth((100, 400), **straight, factor=1.5)
    assert [each.value for each in found.needed.values()] == pytest.approx([150, 600])
    _, line, bent = (fit.at(np.array([200.0, 800.0]))[0] for fit in shapes((100, 400), np.array([[0.2, 0.5]])))
    assert line == pytest.approx([0.3, 0.9]) and bent == pytest.approx([0.4, 0.55])  # straight in n; 0.6 - 40 / n
    share = np.log(1.5) / np.log(4)
    assert found.needed[100].low == pytest.approx(100 / (1 - share * 0.75))
    assert found.needed[100].high == pytest.approx(100 * (1 + share * 3))


def test_pieces_are_straight_in_the_logarithm_of_the_error():
    fit = shapes(IMAGES, piecewise(IMAGES)[None])[-1]
    between = np.array([80.0, 146.0, 200.0, 1100.0])
    assert isinstance(fit, Piecewise) and fit.at(between)[0] == pytest.approx(piecewise(between))
    for number in between:
        assert fit.reach(piecewise([number]))[0] == pytest.approx(number)
    flat = shapes((1, 2, 3), np.array([[0.3, 0.3, 0.3]]))
    assert [fit.reach(np.array([score]))[0] for fit in flat for score in (0.2, 0.31)] == [1, np.inf] * 4


def test_s_shapes_are_straight_in_the_log_odds_of_their_top():
    truth = SShape(73, np.array([0.5, 0.45]), np.array([-3.0, -1.0]), np.array([1.4, 0.7]))
    between = np.array([100.0, 250.0, 400.0])
    fit = s_shape(np.array(IMAGES), truth.at(IMAGES))
    assert fit.at(between) == pytest.approx(truth.at(between), abs=2e-3)  # the top is one of a grid
    for number in between:
        assert truth.reach(truth.at([number])[:, 0]) == pytest.approx([number, number])
    assert list(truth.reach(np.array([0.5, 0.001]))) == [np.inf, 73]


def test_the_fit_is_the_least_squares_one():
    generator = np.random.default_rng(3)
    images = np.array([50.0, 100, 200, 400, 800])
    scores = power(images, a=1.5) + 0.01 * generator.standard_normal((4, 5))
    fit = power_law(images, scores)
    for row, own in enumerate(scores):

        def residuals(p, own=own):
            return p[0] - p[1] * (images / 50) ** -p[2] - own

        bounds = ([-np.inf, 0, 1e-3], [np.inf, np.inf, 2])
        best = optimize.least_squares(residuals, [0.6, 0.3, 0.5], bounds=bounds, xtol=1e-12, ftol=1e-12)
        assert ((fit.at(images)[row] - own) ** 2).sum() == pytest.approx((best.fun**2).sum(), abs=1e-6)
    assert power_law(images, -scores).slope == pytest.approx(0)  # a falling curve is level
    falls = np.array([[0.1, 0.4, 0.3, 0.3, 0.6]])
    assert rising(falls)[0] == pytest.approx(optimize.isotonic_regression(falls[0]).x)
    for fit in shapes(images, falls):
        assert np.diff(fit.at(np.geomspace(50, 1_600, 99))).min() >= -1e-12


def test_nothing_is_said_beyond_twice_the_images():
    found = worth(IMAGES, power, factor=5)
    assert found.most == 1168 and found.needed[292].value is None and found.needed[292].high is None
    assert worth_sentence(found, 292) == (
        "At 292 labelled images the imagenet start is worth more than 876 (95 % interval more than 876, 3 seeds): "
        "scratch does not match it with 1,168, twice the images that were tried."
    )
    assert crossing_sentence(found) == (
        "Up to 1,168 labelled images, twice the images that were tried, there is no number from which scratch stays "
        "level with imagenet or ahead (95 % interval beyond 1,168, 3 seeds)."
    )
    with pytest.raises(ValueError, match="expected two or more, ascending"):
        start_worth(ARMS, (73,), np.zeros((3, 2, 1)))


def test_no_worth_is_claimed_that_is_not_shown():
    same = worth(IMAGES, power, factor=1.0, within=0.01)
    assert worth_sentence(same, 292).startswith(
        "At 292 labelled images the imagenet start is worth none (95 % interval 0,"
    )
    assert crossing_sentence(same).startswith("From the fewest images tried (73) on, scratch stays within 1 point of")
    one = worth(IMAGES, line, num_seeds=1)
    assert one.needed[146].value == pytest.approx(1.8 * 146) and one.needed[146].low is None
    assert "(1 seed, no interval)" in worth_sentence(one, 146) and "(1 seed, no interval)" in crossing_sentence(one)
    noise = 0.03 * np.random.default_rng(0).standard_normal((3, 2, 4))
    unsure = start_worth(ARMS, IMAGES, [power(IMAGES), power(IMAGES, less=1.1)] + noise)
    assert "it is open whether the imagenet start is worth any (" in worth_sentence(unsure, 292)


def test_where_the_curves_meet():
    ratio = np.array(IMAGES) / 200
    found = start_worth(ARMS, IMAGES, np.tile([1 - 0.6 * ratio**-0.1, 1 - 0.6 * ratio**-0.3], (3, 1, 1)))
    assert found.crossing.value == pytest.approx(200, rel=1e-3)
    assert crossing_sentence(found).startswith("From about 200 labelled images on, scratch stays level with imagenet")


def test_the_estimate_goes_through_the_points_and_on_as_the_power_law():
    printed = np.array([[0.035, 0.093, 0.259, 0.363]])  # the paper's scratch arm: no power law has its S shape
    images = np.array([1_000.0, 3_500, 10_000, 35_000])
    estimate, law, *_ = shapes(images, printed)
    assert estimate.at(images) == pytest.approx(printed)
    assert estimate.at([70_000.0]) - printed[:, -1:] == pytest.approx(law.at([70_000.0]) - law.at([35_000.0]))
    for number in (2_000.0, 20_000.0, 60_000.0):
        assert estimate.reach(estimate.at([number])[:, 0]) == pytest.approx([number])
    exact = shapes(IMAGES, power(IMAGES)[None])[1]
    assert exact.at([100.0, 900.0])[0] == pytest.approx(power([100, 900]))
    assert exact.reach(power([300])) == pytest.approx([300])


def test_seeds_move_the_means_as_their_t_interval_says():
    scores = np.random.default_rng(1).standard_normal((3, 2, 4))
    weights = np.array([[1.0, -2, 0, 1], [0, 1, 1, -1]])
    seeds = (scores * weights).sum((1, 2))
    drawn = (resampled_means(scores, None, 100_000) * weights).sum((1, 2))
    low, high = stats.t.interval(0.95, 2, seeds.mean(), stats.sem(seeds))
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([low, high], rel=0.05)
    images = scores[..., None] + 0.5 * np.random.default_rng(2).standard_normal(500)  # the same luck in every cell
    both = (resampled_means(0 * scores, 0 * scores[..., None] + images[0, 0, 0] + 7, 50_000) * weights).sum((1, 2))
    assert both.std() == pytest.approx(0.5 * abs(weights.sum()), rel=0.1) and abs(both.mean()) < 0.02


def test_the_largest_set_is_predicted_by_the_others():
    scores = np.tile([power(IMAGES), power(IMAGES, less=2)], (2, 1, 1))
    found = held_out(ARMS, IMAGES, scores)
    assert [each.predicted for each in found] == pytest.approx([power(584), power(292)])
    assert held_out_sentence(found) == (
        "Curves fitted without the largest set (584 images) predicted: imagenet 47.6 where 47.6 was measured; "
        "scratch 42.4 where 42.4 was measured."
    )
    assert held_out_sentence(held_out(ARMS, (10, 100, 1_000), scores[..., :3])).endswith(
        " That is 10 times the next largest set; answers go to twice."
    )
    assert held_out(ARMS, IMAGES[:2], scores[..., :2]) == ()


@pytest.mark.parametrize(
    ("tried", "used", "told"),
    [
        ((["1x", "8x"], ["1x", "8x"], ["2x", "8x"]), ["8x"] * 3, ""),
        (
            (["8x"], ["4x", "8x"], ["8x", "32x"]),
            ["8x"] * 3,
            "All this is at 8x, the longest schedule that every number",
        ),
        (
            (["3x"], ["3x"], ["2x", "6x"]),
            ["3x", "3x", "6x"],
            "The schedules differ (3x with 29 and 73 images, 6x with 292",
        ),
    ],
    ids=["equal", "longer-with-more", "none-shared"],
)
def test_numbers_of_images_are_compared_at_one_schedule_where_they_share_one(tried, used, told):
    assert schedules_compared(tried) == used
    sentence = schedules_sentence((29, 73, 292), tried)
    assert sentence.startswith(told) and bool(sentence) == bool(told)


def test_the_tables_of_worth_are_those_of_the_kept_figures():
    page, kept = PAGE.read_text(encoding="utf-8"), json.loads(KEPT.read_text(encoding="utf-8"))
    assert page_text(page, kept) == page, "run `python benchmarks/worth.py --page`"
    rows = kept["figures"]["rows"]
    told = [(row["world"], tuple(row["images"]), row["seeds"], row["noise"]) for row in rows]
    assert told == list(settings())
    for row in rows:
        if min(row["covered"]) < PROMISED:
            assert f"{row['world']}, {', '.join(map(str, row['images']))} images" in page.partition("Missed, below")[2]


def test_simulated_studies_know_their_truth():
    world, images, seeds, noise = next(settings())
    expected = [2.4 * (3 / (3 * n**-0.5 + MARGIN)) ** 2 for n in images]
    assert truths(world, images) == pytest.approx([expected[0], np.inf, np.inf], rel=1e-3) and expected[1] > 1_600
    row = simulate(world, images, seeds, noise, 4, np.random.default_rng(0))
    assert row.covered == (1, 1, 1) and row.closed == (1, 0, 0)
    assert row.truth == (pytest.approx(expected[0], rel=1e-3), None, None)
