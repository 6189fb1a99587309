"""The page that follows a running study: its numbers by hand, its end with the study, and nothing loaded."""

import json
import os
import re
import time

import pytest

from headstart.report import build as report
from headstart.report import live
from headstart.report.live import study_progress, watch
from headstart.study.folder import read_study_folder
from headstart.study.forecast import time_to_finish
from study_folder import build_study

PACE = 0.21 + 0.03 + 0.01  # seconds a step of the made-up rows


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])


def build(root, num_begun):
    return build_study(
        root, schedules=("1x", "2x"), pictures=False, log_every=100, fractions=(1.0,), num_begun=num_begun
    )


def cut(path, keep):
    """Let the last begun segment be in the middle: only its first `keep` rows."""
    run = [r for r in read_study_folder(path).runs.values() if r.rows][-1]
    rows = run.directory / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:keep]))
    return run.segment


def test_progress_counts_steps_and_expects_the_pace_seen(tmp_path):
    path = build(tmp_path, num_begun=3)
    segment = cut(path, 2)
    folder = read_study_folder(path)
    found = study_progress(folder)
    states = {s.segment.name: s.state for s in found.segments}
    assert list(states.values()).count("finished") == 2 and states[segment.name] == "running"
    own = next(s for s in found.segments if s.segment == segment)
    assert own.step > segment.start and own.left == pytest.approx(PACE * (segment.stop - own.step))
    steps = sum(s.steps for s in folder.plan.segments)
    done = sum(s.step - s.segment.start for s in found.segments)
    assert found.share == pytest.approx(done / steps) and found.jobs == 1
    assert found.left == pytest.approx(PACE * (steps - done))
    two = time_to_finish(folder.plan, {s.segment.name: s.left for s in found.segments}, 2)
    assert found.left / 2 <= two < found.left


@pytest.mark.parametrize("num_begun", [0, 1])
def test_a_study_that_has_hardly_begun_has_a_page(tmp_path, num_begun):
    path = build(tmp_path, num_begun=num_begun)
    if num_begun:
        cut(path, 1)  # a start row and nothing else
    assert study_progress(read_study_folder(path)).left is None
    text = page_after_one_look(path)
    assert "0 of 9 segments finished" in text and "waiting" in text


def page_after_one_look(path):
    class Enough(Exception):
        pass

    def wait(seconds):
        raise Enough

    with pytest.raises(Enough):
        watch(path, every=3, wait=wait)
    return (path / live.PAGE).read_text()


def test_a_stopped_segment_is_told(tmp_path):
    path = build(tmp_path, num_begun=3)
    cut(path, 2)
    for rows in path.glob("segments/*/rows.jsonl"):
        os.utime(rows, (time.time() - 4000,) * 2)
    text = page_after_one_look(path)
    assert "stopped?" in text and "no row for 67 min: has it been stopped?" in text
    assert 'http-equiv="refresh" content="3"' in text


def test_between_two_segments_a_study_has_begun(tmp_path):
    assert "running, last row" in page_after_one_look(build(tmp_path, num_begun=3))


def test_100_percent_are_done_when_the_last_segment_has_ended(tmp_path):
    path = build(tmp_path, num_begun=9)
    rows = next(path.glob("segments/scratch-f1-s0-2x-*/rows.jsonl"))
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))  # its last step is logged, its end is not
    assert study_progress(read_study_folder(path)).share == 1 and "99 % done" in page_after_one_look(path)


def test_the_page_loads_nothing_and_ends_with_the_study(tmp_path):
    path = build(tmp_path, num_begun=4)
    whole = {p: p.read_text() for p in path.glob("segments/*/rows.jsonl")}
    segment, looks = cut(path, 2), []

    def wait(seconds):
        looks.append((path / live.PAGE).read_text())
        if len(looks) == 2:  # the study goes on and ends meanwhile
            for file, text in whole.items():
                file.write_text(text)
            finished = build_study(tmp_path / "other", schedules=("1x", "2x"), pictures=False, fractions=(1.0,))
            os.rename(finished / "segments", path / "all")
            plan = json.loads((finished / "plan.json").read_text())
            for entry in plan["segments"]:
                entry["directory"] = entry["directory"].replace("segments/", "all/")
            (path / "plan.json").write_text(json.dumps(plan))

    assert watch(path, every=7, wait=wait) == path / "report.html"
    assert len(looks) == 2 and segment.name in looks[0]
    for text in (*looks, (path / live.PAGE).read_text()):
        loaded = re.findall(r'(?:src|href)="([^"]*)"', text)
        assert all(value.startswith("data:image/") or value == "report.html" for value in loaded)
        assert "<script" not in text
    assert len(re.findall("data:image/svg", looks[0])) == 1
    assert "The study is finished" in (path / live.PAGE).read_text()
    assert json.loads((path / "report.json").read_text())["state"] == "seeds and rising"
