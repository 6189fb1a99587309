"""Studies look by look: planned looks, their resuming, what is said of unplanned ones, and the log in plan.json."""

import datetime
import json
import re

import pytest

from cli_call import call
from headstart.api import looks_of, report_of
from headstart.report import build as report
from headstart.report import live, pictures
from headstart.report.build import build_report
from headstart.study import timing
from headstart.study.folder import PlanFile, is_current, note_look, read_plan, read_study_folder
from headstart.study.forecast import Load
from headstart.study.prepare import prepare
from headstart.study.run import run_study
from headstart.study.spec import define_study, parse_study
from headstart.verdict.looks import Look
from study_folder import build_study
from tiny import CLASSIFIER, class_paths, outcome, tiny_study, write_study

RULE = {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01}
LOOKS = {"rule": RULE | {"looks": [3, 5, 8]}}
SHAPE = {"schedules": ("1x", "2x"), "fractions": (1.0,), "log_every": 100, "pictures": False}
AHEAD = (0.01, -0.01, 0.0, 0.0, 0.0)  # by seed: open with three of them, equivalent with five


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Nothing is drawn."""
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])
    monkeypatch.setattr(pictures, "make_gallery", lambda folder: pictures.Gallery("none"))


def ap(arm, fraction, seed, step, in_tail):
    ahead = AHEAD[seed] if seed < len(AHEAD) else 0.0
    return 0.4 + 0.0001 * seed + (ahead if arm == "scratch" else 0.0)


def made_up(root, num_seeds, *, settings=LOOKS, ap=ap):
    """The folder of a study with so many finished seeds; looks logged there before stay."""
    return build_study(root, seeds=num_seeds, settings=settings, ap=ap, **SHAPE)


def planned(data_root, **rule):
    study = tiny_study(data_root, rule=RULE | {"looks": [3, 5, 8]} | rule)
    del study["seeds"]
    return prepare(parse_study(study, source="tiny"))


def tiny_looks(data_root, looks):
    """A study of a classifier, in which a segment takes a fraction of a second."""
    return {
        "name": "tiny",
        "recipe": "base_classify",
        "set": {**CLASSIFIER, **class_paths(data_root)},
        "arms": {"scratch": {}, "pretrained": {"train.rate": 0.01}},
        "schedules": ["1x"],
        "share": False,
        "rule": RULE | {"metric": "top1", "looks": looks},
    }


def run_looks(prepared, run, directory):
    """Run a study look by look; the path of its report."""
    for part in looks_of(prepared, directory):
        page = report_of(run(part))
    return page


def summary_of(page):
    return json.loads(page.with_name("report.json").read_text())


def test_a_study_stops_at_the_first_look_that_decides(tmp_path, data_root):
    asked = []

    def run(part):
        asked.append(part.study.seeds)
        return made_up(tmp_path, len(part.study.seeds))

    page = run_looks(planned(data_root), run, tmp_path / "runs/demo")
    assert asked == [(0, 1, 2), (0, 1, 2, 3, 4)]
    found, looks = summary_of(page), read_plan(page.parent).looks
    assert [(len(look.seeds), look.outcome, look.obstacle) for look in looks] == [
        (3, "not decidable", "open"),
        (5, "equivalent", None),
    ]
    assert {look.date for look in looks} == {datetime.date.fromisoformat(found["looks"][0]["date"])}
    assert found["state"] == "decided" and found["title"] == "Either start will do"
    assert "Look 2 of 3, all planned before the first run: looks at 3, 5 and 8 seeds" in found["text"]
    assert "96.02 % interval" in found["text"]
    saved = found["saved_with_seconds"]
    assert saved["seeds"] == 3 and re.fullmatch(r"Decided early: this saves 3 seeds, about .+\.", saved["sentence"])
    text = page.read_text()
    assert saved["sentence"] in text and "5 seeds: equivalent" in text
    assert is_current(page.parent)


def test_every_look_runs_while_it_stays_open_and_blocked_ones_end_it(tmp_path, data_root):
    def scattered(arm, fraction, seed, step, in_tail):
        return 0.4 + (0.02 * (-1) ** seed if arm == "scratch" else 0.0)

    def rising(arm, fraction, seed, step, in_tail):
        return 0.0001 * step + 0.002 * seed * (arm == "scratch")

    asked = []
    for name, world in (("open", scattered), ("rising", rising)):

        def run(part, name=name, world=world):
            asked.append((name, len(part.study.seeds)))
            return made_up(tmp_path / name, len(part.study.seeds), ap=world)

        page = run_looks(planned(data_root), run, tmp_path / name / "runs/demo")
        assert summary_of(page)["state"] == name and summary_of(page)["saved_with_seconds"] is None
    assert asked == [("open", 3), ("open", 5), ("open", 8), ("rising", 3)]


def test_the_next_look_is_the_next_step(tmp_path):
    step = summary_of(build_report(made_up(tmp_path, 3)))["next"][0]
    assert step == {"what": "go on to the look at 5 seeds", "changes": ["seeds=8"]}
    last = summary_of(
        build_report(
            made_up(tmp_path / "last", 8, ap=lambda arm, f, seed, *_: 0.4 + 0.02 * (seed % 2) * (arm == "scratch"))
        )
    )
    assert last["state"] == "open" and last["next"][0]["what"].startswith("add ")
    assert "(a second look, at which the true level is about" in last["next"][0]["what"]
    assert last["next"][0]["changes"][1].startswith("rule.looks=[3, 5, 8, ")


def test_a_rule_that_was_given_a_further_look_was_not_written_before_the_first_run(tmp_path):
    margins = (0.01, 0.2, 0.01)  # and back again: the outcome of the present rule counts
    for margin, is_open in zip(margins, (True, False, True)):
        path = made_up(tmp_path / "back", 3, settings={"rule": LOOKS["rule"] | {"margin": margin}})
        looks = summary_of(build_report(path))["looks"]
        assert read_plan(path).is_open == is_open and read_plan(path).looks[-1].obstacle == looks[-1]["obstacle"]
    assert len(read_plan(path).looks) == len(looks) == 3
    for num_seeds, looks, told in (
        (3, [3, 5], "The rule, written before the first run: "),
        (5, [3, 5], "The rule, written before the first run: "),
        (8, [3, 5, 8], "The rule, changed after a look: "),
    ):
        path = made_up(tmp_path, num_seeds, settings={"rule": RULE | {"looks": looks}})
        text = build_report(path).read_text()
        assert told in text and ("so that all together keep 5 %.</p>" in text) == (len(looks) == 2)


def test_a_rule_that_asks_something_else_after_a_look_is_told_everywhere(tmp_path):
    """Open within 1 point, then equivalent within 20; looks noted before they named the rule tell nothing."""
    path = made_up(tmp_path, 3, settings={"rule": RULE})
    build_report(path)
    file, plan = path / "plan.json", (path / "plan.json").read_text()
    path = made_up(tmp_path, 3, settings={"rule": RULE | {"margin": 0.2}})
    page = build_report(path)
    found = summary_of(page)
    assert found["title"] == "Either start will do (the rule was changed after a look)"
    assert "The rule was changed after a look, so its error rate of 5 % does not hold." in found["text"]
    assert "The rule, changed after a look: in box AP" in page.read_text()
    file.write_text(json.dumps(json.loads(plan) | {"looks": [{**json.loads(plan)["looks"][0], "rule": None}]}))
    assert summary_of(build_report(path))["title"] == "Either start will do"


def test_a_study_that_is_stopped_in_any_look_ends_as_an_undisturbed_one(tmp_path, data_root, monkeypatch):
    """Stopped in the first look, before its judgement, and in the second. That a look stays open is made up."""
    monkeypatch.setattr(PlanFile, "is_open", True)
    study = tiny_looks(data_root, looks=[3, 4])
    prepared = prepare(parse_study(study, source="tiny"))
    whole = run_looks(prepared, lambda part: run_study(part, tmp_path / "whole"), tmp_path / "whole/tiny").parent
    stopped = tmp_path / "stopped/tiny"
    for most in (1, 6, 7):
        heard = set()

        def stop(name, found, heard=heard, most=most):
            heard.add(name)
            if len(heard) == most:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_looks(prepared, lambda part, stop=stop: run_study(part, tmp_path / "stopped", finished=stop), stopped)
        looks = read_plan(stopped).looks
        assert [len(look.seeds) for look in looks] == ([3] if most == 7 else [])
    again = run_looks(prepared, lambda part: run_study(part, tmp_path / "stopped"), stopped).parent
    assert outcome(again) == outcome(whole)
    assert (again / "plan.json").read_text() == (whole / "plan.json").read_text()
    assert [len(look.seeds) for look in read_plan(again).looks] == [3, 4]
    ends = [summary_of(folder / "report.html") for folder in (again, whole)]
    first, second = ({k: end[k] for k in ("title", "text", "state", "looks", "comparisons")} for end in ends)
    assert first == second


def test_a_page_that_follows_an_open_look_writes_its_report_once(tmp_path, monkeypatch):
    path, written, waits = made_up(tmp_path, 3), [], []
    build = live.build_report
    monkeypatch.setattr(live, "build_report", lambda folder: written.append(folder) or build(folder))

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            made_up(tmp_path, 5)  # the next look, which decides

    assert live.watch(path, wait=wait) == path / "report.html"
    assert len(waits) == 3 and len(written) == 2


def test_a_second_look_that_was_not_planned_is_told_everywhere(tmp_path, monkeypatch, capsys):
    settings = {"rule": RULE}
    first = made_up(tmp_path, 3, settings=settings)
    found = summary_of(build_report(first))
    assert found["state"] == "open" and "look" not in found["title"] + found["text"]
    assert "a second look, at which the true level is about" in found["next"][0]["what"]
    assert len(read_plan(first).looks) == 1
    path = made_up(tmp_path, 5, settings=settings)
    page = build_report(path)
    found = summary_of(page)
    assert found["title"] == "Either start will do (second look: the true level is about 9 %)"
    assert "Second look: the true level is about 9 %, not 5 %" in found["text"]
    assert [len(look["seeds"]) for look in found["looks"]] == [3, 5]
    text = page.read_text()
    assert found["title"] in text and "Second look: the true level is about 9 %, not 5 %" in text
    said = call(monkeypatch, capsys, "study", "report", path).out
    assert said.startswith(f"{found['title']}. {found['text']}\n")
    assert len(read_plan(path).looks) == 2  # the same look is logged once


def test_a_look_at_another_schedule_begins_anew(tmp_path):
    path = made_up(tmp_path, 5, settings={"rule": RULE})
    note_look(path, Look(datetime.date(2026, 1, 2), "1x", 1.0, (0, 1, 2), 0.05, "not decidable", "open"))
    found = summary_of(build_report(path))
    assert found["title"] == "Either start will do" and [look["schedule"] for look in found["looks"]] == ["1x", "2x"]


def test_looks_are_logged_once_and_kept_by_the_next_plan(tmp_path):
    path = made_up(tmp_path, 3)
    earlier = Look(datetime.date(2026, 1, 2), "2x", 1.0, (0, 1, 2), read_study_folder(path).rule.alpha, "better", None)
    note_look(path, earlier)
    note_look(path, Look(datetime.date(2026, 2, 3), *[getattr(earlier, n) for n in Look.__struct_fields__[1:]]))
    assert read_plan(path).looks == [earlier]
    content = json.loads((path / "plan.json").read_text())
    assert content["format"] == 2 and content["looks"][0]["date"] == "2026-01-02"
    made_up(tmp_path, 5)
    assert read_plan(path).looks == [earlier] and not read_plan(path).is_open


def test_seeds_are_those_of_the_last_look_by_default(tmp_path, data_root, monkeypatch, capsys):
    assert planned(data_root).study.seeds == tuple(range(8))
    file = write_study(tmp_path / "s.yaml", tiny_looks(data_root, looks=[3, 5, 8]) | {"seeds": [4, 5, 6]})
    assert define_study(file)[0].seeds == (4, 5, 6)
    assert define_study(file, {"seeds": 5})[0].seeds == (0, 1, 2, 3, 4)
    load = Load(batch=4, num_images={1.0: 8}, seconds_per_step=1.0)
    monkeypatch.setattr(timing, "measure_apart", lambda prepared, jobs: dict.fromkeys(prepared.plan_arms(), load))
    answer = call(monkeypatch, capsys, "study", "plan", file)
    assert "3 seeds, of looks at 3, 5 and 8 seeds until it decides, each at an error rate of 1.99 %" in answer.out


@pytest.mark.parametrize(
    ("rule", "seeds", "message"),
    [
        ({"looks": [3, 5, 8]}, 4, r"seeds: 4 of them, expected as many as a look has: rule\.looks is \[3, 5, 8\]"),
        ({"looks": [5, 3]}, 3, r"rule\.looks is \[5, 3\], expected ascending numbers of seeds"),
        ({"looks": [3, 2.5]}, 3, r"rule\.looks: \[3, 2\.5\] is not valid: expected a list of numbers of seeds"),
        ({"looks": [3, True]}, 3, r"rule\.looks: \[3, True\] is not valid"),
        ({"looks": 3}, 3, r"rule\.looks: 3 is not valid"),
        ({"looks": None}, 3, r"rule\.looks: None is not valid"),
        ({"looks": [3, 10**9]}, 3, r"rule\.looks: \[3, 1000000000\] is not valid"),
        (
            {"looks": [3, 5], "test": "sign_flip"},
            5,
            r"rule\.looks: \[3, 5\], but rule\.test sign_flip decides from 5 seeds on at",
        ),
        (
            {"looks": [7, 25], "test": "sign_flip"},
            7,
            r"rule\.looks: \[7, 25\], expected at most 20 seeds, or rule\.test: t",
        ),
    ],
)
def test_looks_that_cannot_be_are_refused(rule, seeds, message):
    study = {"name": "s", "recipe": "demo", "arms": {"pretrained": {}, "scratch": {"train.rate": 0.1}}}
    with pytest.raises(ValueError, match=message) as error:
        parse_study(study | {"schedules": ["1x"], "seeds": seeds, "rule": RULE | rule}, source="s.yaml")
    assert "\n" not in str(error.value)
