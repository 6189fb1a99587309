"""Relative paths of a study file: of the working directory, else of the folder that the file is in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
