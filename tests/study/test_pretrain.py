"""Pre-training entries of a study: any recipe, once for each fraction and seed of the arms that start from it."""

import json

import pytest

from headstart.recipe.recipe import schedule_of, to_dict
from headstart.study.folder import read_study_folder
from headstart.study.plan import expand
from headstart.study.prepare import arm_recipe, prepare, pretrain_recipe, segment_recipe
from headstart.study.run import run_study
from headstart.study.spec import define_study, parse_study
from headstart.weights.files import read_weights
from schedules import make_schedules
from tiny import ONCE, pixel_paths, tiny_study, write_study

SMALL = {"base": 90, "base_rate": 0.02, "warmup": 5, "warmup_from": 0.1}
LOW = {"input.short": [32], "input.long": 32, "train.batch": 4, "train.schedule": "1x", "evaluate.every": "0 steps"}
OWN_ARMS = {"scratch": {"start.kind": "random"}, "own": {"start.kind": "backbone", "start.weights": "pretrain:low"}}


def planned(entry, arms=None, **changes):
    """{segment of pre-training: (fraction, seed)} and {lineage: its pre-training} of a plan."""
    arms = arms or {"scratch": {}, "own": {"start.kind": "backbone", "start.weights": "pretrain:low"}}
    study = {"name": "s", "recipe": "demo", "arms": arms, "schedules": ["2x"], "pretrain": {"low": entry}, **changes}
    study = parse_study(study, source="study.yaml")
    plan = expand(study, make_schedules(["2x"], **SMALL), pretrain_steps={"low": 7})
    made = {s.name: (s.fraction, s.seed) for s in plan.segments if s.kind == "pretrain"}
    assert [s.name for s in plan.segments if s.kind == "pretrain"] == list(made)  # each once
    for segment in plan.segments:
        assert segment.needs <= {s.name for s in plan.segments[: plan.segments.index(segment)]}
    return made, {(s.arm, s.fraction, s.seed): s.weights_from for s in plan.segments if s.kind == "tail"}


def test_a_pretraining_follows_fraction_and_seed_of_its_arms():
    made, users = planned({}, fractions=[1.0, 0.1], seeds=2)
    assert made == {
        "pretrain-low-f1-s0": (1.0, 0), "pretrain-low-f0.1-s0": (0.1, 0),
        "pretrain-low-f1-s1": (1.0, 1), "pretrain-low-f0.1-s1": (0.1, 1),
    }  # fmt: skip
    assert all(users["own", f, s] == f"pretrain-low-f{f:g}-s{s}" for f in (1.0, 0.1) for s in (0, 1))
    assert not any(users["scratch", f, s] for f in (1.0, 0.1) for s in (0, 1))


@pytest.mark.parametrize(
    "stated, expected",
    [
        ({"seed": 0}, {"pretrain-low-f1": (1.0, 0), "pretrain-low-f0.1": (0.1, 0)}),
        ({"data": {"fraction": 1.0}}, {"pretrain-low-s0": (1.0, 0), "pretrain-low-s1": (1.0, 1)}),
        (ONCE, {"pretrain-low": (1.0, 0)}),
    ],
)
def test_what_the_entry_states_does_not_follow(stated, expected):
    made, users = planned({"set": stated}, fractions=[1.0, 0.1], seeds=2)
    assert made == expected and {users[key] for key in users if key[0] == "own"} == set(expected)


def test_an_arm_of_another_seed_has_a_pretraining_of_that_seed():
    start = {"start.kind": "backbone", "start.weights": "pretrain:low"}
    made, users = planned({}, arms={"one": start, "other": {**start, "seed": 1000}})
    assert made == {"pretrain-low-f1-s0": (1.0, 0), "pretrain-low-f1-s1000": (1.0, 1000)}
    assert users["other", 1.0, 0] == "pretrain-low-f1-s1000"


def own_study(data_root, tmp_path, overrides=None, **changes):
    """A tiny study whose entry is its own recipe at low resolution."""
    entry = {"low": {"set": LOW, **changes.pop("entry", {})}}
    study = tiny_study(data_root, **{"arms": OWN_ARMS, "pretrain": entry, "schedules": ["2x"], **changes})
    return prepare(*define_study(write_study(tmp_path / "study.yaml", study), overrides))


def test_an_entry_without_recipe_is_the_studys_own_with_the_overrides_below_its_set(data_root, tmp_path):
    prepared = own_study(
        data_root,
        tmp_path,
        {"train.batch": 8, "train.momentum": 0.5, "pretrain.low.input.short": [48], "pretrain.low.input.long": 48},
        fractions=[1.0, 0.5],
    )
    arm, low = prepared.recipes["own"][0], prepared.recipes["pretrain:low"][0]
    assert (arm.train.batch, low.train.batch) == (8, 4) and arm.train.momentum == low.train.momentum == 0.5
    assert (arm.input.short, low.input.short) == ((64,), (48,)) and low.task == "detection"
    assert low.data.train == arm.data.train and low.start.kind == "random"
    assert prepared.pretrain_images == {"low": {1.0: 6, 0.5: 3}}
    segments = {s.name: s for s in prepared.plan.segments if s.kind == "pretrain"}
    half, origins = segment_recipe(prepared, segments["pretrain-low-f0.5-s0"])
    assert (half.data.fraction, half.seed, half.name) == (0.5, 0, "pretrain-low-f0.5-s0")
    assert origins["data.fraction"] == origins["seed"] == "segment" and segments["pretrain-low-f0.5-s0"].steps == 4


def test_a_pretraining_that_starts_from_another_is_refused(data_root, tmp_path):
    start = {"start.kind": "backbone", "start.weights": "pretrain:low"}
    with pytest.raises(ValueError, match=r"pretrain.low: start.weights = pretrain:low: expected a file, or start.kind"):
        own_study(data_root, tmp_path, entry={"set": {**LOW, **start}})
    with pytest.raises(ValueError, match=r"pretrain.lo.train.rate: pretrain 'lo' is not known, did you mean 'low'"):
        own_study(data_root, tmp_path, {"pretrain.lo.train.rate": 0.1})


def test_detection_on_the_arms_own_images_starts_the_arm(data_root, tmp_path):
    prepared = own_study(data_root, tmp_path, fractions=[0.5], arms={"own": OWN_ARMS["own"]})
    folder = read_study_folder(run_study(prepared, tmp_path))
    runs = folder.runs
    made = runs["pretrain-low-f0.5-s0"]
    report = json.loads((runs["own-f0.5-s0-trunk-0-5"].directory / "audit.json").read_text())
    assert report["file"].startswith(str(made.directory)) and report["errors"] == []
    assert report["hash"] == read_weights(report["file"]).hash
    assert {row["source"].startswith(report["file"]) for row in report["rows"][:5]} == {True}  # the backbone
    assert {row["source"].split(" ")[0] for row in report["rows"][5:]} == {"random"}
    assert json.loads((made.directory / "segment.json").read_text())["num_images"] == 3


def test_segmentation_may_come_first(data_root, tmp_path):
    entry = {"recipe": "base_segment", "set": pixel_paths(data_root / "scenes", maps=False)}
    study = tiny_study(data_root, arms=OWN_ARMS, pretrain={"low": entry}, schedules=["2x"])
    prepared = prepare(*define_study(write_study(tmp_path / "study.yaml", study)))
    assert prepared.recipes["pretrain:low"][0].task == "segmentation"
    assert "pretrain-low-f1-s0" in [segment.name for segment in prepared.plan.segments]


@pytest.mark.parametrize("size", [None, "small"])
def test_the_arms_of_the_study_self_see_equally_many_pixels(size):
    study, overrides = define_study("self", {"size": size})
    assert study.pretrain["low"].follows == {"seed", "data.fraction"}

    def pixels(recipe, schedule=None):
        return schedule_of(recipe, 800, schedule).total * recipe.train.batch * recipe.input.short[0] ** 2

    low, _ = pretrain_recipe(study, "low", overrides)
    arms = {arm: arm_recipe(study, arm, overrides)[0] for arm in study.arms}
    seen = {arm: pixels(recipe, study.schedules[arm][0]) for arm, recipe in arms.items()}
    assert {seen["scratch"], seen.get("imagenet", seen["scratch"]), pixels(low) + seen["self"]} == {seen["scratch"]}
    if size is None:
        assert seen["scratch"] == 35_389_440  # as its header says


@pytest.mark.parametrize("size", [None, "small"])
def test_the_arms_of_the_study_frozen_differ_in_their_start_alone(size):
    study, overrides = define_study("frozen", {"size": size})
    arms = {arm: arm_recipe(study, arm, overrides)[0] for arm in study.arms}
    assert [recipe.start.freeze for recipe in arms.values()] == ["none", "none", "backbone"]
    assert [recipe.data.cache_features for recipe in arms.values()] == [False, False, True]  # of the frozen maps
    rest = [{**to_dict(r), "start": None, "data": to_dict(r)["data"] | {"cache_features": None}} for r in arms.values()]
    assert rest[0] == rest[1] == rest[2]
