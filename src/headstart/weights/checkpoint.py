"""Checkpoints, written atomically and sealed with a digest; read back only as they were written."""

import errno
import json
import os
import pickle
import re
import reprlib
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from headstart.files import MOST_BYTES, is_file_name, remove_unfinished, replacing, sync_folders, write_whole
from headstart.weights.files import (
    DamagedError,
    check_seal,
    ends_whole,
    read_safetensors,
    write_safetensors,
    write_seal,
)

FORMAT = 2  # 1 had no seal, and no name of its run
EXPORTED = ("recipe", "classes", "step", "version")  # kept in an export beside the tensors
KEPT = 2  # the newest two: one to continue from, one to re-execute a stretch from
LATEST = "latest"  # beside run directories: the last finished one of `headstart train`
_DIGEST = re.compile(r"-([0-9a-f]{12})\Z")  # at the end of a run directory's name
_FILE = re.compile(r"([0-9]{8,})\.pt")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all, sealed, and down to the disk.

    A full disk leaves the earlier checkpoints as they are, and no temporary file behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary, temporary.open("w+b") as file:
            torch.save(state | {"format": FORMAT}, file)
            write_seal(file, FORMAT)
            file.flush()
            os.fsync(file.fileno())
        sync_folders(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ValueError(
            f"{path}: the checkpoint cannot be written ({reason}); earlier checkpoints are untouched"
        ) from None


def load(path: Path | str) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Never executes code: anything but tensors and plain data is refused.

    Of an export (.safetensors): the model, recipe, classes and step, without the optimizer's state.
    DamagedError for a file that is not as it was written. Any other ValueError is not about its content: the file is
    absent, cannot be read now, is of a newer format, or lies in the directory of another run or under another step.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        _open(path).close()
        return _load_export(path)
    try:
        with _open(path) as file:
            sealed = check_seal(path, file)
            if sealed is not None and sealed > FORMAT:
                raise ValueError(_unknown_format(path, sealed))
            file.seek(0)
            state = _content(path, file, sealed is not None)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); nothing was changed") from None
    if not isinstance(state, dict) or "model" not in state or "recipe" not in state:
        raise DamagedError(f"{path}: is not a headstart checkpoint: it holds no model with its recipe")
    if state.get("format") not in (1, FORMAT):
        raise ValueError(_unknown_format(path, state.get("format")))
    if state["format"] != (1 if sealed is None else sealed):
        raise DamagedError(f"{path}: is not a whole checkpoint (its digest is missing)")
    _check_place(path.absolute(), state)
    return state


def cost_of(weights: str | Path | None) -> dict[str, float] | None:
    """Counters and seconds by kind ("seconds_train", …) of the run that made a checkpoint.

    None for other files, and for a run that did not start at random: the cost of what it began from is not in it.
    """
    if weights is None or Path(weights).suffix != ".pt":
        return None
    try:
        state = load(weights)
    except ValueError:
        return None  # weights of another make
    if (state["recipe"].get("start") or {}).get("kind", "random") != "random" or "counters" not in state:
        return None
    return {**state["counters"], **{f"seconds_{kind}": value for kind, value in state["seconds"].items()}}


def _open(path: Path) -> BinaryIO:
    """The opened file; ValueError where there is none, and where it cannot be opened."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror}); nothing was changed") from None
    raise ValueError(f"{path}: no such checkpoint")


def _content(path: Path, file: BinaryIO, sealed: bool) -> Any:
    """Content by torch of a file whose seal is right, or that has none."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DamagedError(
            f"{path}: holds objects other than tensors and plain data, which could execute code when loaded; refused"
        ) from None
    except Exception as error:  # the restricted unpickler fails on foreign bytes in many ways
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch seeks to before a torn file
            raise
        if sealed:  # then its bytes are right, and memory or this version of torch is not
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path}: cannot be loaded ({reason}); nothing was changed") from None
        raise DamagedError(f"{path}: is not a whole checkpoint (torn, empty or of another kind)") from None


def _unknown_format(path: Path, number: Any) -> str:
    return f"{path}: checkpoint format {number!r}, expected {FORMAT}; another version of headstart wrote it"


def _check_place(path: Path, state: dict[str, Any]) -> None:
    """ValueError for a checkpoint in the directory of another run, or under the name of another step."""
    if path.parent.name != "checkpoints" or not path.stem.isdigit():
        return
    own, run = _DIGEST.search(path.parent.parent.name), state.get("run")
    if own and run and not run.endswith(own[0]):
        raise ValueError(f"{path}: is a checkpoint of the run {run}; expected one of {path.parent.parent.name}")
    if int(path.stem) != state["step"]:
        raise ValueError(f"{path}: is the checkpoint of step {state['step']}; expected that of {int(path.stem)}")


def is_there(path: Path) -> bool:
    """True for a checkpoint that is not torn at its end; its bytes are not compared with their digest.

    This keeps the search through a thousand finished runs short. ValueError for an existing file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            return ends_whole(file)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); nothing was changed") from None


def save_export(path: Path, state: dict[str, Any], metadata: dict[str, str]) -> None:
    """Write a checkpoint's model to .safetensors, its recipe and classes as metadata beside `metadata`."""
    write_safetensors(path, state["model"], {name: json.dumps(state[name]) for name in EXPORTED} | metadata)


def _load_export(path: Path) -> dict[str, Any]:
    try:
        tensors, facts = read_safetensors(path)
    except ValueError as error:
        raise ValueError(f"{path}: is not a whole checkpoint ({str(error).removeprefix(f'{path}: ')})") from None
    if not facts.keys() >= set(EXPORTED):
        raise ValueError(f"{path}: is not a headstart checkpoint: it holds no model with its recipe")
    state: dict[str, Any] = {"model": tensors}
    for name in EXPORTED:
        try:
            state[name] = json.loads(facts[name])
        except (ValueError, RecursionError):
            raise ValueError(f"{path}: {name} = {reprlib.repr(facts[name])}: expected JSON") from None
    return state


def point_latest(directory: Path) -> None:
    """Point `latest` beside a run directory to it: a link, or where the system makes none a file with its name.

    Any other folder or file of that name stays.
    """
    latest = directory.with_name(LATEST)
    if os.path.lexists(latest) and not latest.is_symlink() and followed(latest) == latest:
        return
    try:
        with replacing(latest) as temporary:
            temporary.symlink_to(directory.name, target_is_directory=True)
    except (OSError, NotImplementedError):  # Windows makes links for administrators only, FAT for nobody
        write_whole(latest, directory.name)


def followed(path: str | Path) -> Path:
    """The run directory that a file of `point_latest` names; any other path itself."""
    path = Path(path)
    if path.name != LATEST or path.is_symlink() or not path.is_file():
        return path
    name = path.read_bytes()[: MOST_BYTES + 1].decode(errors="replace")
    return path.with_name(name) if is_file_name(name) else path


def newest(path: str | Path) -> Path:
    """Checkpoint file of a path: the file itself, or the newest of a run directory."""
    path = followed(path)
    if not path.is_dir():
        return path
    steps = steps_saved(path)
    if not steps:
        raise ValueError(f"{path}: holds no checkpoints")
    return path_of(path, steps[-1])


def path_of(directory: Path, step: int) -> Path:
    """Path of the checkpoint of a step."""
    return directory / "checkpoints" / f"{step:08d}.pt"


def steps_saved(directory: Path) -> list[int]:
    """Steps of the checkpoints in a run directory, ascending; ValueError where it cannot be listed."""
    folder = directory / "checkpoints"
    try:
        found = [_FILE.fullmatch(name) for name in os.listdir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(f"{folder}: cannot be listed ({error.strerror}); nothing was changed") from None
    return sorted(int(name[1]) for name in found if name)


def prune(directory: Path, step: int, keep: Collection[int] = ()) -> None:
    """Remove checkpoints up to `step`, all but the newest and those of the steps `keep`, and unfinished files.

    Those of later steps, damaged ones, and those of another format stay.
    """
    for each in [saved for saved in steps_saved(directory) if saved <= step][:-KEPT]:
        if each not in keep and _has_own_seal(path_of(directory, each)):
            path_of(directory, each).unlink(missing_ok=True)
    remove_unfinished(directory / "checkpoints")


def _has_own_seal(path: Path) -> bool:
    try:
        with _open(path) as file:
            return check_seal(path, file) == FORMAT
    except (ValueError, OSError):
        return False


@dataclass(frozen=True)
class StartPoint:
    """Starting point of a run: source "checkpoint", "branch", "weights" or "random", file, step and state.

    `note` is a line on newer checkpoints that could not be taken, "" where there are none.
    """

    source: str
    path: Path | None
    step: int
    state: dict[str, Any] | None
    note: str = ""
