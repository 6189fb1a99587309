"""Checkpoints, written atomically, and the choice of a run's starting point."""

import json
import os
import pickle
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headstart.files import remove_unfinished, replacing
from headstart.weights.files import read_safetensors, write_safetensors

FORMAT = 1
EXPORTED = ("recipe", "classes", "step", "version")  # kept in an export beside the tensors
KEPT = 2  # the newest two: one to continue from, one to re-execute a stretch from


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all, and down to the disk.

    A full disk leaves the earlier checkpoints as they are, and no temporary file behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(state | {"format": FORMAT}, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(
            f"{path}: the checkpoint cannot be written ({error.strerror}); earlier checkpoints are untouched"
        ) from None
    except RuntimeError as error:  # torch reports a full disk this way
        raise ValueError(
            f"{path}: the checkpoint cannot be written ({str(error).splitlines()[0]}); "
            "earlier checkpoints are untouched"
        ) from None


def load(path: Path | str) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Never executes code: anything but tensors and plain data is refused.

    Of an export (.safetensors): the model, recipe, classes and step, without the optimizer's state.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return _load_export(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds objects other than tensors and plain data, which could execute code when loaded; refused"
        ) from None
    except Exception:  # the restricted unpickler stumbles over foreign bytes in many ways
        raise ValueError(f"{path}: is not a whole checkpoint (torn, empty or of another kind)") from None
    if not isinstance(state, dict) or "model" not in state or "recipe" not in state:
        raise ValueError(f"{path}: is not a headstart checkpoint: it holds no model with its recipe")
    if state.get("format") != FORMAT:
        raise ValueError(f"{path}: checkpoint format {state.get('format')!r}, expected {FORMAT}")
    return state


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


def newest(path: str | Path) -> Path:
    """Checkpoint file of a path: the file itself, or the newest of a run directory."""
    path = Path(path)
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
    """Steps of the checkpoints in a run directory, ascending."""
    return sorted(int(path.stem) for path in (directory / "checkpoints").glob("*.pt") if path.stem.isdigit())


def prune(directory: Path, keep: Collection[int] = ()) -> None:
    """Remove all checkpoints but the newest and those of the steps `keep`, and unfinished files of killed processes."""
    for step in steps_saved(directory)[:-KEPT]:
        if step not in keep:
            path_of(directory, step).unlink(missing_ok=True)
    remove_unfinished(directory / "checkpoints")


@dataclass(frozen=True)
class StartPoint:
    """Starting point of a run: source "checkpoint", "branch", "weights" or "random", file, step and state."""

    source: str
    path: Path | None
    step: int
    state: dict[str, Any] | None


def start_point(directory: Path, *, branch: Path | None, weights: str | None) -> StartPoint:
    """Own checkpoint > given branch point > given weights > random, in that order.

    An own checkpoint that cannot be read (torn by a crash of the machine) gives way to the one before it.
    """
    for step in reversed(steps_saved(directory)):
        path = path_of(directory, step)
        try:
            state = load(path)
        except ValueError:
            continue
        return StartPoint("checkpoint", path, state["step"], state)
    if branch is not None:
        state = load(branch)
        return StartPoint("branch", Path(branch), state["step"], state)
    if weights is not None:
        return StartPoint("weights", Path(weights), 0, None)
    return StartPoint("random", None, 0, None)
