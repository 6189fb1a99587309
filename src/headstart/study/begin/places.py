"""Relative paths of a study file: of the working directory, else of the folder that the file is in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.recipe.load import shipped

_SETS = [f".data.{split}{part}" for split in ("train", "val") for part in ("", "_images", "_labels")]
FIELDS = (*_SETS, ".start.weights")


def with_places(patch: Mapping[str, Any], folder: Path, prefix: str = "") -> dict[str, Any]:
    """A study's mapping in which paths that are not in the working directory, but in `folder`, lead there."""
    made: dict[str, Any] = {}
    for key, value in patch.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            made[key] = with_places(value, folder, name)
        elif isinstance(value, str) and name.endswith(FIELDS) and not _is_there(Path(), value):
            made[key] = str(folder / value) if _is_there(folder, value) else value
        else:
            made[key] = value
    return made


def _is_there(folder: Path, value: str) -> bool:
    """True if PATH, or the path of PATH:SPLIT, exists; False for a name that no file can have."""
    try:
        return any((folder / part).exists() for part in (value, value.rpartition(":")[0]) if part)
    except (OSError, ValueError):
        return False


def refuse_missing_data(name: str, train: str) -> None:
    """ValueError for a shipped study whose data are not there, with the commands of its header that make them."""
    files = {shown.rpartition("/")[2]: file for shown, file in shipped("studies").items()}
    file = files.get(name.removesuffix("-small"))
    if file is None or not train.startswith("data/") or _is_there(Path(), train):
        return
    header = [line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    made = [line for line in header if line.startswith("headstart data shapes ")]
    how = f"make it with: {' && '.join(made)}" if made else f"the header of {file} says where it is from"
    raise ValueError(f"study {name}: data.train = {train!r}: no such file or folder; {how}")
