"""A search is a study of its own: every combination once, the best by the arm's metric, its effort in the sheet."""

import json
from dataclasses import replace

import pytest
import yaml

from headstart.api import Study
from headstart.recipe.load import shipped
from headstart.study.folder import read_study_folder
from headstart.study.prepare import prepare
from headstart.study.results import Run
from headstart.study.search import Trial, best_of, combinations, trial_study, trials_of, write_tuned
from headstart.study.spec import parse_study
from headstart.training.rows import read_rows
from tiny import tiny_study, write_study

SEARCH = {
    "arm": "pretrained",
    "schedule": "2x",
    "images": 4,
    "seed": 3,
    "grid": {"train.rate": [0.01, 0.02], "input.short": [[64], [48, 64]]},
}


def study_of(root, **changes):
    return parse_study(tiny_study(root, **changes), source="tiny")


def test_every_combination_is_one_trial_of_the_arm(data_root):
    study = study_of(data_root, search=SEARCH, allow_overlap=True)
    trials = trial_study(study)
    assert trials.allow_overlap and not trial_study(study_of(data_root, search=SEARCH)).allow_overlap
    values = [(0.01, (64,)), (0.01, (48, 64)), (0.02, (64,)), (0.02, (48, 64))]
    assert list(trials.arms) == ["trial01", "trial02", "trial03", "trial04"]
    plan = prepare(trials).plan
    assert {(cell.schedule, cell.seed, cell.total) for cell in plan.cells} == {("2x", 3, 8)}
    assert {segment.weights_from for segment in plan.segments if segment.kind != "pretrain"} == {"pretrain-forms"}
    for (rate, short), patch in zip(values, trials.arms.values()):
        assert patch["start.weights"] == "pretrain:forms"
        assert (patch["train.rate"], tuple(patch["input.short"])) == (rate, short)
    assert prepare(trials).num_images == {4 / 6: 4}


def test_the_best_is_picked_and_written_with_the_effort(data_root, tmp_path, monkeypatch):
    """The command line's search, run twice; then its file put into the study, whose difference sheet tells of it."""
    from headstart.cli.studies import search

    monkeypatch.chdir(tmp_path)
    own = tiny_study(data_root, search={**SEARCH, "grid": {"train.rate": [0.01, 0.02]}, "arm": "scratch"})
    path = write_study(tmp_path / "mine.yaml", {**own, "arms": {"scratch": {}, "other": {"train.momentum": 0.8}}})
    search(str(path), [], tmp_path / "runs", 1)
    directory = tmp_path / "runs/tiny-search"
    folder = read_study_folder(directory)
    study = Study.read(path).prepared.study
    trials = trials_of(study, folder)
    rows = {t.name: [r for r in read_rows(folder.tail(c).directory / "rows.jsonl") if r["kind"] == "eval"][-1]
            for t, c in zip(trials, folder.plan.cells)}  # fmt: skip
    assert [trial.score for trial in trials] == [rows[trial.name]["metrics"]["box"]["AP"] for trial in trials]
    assert json.loads((directory / "search.json").read_text())[0]["values"] == {"train.rate": 0.01}
    tuned = yaml.safe_load((directory / "tuned.yaml").read_text())
    best = max(trials, key=lambda trial: trial.score)
    assert tuned["set"] == best.values and tuned["tuning"]["scratch"]["trials"] == 2
    assert tuned["tuning"]["scratch"]["steps"] == 16
    both = prepare(trial_study(study).model_copy(update={"seeds": (5, 3)})).plan  # as after a search at seed 5
    unfinished = {segment.name: Run(segment, None, ()) for segment in both.segments}
    assert trials_of(study, replace(folder, plan=both, runs=unfinished | folder.runs)) == trials
    before = (directory / "plan.json").stat().st_mtime_ns
    search(str(path), [], tmp_path / "runs", 1)
    assert (directory / "plan.json").stat().st_mtime_ns == before
    content = yaml.safe_load(path.read_text())
    content |= {"tuning": tuned["tuning"], "set": {**content["set"], **tuned["set"]}}
    sheet = Study.read(write_study(tmp_path / "tuned.yaml", content)).prepared.differences
    assert {"field": "tuning: trials", "values": {"scratch": 2, "other": 0}, "declared": True} in sheet
    assert {"field": "tuning: steps", "values": {"scratch": 16, "other": 0}, "declared": True} in sheet


def test_the_first_of_equals_wins_and_none_may_be_missing(data_root, tmp_path):
    trials = [Trial("a", {"x": 1}, 4, 0.2), Trial("b", {"x": 2}, 4, 0.3), Trial("c", {"x": 3}, 4, 0.3)]
    assert best_of(trials).name == "b"
    study = study_of(data_root, search=SEARCH)
    assert "best of 3 trials on arm pretrained by box AP" in write_tuned(study, trials, tmp_path).read_text()
    with pytest.raises(ValueError, match=r"search: d .* has no score"):
        best_of([*trials, Trial("d", {}, 4, float("nan"))])
    assert len(combinations(study)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": "scrtch"}, "search.arm: arm 'scrtch' is not known, did you mean 'scratch'"),
        ({"grid": {}}, "search.grid"),
        ({"grid": {"train.rate": []}}, "search.grid.train.rate: no values"),
        ({"grid": {"train.rate": [0.1, 0.1]}}, "search.grid.train.rate: 0.1 is given twice"),
        ({"grid": {"train.rate": [0.1]}}, "a single combination"),
        ({"schedule": "two"}, "'two'"),
        ({"metric": "box.Ap"}, "search.metric 'box.Ap' is not known"),
        ({"fraction": 0.5}, "search: fraction and images are both given"),
    ],
)
def test_wrong_searches(data_root, changes, message):
    with pytest.raises(ValueError, match=message):
        study_of(data_root, search={**SEARCH, **changes})


def test_a_search_of_unknown_fields_or_without_a_grid_is_refused(data_root):
    wrong = study_of(data_root, search={**SEARCH, "grid": {"train.rte": [1, 2]}})
    with pytest.raises(ValueError, match=r"train\.rte: unknown field; the nearest name is 'train\.rate'"):
        prepare(trial_study(wrong))
    with pytest.raises(ValueError, match="study tiny: has no search"):
        trial_study(study_of(data_root))
    with pytest.raises(ValueError, match="tuning: arm 'scrach' is not known"):
        study_of(data_root, tuning={"scrach": {"trials": 2, "steps": 3}})


def test_a_rule_about_voc_needs_it_measured(data_root):
    rule = {"metric": "voc.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01}
    with pytest.raises(ValueError, match=r"rule\.metric is voc\.AP, which evaluate\.voc=false does not measure"):
        prepare(study_of(data_root, rule=rule))
    study = tiny_study(data_root, rule=rule)
    prepare(parse_study({**study, "set": {**study["set"], "evaluate.voc": True}}, source="tiny"))
    assert "bccd" in shipped("studies")
