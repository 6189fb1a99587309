"""Data that change while a run or a study goes on: named, and never part of a result."""

import os
import shutil

import pytest

from cli_call import call
from headstart.data import digests
from headstart.study.prepare import prepare
from headstart.study.run import run_study
from headstart.study.spec import parse_study
from headstart.tasks import data_fingerprint
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.weights import checkpoint
from tiny import tiny_recipe, tiny_study, without_clock, write_study


@pytest.fixture
def data(data_root, tmp_path):
    """A copy of the tiny data, to be changed."""
    return shutil.copytree(data_root, tmp_path / "data")


def replace(path):
    """Another picture under the same name, size and time of change, as `rsync -t` may leave it."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_run_whose_data_changed_stops_at_its_next_checkpoint_and_continues_on_the_old_data(data, tmp_path):
    recipe, image = tiny_recipe(data), data / "scenes/train/000001.jpg"
    straight = train(recipe, tmp_path / "straight")

    def change(step, values):
        if step == 5:
            replace(image)

    with pytest.raises(ValueError, match=rf"{image}: has other content than when this run began") as error:
        train(recipe, tmp_path / "runs", progress=change)
    assert "\n" not in str(error.value)
    (run,) = (tmp_path / "runs").iterdir()
    assert checkpoint.steps_saved(run) == [3]
    other = train(recipe, tmp_path / "runs")  # on what is there now: a run of its own
    assert other.directory != run
    replace(image)
    again = train(recipe, tmp_path / "runs")
    assert again.directory == run
    assert (
        without_clock(read_rows(run / "rows.jsonl"))[1:]
        == without_clock(read_rows(straight.directory / "rows.jsonl"))[1:]
    )


def test_segments_of_one_study_never_mix_data(data, tmp_path):
    study = tiny_study(data, arms={"scratch": {}}, pretrain={}, schedules=["2x"])
    prepared = prepare(parse_study(study, source="tiny"))
    with pytest.raises(ValueError, match=r"segment scratch-f1-s0-2x-5-8: the data or weights changed while the study"):
        run_study(prepared, tmp_path, finished=lambda name, found: replace(data / "scenes/train/000001.jpg"))
    directory = run_study(prepare(parse_study(study, source="tiny")), tmp_path)  # all on what is there now
    assert len(list(directory.glob("scratch-*-trunk-*"))) == 2


@pytest.mark.parametrize("verb", ["train", "study"])
def test_rehash_on_the_command_line_finds_what_left_no_trace(data, tmp_path, monkeypatch, capsys, verb):
    """The remembered digests are those of other content, as after a change that only the bytes tell."""
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = tiny_recipe(data)
    true = data_fingerprint(recipe)
    for path in digests.cache_folder().glob("images-*.json"):
        path.write_text(path.read_text().replace('","', '","').replace('"]', '0"]'))
    assert data_fingerprint(recipe) != true
    study = tiny_study(data, arms={"scratch": {}}, pretrain={}, schedules=["2x"])
    file = write_study(tmp_path / "tiny.yaml", study)
    if verb == "study":
        words = ["study", "run", file, "--out", tmp_path, "--jobs", "1", "--rehash"]
    else:
        changes = [f"{key}={value}" for key, value in study["set"].items()]
        words = ["train", "base", *changes, "--out", tmp_path, "--rehash"]
    answer = call(monkeypatch, capsys, *words)
    assert answer.code == 0, answer.err
    assert data_fingerprint(recipe) == true
