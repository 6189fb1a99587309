"""Verdicts against scipy's tests and brute force, questions against dense evaluation, error rates against the level."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats
from simulate import Setting, crossover_coverage, draw, is_wrong, simulate, wrong_for_other_images

from headstart.verdict.curves import Curve, compare_at, crossover, overfit_onset
from headstart.verdict.earned import Obstacle
from headstart.verdict.paired import p_above, t_half_width, t_power
from headstart.verdict.rule import Rule, fewest_seeds, seeds_needed
from headstart.verdict.verdict import decide, judge
from headstart.verdict.words import caveats, outcome, sentence, title, until_then

RULE = Rule(metric="box.AP", baseline="pretrained", candidate="scratch", margin=0.01)
ZERO = Rule(metric="box.AP", baseline="pretrained", candidate="scratch", margin=0.0, kind="superiority")
KINDS = ("equivalence", "non_inferiority", "superiority")


def rule_of(**changes) -> Rule:
    return dataclasses.replace(RULE, **changes)


def around(mean, sd, num_seeds=5, seed=0):
    """Differences with exactly this mean and standard deviation."""
    noise = np.random.default_rng(seed).standard_normal(num_seeds)
    return mean + sd * (noise - noise.mean()) / noise.std(ddof=1)


@pytest.mark.parametrize("num_seeds", [2, 3, 8])
def test_t_interval_and_p_values_are_those_of_scipy(num_seeds):
    differences = np.random.default_rng(1).normal(0.01, 0.02, (num_seeds, 7))
    found = stats.ttest_1samp(differences, 0.004, alternative="greater")
    assert np.allclose(p_above(differences, 0.004, test="t"), found.pvalue)
    interval = found.confidence_interval(0.9)  # one-sided: its lower end is the two-sided one at 0.8
    assert np.allclose(differences.mean(0) - t_half_width(differences, 0.8), interval.low)
    assert np.isnan(t_half_width(differences[:1], 0.95)).all()


@pytest.mark.parametrize("num_seeds", [1, 4, 7])
def test_sign_flip_counts_every_pattern(num_seeds):
    differences = np.random.default_rng(2).normal(0.005, 0.02, (num_seeds, 3))
    differences[:, 2] = 0.01  # ties: every pattern but one has a smaller sum
    for column, bound in itertools.product(range(3), (0.0, 0.003)):
        centred = differences[:, column] - bound
        sums = [sum(s * d for s, d in zip(signs, centred)) for signs in itertools.product((1, -1), repeat=num_seeds)]
        expected = np.mean(np.array(sums) >= centred.sum() - 1e-15)
        assert p_above(differences, bound, test="sign_flip")[column] == pytest.approx(expected)
    assert p_above(differences, 0.0, test="sign_flip")[2] == 0.5**num_seeds
    with pytest.raises(ValueError, match="sign_flip is exact up to 20 seeds, got 21"):
        p_above(np.zeros((21, 1)), 0.0, test="sign_flip")


def test_differences_without_spread_decide_by_their_value():
    assert p_above(np.full((3, 1), 0.02), 0.0, test="t")[0] == 0
    assert p_above(np.zeros((3, 1)), 0.0, test="t")[0] == 1
    assert decide(RULE, np.zeros((3, 1))) == "equivalent" and decide(RULE, np.full((3, 1), 0.05)) == "better"
    for candidate in (0.4, 0.45):  # the test is certain, so no conclusion is stated
        found = judge(RULE, [0.4] * 3, [candidate] * 3)
        assert found.outcome == "not decidable" and found.obstacle.code == "spread"


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_follow_scipys_one_sided_tests(kind):
    rule = rule_of(kind=kind, margin=0.01)
    rng = np.random.default_rng(3)
    differences = rng.uniform(-0.03, 0.03, 300) + rng.normal(0, 0.006, (4, 300))

    def p(bound, alternative):
        return stats.ttest_1samp(differences, bound, alternative=alternative).pvalue

    lead = 0.01 if kind == "superiority" else 0.0
    margin_p = np.maximum(p(-0.01, "greater"), p(0.01, "less")) if kind == "equivalence" else p(-0.01, "greater")
    better, worse, within = p(lead, "greater") <= 0.025, p(-lead, "less") <= 0.025, margin_p <= 0.05
    claims = {
        "equivalence": [("equivalent", within), ("better", better), ("worse", worse)],
        "non_inferiority": [("better", better), ("not worse", within), ("worse", worse)],
        "superiority": [("better", better), ("worse", worse)],
    }[kind]
    expected = [next((name for name, true in claims if true[i]), "not decidable") for i in range(300)]
    assert decide(rule, differences).tolist() == expected
    assert len(set(expected)) >= 3


def test_verdicts_carry_their_numbers():
    verdict = judge(RULE, np.full(5, 0.40), 0.40 + around(-0.035, 0.004), where="at 2x")
    t = stats.ttest_1samp(verdict.differences, 0)
    assert verdict.outcome == "worse" and verdict.obstacle is None and verdict.num_seeds == 5
    interval = verdict.mean - verdict.half_width, verdict.mean + verdict.half_width
    assert interval == pytest.approx(tuple(t.confidence_interval(0.95)))
    assert verdict.p_difference == pytest.approx(t.pvalue)
    assert (verdict.mean, verdict.sd) == pytest.approx((-0.035, 0.004))
    assert sentence(verdict) == (
        "Box AP at 2x: scratch is worse than pretrained, difference -3.5 points (95 % interval -4.0 to -3.0, 5 seeds)."
    )
    level = judge(RULE, np.full(5, 0.4), 0.4 + around(0.002, 0.003))
    assert sentence(level) == (
        "Box AP: scratch and pretrained are equivalent within 1 point, difference +0.2 points "
        "(90 % interval -0.1 to +0.5, 5 seeds)."
    )
    ends = 0.0003 + stats.t.ppf(0.975, 4) * 0.004 / np.sqrt(5)  # an interval that begins 0.03 points above 0
    assert "+0.53 points (95 % interval +0.03 to +1.02" in sentence(
        judge(ZERO, np.full(5, 0.4), 0.4 + around(ends, 0.004))
    )
    flipped = judge(rule_of(test="sign_flip"), np.full(6, 0.4), 0.4 + around(0.03, 0.003, 6))
    assert flipped.outcome == "better" and "sign-flip p = 0.0312" in sentence(flipped)


def test_one_seed_decides_nothing_and_says_that_it_has_no_interval():
    verdict = judge(RULE, [0.40], [0.35], where="at 2x with all data")
    assert (verdict.outcome, verdict.obstacle.code) == ("not decidable", "seeds")
    assert np.isnan(verdict.sd) and verdict.seeds_to_decide is None
    assert sentence(verdict) == (
        "Box AP at 2x with all data: no answer yet (1 of the 3 seeds that the rule requires); "
        "difference -5.0 points (1 seed, no interval)."
    )
    assert sentence(verdict) == f"{outcome(verdict)} {caveats(verdict)}".strip()
    assert title(verdict, starts_differ=True) == ("No answer yet: 1 of 3 seeds", None)
    assert until_then(verdict) == ("Until then use pretrained: it is 5.0 points ahead at 2x, with 1 seed.")
    assert until_then(judge(RULE, [0.4], [0.401], where="at 2x")) == (
        "Until then use either: at 2x the difference of 0.1 points lies within the margin, with 1 seed."
    )
    assert judge(RULE, [0.4, 0.4], [0.4, 0.41]).obstacle.code == "seeds"
    assert until_then(verdict.against(Obstacle("overlap", "", ""))) == ""
    collapsed = judge(RULE, [0.4, 0.0, 0.4], [0.4, 0.41, 0.4])  # 13.7 points ahead by a seed that failed
    assert collapsed.obstacle.code == "collapsed" and until_then(collapsed) == ""


def test_missing_scores_are_counted_not_hidden():
    verdict = judge(RULE, [0.4, np.nan, 0.4, 0.4], [0.45, 0.45, 0.451, 0.449])
    assert (verdict.num_seeds, verdict.num_left_out, verdict.outcome) == (3, 1, "better")
    assert "1 seed left out" in sentence(verdict)
    empty = judge(RULE, [np.nan], [0.4])
    assert empty.outcome == "not decidable" and "no seed has a score in both arms" in sentence(empty)


def test_a_vector_of_cells_is_judged_cell_by_cell():
    rng = np.random.default_rng(4)
    baseline, candidate = rng.normal(0.4, 0.01, (2, 5, 3))
    names = ("1x", "2x", "6x")
    verdicts = [judge(RULE, baseline[:, i], candidate[:, i], where=name) for i, name in enumerate(names)]
    assert [v.where for v in verdicts] == list(names)
    assert list(decide(RULE, candidate - baseline)) == [v.outcome for v in verdicts]


def test_fewest_seeds_is_where_the_sign_flip_test_begins_to_decide():
    for kind, level in itertools.product(KINDS, (0.9, 0.95, 0.99)):
        rule = rule_of(kind=kind, level=level, test="sign_flip", min_seeds=2)
        certain = 0.05 if kind == "superiority" else 0.001
        least = fewest_seeds(rule)
        for num_seeds in (least - 1, least):
            outcome = decide(rule, np.full((num_seeds, 1), certain))[0] if num_seeds > 1 else "not decidable"
            assert (outcome != "not decidable") == (num_seeds == least)
    assert fewest_seeds(rule_of(test="sign_flip")) == 5
    assert fewest_seeds(rule_of(test="sign_flip", kind="superiority")) == 6


@pytest.mark.parametrize(("differences", "told"), [(around(0.05, 0.001), 6), ([*around(0.05, 0.001), -0.001], 7)])
def test_more_seeds_than_those_that_left_it_open_are_advised(differences, told):
    """Five sign flips tell no difference however large; of six one may be below 0."""
    found = judge(rule_of(test="sign_flip"), np.full(len(differences), 0.4), 0.4 + np.array(differences))
    assert found.obstacle.code == "open" and found.seeds_to_decide == told


def test_no_more_seeds_are_advised_than_the_sign_flip_test_takes():
    """By a t test 27 seeds would decide."""
    rule = rule_of(test="sign_flip", kind="superiority")
    assert 20 < seeds_needed(rule_of(kind="superiority"), 0.02, 0.018) < 40
    assert seeds_needed(rule, 0.02, 0.018) is None and seeds_needed(rule, 0.05, 0.018) < 20
    found = judge(rule, np.full(6, 0.4), 0.4 + around(0.02, 0.018, 6))
    assert "More seeds will not settle this: over 20 would be needed" in sentence(found)


def test_power_is_that_of_the_noncentral_t():
    for effect, num_seeds, alpha in itertools.product((-1, 0, 0.3, 1, 3), (2, 3, 8, 40), (0.025, 0.05)):
        critical = stats.t.ppf(1 - alpha, num_seeds - 1)
        expected = stats.nct.sf(critical, num_seeds - 1, effect * np.sqrt(num_seeds))
        assert t_power(effect, num_seeds, alpha) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("kind", "mean", "sd"), [("equivalence", 0.002, 0.012), ("non_inferiority", 0, 0.015), ("superiority", 0.03, 0.02)]
)
def test_the_seeds_advised_decide_four_studies_in_five(kind, mean, sd):
    rule = rule_of(kind=kind)
    num_seeds = seeds_needed(rule, mean, sd)
    rng = np.random.default_rng(5)
    decided, fewer = (
        (decide(rule, rng.normal(mean, sd, (count, 4000))) != "not decidable").mean()
        for count in (num_seeds, num_seeds - 1)
    )
    assert 0.78 <= decided <= 0.9 and fewer < decided  # either way to a decision counts, 0.8 is for the likelier one
    assert seeds_needed(rule_of(), 0.01, 0.02) < seeds_needed(rule_of(), 0.005, 0.02)
    assert seeds_needed(rule_of(kind="superiority"), 0.0101, 0.02) is None
    assert seeds_needed(RULE, float("nan"), 1.0) is None


def test_noise_of_the_test_images_is_reported_apart_and_never_averaged_away():
    rng = np.random.default_rng(6)
    differences = around(0.02, 0.002)
    images = rng.normal(0, 0.008, 4000)
    verdict = judge(RULE, np.full(5, 0.4), 0.4 + differences, bootstrap=differences[:, None] + images, num_images=500)
    assert verdict.outcome == "better"
    assert verdict.images.sd == pytest.approx(0.008, rel=0.05)
    assert (verdict.images.low, verdict.images.high) == pytest.approx((0.02 - 0.0157, 0.02 + 0.0157), abs=1e-3)
    assert verdict.widths == pytest.approx((verdict.half_width, 1.96 * verdict.images.sd), rel=1e-3)
    assert verdict.holds_for_other_images and verdict.images_to_decide is None
    shaky = judge(RULE, np.full(5, 0.4), 0.4 + differences, bootstrap=differences[:, None] + 3 * images, num_images=500)
    assert shaky.outcome == "better" and shaky.holds_for_other_images is False
    enough = dataclasses.replace(shaky.images, sd=shaky.images.sd * np.sqrt(500 / shaky.images_to_decide))
    assert dataclasses.replace(shaky, images=enough).holds_for_other_images
    assert "not certain, about" in sentence(shaky) and judge(RULE, [0], [0]).holds_for_other_images is None


def steps_curve(arm, truth, sd=0.0, num_seeds=5, seed=0):
    rng = np.random.default_rng(seed)
    return Curve(
        arm, np.arange(2, 2 + len(truth)) * 90_000, np.array(truth) + sd * rng.standard_normal((num_seeds, len(truth)))
    )


R50_SCRATCH, R50_TUNED = [0.368, 0.395, 0.406, 0.407, 0.413], [0.403, 0.408, 0.409, 0.409, 0.411]


def test_curves_are_straight_between_points_and_end_at_their_ends():
    curve = Curve("a", [1, 3], [[0.0, 1.0], [1.0, 0.0]])
    assert curve.at(1.5).tolist() == [0.25, 0.75]
    assert np.isnan(curve.at(np.array([0.5, 4.0]))).all()
    with pytest.raises(ValueError, match="curve a: 1 scores a seed for 2 points"):
        Curve("a", [1, 2], [[0.1]])
    with pytest.raises(ValueError, match="expected ascending"):
        Curve("a", [2, 1], [[0.1, 0.2]])


def test_who_wins_at_equal_steps_and_at_equal_whole_cost():
    tuned, scratch = steps_curve("pretrained", R50_TUNED, 0.002), steps_curve("scratch", R50_SCRATCH, 0.002, seed=1)
    assert compare_at(RULE, tuned, scratch, at=180_000).outcome == "worse"
    assert compare_at(RULE, tuned, scratch).outcome == "equivalent"
    whole = Curve("pretrained", tuned.x * 16 + 1.28e8, tuned.scores)
    apart = compare_at(RULE, whole, Curve("scratch", scratch.x * 16, scratch.scores), axis="images")
    assert apart.outcome == "not decidable" and apart.obstacle.reason.startswith(
        "pretrained has not begun: it spans 130,880,000"
    )


def test_crossover_is_where_the_mean_difference_rises_through_zero_for_good():
    tuned, scratch = steps_curve("pretrained", R50_TUNED), steps_curve("scratch", R50_SCRATCH)
    found = crossover(tuned, scratch)
    assert found.x == found.low == found.high == pytest.approx(495_000)  # half way from -0.2 to +0.2
    noisy = crossover(
        steps_curve("pretrained", R50_TUNED, 0.002, seed=2), steps_curve("scratch", R50_SCRATCH, 0.002, seed=3)
    )
    assert noisy.low <= noisy.x and (noisy.high is None or noisy.x <= noisy.high) and noisy.low < noisy.x
    assert noisy.num_seeds == 5


def test_crossover_interval_is_the_set_of_steps_where_the_difference_cannot_be_told_from_zero():
    tuned = steps_curve("pretrained", [0.4] * 5, 0.003, seed=8)
    scratch = steps_curve("scratch", [0.36, 0.38, 0.395, 0.41, 0.42], 0.003, seed=9)
    found = crossover(tuned, scratch)
    x = np.linspace(180_000, 540_000, 4001)
    inside = stats.ttest_1samp(scratch.at(x) - tuned.at(x), 0).pvalue > 0.05
    assert found.low == pytest.approx(x[inside][0], abs=1_000) and found.high == pytest.approx(x[inside][-1], abs=1_000)


def test_an_arm_catches_up_only_where_it_has_learnt():
    tuned = steps_curve("pretrained", [0.012, 0.021, 0.041, 0.06])
    found = crossover(tuned, steps_curve("scratch", [0.003, 0.012, 0.030, 0.05]), within=0.02, floor=0.02)
    assert (found.start, found.x) == (360_000, 360_000)  # at first neither arm has learnt anything
    slow = [0.003, 0.003, 0.003, 0.05]  # behind by more than 0.02 at the third point, which counts
    assert 360_000 < crossover(tuned, steps_curve("scratch", slow), within=0.02, floor=0.02).x < 450_000
    ends = crossover(tuned, steps_curve("scratch", [0.003, 0.012, 0.019, 0.05]), within=0.02, floor=0.055)
    assert ends.start == 360_000 and ends.x > 360_000
    none = crossover(tuned, steps_curve("scratch", [0.011, 0.012, 0.03, 0.05]), within=0.02, floor=0.055)
    assert none.start == none.budget == 450_000


def test_crossovers_that_are_not_there():
    low, high = steps_curve("a", [0.3, 0.3], num_seeds=3), steps_curve("b", [0.4, 0.4], num_seeds=3)
    never = crossover(high, low)
    assert never.x is None and "a does not come level with b in the 270,000 steps tried" in sentence(never)
    assert crossover(low, high).x == 180_000 and "from the first point" in sentence(crossover(low, high))
    ahead_first = crossover(high, steps_curve("a", [0.45, 0.3], num_seeds=3))
    assert "a does not stay level with b up to the end of the 270,000 steps tried" in sentence(ahead_first)
    back = crossover(steps_curve("b", [0.4] * 4), steps_curve("a", [0.3, 0.41, 0.39, 0.41]))
    assert back.x == pytest.approx(405_000)  # the first crossing does not last
    single = crossover(steps_curve("b", [0.4, 0.4], num_seeds=1), steps_curve("a", [0.3, 0.5], num_seeds=1))
    assert single.indicative and single.low is None and "1 seed, no interval" in sentence(single)
    near = crossover(high, steps_curve("a", [0.395, 0.395], num_seeds=3), within=0.01)
    assert near.x == 180_000 and sentence(near).startswith("a is within 1 point of b or ahead from the first point")
    with pytest.raises(ValueError, match="3 and 5 seeds"):
        crossover(low, steps_curve("b", [0.4, 0.4]))
    with pytest.raises(ValueError, match="do not overlap"):
        crossover(Curve("a", [1, 2], [[0, 0]]), Curve("b", [3, 4], [[0, 0]]))


def test_overfitting_is_a_fall_that_other_seeds_foretold():
    train = steps_curve("a", [0.4, 0.5, 0.6, 0.7, 0.8], 0.002)
    falling = steps_curve("a", [0.35, 0.40, 0.39, 0.38, 0.37], 0.002, seed=1)
    found = overfit_onset(train, falling)
    assert found.decided and found.onset == 270_000 and found.fall == pytest.approx(0.03, abs=0.004)
    assert "overfits from about 270,000 steps on" in sentence(found)
    assert not overfit_onset(train, falling, tolerance=0.05).decided
    falls = [
        overfit_onset(train, steps_curve("a", [0.4] * 5, 0.01, seed=seed)).fall for seed in range(200)
    ]  # fmt: skip
    assert abs(np.mean(falls)) < 0.001  # a peak picked from noise of sd 0.01 does not count as a fall
    stuck = overfit_onset(Curve("a", train.x, -train.scores), falling)
    assert not stuck.decided
    single = overfit_onset(Curve("a", train.x, train.scores[:1]), Curve("a", falling.x, falling.scores[:1]))
    assert single.indicative and not single.decided


@pytest.mark.parametrize("num_seeds", [3, 5, 8])
@pytest.mark.parametrize("test", ["t", "sign_flip"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truth", [0.0, -0.01, 0.01])
def test_error_rates_hold_for_identical_arms_and_at_the_margin(kind, test, num_seeds, truth):
    rule = rule_of(kind=kind, test=test, margin=0.0 if kind == "superiority" else 0.01)
    setting = Setting(rule=rule, num_seeds=num_seeds, true_difference=truth)
    rates = simulate(setting, 2_000, np.random.default_rng(7))
    assert rates.wrong <= 0.05 + 4 * rates.error
    assert rates.covered == pytest.approx(0.95, abs=4 * rates.error)
    assert sum(rates.outcomes.values()) == pytest.approx(1)


def test_the_error_rate_is_reached_so_the_calibration_can_fail():
    setting = Setting(rule=RULE, num_seeds=5, true_difference=-0.01)
    loose = dataclasses.replace(setting, rule=rule_of(level=0.8))
    assert simulate(setting, 4_000, np.random.default_rng(8)).wrong == pytest.approx(0.05, abs=0.015)
    assert simulate(loose, 4_000, np.random.default_rng(8)).wrong > 0.15


def test_claims_said_to_hold_for_other_images_do():
    setting = Setting(rule=RULE, num_seeds=8, true_difference=0.0, image_sd=0.005)
    wrong, _ = wrong_for_other_images(setting, 400, np.random.default_rng(9), num_resamples=100)
    assert simulate(setting, 400, np.random.default_rng(9)).wrong > 0.15  # what the seeds alone would claim
    assert wrong <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)


def test_crossover_intervals_hold_the_true_crossing():
    assert crossover_coverage(5, 200, np.random.default_rng(10)) >= 0.95 - 4 * np.sqrt(0.05 * 0.95 / 200)


def test_simulated_studies_come_from_the_generator_given_and_have_the_spread_asked_for():
    for noise, correlation in itertools.product(("normal", "skewed", "heavy"), (0.0, 0.5)):
        setting = Setting(rule=RULE, num_seeds=4, true_difference=0.02, noise=noise, correlation=correlation)
        first, second = (draw(setting, 20_000, np.random.default_rng(11)) for _ in range(2))
        assert np.array_equal(first, second) and first.mean() == pytest.approx(0.02, abs=3e-4)
        spread = 0.005 * np.sqrt(2 * (1 - correlation))
        assert first.std() == pytest.approx(spread, rel=0.15 if noise == "heavy" else 0.03)


def test_which_claims_are_wrong():
    assert [is_wrong(RULE, "better", truth) for truth in (-0.1, 0.0, 0.1)] == [True, True, False]
    assert [is_wrong(RULE, "equivalent", truth) for truth in (-0.01, 0.009, 0.01)] == [True, False, True]
    assert [is_wrong(RULE, "not worse", truth) for truth in (-0.01, 0.0, 0.01)] == [True, False, False]
    assert not any(is_wrong(RULE, "not decidable", truth) for truth in (-1, 0, 1))
