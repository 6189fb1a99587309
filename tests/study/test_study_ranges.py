"""Every field of a study at values that none of them can mean, and studies that contradict themselves."""

import copy
import time

import pytest

from headstart.study.prepare import prepare
from headstart.study.spec import define_study, parse_study
from odd_values import odd_cases
from tiny import tiny_study, write_study

STUDY = {
    "name": "odd",
    "recipe": "demo",
    "set": {"train.rate": 0.1},
    "arms": {
        "scratch": {"seed": 5},
        "public": {"start.kind": "backbone", "start.weights": "w.pt"},
        "late": {"branch_of": "scratch", "last": "1x", "train.momentum": 0.8},
    },
    "schedules": ["2x", "3x"],
    "fractions": [{"fraction": 0.5, "schedules": ["4x"]}, {"images": 10}],
    "seeds": [0, 1, 2],
    "pretrain": {"shapes": {"recipe": "demo_pretrain", "set": {"train.rate": 0.1}, "uses": 2}},
    "public_weights": {"public": {"name": "torchvision-resnet-v1", "uses": 3}},
    "tuning": {"public": {"trials": 2, "steps": 10, "note": "by hand"}},
    "rule": {
        "metric": "box.AP", "baseline": "public", "candidate": "scratch", "margin": 0.01, "level": 0.95, "test": "t",
        "min_seeds": 3, "kind": "equivalence",
    },
    "also_evaluate": {"flip": {"evaluate.tta.enabled": True}},
    "search": {
        "arm": "scratch", "grid": {"train.rate": [0.1, 0.2]}, "schedule": "2x", "images": 5, "seed": 1,
        "metric": "box.AP",
    },
    "share": True,
    "runs": "shared",
    "small": {"seeds": 1},
    "paper": "R50",
    "beside": "bccd_more",
    "account": {"num_images": 10, "instances_per_image": 2.0, "pixels_per_image": 100.0},
}  # fmt: skip
# Patches are checked where a recipe is resolved with them.
PATCHES = (
    "set",
    "arms.scratch",
    "arms.public",
    "arms.late.train",
    "pretrain.shapes.set",
    "also_evaluate.flip",
    "search.grid",
    "small",
)
# Accepted on purpose, by value.
ACCEPTED = {
    "text": {
        "name", "recipe", "runs", "pretrain.shapes.recipe", "public_weights.public.name", "tuning.public.note",
        "tuning.public",  # its note
    },
    "true": {"share"},
    "null": {
        "set", "small", "pretrain.shapes.set", "arms.scratch", "arms.late",  # empty
        "rule", "search", "runs", "paper", "beside", "account",  # none
        "tuning.public.trials", "tuning.public.steps",  # not stated
        "search.images",  # all
        "pretrain.shapes.recipe",  # the study's own
    },
    "0": {"seeds.0", "search.seed", "tuning.public.trials", "tuning.public.steps", "account.instances_per_image"},
    "[]": {"fractions.0.schedules"},  # the study's
    "1e9": {
        "seeds.0", "search.seed", "search.images", "pretrain.shapes.uses", "public_weights.public.uses",
        "tuning.public.trials", "tuning.public.steps", "account.num_images", "account.instances_per_image",
        "account.pixels_per_image",
    },
}  # fmt: skip
ACCEPTED["'16'"] = ACCEPTED["text"]


def refusal(study):
    """The message with which a study is refused, None where it is not."""
    try:
        parse_study(study, source="mine.yaml")
    except ValueError as error:
        return str(error)
    return None


def test_the_study_is_accepted_as_it_is():
    assert refusal(STUDY) is None


def test_every_field_of_a_study():
    seen = set()
    for path, label, changed in odd_cases(STUDY, skip=PATCHES):
        message, named = refusal(changed), path.removesuffix(".0").rpartition(".")[2]
        if message is None:
            seen.add((path, label))
            assert path in ACCEPTED.get(label, ()), (path, label, "is accepted without a meaning")
        else:
            assert path not in ACCEPTED.get(label, ()), message
            assert len(message.splitlines()) == 1 and len(message) < 600, message
            assert message.startswith("mine.yaml: ") and named in message, (path, label, message)
    assert seen == {(path, label) for label, paths in ACCEPTED.items() for path in paths}


REFUSED = [
    ({"seeds": 10_000_000}, ["seeds: 10000000 is a count of seeds, expected at most 1,000", "[10000000]"]),
    ({"seeds": 20261124}, ["seeds: 20261124 is a count of seeds", "[20261124]"]),
    ({"seeds": 2147483648}, ["seeds: 2147483648 is a count of seeds"]),
    ({"seeds": [2**32]}, ["seeds.0: 4294967296 is not valid"]),
    ({"fractions": [0.5, 0.50000001]}, ["fractions: 0.5 is given twice"]),
    ({"fractions": ["0.5"]}, ["fractions.0: '0.5' is not valid"]),
    ({"fractions": [True]}, ["fractions.0: True is not valid"]),
    ({"schedules": ["2x", "2.0000001x"]}, ["schedules: '2x' is given twice"]),
    ({"schedules": ["1000000000000 steps"]}, ["schedules: schedule '1000000000000 steps' is", "expected"]),
    ({"schedules": [f"{n}x" for n in range(1, 900)], "seeds": 1000}, ["seeds: ", "over 20,000 cells"]),
    ({"rule": {**STUDY["rule"], "margin": "0.01"}}, ["rule.margin: '0.01' is not valid: expected a number"]),
    ({"rule": {**STUDY["rule"], "level": 1 - 1e-16}}, ["rule.level: ", "expected at most 0.9999"]),
    ({"rule": {**STUDY["rule"], "min_seeds": True}}, ["rule.min_seeds: True is not valid"]),
    ({"set": {"data.fraction": 0.5}}, ["set.data.fraction: is set by the study", "expected fractions"]),
    ({"set": {"seed": 3}}, ["set.seed: is set by the study", "expected seeds"]),
    ({"set": {"name": "x"}}, ["set.name: is set by the study", "expected name"]),
    ({"arms": {"a": {"name": "x"}}}, ["arms.a.name: is set by the study", "expected name"]),
    ({"set": {"train": {"rate": 0.1}, "train.rate": 0.2}}, ["set.train.rate: is given twice"]),
    ({"arms": {"a": {"train.schedule": "2x"}}}, ["arms.a.train.schedule: is set by the study", "expected schedules"]),
    ({"arms": {"a": {"train.rate": 0.5, "train": {"rate": 0.001}}}}, ["arms.a.train.rate: is given twice"]),
    ({"arms": {"a": {"data": {"fraction": 0.5}}}}, ["arms.a.data.fraction: is set by the study"]),
    ({"arms": {"a": {}, "b": {"branch_of": ["a"], "last": "1x"}}}, ["arms.b.branch_of: ['a'], expected the name"]),
    ({"arms": {"a": {}, "b": {"branch_of": "a", "last": "1 x"}}}, ["arms.b.last: schedule '1 x' is not known"]),
    ({"search": {**STUDY["search"], "grid": {"seed": [1, 2]}}}, ["search.grid.seed: is set by the study"]),
    ({"search": {**STUDY["search"], "grid": {f"train.f{i}": list(range(9)) for i in range(9)}}}, ["combinations"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=[expected[0][:40] for _, expected in REFUSED])
def test_studies_that_hang_or_contradict_themselves(changes, expected):
    own = {key: value for key, value in STUDY.items() if key in ("name", "recipe", "schedules")}
    own |= {"arms": {"scratch": {}, "public": {"train.rate": 0.2}}}
    since = time.process_time()
    message = refusal({**own, **copy.deepcopy(changes)})
    assert message is not None and all(part in message for part in expected), message
    assert len(message.splitlines()) == 1 and time.process_time() - since < 1


UNPREPARED = [
    ({"rule": {"metric": "keypoints.AP"}}, "rule.metric is keypoints.AP, which model.keypoint.enabled=false does not"),
    ({"rule": {"metric": "mask.AP"}, "set": {"model.mask.enabled": False}}, "which model.mask.enabled=false does not"),
    ({"rule": {"metric": "voc.AP"}}, "rule.metric is voc.AP, which evaluate.voc=false does not measure"),
    ({"rule": {"metric": "top1"}}, "rule.metric is top1, which a detection recipe does not measure, expected one of"),
    ({"rule": {"metric": "semantic.mIoU"}}, "rule.metric is semantic.mIoU, which a detection recipe does not measure"),
    ({"search": "mask.AP", "set": {"model.mask.enabled": False}}, "search.metric is mask.AP, which model.mask.enabled"),
    ({"arms": {"a": {}, "b": {"train.momentum": 0.9}}}, "arms: 'a' and 'b' are the same"),
    ({"arms": {"a": {}, "b": {"train.log_every": 7}}}, "arms: 'a' and 'b' are the same in all that changes results"),
]


@pytest.mark.parametrize(("changes", "expected"), UNPREPARED, ids=[expected[:40] for _, expected in UNPREPARED])
def test_what_a_study_cannot_measure_or_tell_apart_is_refused_before_data_are_read(tmp_path, changes, expected):
    study = tiny_study(tmp_path / "nowhere", arms={"a": {}, "b": {"train.momentum": 0.8}}, pretrain={})
    study["set"] |= changes.get("set", {})
    if "rule" in changes:
        study["rule"] = {**STUDY["rule"], "baseline": "a", "candidate": "b", **changes["rule"]}
    if "search" in changes:
        study["search"] = {**STUDY["search"], "arm": "a", "metric": changes["search"]}
    study["arms"] = changes.get("arms", study["arms"])
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
        prepare(parse_study(study, source="mine.yaml"))


def test_schedules_of_equal_length_are_refused(data_root):
    study = tiny_study(data_root, schedules=["2x", "8 steps", "2.01x"])
    with pytest.raises(ValueError, match="study tiny: schedules: 2x and 8 steps are both 8 steps, expected one of"):
        prepare(parse_study(study, source="mine.yaml"))
    study = tiny_study(data_root, schedules=["2x", "2.01x"])
    with pytest.raises(ValueError, match=r"schedules: 2x and 2\.01x are both 8 steps"):
        prepare(parse_study(study, source="mine.yaml"))


@pytest.mark.parametrize(("field", "instead"), [("seed", "seeds"), ("data.fraction", "fractions"),
                                                ("train.schedule", "schedules")])  # fmt: skip
def test_overrides_of_what_a_study_sets_are_refused(data_root, tmp_path, field, instead):
    path = write_study(tmp_path / "mine.yaml", tiny_study(data_root))
    with pytest.raises(
        ValueError, match=rf"^override {field}: is set by the study for each run, expected {instead} in"
    ):
        define_study(path, {field: 1})


def test_an_override_of_a_section_replaces_its_fields(data_root, tmp_path):
    path = write_study(
        tmp_path / "mine.yaml", tiny_study(data_root, arms={"a": {"train.rate": 1, "seed": 2}}, pretrain={})
    )
    study, _ = define_study(path, {"arms.a.train": {"rate": 3, "momentum": 0.5}})
    assert study.patch_of("a") == {"train.rate": 3, "train.momentum": 0.5, "seed": 2}
    for key, value in (("arms.a", 3), ("arms.b.seed", 1), ("rule.margin", 0.1)):
        with pytest.raises(ValueError, match=key.split(".")[0]):
            define_study(path, {key: value})
