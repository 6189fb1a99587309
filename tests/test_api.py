"""Python: results of studies as objects, short texts of objects in a cell, and progress."""

import json
import re
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest

import headstart
from headstart.api.outcome import result_of
from headstart.report import build as report
from headstart.report.build import build_report
from headstart.study.forecast import ProgressLines
from study_folder import build_study
from tiny import scene_paths, tiny_recipe, tiny_study, write_study

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])


def made(root, **options):
    fields = {"schedules": ("3x", "6x"), "fractions": (1.0,), "pictures": False, "log_every": 100} | options
    return result_of(build_report(build_study(root, **fields)))


def test_a_result_says_what_the_report_says(tmp_path):
    found = made(tmp_path, seeds=3)
    told = json.loads(found.report.with_name("report.json").read_text())
    assert (found.headline, found.text, found.rows) == (told["title"], told["text"], told["cells"])
    assert found.is_decided and found.state == "decided" and found.next_commands == ()
    ends = {row["arm"]: [] for row in told["cells"]}
    for row in told["cells"]:
        ends[row["arm"]] += [row["box.AP"]] if row["schedule"] == "6x" else []
    assert {arm: list(np.round(values, 6)) for arm, values in found.scores.items()} == ends
    gap = found.difference
    assert (gap.candidate, gap.baseline, gap.num_seeds, gap.level) == ("scratch", "pretrained", 3, 0.95)
    assert gap.mean == pytest.approx(np.subtract(ends["scratch"], ends["pretrained"]).mean(), abs=1e-5)
    assert gap.interval in found.text.replace("(", "") and gap.low < gap.mean < gap.high
    assert repr(found).startswith("StudyResult(demo: 'scratch ends ahead', scratch minus pretrained: +2.7 points")
    shown = found._repr_html_()
    assert all(part in shown for part in (found.headline, escape(found.text), "<th>scratch</th>", str(found.report)))
    assert shown.index("seed</th><th>0</th><th>1</th><th>2</th></tr>") > 0  # as in rows and on the page
    page = found.page(height=500)._repr_html_()
    assert page.startswith('<iframe srcdoc="') and "height:500px" in page and page.count('"') == 4


def test_a_result_without_an_answer_names_the_next_command(tmp_path):
    found = made(tmp_path, seeds=1)
    assert not found.is_decided and found.headline == "No answer yet: 1 of 3 seeds"
    assert found.difference.low is None and found.difference.interval == "1 seed, no interval"
    assert found.next_commands[0].startswith("headstart study run ") and "seeds=3" in found._repr_html_()
    begun = made(tmp_path / "begun", seeds=1, num_begun=2)
    assert begun.difference is None and begun.scores == {"pretrained": (None,), "scratch": (None,)}


def test_what_a_cell_shows_is_short(data_root, tmp_path):
    recipe = tiny_recipe(data_root)
    data = headstart.open_dataset(*(scene_paths(data_root)[f"data.val{end}"] for end in ("", "_images")))
    assert repr(data) == f"Dataset({data.path!r}: 3 images, {data.num_annotations} objects, {data.num_classes} classes)"
    assert repr(recipe) == "Recipe(tiny: from random, 2x of 4 steps, 2 images a step)"
    study = headstart.Study.read(write_study(tmp_path / "s.yaml", tiny_study(data_root)), out="runs")
    assert repr(study) == "Study(tiny: scratch, pretrained; 2x, 3x; 1 seed, 4 cells in 9 segments; 'runs/tiny')"


def test_python_shows_progress_unless_quiet(data_root, tmp_path, capsys):
    options = {"arms": {"scratch": {}, "slow": {"train.rate": 0.001}}, "pretrain": {}, "schedules": ["1x"]}
    file = write_study(tmp_path / "s.yaml", tiny_study(data_root, **options))
    aloud = headstart.Study.read(file, out=tmp_path / "a").run()
    said = capsys.readouterr().out.splitlines()
    assert re.match(r"study tiny: \d+ %, scratch-f1-s0-trunk-0-3 step 1, loss \d", said[0]), said
    assert said[-1].startswith("study tiny: 100 %, slow-f1-s0-1x-3-4 step 4, loss ")
    quiet = headstart.Study.read(file, out=tmp_path / "b").run(quiet=True)
    assert quiet.scores == aloud.scores and capsys.readouterr().out == ""
    recipe = tiny_recipe(data_root, name="one")
    result = headstart.train(recipe, tmp_path / "a")
    said = capsys.readouterr().out
    assert "one: 12 %, step 1 of 8, loss " in said and "one: 100 %, step 8 of 8, loss " in said and "device" in said
    again = headstart.train(recipe, tmp_path / "b", quiet=True)
    assert again.metrics == result.metrics and capsys.readouterr().out == ""
    trained = headstart.load_trained(result.directory)
    assert re.fullmatch(r"Trained\(one: detection, \d+ classes \(.*, …\), step 8, cpu\)", repr(trained))
    data = headstart.open_dataset(recipe.data.val, recipe.data.val_images)
    evaluation, predictions = headstart.evaluate(trained, data)
    assert re.fullmatch(r"Evaluation\(box AP [\d.]+, box AP50 .*; \d classes\)", repr(evaluation))
    with_voc = headstart.load_trained(result.directory, {"evaluate.voc": True})
    boxes_only, _ = headstart.evaluate(with_voc, replace(data, segment_kind=np.zeros_like(data.segment_kind)))
    assert re.fullmatch(r"Evaluation\(box AP .*, voc AP [\d.]+, voc AP07 [\d.]+; \d classes\)", repr(boxes_only))
    assert list(evaluation.metrics) == ["box", "mask"] and list(boxes_only.metrics) == ["box", "voc"]
    assert repr(predictions) == f"Predictions({len(predictions)} detections on 3 images)"
    found = headstart.predict(trained, data.image_path(0))
    best = f"{len(found.boxes)} detections, {found.labels[0]} {found.scores[0]:.2f}, "
    assert repr(found).startswith(f"ImagePrediction({str(data.image_path(0))!r}: {best}") and len(repr(found)) < 300


def test_lines_come_often_at_first_then_rarely():
    said, now = [], [0.0]
    lines = ProgressLines("x", said.append, clock=lambda: now[0])
    for second in range(0, 1001):
        now[0] = float(second)
        lines(second / 10, "note")
    assert said[:2] == ["x: 0 %, note", "x: 1 %, note, 16 min left"] and said[-1] == "x: 100 %, note"
    assert 28 < len(said) < 45
