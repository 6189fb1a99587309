"""A tiny study end to end: however it is run, stopped or extended, its segments end with the same weights."""

import copy
import importlib
import json
import multiprocessing
import os
import re
import shutil

import pytest

from cli_call import call
from headstart.recipe.schedule import Schedule
from headstart.study.folder import is_finished, note_segment, read_plan, read_study_folder, write_study
from headstart.study.prepare import prepare, refuse_undeclared, segment_recipe
from headstart.study.run import lock, run_study
from headstart.study.spec import parse_study, read_study
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.training.verify import verify
from headstart.weights import checkpoint
from killed import Killed
from tiny import outcome, tiny_study, without_clock
from tiny import write_study as write_file

SEGMENTS = {
    "pretrain-forms",
    *(
        f"{arm}-f1-s0-{part}"
        for arm in ("scratch", "pretrained")
        for part in ("trunk-0-5", "trunk-5-9", "2x-5-8", "3x-9-12")
    ),
}  # fmt: skip


def prepared_study(data_root, overrides=None, **changes):
    return prepare(parse_study(tiny_study(data_root, **changes), source="tiny"), overrides)


@pytest.fixture(scope="module")
def study(data_root, tmp_path_factory):
    """The study run undisturbed, one segment at a time."""
    return run_study(prepared_study(data_root), tmp_path_factory.mktemp("study"))


def test_every_segment_is_there_and_the_arms_began_as_they_should(study):
    found = outcome(study)
    assert set(found) == SEGMENTS
    assert len({value[1] for value in found.values()}) == len(SEGMENTS)
    starts = {name: read_rows(study / found[name][0] / "rows.jsonl")[0] for name in SEGMENTS}
    assert starts["scratch-f1-s0-trunk-0-5"]["source"] == "random"
    assert starts["pretrained-f1-s0-trunk-0-5"]["source"] == "weights"
    for name, row in starts.items():
        if name.endswith(("5-9", "5-8", "9-12")):
            assert (row["source"], row["step"]) == ("branch", int(re.search(r"-(\d+)-\d+$", name)[1]))
    label = json.loads((study / found["scratch-f1-s0-2x-5-8"][0] / "segment.json").read_text())
    assert {key: label[key] for key in ("arm", "fraction", "seed", "kind", "schedule", "start", "stop", "parent")} == {
        "arm": "scratch", "fraction": 1.0, "seed": 0, "kind": "tail", "schedule": "2x", "start": 5, "stop": 8,
        "parent": "scratch-f1-s0-trunk-0-5",
    }  # fmt: skip


def test_a_cell_of_the_study_equals_a_straight_run(study, data_root, tmp_path):
    """3x from scratch: trunk, trunk, tail against one run of its own."""
    from tiny import tiny_recipe

    straight = train(tiny_recipe(data_root, train__schedule="3x"), tmp_path)
    found = outcome(study)
    parts = [found[f"scratch-f1-s0-{part}"] for part in ("trunk-0-5", "trunk-5-9", "3x-9-12")]
    rows = without_clock(read_rows(straight.directory / "rows.jsonl"))
    assert parts[-1][1] == rows[-1]["hash"]
    assert [r for p in parts for r in p[2] if r["kind"] != "end"] == [r for r in rows if r["kind"] in ("train", "eval")]


def test_a_second_call_reuses_everything_and_builds_no_model(study, data_root, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file() and path.name != "lock"}
    monkeypatch.setattr("headstart.study.run.train", None)
    told = []
    again = run_study(
        prepared_study(data_root),
        study.parent,
        progress=lambda *step: told.append(step),
        finished=lambda *end: told.append(end),
    )
    assert again == study and set(told) == {(name, True) for name in SEGMENTS}
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_command_reads_the_study_and_resolves_its_recipes_once(data_root, tmp_path, monkeypatch, capsys, verb):
    """Three recipes, whatever the number of segments: two arms and a pre-training. The report reads the study back."""
    file = write_file(tmp_path / "tiny.yaml", tiny_study(data_root))
    calls = []
    for module, name in (("prepare", "resolve"), ("spec", "read_yaml"), ("spec", "validate")):
        honest = getattr(importlib.import_module(f"headstart.study.{module}"), name)

        def counted(*given, name=name, honest=honest):
            calls.append((name, str(given[0])) if name != "validate" else (name, given[0].__name__))
            return honest(*given)

        monkeypatch.setattr(f"headstart.study.{module}.{name}", counted)
    asked, disk_usage = [], shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or disk_usage(place))
    answer = call(monkeypatch, capsys, "study", verb, str(file), "--out", str(tmp_path), "--jobs", "1")
    assert answer.code == 0, answer.err
    if verb == "plan":  # asks where the study would be written, and writes nothing
        assert asked == [tmp_path] and list(tmp_path.iterdir()) == [file]
    if verb == "run":  # the plan before it said how many there would be
        assert f"\n{len(list(tmp_path.rglob('*.pt')))} checkpoints take " in answer.out
    assert (
        "\nstarts that fit their networks: scratch from random values, pretrained from pretrain:forms\n" in answer.out
    )
    assert calls == [
        ("read_yaml", str(file)), ("validate", "StudySpec"),
        ("resolve", "base"), ("resolve", "base"), ("resolve", "base_classify"),
        *([("validate", "StudySpec")] if verb == "run" else []),
    ]  # fmt: skip


def test_the_plan_is_written_twice_and_changes_of_segments_in_one_line_each(study, data_root, tmp_path, monkeypatch):
    """What has begun and what is finished can be read at any time, and takes a line, not the whole plan."""
    whole, seen = [], {}

    def counted(directory, *given, **named):
        whole.append(directory)
        write_study(directory, *given, **named)

    def progress(segment, step, values):
        folder = read_study_folder(tmp_path / "tiny")
        states = {entry.name: entry.finished for entry in read_plan(folder.path).segments if entry.directory}
        lines = (folder.path / "segments.jsonl").read_text().splitlines()
        assert folder.runs[segment.name].directory.is_dir() and len(whole) == 1
        seen[segment.name] = (states, len(lines))

    monkeypatch.setattr("headstart.study.run.write_study", counted)
    prepared = prepared_study(data_root)
    directory = run_study(prepared, tmp_path, progress=progress)
    names = [segment.name for segment in prepared.plan.segments]
    assert seen == {
        name: ({**dict.fromkeys(names[:place], True), name: False}, 2 * place + 1) for place, name in enumerate(names)
    }
    assert len(whole) == 2 and not (directory / "segments.jsonl").exists()
    assert is_finished(directory, prepared.plan) and outcome(directory) == outcome(study)


def test_changes_of_segments_outlive_a_kill_and_end_with_the_next_plan(data_root, tmp_path):
    plan = prepared_study(data_root).plan
    first, second, *_ = (segment.name for segment in plan.segments)
    facts = {"num_images": {1.0: 6}, "batch": 2}
    write_study(tmp_path, {"name": "tiny"}, plan, **facts)
    assert not is_finished(tmp_path, plan)
    note_segment(tmp_path, first, tmp_path / "a", finished=False)
    note_segment(tmp_path, first, tmp_path / "a", finished=True)
    note_segment(tmp_path, second, tmp_path / "b", finished=False)
    note_segment(tmp_path, "of another plan", tmp_path / "c", finished=True)
    states = {e.name: (e.directory, e.finished) for e in read_plan(tmp_path).segments}
    assert states == {segment.name: (None, False) for segment in plan.segments} | {
        first: ("a", True), second: ("b", False),
    }  # fmt: skip
    for segment in plan.segments:
        note_segment(tmp_path, segment.name, tmp_path / "a", finished=True)
    assert is_finished(tmp_path, plan)
    with (tmp_path / "segments.jsonl").open("a") as file:
        file.write('{"name": "torn')
    assert is_finished(tmp_path, plan)
    write_study(tmp_path, {"name": "tiny"}, plan, **facts, begun={second: tmp_path / "b"})
    assert not is_finished(tmp_path, plan) and not (tmp_path / "segments.jsonl").exists()
    assert [e.directory for e in read_plan(tmp_path).segments if e.directory] == ["b"]


def test_two_jobs_give_the_same(study, data_root, tmp_path):
    assert outcome(run_study(prepared_study(data_root), tmp_path, jobs=2)) == outcome(study)


def test_several_jobs_need_a_number_of_threads(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"study tiny: train\.threads of base is null, expected a number"):
        run_study(prepared_study(data_root, {"train.threads": None}), tmp_path, jobs=2)
    assert list(tmp_path.iterdir()) == []


def test_killed_in_the_middle_and_run_again_gives_the_same(study, data_root, tmp_path):
    for fatal in (3, 7, 11):
        steps = iter(range(1000))

        def progress(segment, step, values, steps=steps, fatal=fatal):
            if next(steps) == fatal:
                raise Killed

        with pytest.raises(Killed):
            run_study(prepared_study(data_root), tmp_path, progress=progress)
    assert outcome(run_study(prepared_study(data_root), tmp_path)) == outcome(study)


def test_extended_and_shortened_schedules_reuse_the_trunk(study, data_root, tmp_path):
    run = {"jobs": 1}
    for schedules in (["2x"], ["2x", "3x"], ["3x", "2x"]):
        told = []
        directory = run_study(
            prepared_study(data_root, schedules=schedules), tmp_path,
            progress=lambda segment, step, values, told=told: told.append((segment.name, step)), **run,
        )  # fmt: skip
        names = {name for name, _ in told}
        if schedules == ["2x"]:
            assert names == {name for name in SEGMENTS if not name.endswith(("5-9", "9-12"))}
        elif schedules == ["2x", "3x"]:
            assert names == {name for name in SEGMENTS if name.endswith(("5-9", "9-12"))}
        else:
            assert names == set()
    found = outcome(directory)
    assert found == {name: outcome(study)[name] for name in found} and set(found) == SEGMENTS


def run_alone(data_root, out, *schedules, **changes):
    """Run the tiny study's scratch arm; its directory, and the steps that each segment really took."""
    alone = {"arms": {"scratch": {"start.kind": "random"}}, "pretrain": {}, "schedules": list(schedules)}
    study, told = tiny_study(data_root, **alone), {}
    study["set"].update(changes)
    directory = run_study(
        prepare(parse_study(study, source="tiny")), out,
        progress=lambda segment, step, values: told.setdefault(segment.name, []).append(step),
    )  # fmt: skip
    return directory, told


def test_a_shorter_unplanned_schedule_begins_at_the_nearest_kept_checkpoint(study, data_root, tmp_path):
    from tiny import tiny_recipe

    run_alone(data_root, tmp_path, "3x")
    directory, told = run_alone(data_root, tmp_path, "2x")  # a mark lies at its very cut
    assert told == {"scratch-f1-s0-2x-5-8": [6, 7, 8]}
    assert outcome(directory) == {name: outcome(study)[name] for name in outcome(directory)}
    directory, told = run_alone(data_root, tmp_path, "2.5x")  # cut at 7: checkpoints at 6 and the mark 5
    assert told == {"scratch-f1-s0-trunk-0-7": [7], "scratch-f1-s0-2.5x-7-10": [8, 9, 10]}
    found = outcome(directory)
    straight = train(tiny_recipe(data_root, train__schedule="2.5x"), tmp_path / "straight")
    rows = without_clock(read_rows(straight.directory / "rows.jsonl"))
    parts = [found[name] for name in ("scratch-f1-s0-trunk-0-7", "scratch-f1-s0-2.5x-7-10")]
    assert [r for part in parts for r in part[2] if r["kind"] != "end"] == [
        r for r in rows if r["kind"] in ("train", "eval")
    ]
    assert parts[-1][1] == rows[-1]["hash"]
    for name in found:
        assert verify(directory / found[name][0]).differences == ()
    assert read_rows(directory / parts[0][0] / "rows.jsonl")[0]["source"] == "trunk"


def test_a_trunk_of_two_parts_is_adopted_by_one_of_one_part(study, data_root, tmp_path):
    run_alone(data_root, tmp_path, "2x", "3x")
    directory, told = run_alone(data_root, tmp_path, "3x")  # planned alone: one trunk 0-9
    assert told == {"scratch-f1-s0-3x-9-12": [10, 11, 12]}
    assert outcome(directory)["scratch-f1-s0-3x-9-12"][1] == outcome(study)["scratch-f1-s0-3x-9-12"][1]
    _, told = run_alone(data_root, tmp_path, "2.5x", **{"train.rate": 0.02})  # another rate: another lineage
    assert told["scratch-f1-s0-trunk-0-7"] == [1, 2, 3, 4, 5, 6, 7]


def test_every_kind_of_segment_can_be_verified(study):
    found = outcome(study)
    for name in ("pretrain-forms", "pretrained-f1-s0-trunk-0-5", "pretrained-f1-s0-trunk-5-9", "scratch-f1-s0-2x-5-8"):
        result = verify(study / found[name][0])
        assert result.differences == () and result.stop > result.start


def hold(directory, ready, leave):
    with lock(directory):
        ready.set()
        leave.wait(60)


def test_a_second_process_is_refused_and_told_who_holds_the_study(study, data_root):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(study, ready, leave))
    holder.start()
    assert ready.wait(30)
    try:
        with pytest.raises(ValueError, match=rf"tiny: this study is being run by process {holder.pid} on "):
            run_study(prepared_study(data_root), study.parent)
    finally:
        leave.set()
        holder.join()
    with lock(study):
        assert str(os.getpid()) in (study / "lock").read_text()


def test_a_killed_holder_holds_nothing(study):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(study, ready, leave))
    holder.start()
    assert ready.wait(30)
    holder.kill()
    holder.join()
    with lock(study):
        pass


def test_the_difference_sheet_lists_what_arms_declare(data_root):
    rows = {row["field"]: row for row in prepared_study(data_root).differences}
    assert set(rows) == {"start.kind", "start.weights"}
    assert all(row["declared"] for row in rows.values())
    assert rows["start.kind"]["values"] == {"scratch": "random", "pretrained": "backbone"}


def test_the_difference_sheet_lists_an_undeclared_difference(data_root, monkeypatch):
    """A difference that no arm declares cannot be written down; here it slips in while recipes are resolved."""
    from headstart.study import prepare as run

    honest = run.arm_recipe

    def slipped(study, arm, overrides):
        recipe, origins = honest(study, arm, overrides)
        if arm == "scratch":
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"rate": 0.5})})
        return recipe, origins

    monkeypatch.setattr(run, "arm_recipe", slipped)
    prepared = prepared_study(data_root)
    rows = {row["field"]: row for row in prepared.differences}
    assert rows["train.rate"] == {
        "field": "train.rate", "values": {"scratch": 0.5, "pretrained": 0.01}, "declared": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"the arms differ in train\.rate"):
        refuse_undeclared(prepared)


def test_arms_may_differ_in_their_seeds_alone(data_root):
    """A/A: the arm's seed is added to the study's, and the sheet has nothing else."""
    prepared = prepared_study(data_root, arms={"one": {}, "other": {"seed": 1000}}, pretrain={}, seeds=2)
    refuse_undeclared(prepared)
    assert prepared.differences == [{"field": "seed", "values": {"one": 0, "other": 1000}, "declared": True}]
    seeds = {
        (segment.arm, segment.seed): segment_recipe(prepared, segment)[0].seed for segment in prepared.plan.segments
    }
    assert seeds == {("one", 0): 0, ("one", 1): 1, ("other", 0): 1000, ("other", 1): 1001}


def test_a_begun_segment_has_its_directory_in_the_plan(data_root, tmp_path):
    def progress(segment, step, values):
        if segment.name == "scratch-f1-s0-trunk-0-5":
            raise Killed

    with pytest.raises(Killed):
        run_study(prepared_study(data_root), tmp_path, progress=progress)
    entries = {e["name"]: e for e in json.loads((tmp_path / "tiny" / "plan.json").read_text())["segments"]}
    begun = entries["scratch-f1-s0-trunk-0-5"]
    assert not begun["finished"] and (tmp_path / "tiny" / begun["directory"] / "segment.json").is_file()
    assert entries["pretrain-forms"]["finished"] and entries["scratch-f1-s0-2x-5-8"]["directory"] is None


def test_an_arm_that_declares_another_rate_says_so(data_root):
    arms = copy.deepcopy(tiny_study(data_root)["arms"])
    arms["scratch"]["train.rate"] = 0.02
    prepared = prepared_study(data_root, arms=arms)
    refuse_undeclared(prepared)
    assert {row["field"] for row in prepared.differences} == {"start.kind", "start.weights", "train.rate"}
    assert prepared.schedules["scratch"]["2x"].base_rate == 2 * prepared.schedules["pretrained"]["2x"].base_rate


def test_fractions_are_nested_and_the_same_for_all_arms(data_root, tmp_path):
    changes = {"fractions": [{"fraction": 1.0}, {"fraction": 0.5, "schedules": ["2x"]}], "schedules": ["2x"]}
    directory = run_study(prepared_study(data_root, **changes), tmp_path)
    found, ids = outcome(directory), {}
    for name, (folder, _, _) in found.items():
        if name.endswith("2x-5-8"):
            ids[name] = (directory / folder / "image_ids.txt").read_text().split()
    assert {len(value) for value in ids.values()} == {3, 6}
    assert ids["scratch-f0.5-s0-2x-5-8"] == ids["pretrained-f0.5-s0-2x-5-8"]
    assert set(ids["scratch-f0.5-s0-2x-5-8"]) < set(ids["scratch-f1-s0-2x-5-8"])


def test_a_study_file_of_the_user_in_the_place_of_ours_stays(data_root, tmp_path):
    """`--out .` beside tiny/study.yaml of another study; that of the same one stays with its comments."""
    path = tmp_path / "tiny/study.yaml"
    path.parent.mkdir()
    write_file(path, tiny_study(data_root))
    path.write_text("# why\n" + path.read_text())
    before = path.read_bytes()
    mine = prepare(read_study(path))
    arguments = {"num_images": mine.num_images, "batch": 2}
    write_study(path.parent, mine.study.model_dump(mode="json"), mine.plan, **arguments)
    assert path.read_bytes() == before and read_study_folder(path.parent).study == mine.study
    (path.parent / "plan.json").unlink()
    with pytest.raises(
        ValueError, match=r"tiny/study\.yaml: was not written by a study, as no plan\.json is beside it"
    ):
        run_study(prepare(read_study(path, changes={"seeds": 2})), tmp_path)
    assert path.read_bytes() == before and not list(tmp_path.rglob("rows.jsonl"))


def test_an_error_in_a_worker_stops_the_study_with_its_line(data_root, tmp_path):
    changes = tiny_study(data_root, arms={"scratch": {}}, pretrain={}, schedules=["2x"])
    changes["set"]["train.rate"] = 1e6
    prepared = prepare(parse_study(changes, source="tiny"))
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss is not finite .* on images .*stopped before"):
        run_study(prepared, tmp_path, jobs=2)


def test_trunks_keep_the_checkpoint_that_tails_begin_at(study):
    found = outcome(study)
    directory = study / found["scratch-f1-s0-trunk-0-5"][0]
    assert checkpoint.steps_saved(directory)[-1] == 5
    state = checkpoint.load(checkpoint.path_of(directory, 5))
    assert state["span"]["is_trunk"] and Schedule(**state["span"]["schedule"]).drops == ()
