"""Schedules against the paper's table, durations against arithmetic, sharing against a step-by-step comparison."""

import dataclasses
import itertools
from fractions import Fraction

import pytest

from headstart.recipe.schedule import Schedule, describe, due, duration, multiple_of, parse_schedule, shared_until

WARM = {"warmup": 500, "warmup_from": 1 / 3, "base_rate": 0.02}


@pytest.mark.parametrize(
    ("name", "total", "first", "second", "epochs"),
    [
        ("1x", 90_000, 60_000, 80_000, 12.2),
        ("2x", 180_000, 120_000, 160_000, 24.3),
        ("3x", 270_000, 210_000, 250_000, 36.5),
        ("4x", 360_000, 300_000, 340_000, 48.7),
        ("5x", 450_000, 390_000, 430_000, 60.9),
        ("6x", 540_000, 480_000, 520_000, 73.0),
        ("9x", 810_000, 750_000, 790_000, 109.6),
        ("11x", 990_000, 930_000, 970_000, 133.9),
        ("1.44x", 129_600, 99_600, 119_600, 17.5),
        ("220k", 220_000, 160_000, 200_000, 29.8),
        ("60k", 60_000, 30_000, 50_000, 8.1),
    ],
)
def test_the_papers_table(name, total, first, second, epochs):
    schedule = Schedule.nx(multiple_of(name, 90_000), 90_000, **WARM)
    assert (schedule.total, schedule.drops) == (total, (first, second))
    assert schedule.first_drop == first
    assert round(total * 16 / 118_287, 1) == epochs
    assert f"= {epochs} epochs =" in describe(total, 16, 118_287)


def test_rate_is_warm_up_then_constant_then_two_drops():
    schedule = Schedule.nx(2, 90_000, **WARM)
    assert schedule.rate(0) == pytest.approx(0.02 / 3)
    assert schedule.rate(250) == pytest.approx((0.02 / 3 + 0.02) / 2)
    assert [schedule.rate(s) for s in (500, 119_999)] == [0.02, 0.02]
    assert [schedule.rate(s) for s in (120_000, 159_999)] == [0.02 * 0.1] * 2
    assert [schedule.rate(s) for s in (160_000, 179_999)] == pytest.approx([0.0002] * 2, rel=1e-12)


def test_rate_without_warm_up_or_drops_is_constant():
    schedule = Schedule(total=3, warmup=0, warmup_from=0.0, base_rate=0.1)
    assert [schedule.rate(s) for s in range(3)] == [0.1] * 3
    assert schedule.first_drop == 3


def test_other_decay_factor_of_the_small_data_runs():
    schedule = Schedule.nx(6, 90_000, factor=0.02, warmup=500, warmup_from=1 / 3, base_rate=0.04)
    rates = [schedule.rate(s) for s in (400_000, 500_000, 539_999)]
    assert rates == pytest.approx([0.04, 8e-4, 1.6e-5])  # paper.md 4.8


SMALL = [Schedule.nx(n, 18, warmup=3, warmup_from=0.1, base_rate=0.5) for n in (1, 1.5, 2, 3, 6)] + [
    Schedule(total=40, warmup=3, warmup_from=0.1, base_rate=0.5),
    Schedule(total=108, drops=(50, 104), factor=0.5, warmup=3, warmup_from=0.1, base_rate=0.5),
    Schedule(total=108, drops=(50, 104), factor=0.1, warmup=3, warmup_from=0.1, base_rate=0.5),
]


@pytest.mark.parametrize(("a", "b"), list(itertools.product(SMALL, repeat=2)))
def test_shared_until_equals_comparing_every_step(a, b):
    same = 0
    while same < min(a.total, b.total) and a.rate(same) == b.rate(same):
        same += 1
    assert shared_until(a, b) == shared_until(b, a) == same


def test_nothing_is_shared_across_other_rates_or_warm_ups():
    base = SMALL[2]
    for change in ({"base_rate": 0.4}, {"warmup": 2}, {"warmup_from": 0.2}):
        assert shared_until(base, dataclasses.replace(base, **change)) == 0


def test_paper_schedules_share_up_to_the_earlier_first_drop():
    two, six = (Schedule.nx(n, 90_000, **WARM) for n in (2, 6))
    assert shared_until(two, six) == 120_000


def test_parse_schedule_is_exact():
    assert parse_schedule("1.44x") == (Fraction(36, 25), "x")
    assert parse_schedule("220k") == parse_schedule("220000 steps") == (220_000, "steps")
    assert parse_schedule("1.5k") == (1500, "steps")
    for wrong in ("x", "0x", "-2x", "2", "2X", "cosine", "two x", 2, None, "0k", "0.5 steps", "220 k", "90steps"):
        with pytest.raises(ValueError, match=r"schedule .* is not known"):
            parse_schedule(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total": 0}, "schedule.total is 0"),
        ({"total": 10.0}, "schedule.total is 10.0"),
        ({"drops": (8, 6)}, r"schedule.drops are \[8, 6\], expected ascending"),
        ({"drops": (6, 10)}, "schedule.drops has 10, expected less than the total of 10"),
        ({"warmup": 7}, "schedule.warmup is 7 steps, expected at most 6"),
        ({"warmup": -1}, "schedule.warmup is -1"),
        ({"warmup_from": 2.0}, "schedule.warmup_from is 2.0"),
        ({"factor": 0.0}, "schedule.factor is 0.0"),
        ({"base_rate": float("nan")}, "schedule.base_rate is nan"),
    ],
)
def test_impossible_schedules_are_refused_by_field(change, message):
    good = {"total": 10, "drops": (6, 8), "factor": 0.1, "warmup": 2, "warmup_from": 0.1, "base_rate": 0.1}
    assert Schedule(**good).drops == (6, 8)
    with pytest.raises(ValueError, match=message) as error:
        Schedule(**{**good, **change})
    assert "\n" not in str(error.value)


def test_a_schedule_shorter_than_its_tail_is_refused():
    with pytest.raises(ValueError, match=r"schedule.total is 29700 steps, expected more than 30000"):
        Schedule.nx(0.33, 90_000, **WARM)
    with pytest.raises(ValueError, match="expected more than 60"):
        Schedule.nx(Fraction(1, 3), 180, warmup=0, warmup_from=1.0, base_rate=0.1)


def test_a_length_in_steps_is_that_multiple_of_the_base():
    """detectron2's VOC template: 18k steps with drops at 12k and 16k; with four times the batch a quarter of each."""
    template = Schedule.nx(multiple_of("18000 steps", 18_000), 18_000, **WARM)
    assert (template.total, template.drops) == (18_000, (12_000, 16_000))
    assert multiple_of("144k", 18_000) == multiple_of("8x", 18_000) == 8
    wide = Schedule.nx(multiple_of("18k", 4_500, scale=Fraction(16, 64)), 4_500, **WARM)
    assert (wide.total, wide.drops) == (4_500, (3_000, 4_000))
    with pytest.raises(ValueError, match=r"schedule.total is 20000 steps, expected more than 30000, the length of its"):
        Schedule.nx(multiple_of("20k", 90_000), 90_000, **WARM)


def test_tiny_bases_round_to_whole_and_distinct_drops():
    for base, n in itertools.product(range(1, 12), (1, 2, 6)):
        schedule = Schedule.nx(n, base, warmup=0, warmup_from=1.0, base_rate=0.1)
        assert schedule.total == n * base
        assert len(set(schedule.drops)) == len(schedule.drops)


def test_due_falls_on_multiples_and_the_end_only():
    assert [s for s in range(11) if due(s, 4, 10)] == [4, 8, 10]
    assert [s for s in range(9) if due(s, 4, 8)] == [4, 8]
    assert [s for s in range(11) if due(s, 0, 10)] == [10]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("500 steps", 500), ("1 step", 1), ("90k steps", 90_000), ("1.5k steps", 1_500), (0, 0), (7, 7), ("0 steps", 0),
        ("1 epoch", 13), ("12 epochs", 150), ("0.5 epochs", 7), ("90k images", 11_250), ("1.28M images", 160_000),
        ("1,000 images", 125), ("9 images", 2), (" 8images ", 1),
    ],
)  # fmt: skip
def test_durations_in_every_unit(text, steps):
    assert duration(text, batch=8, num_images=100) == steps


@pytest.mark.parametrize(
    "text", ["500", "steps", "-5 steps", "1.5 steps", "12 epoch s", "5 hours", -1, 1.5, True, None]
)
def test_wrong_durations_name_field_and_value(text):
    with pytest.raises(ValueError, match=r"^warmup is .*, expected") as error:
        duration(text, batch=8, num_images=100, field="warmup")
    assert repr(text) in str(error.value)


def test_describe_in_all_three_units():
    assert describe(90_000, 16, 118_287) == "90,000 steps = 12.2 epochs = 1,440,000 images"
    assert describe(1, 8, 1_000) == "1 step = 0.008 epochs = 8 images"
