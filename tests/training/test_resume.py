"""Where a run continues: at its last checkpoint that is whole and whose rows are there; never silently elsewhere."""

import errno
import math
import os
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headstart.recipe.schedule import Schedule
from headstart.tasks import make_task
from headstart.training import loop
from headstart.training.lineage import Span, find_result, load_checked, weights_digest
from headstart.training.rows import missing_rows, read_rows, steps_of
from headstart.training.run import train
from headstart.training.start import start_point
from headstart.training.verify import state_differences, verify
from headstart.weights import checkpoint
from headstart.weights.files import DamagedError, write_seal
from killed import Killed, kill_at
from tiny import tiny_classifier, tree_digest, without_clock

TOTAL = 8
STATE = {"model": {"weight": torch.arange(5.0)}, "recipe": {"task": "detection"}, "step": 3}


def recipe_of(data_root, **changes):
    own = {"train__schedule": "2x", "checkpoint__every": "3 steps", "evaluate__every": "4 steps"}
    return tiny_classifier(data_root, **{**own, **changes})


def end_state(directory):
    """Rows without clock and start, and the content of the last checkpoint that resuming must repeat."""
    rows = [row for row in without_clock(read_rows(directory / "rows.jsonl")) if row["kind"] != "start"]
    state = checkpoint.load(checkpoint.newest(directory))
    return rows, {key: state[key] for key in ("model", "optimizer", "counters", "window", "step", "rows")}


def assert_same_end(directory, other):
    (rows, state), (rows_there, state_there) = end_state(directory), end_state(other)
    assert rows == rows_there
    assert state_differences(state, state_there) == []


def kept(directory):
    """Bytes of rows and checkpoints."""
    found = tree_digest(directory)
    return {name: digest for name, digest in found.items() if name.startswith(("rows", "checkpoints"))}


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(bytes(content))


def change_weight(path):
    """Flip the last bit of one weight in a checkpoint that is whole before and after."""
    state = checkpoint.load(path)
    vector = next(value for value in state["model"].values() if value.dim() == 1 and value.is_floating_point())
    vector.view(torch.int32)[0] ^= 1
    checkpoint.save(path, state)


@pytest.fixture(scope="module")
def straight(data_root, tmp_path_factory):
    """The directory of an undisturbed run."""
    return train(recipe_of(data_root), tmp_path_factory.mktemp("straight")).directory


@pytest.fixture(scope="module")
def killed_once(data_root, tmp_path_factory):
    """The directory of a run that was killed at step 7, with checkpoints of the steps 3 and 6."""
    out = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        train(recipe_of(data_root), out, progress=kill_at(7))
    return next(out.iterdir())


@pytest.fixture
def killed(killed_once, tmp_path):
    return shutil.copytree(killed_once, tmp_path / killed_once.name)


@pytest.fixture
def finished(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / straight.name)


def continued(data_root, directory):
    """Train on; what was said of the start, and the steps that were taken."""
    said, steps = [], []
    result = train(
        recipe_of(data_root), directory.parent, say=said.append, progress=lambda step, values: steps.append(step)
    )
    assert result.directory == directory
    return [line for line in said if "the run continues" in line], steps


def fill(directory, *steps):
    for step in steps:
        checkpoint.save(checkpoint.path_of(directory, step), STATE | {"step": step})


def test_the_order_of_starts(tmp_path):
    fill(tmp_path / "parent", 7)
    branch, own = checkpoint.path_of(tmp_path / "parent", 7), tmp_path / "own"
    none = start_point(own, branch=None, weights=None)
    assert (none.source, none.step, none.state, none.path, none.note) == ("random", 0, None, None, "")
    weights = start_point(own, branch=None, weights="w.pt")
    assert (weights.source, weights.step, weights.state) == ("weights", 0, None)
    assert start_point(own, branch=branch, weights="w.pt").source == "branch"
    assert start_point(own, branch=branch, weights="w.pt").step == 7
    fill(own, 9)
    assert start_point(own, branch=branch, weights="w.pt").step == 9


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_checkpoint_gives_way_to_the_one_before_and_this_is_said(tmp_path, share):
    fill(tmp_path, 5, 10)
    newest = checkpoint.path_of(tmp_path, 10)
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])
    start = start_point(tmp_path, branch=None, weights="w.pt")
    assert (start.source, start.step, start.path) == ("checkpoint", 5, checkpoint.path_of(tmp_path, 5))
    assert start.note.startswith(f"{newest}: is not a whole checkpoint (")
    assert start.note.endswith("; the run continues at step 5") and "\n" not in start.note


def test_a_run_whose_checkpoints_are_all_torn_stops_and_changes_nothing(data_root, killed):
    for step in (3, 6):
        path = checkpoint.path_of(killed, step)
        path.write_bytes(path.read_bytes()[:1000])
    before = kept(killed)
    with pytest.raises(
        ValueError, match=r"00000006\.pt: is not a whole .*no older checkpoint of this run is"
    ) as caught:
        continued(data_root, killed)
    assert "\n" not in str(caught.value) and kept(killed) == before


def test_a_run_beside_torn_checkpoints_of_later_steps_gets_on(data_root, killed, straight):
    """Killed again and again before it reaches them."""
    flip(checkpoint.path_of(killed, 6))
    shutil.copy(checkpoint.path_of(killed, 6), checkpoint.path_of(killed, 7))
    before = checkpoint.path_of(killed, 7).read_bytes()
    for _ in range(2):
        with pytest.raises(Killed), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(recipe_of(data_root), killed.parent, progress=kill_at(5))
        assert len(said) == 1 and str(said[0].message).endswith("the run continues at step 3")
        assert checkpoint.path_of(killed, 7).read_bytes() == before
    assert continued(data_root, killed)[1] == [4, 5, 6, 7, 8]
    assert_same_end(killed, straight)


def test_a_checkpoint_of_a_newer_format_stops_the_run_and_stays(data_root, killed):
    path = checkpoint.path_of(killed, 6)
    torch.save({"format": 3, "all": "new"}, path)
    with path.open("r+b") as file:
        write_seal(file, 3)
    before = kept(killed)
    with pytest.raises(ValueError, match=r"00000006\.pt: checkpoint format 3, expected 2; another version"):
        continued(data_root, killed)
    assert kept(killed) == before


@pytest.mark.parametrize(
    ("number", "victim"),
    [
        (errno.EMFILE, "00000006.pt"),
        (errno.ESTALE, "00000006.pt"),
        (errno.EIO, "rows.jsonl"),
        (errno.ENOMEM, "rows.jsonl"),
        (errno.EACCES, "checkpoints"),
    ],
)
def test_what_cannot_be_opened_once_stops_the_run_and_is_not_written_over(
    data_root, killed, monkeypatch, number, victim
):
    real = {"open": Path.open, "read_bytes": Path.read_bytes, "listdir": os.listdir}

    def failing(name):
        def call(path, *given, **options):
            if Path(path).name == victim:
                raise OSError(number, os.strerror(number), str(path))
            return real[name](path, *given, **options)

        return call

    before = kept(killed)
    with monkeypatch.context() as patch:
        for owner, name in ((Path, "open"), (Path, "read_bytes"), (os, "listdir")):
            patch.setattr(owner, name, failing(name))
        with pytest.raises(ValueError, match=rf"{victim}: cannot be .*{re.escape(os.strerror(number))}") as caught:
            continued(data_root, killed)
    assert "\n" not in str(caught.value) and kept(killed) == before


@pytest.mark.parametrize(
    ("lost", "said", "step"),
    [
        ([("eval", 4)], "lacks eval rows of step 4, on which 00000006.pt counts; the run continues at step 3", 3),
        ([("train", 4), ("train", 6)], "lacks train rows of steps 4, 6, on which", 3),
        ([("train", 2)], "lacks train rows of step 2, on which 00000003.pt counts; the run continues at step 0", 0),
        ([("start", 0)], "the run continues at step 0", 0),
    ],
)
def test_rows_that_are_missing_are_named_and_made_again(data_root, killed, straight, lost, said, step):
    path = killed / "rows.jsonl"
    lines = [
        line
        for line, row in zip(path.read_text().splitlines(), read_rows(path))
        if (row["kind"], row["step"]) not in lost
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    heard, steps = continued(data_root, killed)
    assert said in heard[-1] and "\n" not in heard[-1]
    assert steps == list(range(step + 1, TOTAL + 1))
    assert_same_end(killed, straight)
    assert read_rows(path)[0]["kind"] == "start"


def test_rows_of_the_same_step_with_other_counters_are_not_the_checkpoints(killed):
    state, rows = checkpoint.load(checkpoint.path_of(killed, 6)), read_rows(killed / "rows.jsonl")
    assert state["rows"] == {"start": [0], "train": [2, 4, 6], "eval": [4]}
    assert missing_rows(rows, state) == ""
    assert missing_rows(rows, state | {"counters": state["counters"] | {"images": 1}}) == "train rows of step 6"
    many = state | {"rows": {"train": [2, 4, 6, 8, 10, 12]}, "step": 12}
    assert missing_rows([], many) == "train rows of 6 steps from 2 to 12"
    assert steps_of([{"kind": "eval", "step": 1, "split": "train"}]) == {"eval train": [1]}


def test_changed_periods_do_not_make_rows_missing(data_root, killed):
    told = []
    result = train(recipe_of(data_root, train__log_every=1, evaluate__every="1 steps"), killed.parent, say=told.append)
    assert result.directory == killed and not any("the run continues" in line for line in told)
    assert result.checkpoint.name == "00000008.pt"


def test_rows_outlive_a_power_loss_that_a_checkpoint_outlives(data_root, tmp_path, straight, monkeypatch):
    """Of every file only what was synchronised is there afterwards."""
    durable, real = {}, os.fsync

    def fsync(descriptor):
        real(descriptor)
        durable[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "fsync", fsync)
        train(recipe_of(data_root), tmp_path, progress=kill_at(7))
    directory = tmp_path / straight.name
    for path in (directory, directory / "checkpoints", tmp_path):
        assert path.stat().st_ino in durable, "an entry of this folder may be lost"
    for path in (directory / "rows.jsonl", *(directory / "checkpoints").iterdir()):
        os.truncate(path, durable.get(path.stat().st_ino, 0))
    assert continued(data_root, directory) == ([], [7, 8])
    assert_same_end(directory, straight)


@pytest.mark.parametrize("damage", ["torn", "flipped", "other"])
def test_a_damaged_final_checkpoint_of_a_finished_run_is_made_again(data_root, finished, straight, damage):
    final = checkpoint.path_of(finished, TOTAL)
    assert continued(data_root, finished) == ([], [])
    if damage == "torn":
        final.write_bytes(final.read_bytes()[:-1000])
        assert find_result(finished, TOTAL) is None
    elif damage == "flipped":
        flip(final)
    else:  # whole, but with other weights
        change_weight(final)
    assert find_result(finished, TOTAL, whole=True) is None
    said, steps = continued(data_root, finished)
    assert steps == [7, 8]
    assert len(said) == 1 and said[0].startswith(f"{final}: ") and said[0].endswith("; the run continues at step 6")
    assert_same_end(finished, straight)


def test_a_checkpoint_of_another_seed_is_refused(data_root, killed, tmp_path):
    other = train(recipe_of(data_root, seed=1), tmp_path / "other")
    shutil.copy(other.checkpoint, checkpoint.path_of(killed, TOTAL))
    before = kept(killed)
    with pytest.raises(ValueError, match=rf"00000008\.pt: is a checkpoint of the run {other.directory.name}; expected"):
        continued(data_root, killed)
    assert kept(killed) == before


def test_damage_to_a_trunk_goes_into_no_tail(data_root, tmp_path):
    recipe = recipe_of(data_root)
    schedule = Schedule(total=6, drops=(4,), warmup=1, warmup_from=0.1, base_rate=0.02)
    trunk = train(recipe, tmp_path, span=Span(replace(schedule, total=4, drops=()), 4, is_trunk=True))
    tail = Span(schedule, 6, trunk.checkpoint)
    content = trunk.checkpoint.read_bytes()
    flip(trunk.checkpoint)
    with pytest.raises(DamagedError, match=r"00000004\.pt: is not a whole checkpoint"):
        train(recipe, tmp_path, span=tail)
    trunk.checkpoint.write_bytes(content)
    change_weight(trunk.checkpoint)
    for read in (load_checked, weights_digest):
        with pytest.raises(DamagedError, match=r"00000004\.pt: its weights are not those that its run ended with"):
            read(trunk.checkpoint)
    with pytest.raises(DamagedError, match="its weights are not those"):
        train(recipe, tmp_path, span=tail)
    trunk.checkpoint.write_bytes(content)
    assert verify(train(recipe, tmp_path, span=tail).directory).differences == ()


@pytest.mark.parametrize("at", [5, 7])
def test_weights_that_the_update_made_not_finite_are_not_saved(data_root, tmp_path, at):
    """A loss of 0 whose gradient is not a number: sqrt(0)."""
    recipe = recipe_of(data_root, train__clip_norm=None)
    task, calls = make_task(recipe), []
    name, parameter = next(pair for pair in task.model.named_parameters() if pair[1].requires_grad)

    def losses(model, batch):
        values = task.losses(model, batch)
        calls.append(batch)
        if len(calls) == at + 1:
            first = next(iter(values))
            values[first] = values[first] + (parameter.sum() * 0).sqrt()
        return values

    span = Span(Schedule(total=TOTAL, warmup=0, warmup_from=1.0, base_rate=0.01), TOTAL)
    with pytest.raises(FloatingPointError) as caught:
        loop.run(
            replace(task, losses=losses), recipe, span, tmp_path, checkpoint.StartPoint("random", None, 0, None),
            device=torch.device("cpu"), keep={"recipe": {}},
        )  # fmt: skip
    assert str(caught.value) == f"step {at + 1}: {name} is not finite after the update; no checkpoint was written"
    assert checkpoint.steps_saved(tmp_path) == ([3] if at == 5 else [3, 6])
    assert find_result(tmp_path, TOTAL) is None and math.isnan(float(parameter.detach().sum()))


def test_momentum_and_statistics_that_are_not_finite_are_named():
    from headstart.training.optimizer import require_finite

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).bfloat16()
    model[1].float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    require_finite(model, optimizer, {"1.running_var": torch.ones(2), "empty": torch.ones(0)}, 1)
    with pytest.raises(FloatingPointError, match=r"^step 1: 1\.running_var is not finite"):
        require_finite(model, optimizer, {"1.running_var": torch.tensor([1.0, math.inf])}, 1)
    optimizer.state[model[0].bias]["momentum_buffer"][1] = math.nan
    with pytest.raises(FloatingPointError, match=r"^step 2: momentum_buffer of 0\.bias is not finite"):
        require_finite(model, optimizer, {}, 2)
