"""Arms that are another arm until the last steps of each schedule: what a study file says of them, and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart.recipe.dotted import flatten
from headstart.recipe.schedule import duration, parse_schedule
from headstart.study.checks import check_names

KEYS = ("branch_of", "last")  # the keys of an arm that are no fields of a recipe

Arms = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Branch:
    """The arm whose trunk another continues, and for how long: a duration, or "3x" for three times the base."""

    parent: str
    last: str | int


def branch_of(arms: Arms, arm: str) -> Branch | None:
    """Where an arm leaves another one's trunk; None for an arm with a start of its own."""
    return Branch(arms[arm]["branch_of"], arms[arm]["last"]) if "branch_of" in arms[arm] else None


def patch_of(arms: Arms, arm: str) -> dict[str, Any]:
    """An arm's patch on the recipe {dotted field: value}; a branch has the patch of its parent below its own."""
    own, branch = _own(arms[arm]), branch_of(arms, arm)
    return own if branch is None else {**flatten(dict(arms[branch.parent])), **own}


def check_branch(arms: Arms, arm: str, *, share: bool) -> None:
    """ValueError for a branch that could not begin, or that would be its parent; other arms pass."""
    given = [key for key in KEYS if key in arms[arm]]
    if not given:
        return
    if len(given) == 1:
        missing = next(key for key in KEYS if key not in given)
        raise ValueError(
            f"arms.{arm}: {given[0]} is given without {missing}, expected both, "
            "such as {branch_of: scratch, last: 270k steps}"
        )
    parent, own = arms[arm]["branch_of"], _own(arms[arm])
    check_names([parent], [name for name in arms if name != arm], f"arms.{arm}.branch_of: arm")
    if "branch_of" in arms[parent]:
        raise ValueError(
            f"arms.{arm}.branch_of: {parent!r} is a branch itself, expected an arm with a start of its own"
        )
    _check_last(arm, arms[arm]["last"])
    wrong = next((field for field in own if field.startswith("start.") and field != "start.freeze"), None)
    if wrong is not None:
        raise ValueError(f"arms.{arm}.{wrong}: a branch starts where arm {parent!r} is, expected no start of its own")
    if not own:
        raise ValueError(f"arms.{arm}: changes nothing of arm {parent!r}, expected at least one field of the recipe")
    if not share:
        raise ValueError(f"arms.{arm}.branch_of: share is false, so that {parent!r} has no trunk, expected share: true")


def _own(entry: Mapping[str, Any]) -> dict[str, Any]:
    return flatten({key: value for key, value in entry.items() if key not in KEYS})


def _check_last(arm: str, last: object) -> None:
    if isinstance(last, str) and last.endswith("x"):
        parse_schedule(last)
    elif not duration(last, batch=1, num_images=1, field=f"arms.{arm}.last"):
        raise ValueError(f"arms.{arm}.last is {last!r}, expected more than nothing")
