"""Plans against the paper's arithmetic and against a brute-force walk along every cell."""

import copy
from itertools import pairwise

import pytest

from headstart.data.dataset import nested_fraction
from headstart.recipe.schedule import Schedule, due
from headstart.study.forecast import (
    Load,
    ProgressLines,
    WorkDone,
    cell_rows,
    makespan,
    num_evaluations,
    segment_rows,
    totals,
)
from headstart.study.plan import Segment, expand, schedule_names
from headstart.study.spec import StudySpec, parse_study, read_study
from schedules import make_schedules

COCO = {"base": 90_000, "base_rate": 0.02, "warmup": 500, "warmup_from": 1 / 3}
SMALL = {"base": 90, "base_rate": 0.02, "warmup": 5, "warmup_from": 0.1}
GOOD = {
    "name": "shapes",
    "recipe": "demo",
    "arms": {"scratch": None, "pretrained": {"start.kind": "backbone", "start.weights": "pretrain:shapes"}},
    "schedules": ["1x", "2x", "3x", "6x"],
    "fractions": [1.0, {"fraction": 0.1, "schedules": ["2x", "6x"]}],
    "seeds": 2,
    "pretrain": {"shapes": {"recipe": "shapes", "set": {"seed": 0, "data.fraction": 1.0}}},
    "rule": {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01},
}


def study_of(**changes) -> StudySpec:
    return parse_study({**copy.deepcopy(GOOD), **changes}, source="study.yaml")


def one_arm(*names, **changes) -> StudySpec:
    simple = {"name": "s", "recipe": "r", "arms": {"scratch": {}}, "schedules": list(names)}
    return parse_study({**simple, **changes}, source="study.yaml")


def plan_of(study, numbers=SMALL, **options):
    return expand(study, make_schedules(schedule_names(study), **numbers), **options)


def test_six_schedules_with_60k_tails_share_44_percent():
    schedules = {
        f"{total // 90_000}x": Schedule(
            total=total, drops=(total - 60_000, total - 20_000), base_rate=0.02, warmup=500, warmup_from=1 / 3
        )
        for total in range(90_000, 630_000, 90_000)
    }  # fmt: skip
    plan = expand(one_arm(*schedules), schedules)
    assert (plan.steps_alone, plan.steps_shared) == (1_890_000, 840_000)
    assert plan.saving == pytest.approx(1 - 0.444, abs=5e-4)


@pytest.mark.parametrize(
    ("names", "alone", "shared"),
    [
        (("1x", "2x", "3x", "4x", "5x", "6x"), 1_890_000, 810_000),  # the legacy 1x has a tail of 30k
        (("2x", "3x", "4x", "5x", "6x"), 1_800_000, 780_000),
        (("3x", "6x", "9x"), 1_620_000, 930_000),
        (("1x", "2x", "3x", "6x", "9x"), 1_890_000, 1_020_000),
        (("1x", "2x", "3x", "6x"), 1_080_000, 690_000),
        (("6x",), 540_000, 540_000),
    ],
)
def test_what_sharing_saves_on_the_papers_schedules(names, alone, shared):
    plan = plan_of(one_arm(*names), COCO)
    assert (plan.steps_alone, plan.steps_shared) == (alone, shared)


@pytest.mark.parametrize("share", [True, False])
def test_every_cell_is_covered_exactly_once_by_a_chain_of_segments(share):
    study = study_of(share=share)
    plan = plan_of(study, pretrain_steps={"shapes": 40})
    by_name = {segment.name: segment for segment in plan.segments}
    assert len(by_name) == len(plan.segments)
    assert len({cell.name for cell in plan.cells}) == len(plan.cells) == 2 * (4 + 2) * 2
    for cell in plan.cells:
        chain = [by_name[name] for name in cell.segments]
        assert all((s.arm, s.fraction, s.seed) == (cell.arm, cell.fraction, cell.seed) for s in chain)
        assert chain[0].start == 0 and chain[0].parent is None
        assert [(s.name, s.stop) for s in chain[:-1]] == [(s.parent, s.start) for s in chain[1:]]
        assert chain[-1].stop == cell.total
        assert [s.kind for s in chain] == ["trunk"] * (len(chain) - 1) + ["tail"]
        assert chain[-1].schedule == cell.schedule
        assert {s.weights_from for s in chain} == {"pretrain-shapes" if cell.arm == "pretrained" else None}
    used = {name for cell in plan.cells for name in cell.segments}
    assert used == {s.name for s in plan.segments if s.kind != "pretrain"}


def test_segments_come_after_what_they_need():
    plan = plan_of(study_of(), pretrain_steps={"shapes": 40})
    order = [segment.name for segment in plan.segments]
    for place, segment in enumerate(plan.segments):
        for needed in (segment.parent, segment.weights_from):
            assert needed is None or order.index(needed) < place
    assert plan.segments[0] == Segment("pretrain-shapes", "pretrain", "shapes", 1.0, 0, None, 0, 40)
    assert plan.steps_pretrain == 40


def test_trunk_rates_are_those_of_every_schedule_that_uses_the_trunk():
    study = study_of()
    schedules = make_schedules(schedule_names(study), **SMALL)
    plan = expand(study, schedules, pretrain_steps={"shapes": 40})
    for name, cells in plan.cells_of().items():
        segment = next(s for s in plan.segments if s.name == name)
        if segment.kind == "trunk":
            rates = {tuple(schedules[c.schedule].rate(s) for s in range(segment.start, segment.stop)) for c in cells}
            assert len(rates) == 1


def test_names_of_segments():
    plan = plan_of(one_arm("1x", "2x", fractions=[1, 0.35], seeds=[7]))
    assert [segment.name for segment in plan.segments] == [
        "scratch-f1-s7-trunk-0-60",
        "scratch-f1-s7-1x-60-90",
        "scratch-f1-s7-trunk-60-120",
        "scratch-f1-s7-2x-120-180",
        "scratch-f0.35-s7-trunk-0-60",
        "scratch-f0.35-s7-1x-60-90",
        "scratch-f0.35-s7-trunk-60-120",
        "scratch-f0.35-s7-2x-120-180",
    ]


def test_extending_a_study_keeps_the_segments_that_are_finished():
    short = {segment.name for segment in plan_of(one_arm("1x", "2x")).segments}
    assert short <= {segment.name for segment in plan_of(one_arm("1x", "2x", "6x")).segments}


def test_schedules_may_differ_between_arms_and_arms_may_change_theirs():
    study = study_of(schedules={"scratch": ["6x"], "pretrained": ["2x"]}, fractions=[1])
    slow = make_schedules(["6x"], **{**SMALL, "base": 180})
    plan = plan_of(study, pretrain_steps={"shapes": 1}, arm_schedules={"scratch": slow})
    assert {(cell.arm, cell.schedule, cell.total) for cell in plan.cells} == {
        ("scratch", "6x", 1080),
        ("pretrained", "2x", 180),
    }


def test_schedules_that_cannot_share_are_refused_unless_told_not_to():
    schedules = {
        "2x": Schedule(total=180, drops=(120,), warmup=5, warmup_from=0.1, base_rate=0.02),
        "3x": Schedule(total=270, drops=(210,), warmup=6, warmup_from=0.1, base_rate=0.02),
    }
    with pytest.raises(ValueError, match=r"schedules: 2x and 3x cannot share a trunk: .* from step 0 on"):
        expand(one_arm("2x", "3x"), schedules)
    assert expand(one_arm("2x", "3x", share=False), schedules).steps_shared == 450
    flat = {"2x": Schedule(total=180, warmup=5, warmup_from=0.1, base_rate=0.02)}
    with pytest.raises(ValueError, match="schedules: 2x has no drop"):
        expand(one_arm("2x"), flat)


def test_a_schedule_shorter_than_its_tail_or_missing_is_refused_by_name():
    with pytest.raises(ValueError, match=r"schedules: 0\.3x with a base of 90 steps: .* expected more than 30"):
        make_schedules(["1x", "0.3x"], **SMALL)
    with pytest.raises(ValueError, match="schedules: '2x' is not known"):
        expand(one_arm("2x"), make_schedules(["3x"], **SMALL))
    with pytest.raises(ValueError, match="pretrain: steps of 'shapes'"):
        plan_of(study_of())
    arms = {name: {"start.kind": "backbone", "start.weights": f"pretrain:{name}"} for name in ("low", "low-f1")}
    alike = {"low": {}, "low-f1": {"set": {"data.fraction": 1.0}}}  # "pretrain-low-f1-s0" both
    with pytest.raises(ValueError, match=r"pretrain\.low-f1: its run pretrain-low-f1-s0 has the name of one of 'low'"):
        expand(
            one_arm("2x", arms=arms, pretrain=alike),
            make_schedules(["2x"], **SMALL),
            pretrain_steps=dict.fromkeys(arms, 5),
        )


def test_unused_pretraining_is_noted_and_not_run():
    plan = plan_of(one_arm("2x", pretrain={"shapes": {"recipe": "p"}}))
    assert plan.notes == ("pretrain.shapes has no effect: no arm starts from it",)
    assert not plan.steps_pretrain


def test_nested_start_and_settings_of_the_study_name_the_pretraining_too():
    for changes in (
        {"arms": {"a": {"start": {"weights": "pretrain:shapes"}}}},
        {"set": {"start.weights": "pretrain:shapes"}},
    ):
        study = study_of(**{"arms": {"a": {}}, "rule": None, **changes})
        assert study.pretraining_of("a") == "shapes"


def test_forecast_counts_like_walking_through_every_step():
    study = study_of()
    loads = {
        name: Load(
            batch=4, num_images={1.0: 200, 0.1: 20}, seconds_per_step=0.5, seconds_per_eval_image=0.01,
            num_eval_images=30, eval_every=50, seconds_to_start=2.0,
        )
        for name in ("scratch", "pretrained", "pretrain:shapes")
    }  # fmt: skip
    plan = plan_of(study, pretrain_steps={"shapes": 40})
    rows = {row["segment"]: row for row in segment_rows(plan, loads)}
    for row in cell_rows(plan, loads):
        total = next(cell.total for cell in plan.cells if cell.name == row["cell"])
        evaluations = sum(due(step, 50, total) for step in range(1, total + 1))
        assert row["seconds"] == pytest.approx(2.0 + total * 0.5 + evaluations * 0.3)
        assert (row["steps"], row["images"]) == (total, 4 * total)
        assert row["epochs"] == 4 * total / (200 if row["fraction"] == 1 else 20)
    sums = totals(plan, loads)
    assert sums["cells"] == 24 and sums["segments"] == len(plan.segments) == len(rows)
    assert sums["steps_alone"] == plan.steps_alone and sums["steps_shared"] == plan.steps_shared
    assert sums["images_shared"] == 4 * plan.steps_shared and sums["images_pretrain"] == 160
    assert sums["seconds_shared"] < sums["seconds_alone"]
    assert rows["scratch-f1-s0-trunk-0-60"]["cells"] == 4
    assert rows["pretrain-shapes"]["cells"] == 12
    assert rows["pretrain-shapes"]["seconds"] == pytest.approx(2.0 + 40 * 0.5 + 0.3)
    assert rows["scratch-f1-s0-trunk-0-60"]["seconds"] == pytest.approx(
        2.0 + 60 * 0.5 + 0.3
    )  # at 50; nothing at its end


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (60, 120), (100, 110), (0, 7)])
@pytest.mark.parametrize("every", [0, 1, 50])
def test_evaluations_fall_where_periodic_work_is_due(start, stop, every):
    steps = range(start + 1, stop + 1)
    assert num_evaluations(start, stop, every) == sum(due(step, every, stop) for step in steps)
    assert num_evaluations(start, stop, every, at_end=False) == sum(due(step, every, -1) for step in steps)


def test_a_thousand_cells_are_planned():
    arms = {f"arm{i}": {} for i in range(10)}
    study = one_arm("1x", "2x", "3x", "4x", "5x", arms=arms, seeds=5, fractions=[1, 0.5, 0.1, 0.01])
    plan = plan_of(study)
    loads = {arm: Load(batch=2, num_images=dict.fromkeys((1.0, 0.5, 0.1, 0.01), 9), seconds_per_step=1) for arm in arms}
    assert totals(plan, loads)["cells"] == 1_000


BAD = [
    ({"seed": 3}, "study key 'seed' is not known, did you mean 'seeds'"),
    ({"seeds": "three"}, "seeds: 'three', expected their number, or a list such as"),
    ({"schedule": "50 epochs"}, "study key 'schedule' is not known, did you mean 'schedules'"),
    ({"schedules": "50 epochs"}, "schedules: schedule '50 epochs' is not known, .*; train.base takes '50 epochs'"),
    ({"lr": 0.1}, "study key 'lr' is not known: fields of the recipe stand below set, as train.rate there"),
    ({"train": {"rate": 1}}, "study key 'train' is not known: fields of the recipe stand below set, as train there"),
    ({"seeds": 0}, "seeds: 0, expected at least one"),
    ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
    ({"seeds": [-1]}, "seeds.0: -1 is not valid"),
    ({"seeds": True}, "seeds: True, expected their number"),
    ({"schedules": ["2x", "2.0x"]}, "schedules: '2x' is given twice"),
    ({"schedules": "2x"}, r"schedules: '2x', expected a list such as \[2x\]"),
    ({"schedules": ["cosine"]}, "schedule 'cosine' is not known"),
    ({"schedules": []}, "schedules: none for arm 'scratch' at fraction 1"),
    ({"schedules": {"scrach": ["2x"]}}, "schedules: arm 'scrach' is not known, did you mean 'scratch'"),
    ({"fractions": [0]}, "fractions.0: 0 is not valid"),
    ({"fractions": [0.1, 0.1]}, "fractions: 0.1 is given twice"),
    ({"fractions": []}, "fractions: none given"),
    ({"fractions": [{"fraction": 1, "schedule": []}]}, "fractions key 'schedule' is not known, did you mean"),
    ({"arms": {}}, "arms: {} is not valid"),
    ({"arms": {"../up": {}}}, "arms: '../up' is not a name"),
    ({"arms": {"pretrained": {"start.weights": "pretrain:shape"}}}, "pretrain entry 'shape' is not known"),
    ({"pretrain": {"shapes": {"recip": "r"}}}, "pretrain key 'recip' is not known, did you mean 'recipe'"),
    ({"name": "a/b"}, "name: 'a/b' is not a name"),
    ({"name": "con"}, "name: 'con' is not a name"),
    ({"name": "../../x"}, "name: '../../x' is not a name"),
    ({"name": "/tmp/x"}, "name: '/tmp/x' is not a name"),
    ({"name": ""}, "name: '' is not a name"),
    ({"name": "a\0b\n"}, r"name: 'a\\x00b\\n' is not a name"),
    ({"name": "x" * 10**6}, r"name: 'x{1,20}\.\.\.x{1,20}' is not a name"),
    ({"runs": "../x"}, "runs: '../x' is not a name"),
    ({"pretrain": {"../x": {"recipe": "r"}}}, "pretrain: '../x' is not a name"),
    ({"also_evaluate": {"../x": {}}}, "also_evaluate: '../x' is not a name"),
    ({"name": "a."}, "name: 'a.' is not a name"),
    ({"tuning": {"scrach": "none"}}, "tuning: arm 'scrach' is not known, did you mean 'scratch'"),
    ({"tuning": {"scratch": {"trial": 3}}}, "tuning key 'trial' is not known, did you mean 'trials'"),
    ({"public_weights": {"scratch": {"name": "timm-a1"}}}, "public_weights.scratch has no effect: .* is None"),
    ({"public_weights": {"pretrained": {"name": "timm-a1"}}}, "public_weights.pretrained has no effect"),
    ({"pretrain": {"shapes": {"recipe": "r", "uses": 0}}}, "pretrain.shapes.uses: 0 is not valid"),
    ({"seeds": 21, "rule": {**GOOD["rule"], "test": "sign_flip"}}, "seeds: 21 of them, expected at most 20 with test"),
]  # fmt: skip
BAD_RULE = [
    ({"metrics": "x"}, "rule key 'metrics' is not known, did you mean 'metric'"),
    ({"metric": "box.Ap"}, "rule.metric 'box.Ap' is not known, did you mean 'box.AP'"),
    ({"candidate": "scrath"}, "rule.candidate: arm 'scrath' is not known, did you mean 'scratch'"),
    ({"candidate": "pretrained"}, "rule.candidate is 'pretrained', the baseline itself"),
    ({"margin": 0}, "rule.margin is 0.0"),
    ({"margin": "much"}, "rule.margin: 'much' is not valid"),
    ({"level": 95}, "rule.level: 95 is not valid: expected at most 0.9999"),
    ({"min_seeds": 1}, "rule.min_seeds is 1"),
    ({"test": "sign_flip"}, r"seeds: 2 can never satisfy rule.test sign_flip .* expected at least 5 seeds"),
    ({"test": "sign_flip", "kind": "superiority"}, "expected at least 6 seeds"),
    ({"test": "z"}, "rule.test: 'z' is not valid"),
]


@pytest.mark.parametrize(("changes", "message"), BAD + [({"rule": {**GOOD["rule"], **r}}, m) for r, m in BAD_RULE])
def test_bad_studies_are_refused_with_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        study_of(**changes)
    assert str(error.value).startswith("study.yaml: ") and "\n" not in str(error.value)


def test_tuning_and_uses_are_declared_by_arm():
    weights = {
        "arms": {"scratch": {}, "pretrained": {"start.kind": "backbone", "start.weights": "w.pt"}},
        "pretrain": {},
    }
    study = study_of(
        **weights,
        tuning={"scratch": {"trials": 12, "steps": 24_000}, "pretrained": "the rate of the paper"},
        public_weights={"pretrained": {"name": "torchvision-resnet-v1", "uses": 50}},
    )
    assert (study.tuning["scratch"].trials, study.tuning["scratch"].steps) == (12, 24_000)
    assert study.tuning["pretrained"].note == "the rate of the paper" and study.tuning["pretrained"].trials is None
    assert study.public_weights["pretrained"].uses == 50


def test_sign_flip_with_enough_seeds_is_accepted():
    assert len(study_of(seeds=5, rule={**GOOD["rule"], "test": "sign_flip"}).seeds) == 5


def test_study_files_refuse_names_given_twice(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: s\nrecipe: r\nschedules: [2x]\narms:\n  a: {}\n  b: {}\n")
    assert tuple(read_study(path).arms) == ("a", "b")
    path.write_text("name: s\nrecipe: r\nschedules: [2x]\narms:\n  a: {}\n  a: {}\n")
    with pytest.raises(ValueError, match=r"study.yaml: line 6: 'a' is given twice"):
        read_study(path)


def test_makespan_of_one_job_is_the_sum_and_more_jobs_wait_for_what_they_need():
    study = parse_study(
        {"name": "s", "recipe": "demo", "arms": {"a": {}, "b": {}}, "schedules": ["1x", "2x"]}, source="test"
    )
    schedules = make_schedules(["1x", "2x"], base=90, base_rate=1.0, warmup=1, warmup_from=0.1)
    plan = expand(study, schedules)
    load = Load(batch=1, num_images={1.0: 10}, seconds_per_step=1.0)
    loads = {"a": load, "b": load}
    # One lineage: trunk 60, then the tail of 1x (30) beside the trunk (60) and the tail (60) of 2x: 180 at the least.
    assert makespan(plan, loads, 1) == plan.steps_shared == 2 * 210
    assert makespan(plan, loads, 100) == 180
    assert 210 <= makespan(plan, loads, 2) <= 420


def test_numbers_of_images_become_shares_that_give_them_back():
    counts = (35_000, 10_000, 3_500, 1_000)
    study = one_arm("2x", fractions=[*({"images": n} for n in counts), 1.0]).on(118_287)
    shares = [entry.fraction for entry in study.fractions]
    drawn = [nested_fraction(118_287, share, 0) for share in shares]
    assert [len(part) for part in drawn] == [*counts, 118_287]
    assert all((long[: len(short)] == short).all() for long, short in pairwise(sorted(drawn, key=len, reverse=True)))
    assert [len(nested_fraction(103, n / 103, 5)) for n in range(1, 104)] == list(range(1, 104))
    names = [segment.name for segment in plan_of(study).segments if segment.kind == "trunk"]
    assert names == [f"scratch-f{n / 118_287:.6g}-s0-trunk-0-120" for n in (*counts, 118_287)]


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([{"images": 0}], "greater than or equal to 1"),
        ([{"images": "many"}], "valid integer"),
        ([{"images": 5, "fraction": 0.5}], "one of fraction .* and images"),
        ([{"schedules": ["2x"]}], "one of fraction .* and images"),
        ([{"images": 5}, {"images": 5}], "'5 images' is given twice"),
    ],
)
def test_wrong_amounts_of_data(fractions, message):
    with pytest.raises(ValueError, match=message):
        one_arm("2x", fractions=fractions)


def test_amounts_that_do_not_fit_the_data():
    with pytest.raises(ValueError, match="fractions: 104 images, but the training set has 103"):
        one_arm("2x", fractions=[{"images": 104}]).on(103)
    with pytest.raises(ValueError, match=r"fractions: 0\.5 is given twice"):
        one_arm("2x", fractions=[{"images": 51}, 0.5]).on(102)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"tta": {}}, "also_evaluate.tta: is empty"),
        ({"tta": {"train.rate": 1}}, "also_evaluate.tta: train.rate is no part of one evaluation"),
        ({"tta": {"evaluate": {"every": "2 steps"}}}, "evaluate.every is no part of one evaluation"),
        ({"t a": {"input.test_short": 64}}, "'t a' is not a name"),
    ],
)
def test_wrong_variants(patch, message):
    with pytest.raises(ValueError, match=message):
        study_of(also_evaluate=patch)


def test_a_rule_may_be_about_a_variant():
    rule = {**GOOD["rule"], "metric": "tta:mask.AP"}
    study = study_of(also_evaluate={"tta": {"evaluate": {"tta": {"enabled": True}}}}, rule=rule)
    assert study.rule.metric == "tta:mask.AP"
    with pytest.raises(ValueError, match=r"rule\.metric: also_evaluate entry 'tta' is not known"):
        study_of(rule=rule)
    with pytest.raises(ValueError, match=r"rule\.metric 'mask\.APx' is not known, did you mean"):
        study_of(also_evaluate={"tta": {"input.test_short": 64}}, rule={**rule, "metric": "tta:mask.APx"})


def test_work_done_is_weighted_by_expected_seconds():
    work = WorkDone({"a": 10.0, "b": 30.0, "c": 0.0})
    assert [work.update("a", 0.5)[0], work.update("b", 1.0)[0], work.update("a", 1.0)[0]] == [12.5, 87.5, 100.0]
    assert work.update("b", 0.5)[0] == 62.5  # a segment that starts again
    assert work.update("of a seed before", 1.0) == (62.5, 12.5)  # its run was damaged


def test_what_an_earlier_run_did_does_not_shorten_the_time_left():
    said, times = [], iter([0.0, 1.0, 31.0])
    work = WorkDone({"a": 40.0, "b": 30.0, "c": 30.0})
    lines = ProgressLines("x", said.append, clock=lambda: next(times))
    for segment, share, found in (("a", 1.0, True), ("b", 0.5, False), ("b", 1.0, False)):
        done, before = work.update(segment, share, found=found)
        lines(done, segment, before)
    assert (done, before) == (70.0, 55.0)  # 40 found finished, and half of b
    assert said == ["x: 40 %, a", "x: 70 %, b, 62 s left"]  # 15 of 100 in 31 s, 30 are left
    assert work.update("c", 1.0) == (100.0, 55.0)  # trained here, seen at its end only
