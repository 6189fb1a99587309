"""A study's mapping as its file has it, before it is checked: at a size, and with fields changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstart.recipe.dotted import flatten
from headstart.study.checks import check_names

SMALL = "small"  # the one size besides a study as written, and the folder that the segments of all small twins share


def sized(data: Mapping[str, Any], size: object, *, source: str) -> dict[str, Any]:
    """A study's mapping at a size: None as written; "small" its small twin, named NAME-small.

    The section `small` replaces whole fields. ValueError for another size, and for a study without that section.
    """
    if size is None:
        return dict(data)
    if size != SMALL:
        raise ValueError(f"{source}: size: {size!r} is not known, expected {SMALL!r}, or none for the study as written")
    twin = data.get(SMALL)
    if not isinstance(twin, Mapping) or not twin:
        raise ValueError(f"{source}: size: this study has no small twin, expected a section {SMALL!r} in the file")
    own = {key: value for key, value in data.items() if key != SMALL}
    return {**own, "runs": SMALL, **twin, "name": f"{data.get('name')}-{SMALL}"}


def changed(data: Mapping[str, Any], changes: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """A study's mapping with fields of its own changed: "seeds", "arms.NAME.FIELD", "rule.FIELD" and the like."""
    data = dict(data)
    for key, value in changes.items():
        section, _, field = key.partition(".")
        if section == "arms":
            arm, _, field = field.partition(".")
            check_names([arm], data.get("arms") or {}, f"{source}: {key}: arm")
            data["arms"] = {**data["arms"], arm: {**flatten(data["arms"][arm] or {}), field: value}}
        else:
            data[section] = {**(data.get(section) or {}), field: value} if field else value
    return data
