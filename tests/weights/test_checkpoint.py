"""Checkpoints: whole or not there, two kept, nothing executed, and the order in which a run may start."""

import errno
import os
import pickle

import pytest
import torch

from headstart.weights import checkpoint
from headstart.weights.files import file_hash

STATE = {"model": {"weight": torch.arange(5.0)}, "recipe": {"task": "detection"}, "step": 3, "span": {"drops": [1, 2]}}


class Bomb:
    """A pickle payload that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def fill(directory, *steps):
    for step in steps:
        checkpoint.save(checkpoint.path_of(directory, step), STATE | {"step": step})


def test_round_trip(tmp_path):
    path = tmp_path / "deep/checkpoints/00000003.pt"
    checkpoint.save(path, STATE)
    state = checkpoint.load(path)
    assert torch.equal(state.pop("model")["weight"], torch.arange(5.0))
    assert state == {key: value for key, value in STATE.items() if key != "model"} | {"format": checkpoint.FORMAT}
    assert [item.name for item in path.parent.iterdir()] == ["00000003.pt"]


def test_steps_ascend_whatever_the_number_of_digits(tmp_path):
    fill(tmp_path, 5, 100, 20, 123_456_789)
    assert checkpoint.steps_saved(tmp_path) == [5, 20, 100, 123_456_789]
    assert checkpoint.steps_saved(tmp_path / "nowhere") == []


def test_prune_keeps_the_newest_two_and_removes_what_was_half_written(tmp_path):
    fill(tmp_path, 5, 10, 15, 20)
    (tmp_path / "checkpoints/00000025.tmp").write_bytes(b"half")
    checkpoint.prune(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000015.pt", "00000020.pt"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed\nmore")]
)
def test_a_full_disk_leaves_earlier_checkpoints_alone(tmp_path, monkeypatch, error):
    fill(tmp_path, 5)
    before = checkpoint.path_of(tmp_path, 5).read_bytes()

    def full(state, file):
        file.write(b"some of it")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError) as caught:
        fill(tmp_path, 10)
    message = str(caught.value)
    assert "00000010.pt: the checkpoint cannot be written" in message and "\n" not in message
    assert "earlier checkpoints are untouched" in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000005.pt"]
    assert checkpoint.path_of(tmp_path, 5).read_bytes() == before


def test_a_disk_that_is_full_when_flushing_too(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"No space left on device"):
        fill(tmp_path, 10)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_torn_file_is_said_to_be_torn_and_the_one_before_is_taken(tmp_path, share):
    fill(tmp_path, 5, 10)
    newest = checkpoint.path_of(tmp_path, 10)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"00000010\.pt: is not a whole checkpoint") as caught:
        checkpoint.load(newest)
    assert "\n" not in str(caught.value)
    start = checkpoint.start_point(tmp_path, branch=None, weights="w.pt")
    assert (start.source, start.step, start.path) == ("checkpoint", 5, checkpoint.path_of(tmp_path, 5))


def test_the_order_of_starts(tmp_path):
    fill(tmp_path / "parent", 7)
    branch, own = checkpoint.path_of(tmp_path / "parent", 7), tmp_path / "own"
    none = checkpoint.start_point(own, branch=None, weights=None)
    assert (none.source, none.step, none.state, none.path) == ("random", 0, None, None)
    weights = checkpoint.start_point(own, branch=None, weights="w.pt")
    assert (weights.source, weights.step, weights.state) == ("weights", 0, None)
    assert checkpoint.start_point(own, branch=branch, weights="w.pt").source == "branch"
    assert checkpoint.start_point(own, branch=branch, weights="w.pt").step == 7
    fill(own, 9)
    assert checkpoint.start_point(own, branch=branch, weights="w.pt").step == 9
    checkpoint.path_of(own, 9).write_bytes(b"")
    assert checkpoint.start_point(own, branch=branch, weights="w.pt").source == "branch"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch", "old torch", "pickle"])
def test_a_payload_is_refused_unexecuted(tmp_path, writer):
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    content = STATE | {"payload": Bomb(proof)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(ValueError, match=r"evil\.pt: .*refused") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": {}}, "it holds no model with its recipe"),
        ({"recipe": {}}, "it holds no model with its recipe"),
        ([1, 2], "it holds no model with its recipe"),
        (torch.zeros(3), "it holds no model with its recipe"),
        ({"model": {}, "recipe": {}}, "checkpoint format None, expected 1"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, expected):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt: .*{expected}"):
        checkpoint.load(tmp_path / "x.pt")


def test_text_folders_and_nothing_are_no_checkpoints(tmp_path):
    (tmp_path / "text.pt").write_text("epoch 1\nepoch 2\n")
    with pytest.raises(ValueError, match=r"text\.pt: "):
        checkpoint.load(tmp_path / "text.pt")
    for path in (tmp_path, tmp_path / "nothing.pt"):
        with pytest.raises(ValueError, match="no such checkpoint"):
            checkpoint.load(path)


def test_file_digest_is_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_hash(tmp_path / "a") == expected
