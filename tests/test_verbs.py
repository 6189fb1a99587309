"""Every verb of the command line: one JSON document with --json, and no word but errors and the result with --quiet."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from cli_call import call
from headstart.cli import app, console
from headstart.report import build as report
from headstart.study import forecast, timing
from headstart.tasks.predict import ImagePrediction, draw_prediction, image_files
from tiny import DETECTOR, scene_paths, tiny_study, write_study

LONG = {"train", "pretrain", "eval", "predict", "ask", "study run", "study search"}  # verbs that work for long
ELSEWHERE = {
    "weights download": "needs the network",
    "ask": "tests/design/test_ask.py runs it: it takes long",
    "data merge": "tests/data/test_writers.py",
    "data rename": "tests/data/test_writers.py",
    "pretrain": "is train with another recipe",
    "study search": "is study run and a table",
}


def verbs(group=None, words=()):
    """{words of a verb: its command} of the whole program."""
    found = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        inner = (*words, name)
        found |= verbs(command, inner) if hasattr(command, "commands") else {" ".join(inner): command}
    return found


def test_every_verb_takes_json_and_the_long_ones_quiet():
    options = {words: {text for p in command.params for text in p.opts} for words, command in verbs().items()}
    assert {words for words, own in options.items() if "--json" not in own} == set()
    assert {words for words, own in options.items() if "--quiet" in own} == LONG


@pytest.fixture(scope="module")
def folder(data_root, tmp_path_factory):
    """What the verbs below read: scenes, a study of two segments, and the arguments of a tiny recipe."""
    root = tmp_path_factory.mktemp("verbs")
    shutil.copytree(data_root / "scenes", root / "scenes")
    patch = {"name": "tiny", **DETECTOR, **scene_paths(root), "model.mask.enabled": False, "train.base": "2 steps"}
    arms = {"scratch": {}, "slow": {"train.rate": 0.001}}
    study = tiny_study(root, arms=arms, pretrain={}, schedules=["1x"], share=False)
    write_study(root / "mine.yaml", study | {"set": study["set"] | {"model.mask.enabled": False}})
    return root, [f"{name}={json.dumps(value)}" for name, value in patch.items()]


def test_one_json_document_a_verb(folder, monkeypatch, capsys):
    root, tiny = folder
    monkeypatch.chdir(root)
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])
    monkeypatch.setattr(timing, "measure_apart", lambda prepared, jobs: timing.measure_loads(prepared))
    seen = set()

    def document(words, *arguments, code=0):
        answer = call(monkeypatch, capsys, *words.split(), *arguments, "--json")
        assert answer.code == code, (words, answer)
        assert "headstart: " not in answer.err
        seen.add(words)
        return json.loads(answer.out)

    made = document("train", "base", *tiny)
    run = made["run"]
    assert made["checkpoint"].startswith(run) and "AP" in made["metrics"]["box"]
    saved = document("eval", run, "--per-class", "--save", "seen.json")
    assert saved["metrics"] == made["metrics"] and saved["predictions"] == "seen.json" and saved["per_class"]["box"]
    drawn = document("predict", run, "scenes/val", "--score", "0")
    assert drawn["images"] == 3 and len(drawn["files"]) == 4 and drawn["out"] == "predictions"
    assert drawn["detections"] == len(json.loads((root / "predictions/predictions.json").read_text()))
    assert document("verify", run)["differences"] == []
    assert document("export", run, "tiny.safetensors") == {"file": "tiny.safetensors"}
    assert len(document("audit")) > 5
    assert document("env")["headstart"]

    assert document("data shapes", "more", "--images", "2", "--val", "1", "--size", "64")["files"][0].startswith("more")
    (root / "broken.json").write_text('{"images": [], "annotations": [], "categories": [{"id": "a"}]}')
    assert document("data check", "broken.json", code=1)["errors"] >= 1
    assert document("data stats", "scenes/train.json")["images"] == 6
    assert document("data view", "scenes/train.json", "--num", "2") == {"file": "view.png", "images": 2, "of": 6}
    assert document("data convert", "scenes/val.json", "val.json")["objects"] == 3
    split = document("data split", "scenes/train.json", "split.json", "--share", "0.34")
    assert split["train"] + split["val"] == 6 and split["file"] == "split.json"

    assert {"name", "what"} == document("recipe list")[0].keys()
    assert document("recipe show", "base", "train.batch=4")["train"]["batch"] == 4
    explained = document("recipe explain", "base", *tiny)
    assert explained["fields"]["train.batch"] == {"value": 2, "from": "override"} and explained["machine"]["device"]

    assert {"name", "licence"} <= document("weights list")[0].keys()
    assert document("weights show", "tiny.safetensors")["layout"]
    assert {"tensor", "shape", "type"} == document("weights inspect", "tiny.safetensors")["tensors"][0].keys()
    loaded = document("weights import", "tiny.safetensors", "base", *tiny, "start.kind=detector")
    assert loaded["errors"] == [] and loaded["rows"]
    assert document("weights convert", "tiny.safetensors", "again.safetensors")["tensors"] > 10

    assert "demo" in {row["name"] for row in document("study list")}
    plan = document("study plan", "mine.yaml")
    assert [row["steps"] for row in plan["segments"]] == [4, 4] and plan["totals"]["cells"] == 2
    assert [len(level) for level in document("study slurm", "mine.yaml", "train.precision=fp32")["levels"]] == [2]
    first = plan["segments"][0]["segment"]
    assert document("study segment", "mine.yaml", first)["run"].startswith("runs/tiny/")
    assert document("study run", "mine.yaml", "--jobs", "1")["finished"] == 2
    assert document("study report", "runs/tiny")["report"] == "runs/tiny/report.html"
    assert set(verbs()) - seen == ELSEWHERE.keys()


def test_quiet_leaves_the_result(folder, monkeypatch, capsys):
    root, tiny = folder
    monkeypatch.chdir(root)
    answer = call(monkeypatch, capsys, "train", "base", *tiny, "seed=1", "--quiet")
    assert answer.err == "" and re.fullmatch(r"box\n *AP .*\n[-\d. ]+\nrun: runs/tiny-\w+\n", answer.out)
    loud = call(monkeypatch, capsys, "train", "base", *tiny, "seed=2")
    assert loud.out.startswith("2x: ") and loud.out.endswith("\n") and loud.err == ""


def test_progress_without_a_terminal_is_lines(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setitem(forecast.ProgressLines.__init__.__kwdefaults__, "clock", lambda: now)
    with console.progress("mine", 1000) as update:
        for step in range(100, 301, 10):
            now += 7.0
            update(step, "loss 0.500")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [f"mine: {p} %, {p}0 of 1,000, loss 0.500, {left} min left" for p, left in ((12, 10), (14, 10))]
    assert all(line.endswith("min left") for line in lines) and 8 < len(lines) < 12
    with console.progress("mine", 1000, quiet=True) as update:
        now += 100
        update(500)
    assert capsys.readouterr().err == ""


def test_a_bar_does_not_take_what_was_found_for_speed(monkeypatch, capsys):
    clock, bars = [0.0], []
    monkeypatch.setattr(console.err, "_force_terminal", True)
    plain = console.bar

    def timed():
        bars.append(plain())
        bars[0].get_time = lambda: clock[0]
        return bars[0]

    monkeypatch.setattr(console, "bar", timed)
    with console.progress("mine") as update:
        for clock[0], done, found in ((0.0, 40.0, 40.0), (10.0, 55.0, 50.0), (20.0, 60.0, 50.0)):
            update(done, "step", found)
        task = bars[0].tasks[0]
        assert (task.completed, task.speed, task.time_remaining) == (60.0, 0.5, 80.0)
    capsys.readouterr()


def test_tables_are_plain_and_whole_in_a_pipe_and_folded_on_a_terminal(monkeypatch, capsys):
    rows = [["train.rate", "0.02 " * 30, "base.yaml"], ["犬", None, ""]]
    console.show("recipe", ["field", "value", "from"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["recipe", f"{'field':<10}  {'value':<150}  from"]
    assert lines[2].split("  ")[0] == "train.rate" and ("0.02 " * 30).strip() in lines[2]
    assert lines[3] == "犬"
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_width", 80)
    console.show("recipe", ["field", "value", "from"], rows)
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= 80 and "".join(text.split()).count("0.02") == 30 and "…" not in text


def test_alone_it_says_what_to_do_first_and_h_is_help(monkeypatch, capsys):
    alone = call(monkeypatch, capsys)
    assert alone.code == 0 and "headstart ask my_data/ --hours 2" in alone.out
    for words in ((), ("data", "stats")):
        short, long = (call(monkeypatch, capsys, *words, flag) for flag in ("-h", "--help"))
        assert short.code == 0 and short.out == long.out and "Usage" in short.out


def test_the_tab_key_completes_verbs_and_options(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # else its name is that of pytest
    monkeypatch.setenv("_HEADSTART_COMPLETE", "complete_bash")
    for typed, found in (("headstart da", ["data"]), ("headstart study run --qu", ["--quiet"])):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        assert call(monkeypatch, capsys).out.split() == found


@pytest.mark.parametrize(
    ("words", "home"),
    [
        (("data", "stats", "scenes/train.json"), "headstart.data.check.doctor.stats"),
        (("study", "run", "mine.yaml", "--json"), "headstart.study.prepare.prepare"),
        (("recipe", "list"), "headstart.recipe.load.shipped"),
    ],
)
def test_interrupted_is_one_line(folder, monkeypatch, capsys, words, home):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(folder[0])
    module, _, name = home.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, stop)
    answer = call(monkeypatch, capsys, *words)
    assert answer.code == 130 and answer.out == ""
    assert answer.err == "headstart: stopped; runs and studies continue with the same command\n"


def test_latest_leads_to_the_last_run_also_without_links(folder, monkeypatch, capsys):
    root, tiny = folder
    monkeypatch.chdir(root)
    words = ("train", "base", *tiny, "--out", "own", "--json")
    first, last = (json.loads(call(monkeypatch, capsys, *words, f"seed={n}").out)["run"] for n in (1, 2))
    latest = root / "own" / "latest"
    assert latest.is_symlink() and (root / last).samefile(latest)

    def refuse(*arguments, **options):
        raise OSError(1, "no privilege")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    call(monkeypatch, capsys, *words, "seed=1")
    assert latest.read_text() == Path(first).name
    assert call(monkeypatch, capsys, "eval", latest).out == call(monkeypatch, capsys, "eval", first).out != ""
    assert call(monkeypatch, capsys, "verify", latest).code == 0
    latest.unlink()
    latest.mkdir()  # somebody's own
    assert call(monkeypatch, capsys, *words, "seed=1").code == 0 and latest.is_dir()


def test_a_quoted_pattern_is_its_images(tmp_path):
    for name in ("a/2.jpg", "a/1.PNG", "a/notes.txt", "b/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = {pattern: [path.name for path in image_files([tmp_path / pattern])] for pattern in ("a/*", "**/*.jpg", "a")}
    assert names == {"a/*": ["1.PNG", "2.jpg"], "**/*.jpg": ["2.jpg", "3.jpg"], "a": ["1.PNG", "2.jpg"]}
    with pytest.raises(ValueError, match=r"\*\.gif: no file fits this pattern"):
        image_files([tmp_path / "*.gif"])


@pytest.mark.parametrize(("side", "pen", "letters"), [(96, 2, 10), (800, 3, 20), (3200, 13, 80)])
def test_lines_and_letters_grow_with_the_picture(side, pen, letters):
    box = np.array([[side / 4, side / 4, side * 3 / 4, side * 3 / 4]])
    found = ImagePrediction(Path("array"), box, np.ones(1), ("X",), (0,), None)
    drawn = (np.asarray(draw_prediction(np.zeros((side, side, 3), np.uint8), found)) != 0).any(-1)
    assert drawn[side // 2].sum() == 2 * pen  # both upright lines of the box
    label = np.flatnonzero(drawn[:, side // 4 + pen])[0]  # from the label's top to that of the box
    assert letters * 0.7 <= side // 4 - label <= letters * 0.8 + 8
