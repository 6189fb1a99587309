"""Small twins, changed fields, and studies that share the folder of their segments."""

import copy
import json

import pytest

from headstart.api import Study
from headstart.report.build import build_report
from headstart.study.prepare import prepare
from headstart.study.run import run_study
from headstart.study.spec import parse_study, read_study
from tiny import tiny_study, write_study

RULE = {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01}


def with_twin(data_root, **changes):
    """A study that could not run here, with a small twin that can."""
    twin = tiny_study(data_root, schedules=["2x"])
    del twin["name"]
    full = {"name": "full", "recipe": "base", "arms": twin["arms"], "schedules": ["220k"], "rule": RULE,
            "pretrain": {"forms": {"recipe": "base_classify"}}}  # fmt: skip
    return copy.deepcopy({**full, "small": {**twin, **changes}})


def test_the_small_section_replaces_whole_fields(data_root, tmp_path):
    path = write_study(tmp_path / "full.yaml", with_twin(data_root))
    full, twin = read_study(path), read_study(path, size="small")
    assert (full.name, full.runs, full.schedules, full.set) == ("full", None, ("220k",), {})
    assert (twin.name, twin.runs, twin.schedules) == ("full-small", "small", ("2x",))
    assert twin.rule == full.rule and twin.small == {} and twin.pretrain["forms"].set
    assert read_study(path, size="small", changes={"seeds": 2}).seeds == (0, 1)


def test_changes_reach_arms_and_rule_and_keep_nulls(data_root, tmp_path):
    study = tiny_study(data_root, rule=RULE, set={"data.train_images": None})
    path = write_study(tmp_path / "s.yaml", study)
    found = read_study(path, changes={"seeds": 3, "arms.scratch.train.rate": 0.5, "rule.margin": 0.2, "name": "other"})
    assert (found.seeds, found.rule.margin, found.name) == ((0, 1, 2), 0.2, "other")
    assert found.arms["scratch"] == {"start.kind": "random", "train.rate": 0.5}
    assert found.arms["pretrained"] == study["arms"]["pretrained"]
    assert found.set == {"data.train_images": None}


def test_an_arm_is_left_out_of_all_that_is_given_by_arm(data_root, tmp_path):
    by_arm = {arm: ["2x"] for arm in ("scratch", "pretrained", "third")}
    study = tiny_study(data_root, schedules=by_arm, tuning={"third": {"trials": 3}}, rule=RULE)
    study["arms"]["third"] = {"start.kind": "random", "train.rate": 0.5, "third": 1}
    study["fractions"] = [0.5, {"fraction": 1.0, "schedules": by_arm}]
    path = write_study(tmp_path / "s.yaml", study)
    found = read_study(path, changes={"arms.third": None, "arms.scratch.train.rate": 0.5})
    plain = {key: value for key, value in study.items() if key != "tuning"}
    plain["arms"] = {
        "scratch": {**study["arms"]["scratch"], "train.rate": 0.5},
        "pretrained": study["arms"]["pretrained"],
    }
    plain["schedules"] = {arm: ["2x"] for arm in plain["arms"]}
    plain["fractions"] = [0.5, {"fraction": 1.0, "schedules": plain["schedules"]}]
    assert found == parse_study(plain, source="s.yaml")
    with pytest.raises(ValueError, match=r"rule\.candidate: arm 'scratch' is not known"):
        read_study(path, changes={"arms.scratch": None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"changes": {"arms.thrd": None}}, r"arms\.thrd: arm 'thrd' is not known"),
        ({"size": "tiny"}, r"full\.yaml: size: 'tiny' is not known, expected 'small'"),
        ({"changes": {"arms.scrach.train.rate": 1}}, r"arms\.scrach\.train\.rate: arm 'scrach' .* mean 'scratch'\?"),
        ({"changes": {"rule.margn": 1}}, r"rule key 'margn' is not known, did you mean 'margin'\?"),
    ],
)
def test_an_unknown_size_arm_or_key_is_refused(data_root, tmp_path, options, message):
    path = write_study(tmp_path / "full.yaml", with_twin(data_root))
    with pytest.raises(ValueError, match=message) as error:
        read_study(path, **options)
    assert "\n" not in str(error.value)


def test_a_study_without_a_twin_or_with_an_unknown_field_in_it_says_so(data_root, tmp_path):
    plain = write_study(tmp_path / "plain.yaml", tiny_study(data_root))
    with pytest.raises(ValueError, match=r"plain\.yaml: size: this study has no small twin, expected a section"):
        read_study(plain, size="small")
    wrong = write_study(tmp_path / "wrong.yaml", with_twin(data_root, scedules=["2x"]))
    for size in (None, "small"):
        with pytest.raises(ValueError, match=r"'scedules' is not known, did you mean 'schedules'\?"):
            read_study(wrong, size=size)


def test_small_twins_share_their_segments(data_root, tmp_path):
    """The second twin asks for one more schedule: only that is trained, on the trunk of the first."""
    told, directories = {}, {}
    for name, schedules in (("a", ["2x"]), ("b", ["2x", "3x"])):
        file = with_twin(data_root, schedules=schedules, arms={"scratch": {}}, pretrain={}, rule=None)
        path = write_study(tmp_path / f"{name}.yaml", {**file, "name": name})
        told[name] = set()
        directories[name] = run_study(
            prepare(read_study(path, size="small")), tmp_path / "runs",
            progress=lambda segment, *_, name=name: told[name].add(segment.name),
        )  # fmt: skip
    assert [path.name for path in directories.values()] == ["a-small", "b-small"]
    assert told["b"] == {"scratch-f1-s0-trunk-5-9", "scratch-f1-s0-3x-9-12"}
    plan = json.loads((directories["b"] / "plan.json").read_text())
    places = {entry["name"]: entry["directory"] for entry in plan["segments"]}
    assert all(place.startswith("../small/") and (directories["b"] / place).is_dir() for place in places.values())
    assert not list(directories["b"].glob("*/checkpoints"))
    report = build_report(directories["b"])
    found = json.loads(report.with_name("report.json").read_text())
    assert found["finished"] == found["segments"] == len(places) == 4
    again = Study.read(tmp_path / "a.yaml", {"size": "small"}, out=tmp_path / "runs")
    assert again.directory == directories["a"] and again.plan.steps_shared == 8
