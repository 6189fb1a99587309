"""Two processes with half batches make what one process makes with the whole batch."""

import shutil
import sys
import time
from contextlib import ExitStack
from math import inf

import pytest
import torch

import headstart.training.run as run_file
from headstart.files import locked
from headstart.training.rows import line_of, read_rows
from headstart.training.run import train
from headstart.training.verify import verify
from headstart.training.workers import run_processes
from headstart.weights import checkpoint
from shares import share
from tiny import tiny_recipe

CHANGES = {"train__batch": 4, "train__log_every": 1, "train__base": "3 steps", "evaluate__every": "0 steps"}


@pytest.fixture(scope="module")
def runs(data_root, tmp_path_factory):
    """Directories of the run of one process and of two."""
    folder, seen, heard = tmp_path_factory.mktemp("distributed"), [], []
    alone = train(tiny_recipe(data_root, **CHANGES), folder / "alone").directory
    recipe = tiny_recipe(data_root, **CHANGES, processes=2)
    begun = checkpoint.path_of(folder / "both" / alone.name, 3)  # without the rows on which it counts
    begun.parent.mkdir(parents=True)
    shutil.copy(checkpoint.path_of(alone, 3), begun)
    with pytest.warns(UserWarning, match=r"lacks .*, on which .* counts; the run continues at step 0"):
        both = train(recipe, folder / "both", progress=lambda *at: seen.append(at), on_row=heard.append)
    assert "".join(map(line_of, heard)) == (both.directory / "rows.jsonl").read_text()
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6] and both.metrics["box"].keys() >= {"AP"}
    return alone, both.directory


def test_losses_and_counters_are_those_of_one_process(runs):
    alone, both = ([row for row in read_rows(run / "rows.jsonl") if row["kind"] == "train"] for run in runs)
    assert [row["step"] for row in alone] == [row["step"] for row in both] == list(range(1, 7))
    for one, two in zip(alone, both):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
        assert [two[key] for key in ("images", "instances", "pixels", "flops")] == [
            one[key] for key in ("images", "instances", "pixels", "flops")
        ]


def test_weights_are_those_of_one_process(runs):
    assert runs[0].name == runs[1].name
    one, two = (checkpoint.load(checkpoint.path_of(run, 6))["model"] for run in runs)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=0, msg=name)


def test_metrics_and_predictions_are_gathered_from_both(runs):
    one, two = (read_rows(run / "rows.jsonl") for run in runs)
    assert [row["metrics"] for row in one if row["kind"] == "eval"] == [
        pytest.approx(row["metrics"]) if not isinstance(row["metrics"], dict) else row["metrics"]
        for row in two
        if row["kind"] == "eval"
    ]
    assert len([row for row in two if row["kind"] in ("start", "end")]) == 2  # one writer only


def test_another_number_of_processes_continues_the_same_stream(runs, data_root, tmp_path):
    """Two processes up to step 3, one from there: still what one process makes."""
    alone, both = runs
    resumed = shutil.copytree(both, tmp_path / both.name)
    checkpoint.path_of(resumed, 6).unlink()
    assert train(tiny_recipe(data_root, **CHANGES), tmp_path).directory == resumed
    one, two = (read_rows(run / "rows.jsonl") for run in (alone, resumed))
    assert [row["step"] for row in two if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    for row, other in zip(one, two, strict=True):
        assert other.get("loss", 0) == pytest.approx(row.get("loss", 0), abs=1e-6)
    weights = [checkpoint.load(checkpoint.path_of(run, 6))["model"] for run in (alone, resumed)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=0, msg=name)


def test_a_run_of_two_is_not_verified_by_one(runs):
    with pytest.raises(ValueError, match="was trained by 2 processes"):
        verify(runs[1])


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        ("refused", ValueError, r"^data\.train: 'x' is not there$"),
        ("broken", ChildProcessError, r"^process 1 of 2 failed: KeyError: 'x'; the others were stopped$"),
        ("killed", ChildProcessError, r"^process 1 of 2 was killed \(SIGKILL\); the others were stopped$"),
    ],
)
def test_one_process_that_fails_ends_all_with_its_own_message(ending, kind, message):
    heard, since = [], time.monotonic()
    with pytest.raises(kind, match=message):
        run_processes(2, share, (ending,), heard.append, silence=60.0)
    assert time.monotonic() - since < 60
    assert heard in (["waiting"], [])  # the first may not have begun


def test_what_torchrun_and_the_recipe_say_must_agree(data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["headstart.training.run"], "num_processes", lambda: 4)
    with pytest.raises(ValueError, match="processes: 2, but torchrun started 4; expected one of them"):
        train(tiny_recipe(data_root, processes=2), tmp_path)


def test_a_group_that_waits_for_another_study_is_answered_at_every_turn(tmp_path, monkeypatch):
    """The other processes wait for the first in a collective, which would fail after ten minutes."""
    monkeypatch.setattr(run_file, "TURN", 0.05)
    refused, another = [], ExitStack()

    def gather(value):
        refused.append(bool(value[0]))
        if len(refused) == 3:
            another.close()
        return [value]

    monkeypatch.setattr(run_file.distributed, "gather", gather)
    another.enter_context(locked(tmp_path / "lock", taken="this run is being trained"))
    with run_file.only_process(tmp_path, inf), pytest.raises(ValueError, match="this run is being trained by process"):
        run_file.only_process(tmp_path, 0.1).__enter__()
    assert refused == [True, True, True, False] + [True] * (len(refused) - 4) and len(refused) > 5


def test_the_first_process_says_whether_a_run_is_finished(data_root, tmp_path, monkeypatch):
    """Another study may finish it between two looks, and then one process would wait for another that has returned."""
    found = run_file.RunResult(tmp_path, tmp_path / "last.pt", {})
    monkeypatch.setattr(run_file.distributed, "gather", lambda own: [found])
    assert train(tiny_recipe(data_root), tmp_path) is found and not list(tmp_path.iterdir())
