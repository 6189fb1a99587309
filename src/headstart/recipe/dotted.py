"""Nested mappings and their dotted paths: {"train": {"rate": 1}} and {"train.rate": 1}."""

import reprlib
from typing import Any

MOST_PARTS = 20  # of a path; recipes have four


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {dotted path: value}; ValueError for a path with two values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        for name, leaf in (flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}).items():
            if name in flat and flat[name] != leaf:
                raise ValueError(f"{name}: is given twice, also within its section; expected one value")
            flat[name] = leaf
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flatten(flat).items():
        *parents, leaf = path.split(".")
        if len(parents) >= MOST_PARTS:
            raise ValueError(f"{reprlib.repr(path)}: has {len(parents) + 1:,} parts, expected at most {MOST_PARTS}")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: {parent!r} holds a value, it has no fields")
        node[leaf] = value
    return tree
