"""The table of the paper's observations is what its script makes of the kept studies, and that decides as it says."""

from dataclasses import replace
from math import inf, sin

import numpy as np
import pytest
from claims import Observation, Part, Value, conclude, find
from observations import BEGIN, END, OBSERVATIONS, PAGE, render
from record import rewritten
from studies import FACTS, read_kept

from headstart.verdict.rule import Rule, seeds_needed

A, B = Value("made-up", "a", "1x"), Value("made-up", "b", "1x")
ABOVE, NEAR = Part("a - b", (A, B), above=0.02), Part("a - b", (A, B), above=-0.02, below=0.02)
SPREAD = np.array([-0.01, 0.0, 0.01])  # of three seeds: half a 95 % interval is 2.48 points, of 90 % 1.69


def cell(arm, schedule, seed, curve, *, fraction=1.0, loss=1.0, kind="box"):
    """A kept cell with a curve {step: AP}, whose AP50 is 1.5 times and AP75 0.9 times the AP."""
    scores = {f"{kind}.AP{level}": factor for level, factor in (("", 1.0), ("50", 1.5), ("75", 0.9))}
    return {
        "arm": arm,
        "schedule": schedule,
        "fraction": fraction,
        "seed": seed,
        "total": max(curve),
        "metrics": {name: {str(step): ap * factor for step, ap in curve.items()} for name, factor in scores.items()},
        "loss": loss,
    }


def study(cells):
    images = {str(each["fraction"]): round(200 * each["fraction"]) for each in cells}
    figures = {"images": images, "pretrain_steps": 0, "planned": len(cells), "cells": cells}
    made = {"command": "run it", "date": "2026-01-02", "commit": "abc", **dict.fromkeys(FACTS, "x")}
    return {"made": made, "figures": figures}


def ends(**arms):
    """A study of one schedule: the end of each arm by seed."""
    cells = [cell(arm, "1x", seed, {100: ap}) for arm, seeds in arms.items() for seed, ap in enumerate(seeds)]
    return {"made-up": study(cells)}


def conclusion(kept, *parts):
    return conclude(Observation(1, "what", "how", parts), kept).text


def test_the_page_is_that_of_the_kept_studies():
    page = PAGE.read_text(encoding="utf-8")
    assert rewritten(page, BEGIN, END, render(read_kept())) == page, "run `python benchmarks/observations.py`"


@pytest.mark.parametrize(
    "part, mean, expected",
    [
        (ABOVE, 0.05, "confirmed"),
        (ABOVE, 0.04, "not decidable with 3 seeds, about 5 would do at this spread"),
        (ABOVE, -0.01, "contradicted"),
        (replace(ABOVE, above=-inf, below=0.02), -0.01, "confirmed"),
        (NEAR, 0.002, "confirmed"),  # by the 90 % interval; that of 95 % is wider than the range
        (NEAR, 0.01, "not decidable with 3 seeds, about 8 would do at this spread"),
        (NEAR, 0.02, "not decidable with 3 seeds, more than 1,000 would do at this spread"),
        (NEAR, -0.05, "contradicted"),
    ],
)
def test_a_claim_is_decided_by_its_interval(part, mean, expected):
    assert conclusion(ends(a=0.5 + mean + SPREAD, b=[0.5] * 3), part) == expected


def test_an_observation_is_confirmed_by_all_parts_and_contradicted_by_one():
    kept = ends(a=0.55 + SPREAD, b=[0.5] * 3)
    undecided = Part("a - b", (A, B), above=0.05 - 1e-9)
    assert conclusion(kept, ABOVE, ABOVE) == "confirmed"
    assert conclusion(kept, ABOVE, undecided).startswith("not decidable with 3 seeds")
    assert conclusion(kept, ABOVE, undecided, NEAR) == "contradicted"


def test_what_is_missing_or_has_not_learnt_is_not_decided():
    kept = ends(a=[0.5, 0.5], b=[0.1, 0.2], c=[0.5])
    low = "not decidable: b ends at 15.0 AP, below 20"
    assert conclusion(kept, ABOVE) == conclusion(kept, ABOVE, ABOVE) == low
    assert conclusion(kept, replace(ABOVE, values=(A, replace(B, may_fail=True)))) != low
    assert conclusion(kept, replace(ABOVE, values=(A, replace(A, arm="c")))) == "not decidable with 1 seed"
    far = ends(a=[0.5])["made-up"]["figures"]["cells"] + [cell("b", "1x", 7, {100: 0.5})]
    old = [{name: value for name, value in each.items() if name != "metrics"} for each in far]
    for kept, reason in (
        ({}, "study `made-up` is not kept"),
        (ends(a=[0.5]), "`made-up` has no b at 1x with 100 % of the images"),
        ({"made-up": study(far)}, "no common seed of a, b"),
        ({"made-up": study(old)}, "`made-up` is kept without box.AP of a"),
    ):
        found = conclude(Observation(1, "what", "how", (ABOVE,)), kept)
        assert (found.text, found.missing) == ("not tried", reason)


def test_differences_are_paired_by_seed():
    """In any order of the cells, over the seeds that both arms have."""
    cells = [cell("a", "1x", seed, {100: 0.3 + 0.1 * seed}) for seed in (4, 1, 2, 3)]
    cells += [cell("b", "1x", seed, {100: 0.2 + 0.1 * seed + 0.001 * seed}) for seed in (3, 0, 2, 4)]
    found = find(ABOVE, {"made-up": study(cells)})
    assert found.differences == pytest.approx([0.098, 0.097, 0.096]) and found.outcome == "holds"
    assert found.sentence == "a - b > 2: **+9.7** (+9.5 to +9.9), holds"


def test_the_seeds_that_would_do_are_those_of_the_rules():
    """Superiority beyond a bound, and equivalence without a difference, have rules that know the number."""
    rule = {"metric": "box.AP", "baseline": "b", "candidate": "a", "min_seeds": 2}
    for mean in (0.005, -0.005, 0.002):
        found = find(replace(ABOVE, above=0.0), ends(a=0.5 + mean + SPREAD, b=[0.5] * 3))
        assert found.seeds_needed == seeds_needed(Rule(margin=0.0, kind="superiority", **rule), mean, 0.01)
    for margin in (0.005, 0.01):
        found = find(replace(NEAR, above=-margin, below=margin), ends(a=0.5 + SPREAD, b=[0.5] * 3))
        assert found.seeds_needed == seeds_needed(Rule(margin=margin, **rule), found.mean, 0.01)


# Ends of each arm in a world where every observation is true, and in one where none is.
ENDS = {
    ("bccd_more", "imagenet"): {"2x": (0.45, 0.50), "4x": (0.55, 0.40), "8x": (0.56, 0.45), "16x": (0.565, 0.50)},
    ("bccd_more", "scratch"): {"2x": (0.35, 0.60), "4x": (0.503, 0.60), "8x": (0.531, 0.60), "16x": (0.56, 0.60)},
    ("e01-small", "pretrained"): {"6x": (0.45, 0.40)},
    ("e01-small", "scratch"): {"6x": (0.40, 0.40)},
    ("e06-small", "pretrained"): {"6x": (0.40, 0.45)},
    ("e06-small", "scratch"): {"6x": (0.40, 0.40)},
    ("e06-small", "cascade_pretrained"): {"6x": (0.40, 0.50)},
    ("e06-small", "cascade_scratch"): {"6x": (0.40, 0.40)},
    ("e08-small", "scratch"): {"4x": (0.40, 0.40)},
    ("e09-small", "pretrained"): {"3x": (0.50, 0.50)},
    ("e09-small", "scratch"): {"3x": (0.50, 0.40)},
    ("e03-small", "group_of_2"): {"2x": (0.45, 0.25)},
    ("e03-small", "batch_of_2"): {"2x": (0.10, 0.40)},
}
FEW = {"imagenet": {"8x": (0.40, 0.40)}, "scratch": {"8x": (0.30, 0.40)}}  # with a tenth of the images of bccd
LOSS = {"imagenet": (0.5, 0.5), "scratch": (0.51, 0.8)}


def curve_to(end, schedule, drop):
    """AP that is flat until the rate drops at the end, which adds `drop`."""
    total = 100 * int(schedule.removesuffix("x"))
    return dict.fromkeys(range(100, total, 100), end - drop) | {total: end}


def world(place):
    """Kept studies of three seeds, of the first or the second world: whether the drop adds or takes differs too."""
    studies, drop = {}, (0.05, -0.05)[place]
    for (name, arm), schedules in ENDS.items():
        for schedule, both in schedules.items():
            for seed in range(3):
                end = both[place] + 0.0003 * sin(1 + 7 * seed + 3 * len(arm))
                kind = "keypoints" if name.startswith("e09") else "box"
                studies.setdefault(name, []).append(cell(arm, schedule, seed, curve_to(end, schedule, drop), kind=kind))
    for arm, schedules in FEW.items():
        for (schedule, both), seed in ((item, seed) for item in schedules.items() for seed in range(3)):
            end, loss = both[place] + 0.001 * seed * len(arm), LOSS[arm][place] + 0.001 * seed
            few = cell(arm, schedule, seed, curve_to(end, schedule, -drop), fraction=0.1, loss=loss)
            studies.setdefault("bccd", []).append(few)
    return {name: study(cells) for name, cells in studies.items()}


@pytest.mark.parametrize("place, expected", [(0, "confirmed"), (1, "contradicted")])
def test_the_eleven_are_true_in_one_world_and_false_in_another(place, expected):
    kept = world(place)
    found = {each.number: conclude(each, kept).text for each in OBSERVATIONS}
    assert found == dict.fromkeys(range(1, 12), expected)
    text = render(kept)
    assert f"Decided: 11 of 11 ({11 - 11 * place} confirmed, {11 * place} contradicted).\n" in text
    assert "- e08-small: `run it`, 2026-01-02, commit abc, x (x)" in text


def test_longer_training_is_shown_and_not_counted():
    kept = world(0)
    text = render({**kept, "bccd_few": world(1)["bccd"]})
    told, _, later = text.partition("The claims of 9 and 10 on longer training")
    assert "Decided: 11 of 11 (11 confirmed, 0 contradicted)." in told
    assert [line[:5] for line in later.splitlines() if "contradicted |" in line] == ["| 9 |", "| 10 "]


def test_a_line_has_images_seeds_and_the_longest_schedule():
    lines: dict[str, str] = {}
    for line in render(world(0)).splitlines():
        lines.setdefault(line.split(" | ")[0], line)
    design, result, last = lines["| 3"].split(" | ")[2:]
    assert design.startswith("`bccd_more` (200 images): ") and design.endswith("; 3 seeds") and last == "confirmed |"
    assert result.split("<br>") == [
        f"mean of both arms, end of {own} - 16x at this step > 0: **{mean}** ({mean} to {mean}), holds"
        for own, mean in (("4x", "+1.4"), ("8x", "+3.3"))
    ]
    assert (
        "| `bccd` (20 images): " in lines["| 10"] and "-0.1 < loss of scratch / loss of imagenet - 1" in lines["| 10"]
    )
    without = render({name: found for name, found in world(0).items() if name.startswith("bccd")}).splitlines()
    assert sum(line.endswith("is not kept | not tried |") for line in without) == 5 + 2  # 9 and 10 once more
