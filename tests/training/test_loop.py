"""The loop: resumed, branched, watched or not, it makes the same weights; and it stops before a bad update."""

import json
import math
from dataclasses import replace

import pytest
import torch

from headstart.hardware import choose_device
from headstart.recipe.recipe import digest
from headstart.recipe.schedule import Schedule
from headstart.tasks import make_task
from headstart.training import loop
from headstart.training.lineage import Span
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.training.start import start_point
from headstart.training.verify import state_differences, verify
from headstart.weights import checkpoint
from headstart.weights.files import tensors_digest
from headstart.weights.freeze import set_train_mode
from killed import Killed, kill_at
from known_losses import FLOAT32
from tiny import tiny_classifier, tiny_recipe, without_clock

TOTAL = 8


def end_state(result):
    """What a run left: rows without the clock, the hash of its weights, and its last checkpoint."""
    rows = without_clock(read_rows(result.directory / "rows.jsonl"))
    return [row for row in rows if row["kind"] != "start"], rows[-1]["hash"], checkpoint.load(result.checkpoint)


def state_of(result):
    """Model, optimizer, counters and window of the last checkpoint."""
    state = checkpoint.load(result.checkpoint)
    return {key: state[key] for key in ("model", "optimizer", "counters", "window", "step")}


@pytest.fixture(scope="module")
def straight(data_root, tmp_path_factory):
    """The undisturbed run that others are compared with."""
    return train(tiny_recipe(data_root), tmp_path_factory.mktemp("straight"))


@pytest.mark.parametrize("step", [2, 3, 5, 8])
def test_resumed_after_a_kill_equals_uninterrupted(data_root, tmp_path, straight, step):
    recipe = tiny_recipe(data_root)
    with pytest.raises(Killed):
        train(recipe, tmp_path, progress=kill_at(step))
    resumed = train(recipe, tmp_path)
    assert resumed.directory.name == straight.directory.name
    rows, digest, _ = end_state(resumed)
    assert (rows, digest) == end_state(straight)[:2]
    assert state_differences(state_of(straight), state_of(resumed)) == []


def test_killed_twice_and_between_checkpoint_and_end_row(data_root, tmp_path, straight, monkeypatch):
    recipe = tiny_recipe(data_root)
    for step in (2, 5, 7):
        with pytest.raises(Killed):
            train(recipe, tmp_path, progress=kill_at(step))

    def die(directory, *given):
        if TOTAL in checkpoint.steps_saved(directory):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "prune", die)
        with pytest.raises(Killed):
            train(recipe, tmp_path)
    resumed = train(recipe, tmp_path)
    assert end_state(resumed)[:2] == end_state(straight)[:2]


def test_torn_newest_checkpoint_and_row_are_overcome(data_root, tmp_path, straight):
    recipe = tiny_recipe(data_root)
    with pytest.raises(Killed):
        train(recipe, tmp_path, progress=kill_at(7))
    directory = next(tmp_path.iterdir())
    newest = checkpoint.path_of(directory, 6)
    newest.write_bytes(newest.read_bytes()[:1000])
    with (directory / "rows.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert start_point(directory, branch=None, weights=None).step == 3
    with pytest.warns(UserWarning, match=r"00000006\.pt: is not a whole checkpoint .*; the run continues at step 3$"):
        resumed = train(recipe, tmp_path)
    assert end_state(resumed)[:2] == end_state(straight)[:2]


def test_a_finished_run_is_found_again(straight, data_root):
    before = straight.checkpoint.stat().st_mtime_ns
    again = train(tiny_recipe(data_root), straight.directory.parent, progress=kill_at(1))
    assert again == straight
    assert straight.checkpoint.stat().st_mtime_ns == before


def test_branch_from_a_trunk_equals_a_straight_run(data_root, tmp_path, straight):
    recipe = tiny_recipe(data_root)
    task = make_task(recipe)
    schedule = Schedule(**read_span(straight)["schedule"])
    assert schedule.first_drop == 5 and schedule.total == TOTAL
    constant = Schedule(total=5, warmup=schedule.warmup, warmup_from=schedule.warmup_from, base_rate=schedule.base_rate)
    trunk = train(recipe, tmp_path, span=Span(constant, 5, is_trunk=True))
    tail = train(recipe, tmp_path, span=Span(schedule, TOTAL, trunk.checkpoint))
    assert len({trunk.directory, tail.directory, straight.directory}) == 3
    parts = [row for part in (trunk, tail) for row in end_state(part)[0]]
    whole = end_state(straight)[0]
    assert [row for row in parts if row["kind"] != "end"] == whole[:-1]
    assert state_differences(state_of(straight), state_of(tail)) == []
    assert task.num_images == 6


def test_killed_branch_equals_a_straight_run(data_root, tmp_path, straight):
    recipe = tiny_recipe(data_root)
    schedule = Schedule(**read_span(straight)["schedule"])
    constant = Schedule(total=5, warmup=schedule.warmup, warmup_from=schedule.warmup_from, base_rate=schedule.base_rate)
    trunk = train(recipe, tmp_path, span=Span(constant, 5, is_trunk=True))
    for step in (6, 7):
        with pytest.raises(Killed):
            train(recipe, tmp_path, span=Span(schedule, TOTAL, trunk.checkpoint), progress=kill_at(step))
    tail = train(recipe, tmp_path, span=Span(schedule, TOTAL, trunk.checkpoint))
    assert state_differences(state_of(straight), state_of(tail)) == []
    assert end_state(tail)[0] == [row for row in end_state(straight)[0] if row["step"] > 5]


def read_span(result):
    """The span written beside a run."""
    return json.loads((result.directory / "segment.json").read_text())["span"]


def test_span_survives_being_written(straight, tmp_path):
    span = Span(Schedule(**read_span(straight)["schedule"]), 7, tmp_path / "some-run/checkpoints/00000005.pt", True)
    assert Span.from_facts(span.facts(), tmp_path) == span
    assert checkpoint.load(straight.checkpoint)["span"] == read_span(straight)


@pytest.mark.parametrize(
    "change",
    [
        {"data__num_workers": 3, "data__cache": True, "evaluate__every": "0 steps"},
        {"evaluate__every": "1 steps", "checkpoint__every": "1 steps", "name": "other"},
        {"train__log_every": 1, "checkpoint__every": "0 steps"},
    ],
    ids=["workers", "often", "rarely"],
)
def test_workers_and_periods_change_nothing_in_the_weights(data_root, tmp_path, straight, change):
    other = train(tiny_recipe(data_root, **change), tmp_path)
    assert end_state(other)[1] == end_state(straight)[1]
    assert other.directory.name.rsplit("-", 1)[1] == straight.directory.name.rsplit("-", 1)[1]


def test_threads_are_part_of_what_a_run_is(data_root):
    """Sums on a CPU depend on how many threads share them, so runs with another number of them are other runs."""
    assert digest(tiny_recipe(data_root)) != digest(tiny_recipe(data_root, train__threads=2))


def test_threads_of_a_run_are_none_of_the_next(data_root, tmp_path):
    """A run that names no number has the process's own, also after a pre-training that names one."""
    before = torch.get_num_threads()
    run = train(tiny_classifier(data_root, train__threads=before + 1), tmp_path).directory
    assert json.loads((run / "environment.json").read_text())["threads"] == before + 1
    assert torch.get_num_threads() == before
    assert verify(run).differences == () and torch.get_num_threads() == before


def test_another_seed_or_rate_changes_the_weights(data_root, tmp_path, straight):
    for change in ({"seed": 1}, {"train__rate": 0.02}):
        assert end_state(train(tiny_recipe(data_root, **change), tmp_path))[1] != end_state(straight)[1]


def test_known_losses(straight):
    """Fixed seed, fixed losses: a change of what is trained shows here first."""
    rows = [row for row in read_rows(straight.directory / "rows.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [3, 6, 8]
    assert [row["loss"] for row in rows] == pytest.approx([3.8005899, 3.6889817, 3.5489465], rel=FLOAT32, abs=0)
    assert [row["images"] for row in rows] == [6, 12, 16]
    for row in rows:
        assert row["grad_norm"] > 0
        assert row["loss"] == pytest.approx(math.fsum(row["losses"].values()))
        assert set(row["losses"]) == {"rpn_objectness", "rpn_box", "box_class", "box_delta", "mask"}


def test_rows_have_the_documented_fields(straight):
    rows = read_rows(straight.directory / "rows.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("start", 0), ("train", 3), ("eval", 4), ("train", 6), ("train", 8), ("eval", 8), ("end", 8),
    ]  # fmt: skip
    assert rows[0] == {
        "kind": "start", "step": 0, "source": "random", "path": None, "total": 8, "stop": 8,
        "device": choose_device("auto").value, "precision": "fp32",
    }  # fmt: skip
    for row in rows[1:-1]:
        assert set(row["seconds"]) == {"train", "eval", "other"}
        assert row["pixels"] == row["images"] * 64 * 64
        assert row["flops"] == row["images"] * (rows[1]["flops"] // rows[1]["images"]) > 0
    assert rows[-1]["checkpoint"] == "checkpoints/00000008.pt"


def poisoned_run(data_root, directory, name, at):
    """A run whose loss `name` is not a number at step `at`: message, and (weights, image ids) of every step begun."""
    recipe = tiny_recipe(data_root)
    task = make_task(recipe)
    seen = []

    def losses(model, batch):
        values = task.losses(model, batch)
        seen.append((tensors_digest(task.model.state_dict()), batch.image_ids.tolist()))
        if len(seen) == at + 1:
            values[name] = values[name] * math.nan
        return values

    span = Span(Schedule(total=TOTAL, warmup=0, warmup_from=1.0, base_rate=0.01), TOTAL)
    start = checkpoint.StartPoint("random", None, 0, None)
    with pytest.raises(FloatingPointError) as caught:
        loop.run(
            replace(task, losses=losses), recipe, span, directory, start, device=torch.device("cpu"),
            keep={"recipe": {}},
        )  # fmt: skip
    assert checkpoint.steps_saved(directory) == []
    return str(caught.value), seen, tensors_digest(task.model.state_dict())


@pytest.mark.parametrize("poisoned", ["mask", "box_delta"])
def test_a_loss_that_is_not_finite_stops_before_the_update(data_root, tmp_path, poisoned):
    message, seen, weights = poisoned_run(data_root, tmp_path, poisoned, 2)
    assert "step 2" in message and f"{poisoned} nan" in message and "\n" not in message
    assert all(str(image) in message for image in seen[-1][1])
    assert weights == seen[2][0] != seen[1][0]


def test_losses_that_are_read_late_say_the_same(data_root, tmp_path, straight, monkeypatch):
    """As on a GPU: they are looked at where a row, an evaluation or a checkpoint needs them."""
    monkeypatch.setattr(loop, "_read_at_once", lambda device: False)
    assert end_state(train(tiny_recipe(data_root), tmp_path))[:2] == end_state(straight)[:2]


def test_a_loss_that_is_read_late_names_its_own_step(data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_read_at_once", lambda device: False)
    message, seen, _ = poisoned_run(data_root, tmp_path, "mask", 1)
    assert message.startswith("step 1: ") and message.endswith("seen at step 2; nothing was saved since")
    assert all(str(image) in message for image in seen[1][1])


def test_negatives_alone_can_be_trained_on(data_root, tmp_path):
    """A data set without a single object: finite losses, and weights that move."""
    content = json.loads((data_root / "scenes/train.json").read_text()) | {"annotations": []}
    (tmp_path / "train.json").write_text(json.dumps(content))
    recipe = tiny_recipe(data_root, data__train=str(tmp_path / "train.json"), train__base="2 steps")
    rows = read_rows(train(recipe, tmp_path / "runs").directory / "rows.jsonl")
    losses = [row for row in rows if row["kind"] == "train"][-1]["losses"]
    assert all(math.isfinite(value) for value in losses.values())
    assert losses["mask"] == losses["rpn_box"] == losses["box_delta"] == 0.0


def test_classifier_killed_at_any_step_equals_uninterrupted(data_root, tmp_path):
    recipe = tiny_classifier(data_root, train__schedule="2x", checkpoint__every="3 steps")
    whole = train(recipe, tmp_path / "whole")
    for step in range(1, TOTAL + 1):
        out = tmp_path / str(step)
        with pytest.raises(Killed):
            train(recipe, out, progress=kill_at(step))
        resumed = train(recipe, out)
        assert end_state(resumed)[:2] == end_state(whole)[:2]
        assert state_differences(state_of(whole), state_of(resumed)) == []


def test_frozen_stages_stay_as_they_were(data_root, tmp_path):
    weights = train(tiny_classifier(data_root), tmp_path).checkpoint
    recipe = tiny_recipe(
        data_root, start__kind="backbone", start__weights=str(weights), start__freeze="stage2", train__base="2 steps"
    )
    result = train(recipe, tmp_path)
    before, after = checkpoint.load(weights)["model"], checkpoint.load(result.checkpoint)["model"]
    backbone = {name: value for name, value in after.items() if name.startswith("backbone.")}
    same = {name for name, value in backbone.items() if torch.equal(value, before[name])}
    frozen = {name for name in backbone if name.split(".")[1].startswith(("conv1", "norm1", "bn1", "layer1", "layer2"))}
    assert frozen and same >= frozen
    assert {name for name in set(backbone) - frozen if name.endswith("weight")} - same
    model = make_task(recipe).model
    set_train_mode(model, "stage2")
    assert model.training


@pytest.mark.parametrize("limit", [None, 1.0, 1e9])
def test_the_norm_of_a_row_is_that_of_the_gradients_before_they_are_clipped(limit):
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    model(torch.ones(4, 3)).square().sum().backward()
    before = model.weight.grad.clone()
    norm = before.double().square().sum().sqrt().item()
    assert loop._clipped_norm(model, limit, read=True) == pytest.approx(norm, rel=1e-6)
    share = 1.0 if limit is None else min(1.0, limit / norm)
    assert torch.allclose(model.weight.grad, share * before, rtol=1e-5)
    assert loop._clipped_norm(model, limit, read=False) is None
