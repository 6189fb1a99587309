"""Checkpoints: whole or not there, as they were written, two kept, and nothing executed."""

import errno
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

from headstart.weights import checkpoint
from headstart.weights.files import DamagedError, check_seal, read_weights, write_seal

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
    (tmp_path / "checkpoints/.00000025.pt.0a1b2c3d.part").write_bytes(b"half")
    checkpoint.prune(tmp_path, 20)
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
def test_a_torn_file_is_said_to_be_torn(tmp_path, share):
    fill(tmp_path, 5, 10)
    newest = checkpoint.path_of(tmp_path, 10)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedError, match=r"00000010\.pt: is not a whole checkpoint") as caught:
        checkpoint.load(newest)
    assert "\n" not in str(caught.value)


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
        ({"model": {}, "recipe": {}}, "checkpoint format None, expected 2"),
        (
            {"model": {}, "recipe": {}, "format": 3},
            "checkpoint format 3, expected 2; another version of headstart wrote it",
        ),
        ({"model": {}, "recipe": {}, "format": 2}, "is not a whole checkpoint"),
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


def flips(content):
    """The content with one bit flipped, once in every byte; another bit each time."""
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        yield bytes(changed)


def test_a_bit_that_flips_anywhere_is_found(tmp_path):
    """Also by whoever takes the file for plain weights."""
    fill(tmp_path, 3)
    path = checkpoint.path_of(tmp_path, 3)
    content, read = path.read_bytes(), 0
    for changed in flips(content):
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"00000003\.pt: is not a whole checkpoint"):
            checkpoint.load(path)
        with pytest.raises(DamagedError):
            read_weights(path)
        read += 1
    assert read == len(content) > 1000


def test_a_bit_that_flips_in_an_export_is_found_or_changes_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save_export(path, STATE | {"classes": {"names": ["a", "b"]}, "version": "1"}, {"input": "none"})
    before, found = checkpoint.load(path), 0
    for changed in flips(path.read_bytes()):
        path.write_bytes(changed)
        try:
            after = checkpoint.load(path)
        except ValueError as error:
            assert "\n" not in str(error)
            found += 1
            continue
        assert torch.equal(after["model"]["weight"], before["model"]["weight"])
        assert all(after[name] == before[name] for name in checkpoint.EXPORTED)
    assert found > 0.8 * len(path.read_bytes())


def test_checkpoints_of_the_format_before_are_read_without_a_digest(tmp_path):
    torch.save(STATE | {"format": 1}, tmp_path / "old.pt")
    assert checkpoint.load(tmp_path / "old.pt")["step"] == 3


def test_a_seal_names_its_format_and_leaves_a_zip_archive(tmp_path):
    path = tmp_path / "new.pt"
    torch.save(STATE | {"format": 3}, path)
    with path.open("r+b") as file:
        write_seal(file, 3)
        assert check_seal(path, file) == 3
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"headstart checkpoint, format 03, SHA-256")
    with pytest.raises(ValueError, match="checkpoint format 3, expected 2") as caught:
        checkpoint.load(path)
    assert not isinstance(caught.value, DamagedError)


def test_prune_leaves_what_it_cannot_judge_and_later_steps(tmp_path):
    fill(tmp_path, 1, 2, 3, 5, 10, 15, 60, 80)
    newer, torn, old = (checkpoint.path_of(tmp_path, step) for step in (1, 2, 3))
    torch.save(STATE | {"format": 3}, newer)
    with newer.open("r+b") as file:
        write_seal(file, 3)
    torn.write_bytes(torn.read_bytes()[:-1])
    torch.save(STATE | {"format": 1}, old)
    checkpoint.prune(tmp_path, 15)
    assert checkpoint.steps_saved(tmp_path) == [1, 2, 3, 10, 15, 60, 80]


@pytest.mark.parametrize(("step", "run"), [(4, "a-0123456789ab"), (3, "a-ba9876543210")])
def test_a_checkpoint_of_another_run_or_step_is_refused(tmp_path, step, run):
    path = checkpoint.path_of(tmp_path / "a-0123456789ab", 3)
    checkpoint.save(path, STATE | {"step": step, "run": run})
    with pytest.raises(ValueError, match=r"00000003\.pt: is (a checkpoint of the run a-ba98|the checkpoint of step 4)"):
        checkpoint.load(path)
    assert checkpoint.load(path.rename(tmp_path / "loose.pt"))["step"] == step


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOMEM, errno.ESTALE])
def test_what_cannot_be_opened_is_neither_absent_nor_damaged(tmp_path, monkeypatch, number):
    def fail(*given, **options):
        raise OSError(number, os.strerror(number))

    fill(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        for read in (checkpoint.load, checkpoint.is_there):
            with pytest.raises(ValueError, match=re.escape(os.strerror(number))) as caught:
                read(checkpoint.path_of(tmp_path, 5))
            assert not isinstance(caught.value, DamagedError)
    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(ValueError, match=r"checkpoints: cannot be listed \("):
        checkpoint.steps_saved(tmp_path)


@pytest.mark.parametrize("format", [1, 2])
def test_a_torn_end_is_seen_without_reading_the_file(tmp_path, format):
    path = checkpoint.path_of(tmp_path, 5)
    assert not checkpoint.is_there(path)
    fill(tmp_path, 5)
    if format == 1:
        torch.save(STATE | {"format": 1}, path)
    content = path.read_bytes()
    assert checkpoint.is_there(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert not checkpoint.is_there(path)


def test_a_larger_file_is_torn_at_whatever_length(tmp_path):
    """Torch looks for the end of an archive before the file's begin, which the system calls an invalid argument."""
    path = tmp_path / "x.pt"
    checkpoint.save(path, STATE | {"model": {"weight": torch.zeros(5000)}})
    content = path.read_bytes()
    for length in range(0, len(content), 499):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError, match=r"x\.pt: is not a whole checkpoint"):
            checkpoint.load(path)
