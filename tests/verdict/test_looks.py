"""Looks: nominal rates against plain simulation and brute force, histories and their sentences."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from calibration import ALLOWED, KEPT, NOISES, PAGE, look_figures, look_tables, page_text
from calibration import LOOKS as SHOWN
from calibration import rule_of as shown_rule

from headstart.verdict.looks import SEED, STUDIES, _flip_p, error_rate, nominal_rate
from headstart.verdict.paired import p_above, t_half_width
from headstart.verdict.rule import History, Rule
from headstart.verdict.verdict import decide, judge
from headstart.verdict.words import rule_sentence, sentence

RULE = Rule(metric="box.AP", baseline="pretrained", candidate="scratch", margin=0.01)
LOOKS = (3, 5, 8)
KINDS = ("equivalence", "non_inferiority", "superiority")


def rule_of(**changes) -> Rule:
    return dataclasses.replace(RULE, **changes)


@pytest.mark.parametrize("side", [1, 2])
def test_error_rates_are_those_of_a_plain_simulation(side):
    noise = np.random.default_rng(0).standard_normal((8, 40_000))
    for looks in (LOOKS, (2, 4), (3, 4, 5, 6, 7, 8)):
        errs = np.zeros(noise.shape[1], bool)
        for n in looks:
            p = p_above(noise[:n], 0.0, test="t")
            errs |= (np.minimum(p, 1 - p) <= 0.025) if side == 2 else (p <= 0.05)
        found = error_rate([(n, 0.05) for n in looks], test="t", sides=(side,))
        assert found == pytest.approx(errs.mean(), abs=4 * np.sqrt(0.1 / 40_000))


def test_the_issues_figures():
    assert error_rate([(n, 0.05) for n in LOOKS], test="t", sides=(2,)) == pytest.approx(0.115, abs=0.002)
    assert nominal_rate(LOOKS, 0.05, test="t", sides=(2,)) == pytest.approx(0.02, abs=0.0003)
    assert error_rate([(3, 0.05)], test="t", sides=(1, 2)) == pytest.approx(0.05, abs=1e-15)
    assert nominal_rate((5,), 0.05, test="t", sides=(2,)) == 0.05
    assert nominal_rate((3, 6), 0.001, test="t", sides=(2,)) == 0.0005  # the sum, where simulation would be too coarse


@pytest.mark.parametrize("test", ["t", "sign_flip"])
@pytest.mark.parametrize("sides", [(2,), (1, 2)])
def test_the_nominal_rate_is_the_largest_that_keeps_the_level(test, sides):
    looks = (7, 9, 12)
    rate = nominal_rate(looks, 0.05, test=test, sides=sides)
    assert error_rate([(n, rate) for n in looks], test=test, sides=sides) <= 0.05
    above = rate + (0.001 if test == "t" else 2 / 2**7)
    assert error_rate([(n, above) for n in looks], test=test, sides=sides) > 0.05


def test_sign_flips_of_all_looks_are_counted_by_the_test_itself():
    most, looks = 12, (2, 7, 12)
    draws = STUDIES // 2 ** (most + 1)
    sizes = np.abs(np.random.default_rng(SEED).standard_normal((most, draws, 1)))
    patterns = np.arange(2**most)
    signs = np.stack([1 - 2 * (patterns >> n & 1) for n in range(most)])[:, None]
    above, below = _flip_p(looks)
    for row, n in enumerate(looks):
        expected = p_above((sizes * signs)[:n, :2], 0.0, test="sign_flip").ravel()[:5000]
        assert np.array_equal(above[row, :5000], expected)
        assert np.allclose(below[row], 1 - above[row] + 0.5**n, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_looks_keep_the_level_where_repeated_tests_do_not(kind):
    margin = 0.0 if kind == "superiority" else 0.01
    wrong = {"equivalence": "equivalent", "non_inferiority": "not worse"}.get(kind)
    noise = np.random.default_rng(1).standard_normal((8, 4000)) * 0.004 - margin
    rates = []
    for rule in (rule_of(kind=kind, margin=margin, looks=LOOKS), rule_of(kind=kind, margin=margin)):
        open_, errs = np.ones(4000, bool), np.zeros(4000, bool)
        for n in LOOKS:
            outcomes = decide(rule, noise[:n])
            claims = outcomes == wrong if wrong else outcomes != "not decidable"
            errs |= open_ & claims
            open_ &= outcomes == "not decidable"
        rates.append(errs.mean())
    assert rates[0] <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 4000) < rates[1]


def test_intervals_are_those_of_the_nominal_level():
    rule, differences = rule_of(looks=LOOKS), np.array([0.05, 0.051, 0.049])
    found = judge(rule, np.full(3, 0.4), 0.4 + differences)
    own = np.array(found.differences)
    assert found.half_width == t_half_width(own, 1 - rule.alpha) > t_half_width(own, 0.95)
    assert found.outcome == "better" and f"{100 * rule.look_level:g} % interval" in sentence(found)
    assert judge(rule_of(looks=(3,)), [0.4] * 3, 0.4 + differences).half_width == pytest.approx(
        float(t_half_width(differences, 0.95)), rel=1e-12
    )
    assert f"looks at 3, 5 and 8 seeds until it decides, each at an error rate of {100 * rule.alpha:.3g} %" in (
        rule_sentence(rule)
    )


@pytest.mark.parametrize("looks", [(5, 3), (3, 3), (2, 5), (1,)])
def test_looks_ascend_from_the_fewest_seeds_on(looks):
    with pytest.raises(
        ValueError, match=r"rule\.looks is .*, expected ascending numbers of seeds from min_seeds = 3 on"
    ):
        rule_of(looks=looks)


def test_a_second_look_is_told_with_its_true_level():
    first = History.of(RULE, [], 3)
    assert first.is_planned and first.sentence == first.mark == ""
    second = History.of(RULE, [(3, 0.05), (3, 0.01)], 5)
    assert second.looks == ((3, 0.05), (5, 0.05)) and not second.is_planned
    assert second.sentence.startswith("Second look: the true level is about 9 %, not 5 %")
    assert second.mark == " (second look: the true level is about 9 %)"
    third = History.of(RULE, [(3, 0.05), (5, 0.05)], 8)
    assert third.sentence.startswith("Third look: the true level is about 12 %, not 5 %")
    twelfth = History.of(RULE, [(n, 0.05) for n in range(3, 14)], 14)
    assert twelfth.mark.startswith(" (12th look: the true level is about ")


def test_looks_that_could_not_decide_do_not_count():
    assert History.of(RULE, [(1, 0.05), (2, 0.05), (8, 0.05)], 5).is_planned
    flips = rule_of(test="sign_flip")
    assert History.of(flips, [(3, 0.05), (4, 0.05)], 5).looks == ((5, 0.05),)
    assert History.of(flips, [(3, 0.05)], 4).looks == ()


def test_planned_looks_are_numbered_and_others_told():
    rule = rule_of(looks=LOOKS)
    made = [(n, rule.alpha) for n in LOOKS]
    for place, n in enumerate(LOOKS):
        found = History.of(rule, made, n)
        assert found.is_planned and found.mark == ""
        assert found.sentence.startswith(f"Look {place + 1} of 3, all planned before the first run: looks at 3, 5 and")
    later = History.of(rule_of(looks=(*LOOKS, 12)), made, 12)  # the fourth was added after three looks
    assert later.sentence.startswith("Fourth look: the true level is about ")
    changed = History.of(rule, [(3, 0.05)], 3)  # the same seeds were judged at 5 % before the rule was changed
    assert changed.sentence == "The rule was changed after a look at these seeds, which had an error rate of 5 %."
    assert changed.mark == " (the rule was changed after a look at these seeds)"
    loose = History.of(rule, [(3, 0.05)], 5)  # the first was made at 5 %, before the rule had looks
    assert loose.sentence.startswith("Second look: the true level is about 6 %, not 5 %")


def test_error_rates_grow_with_each_look():
    counts = (3, 4, 5, 6, 7, 8)
    for test, rate in itertools.product(("t", "sign_flip"), (0.01, 0.05)):
        rates = [error_rate([(n, rate) for n in counts[:k]], test=test, sides=(1, 2)) for k in range(1, 7)]
        assert rates == sorted(rates) and rates[-1] <= 6 * rate


def test_the_tables_of_looks_are_those_of_the_kept_figures():
    page, kept = PAGE.read_text(encoding="utf-8"), json.loads(KEPT.read_text(encoding="utf-8"))
    assert page_text(page, kept) == page, "run `python benchmarks/calibration.py --page`"
    figures = kept["figures"]
    assert figures["studies"] == 10_000 and len(figures["wrong"]) == 2 * 5 * (5 * 3 + 1)
    skewed = NOISES["skewed differences"]  # both tests assume symmetry, and the page says what they do without
    assert all(row["planned"] <= ALLOWED for row in figures["wrong"] if row["noise"] not in skewed)
    for test, looks in SHOWN.items():
        for kind in KINDS:
            assert figures["nominal"][f"{test} {kind}"] == shown_rule(test, kind, looks).alpha


def test_the_tables_of_looks_name_what_exceeds_the_level():
    figures = json.loads(json.dumps(look_figures(40, np.random.default_rng(0))))
    for row in figures["wrong"]:
        row["planned"] = 0.06 if (row["kind"], row["noise"], row["test"]) == ("superiority", "heavy", "t") else 0.05
    text = look_tables(figures)
    assert "Beyond 5.5 % with planned looks: t, superiority, heavy tails: 6.0 %.\n" in text
    assert all(
        effect["planned"]["seeds"] <= 8 and sum(effect["planned"]["decided"]) <= 1 + 1e-12
        for effect in figures["effects"]
    )
