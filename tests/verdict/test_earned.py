"""Conditions for a conclusion: the floor, collapsed seeds and rising curves, by hand and by simulation."""

import numpy as np
import pytest

from headstart.verdict.earned import collapsed, find_obstacle, floor_of, last_doubling, rising
from headstart.verdict.rule import Rule
from headstart.verdict.verdict import judge

RULE = Rule(metric="box.AP", baseline="pretrained", candidate="scratch", margin=0.01)


@pytest.mark.parametrize(
    ("metric", "margin", "num_classes", "floor"),
    [
        ("box.AP", 0.01, 80, 0.01),
        ("tta:mask.AP50", 0.02, 80, 0.02),
        ("voc.AP", 0.001, 20, 0.01),
        ("top1", 0.01, 2, 0.51),
        ("semantic.mIoU", 0.02, 10, 0.12),
        ("semantic.mIoU", 0.02, None, 0.02),
    ],
)
def test_the_floor_is_chance_and_the_margin(metric, margin, num_classes, floor):
    rule = Rule(metric=metric, baseline="a", candidate="b", margin=margin)
    assert floor_of(rule, num_classes) == pytest.approx(floor)


def test_obstacles_in_order():
    def code(baseline, candidate):
        found = find_obstacle(RULE, np.array(baseline), np.array(candidate), seeds=(3, 4, 5), floor=0.01)
        return found and (found.code, found.title)

    assert code([0.0, 0.001, 0.0], [0.0, 0.0, 0.002]) == ("floor", "neither arm has learnt anything")
    assert code([0.4, 0.41, 0.4], [0.0, 0.0, 0.002]) == ("floor", "scratch has learnt nothing")
    assert code([0.4, 0.0, 0.4], [0.4, 0.41, 0.4]) == ("collapsed", "seed 4 of pretrained collapsed")
    assert code([0.0099, 0.0101, 0.0102], [0.4, 0.41, 0.4]) == ("floor", "pretrained has hardly learnt anything")
    at_chance = np.array([0.50, 0.82, 0.84]), np.array([0.80, 0.82, 0.84])  # of two classes
    assert find_obstacle(RULE, *at_chance, seeds=(3, 4, 5), floor=0.51).title == "seed 3 of pretrained collapsed"
    assert code([0.4, 0.41], [0.4, 0.42]) == ("seeds", "2 of 3 seeds")
    assert code([0.4, 0.41, 0.42], [0.41, 0.42, 0.43]) == ("spread", "the seeds do not differ")
    assert code([0.4, 0.41, 0.42], [0.41, 0.42, 0.44]) is None
    given = find_obstacle(RULE, np.zeros(1), np.zeros(1), seeds=(0,), floor=0.01)
    assert judge(RULE, [0.4, 0.41, 0.42], [0.5, 0.52, 0.51]).against(given).outcome == "not decidable"


@pytest.mark.parametrize(("mean", "spread"), [(0.40, 0.05), (0.11, 0.10), (0.05, 0.15)])
def test_noise_is_no_collapse_and_a_collapse_is_found(mean, spread):
    """spread: standard deviation over seeds as a share of the mean; 20,000 arms of five seeds."""
    generator = np.random.default_rng(0)
    arms = mean * (1 + spread * generator.standard_normal((20_000, 5)))
    assert np.mean([collapsed(arm, 0.01, 0.01).any() for arm in arms]) < 0.001
    failed = arms.copy()
    failed[:, 2] = generator.uniform(0, 0.01, len(arms))  # never left the floor
    assert all(collapsed(arm, 0.01, 0.01).tolist() == [False, False, True, False, False] for arm in failed[:2_000])


def test_a_seed_that_fell_back_is_collapsed_and_all_are_not():
    assert collapsed(np.array([0.40, 0.15, 0.41]), 0.01, 0.01).tolist() == [False, True, False]
    assert not collapsed(np.array([0.03, 0.014, 0.032]), 0.01, 0.01).any()  # moves the mean by half the margin
    assert not collapsed(np.zeros(3), 0.01, 0.01).any()  # the floor's own obstacle


def test_the_gain_of_the_last_doubling():
    x = np.array([100.0, 200.0, 400.0, 800.0])
    assert last_doubling(x, np.array([[0.1, 0.2, 0.3, 0.35], [0.1, 0.2, 0.3, 0.37]])) == pytest.approx(0.06)
    assert last_doubling(x[1:] - [0, 0, 200], np.array([[0.1, 0.2, 0.26]])) == pytest.approx(
        0.26 - (0.1 + 0.1 * np.log(300 / 200) / np.log(2))
    )
    assert last_doubling(np.array([200.0, 300.0]), np.array([[0.2, 0.21]])) == pytest.approx(0.01 / np.log2(1.5))
    assert np.isnan(last_doubling(x[:1], np.array([[0.3]])))
    assert rising(RULE, {"a": 0.009, "b": float("nan")}) is None
    assert rising(RULE, {"a": 0.02, "b": 0.0}).title == "a still rises"
    assert "adds 2.0 points to a, more than 1.0" in rising(RULE, {"a": 0.02}).reason
    assert "adds 1.04 points to a, more than 1.00" in rising(RULE, {"a": 0.0104}).reason


@pytest.mark.parametrize(("pace", "share"), [(100, (0.0, 0.01)), (400, (0.99, 1.0))])
def test_curves_on_their_plateau_do_not_rise_and_steep_ones_do(pace, share):
    """AP 0.4 (1 - exp(-t / pace)) at 1x to 6x of 300 steps, seeds of standard deviation 0.5 points, 2,000 studies."""
    generator, x = np.random.default_rng(1), np.array([300.0, 600.0, 900.0, 1800.0])
    truth = 0.4 * (1 - np.exp(-x / pace))
    noise = 0.005 * generator.standard_normal((2_000, 3, 4))
    found = np.mean([rising(RULE, {"a": last_doubling(x, truth + own)}) is not None for own in noise])
    assert share[0] <= found <= share[1], (found, truth)
