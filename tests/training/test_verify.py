"""`verify` runs the last stretch of a run again: silent about what is the same, exact about what is not."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from headstart.recipe.schedule import Schedule
from headstart.training.lineage import Span
from headstart.training.run import train
from headstart.training.verify import state_differences, verify
from headstart.weights import checkpoint
from tiny import tiny_classifier, tiny_recipe, tree_digest


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    return train(tiny_recipe(data_root), tmp_path_factory.mktemp("verified")).directory


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / run.name)


def test_an_honest_run_is_verified_and_left_alone(run):
    before = tree_digest(run)
    found = verify(run)
    assert (found.start, found.stop, found.differences) == (6, 8, ())
    assert found.num_rows == 2 and found.num_tensors > 50
    assert (
        found.line() == f"{run}: steps 6 to 8 run again: 2 rows and {found.num_tensors} tensors are equal bit for bit"
    )
    assert tree_digest(run) == before


def test_one_bit_of_one_weight_is_found(copied):
    path = checkpoint.path_of(copied, 8)
    state = checkpoint.load(path)
    name, weight = next((name, value) for name, value in state["model"].items() if value.dim() == 4)
    weight.view(torch.int32)[0, 0, 0, 0] ^= 1
    checkpoint.save(path, state)
    found = verify(copied)
    assert found.differences == (f"model.{name}",)
    assert "NOT the same" in found.line() and "\n" not in found.line()


def test_one_digit_of_one_row_is_found(copied):
    path = copied / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-3]["loss"] += 1e-12
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verify(copied).differences == ("train row of step 8",)


def test_a_run_with_one_checkpoint_is_run_again_from_its_start(copied):
    checkpoint.path_of(copied, 6).unlink()
    found = verify(copied)
    assert (found.start, found.stop, found.differences) == (0, 8, ())
    assert found.num_rows == 5


def test_an_unfinished_run_is_verified_up_to_where_it_is(data_root, tmp_path):
    def stop(step, values):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(data_root), tmp_path, progress=stop)
    found = verify(next(tmp_path.iterdir()))
    assert (found.start, found.stop, found.num_rows, found.differences) == (3, 6, 2, ())


def test_trunk_and_tail_are_verified(data_root, tmp_path):
    recipe = tiny_classifier(data_root, checkpoint__every="0 steps")
    schedule = Schedule(total=6, drops=(4,), warmup=1, warmup_from=0.1, base_rate=0.02)
    constant = replace(schedule, total=4, drops=())
    trunk = train(recipe, tmp_path, span=Span(constant, 4, is_trunk=True))
    tail = train(recipe, tmp_path, span=Span(schedule, 6, trunk.checkpoint))
    assert [(v.start, v.stop, v.differences) for v in (verify(trunk.directory), verify(tail.directory))] == [
        (0, 4, ()), (4, 6, ()),
    ]  # fmt: skip


def test_changed_data_and_folders_without_checkpoints_are_refused(data_root, tmp_path):
    scenes = shutil.copytree(data_root / "scenes", tmp_path / "scenes")
    data = {"data__train": str(scenes / "train.json"), "data__train_images": str(scenes / "train")}
    result = train(tiny_recipe(data_root, train__base="2 steps", **data), tmp_path / "runs")
    content = json.loads((scenes / "train.json").read_text())
    content["annotations"][0]["bbox"][2] -= 1
    (scenes / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the data of its recipe has changed since"):
        verify(result.directory)
    with pytest.raises(ValueError, match="holds no checkpoints, expected a run directory"):
        verify(tmp_path)


def test_changed_weights_of_the_start_are_refused(data_root, tmp_path, run):
    weights = shutil.copy(checkpoint.path_of(run, 8), tmp_path / "weights.pt")
    start = {"start__kind": "detector", "start__weights": str(weights)}
    begun = train(
        tiny_recipe(data_root, train__base="2 steps", checkpoint__every="9 steps", **start), tmp_path
    ).directory
    assert len(checkpoint.steps_saved(begun)) == 1 and verify(begun).differences == ()
    shutil.copy(checkpoint.path_of(run, 6), weights)
    with pytest.raises(
        ValueError, match=r"weights\.pt has changed since: its sha256 is \w{12}, expected \w{12} as audit"
    ):
        verify(begun)


def test_differences_are_named_by_their_place():
    old = {"a": torch.tensor([0.0]), "b": [1, {"c": 2}], "d": torch.tensor([float("nan")])}
    new = {"a": torch.tensor([-0.0]), "b": [1, {"c": 3}], "d": torch.tensor([float("nan")]), "e": 1}
    assert state_differences(old, new) == ["a", "b.1.c", "e"]
    assert state_differences(old, old) == []
