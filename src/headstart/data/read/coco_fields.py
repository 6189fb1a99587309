"""Checks of single COCO fields. Every message names file, record, field, value and what was expected."""

import difflib
from array import array
from pathlib import PureWindowsPath
from typing import Any

import numpy as np

MAX_COORDINATE = 1e6  # pixels; pycocotools walks polygon edges in fifths of a pixel with 32-bit integers
MISSING = object()  # what a record without the field has in it
PLURAL = {"image": "images", "annotation": "annotations", "category": "categories"}
_SHOWN = 80  # characters of a wrong value in a message: enough to recognise it, still one line
_LISTED = 100  # ids named in one note


def wrong(path: Any, where: str, field: str, value: Any, expected: str, record: dict | None = None) -> ValueError:
    """The one-line error; with record, a missing field is matched to the nearest name the record has."""
    if value is MISSING:
        near = difflib.get_close_matches(field, [k for k in record or () if k != field], 1)
        return ValueError(f"{path}: {where}: field '{field}' is missing: expected {expected}{did_you_mean(near)}")
    return ValueError(f"{path}: {where}: {field} = {show(value)}: expected {expected}")


def did_you_mean(near: list[str]) -> str:
    return f" (nearest name there: '{near[0]}')" if near else ""


def show(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def place(kind: str, position: int, record: Any) -> str:
    """How a message names a record: by its own id, or by its position where it has none."""
    own = record.get("id") if isinstance(record, dict) else None
    return f"{kind} {own}" if type(own) is int else f"{PLURAL[kind]}[{position}]"


def check_records(path: Any, kind: str, records: list, offset: int = 0) -> None:
    """ValueError unless every record is a JSON object; offset is the first one's position in its list."""
    if set(map(type, records)) - {dict}:
        position = next(i for i, r in enumerate(records) if type(r) is not dict)
        raise ValueError(
            f"{path}: {PLURAL[kind]}[{offset + position}] = {show(records[position])}: expected a JSON object"
        )


def integers(
    path: Any, kind: str, records: list[dict], field: str, expected: str, least: int = -(2**63), most: int = 2**63 - 1
) -> np.ndarray:
    """One integer field of all records as int64; ValueError on the first missing, no integer or not least..most."""
    values = [record.get(field, MISSING) for record in records]
    if set(map(type, values)) <= {int}:
        try:
            column = np.array(values, np.int64)
            if not ((column < least) | (column > most)).any():
                return column
        except OverflowError:
            pass
    bad = next(i for i, v in enumerate(values) if type(v) is not int or not least <= v <= most)
    raise wrong(path, place(kind, bad, records[bad]), field, values[bad], expected, records[bad])


def texts(path: Any, kind: str, records: list[dict], field: str) -> list[str]:
    """One text field of all records; ValueError on the first that is missing, empty or no text."""
    values = [record.get(field, MISSING) for record in records]
    for position, value in enumerate(values):
        if type(value) is not str or not value:
            raise wrong(path, place(kind, position, records[position]), field, value, "text", records[position])
    return values


def check_unique(path: Any, kind: str, field: str, values: np.ndarray | list) -> None:
    """ValueError naming the first value that two records share."""
    found, counts = np.unique(np.asarray(values), return_counts=True)
    if (counts > 1).any():
        value = found[np.argmax(counts > 1)]
        times = int(counts[counts > 1][0])
        raise ValueError(f"{path}: {PLURAL[kind]}: {field} = {value} is given {times} times: expected once")


def check_file_names(path: Any, records: list[dict], names: list[str]) -> None:
    """ValueError on a file_name that leaves the image folder: absolute, with a drive, or through '..'."""
    for position, name in enumerate(names):
        if ".." in name or name[0] in "/\\" or ":" in name or "\0" in name:  # cheap first; pathlib only for the few
            parts = PureWindowsPath(name)  # knows both separators, drives and shares
            if parts.anchor or ".." in parts.parts or "\0" in name:
                where = place("image", position, records[position])
                raise wrong(path, where, "file_name", name, "a path that stays inside the image folder")


def positions(path: Any, records: list[dict], field: str, known: np.ndarray, of: str) -> np.ndarray:
    """Index into `known` ids (any order) of each annotation's id in `field`; ValueError on the first unknown id."""
    values = integers(path, "annotation", records, field, f"the id of one of the {of}")
    order = np.argsort(known, kind="stable")
    slot = np.minimum(np.searchsorted(known[order], values), len(known) - 1)
    found = order[slot]
    if (known[found] != values).any():
        bad = int(np.argmax(known[found] != values))
        near = int(known[np.argmin(np.abs(known.astype(np.float64) - float(values[bad])))])
        raise wrong(
            path, place("annotation", bad, records[bad]), field, int(values[bad]),
            f"the id of one of the {of} (nearest: {near})",
        )  # fmt: skip
    return found


def boxes(path: Any, records: list[dict]) -> np.ndarray:
    """bbox [x, y, width, height] of all annotations as float64 [N, 4], untouched."""
    values = [record.get("bbox", MISSING) for record in records]
    flat = array("d")
    try:
        for value in values:
            if len(value) != 4 or type(value) is not list:
                raise TypeError
            flat.extend(value)
    except (TypeError, OverflowError):
        bad = next(i for i, v in enumerate(values) if not is_numbers(v, 4))
        expected = "four numbers [x, y, width, height] in pixels"
        raise wrong(path, place("annotation", bad, records[bad]), "bbox", values[bad], expected, records[bad]) from None
    found = np.frombuffer(flat, np.float64).reshape(-1, 4) if flat else np.zeros((0, 4))
    if (np.abs(found) > MAX_COORDINATE).any(where=np.isfinite(found)):
        bad = int(np.argmax((np.isfinite(found) & (np.abs(found) > MAX_COORDINATE)).any(1)))
        expected = f"coordinates within ±{MAX_COORDINATE:.0f} pixels"
        raise wrong(path, place("annotation", bad, records[bad]), "bbox", values[bad], expected)
    return found


def is_numbers(value: Any, length: int | None = None) -> bool:
    """Whether value is a list of JSON numbers, of that length if given."""
    return type(value) is list and set(map(type, value)) <= {int, float} and (length is None or len(value) == length)


def floats(path: Any, records: list[dict], field: str) -> np.ndarray:
    """One optional non-negative number of all annotations as float64 [N]; NaN where it is missing or null."""
    values = [record.get(field) for record in records]
    column = np.array([np.nan if v is None or type(v) not in (int, float) else v for v in values], np.float64)
    for bad in np.flatnonzero(~((column >= 0) & np.isfinite(column))):  # few: the missing ones and the wrong ones
        if values[bad] is not None:
            raise wrong(path, place("annotation", int(bad), records[bad]), field, values[bad], "a number of 0 or more")
    return column


def flags(path: Any, records: list[dict], field: str) -> tuple[np.ndarray, np.ndarray]:
    """One optional 0/1 field as bool [N], False where missing, and which were missing, bool [N]."""
    values = [record.get(field) for record in records]
    if not set(values if _hashable(values) else [MISSING]) <= {0, 1, None}:
        bad = next(i for i, v in enumerate(values) if not (v is None or (type(v) in (int, bool) and v in (0, 1))))
        raise wrong(path, place("annotation", bad, records[bad]), field, values[bad], "0 or 1")
    return np.array([v == 1 for v in values], bool), np.array([v is None for v in values], bool)


def _hashable(values: list) -> bool:
    return not {list, dict} & set(map(type, values))


def note(notes: list[str], ids: np.ndarray, what: str) -> None:
    """Append one line "N annotations WHAT: ids ..." unless there is none."""
    if len(ids):
        listed = ", ".join(map(str, ids[:_LISTED])) + (f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else "")
        notes.append(f"{len(ids)} annotation{'s' if len(ids) > 1 else ''} {what}: id {listed}")


def keypoint_names(path: Any, categories: list[dict]) -> tuple[str, ...]:
    """Names of the keypoints, () if no category lists any; ValueError if two categories list different ones."""
    found: tuple[str, ...] = ()
    for position, category in enumerate(categories):
        names = category.get("keypoints") or []
        where = place("category", position, category)
        if type(names) is not list or set(map(type, names)) - {str} or len(set(names)) < len(names):
            raise wrong(path, where, "keypoints", names, "a list of different names")
        if names and found and tuple(names) != found:
            raise wrong(path, where, "keypoints", names, f"the same names as the other categories, {list(found)}")
        found = found or tuple(names)
    return found


def skeleton(categories: list[dict], num_keypoints: int, notes: list[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of keypoints, counted from 0, that a drawing joins: the first category's that lists any, else none.

    A list that is something else is noted: it matters to drawings only.
    """
    listed = next((category["skeleton"] for category in categories if category.get("skeleton")), [])
    fine = type(listed) is list and all(is_numbers(pair, 2) for pair in listed)
    if not fine or any(end not in range(1, num_keypoints + 1) for pair in listed for end in pair):
        expected = f"pairs of numbers of keypoints, 1 to {num_keypoints}"
        notes.append(f"skeleton = {show(listed)} left out: expected {expected}")
        return ()
    return tuple((int(a) - 1, int(b) - 1) for a, b in listed)


def keypoints(path: Any, records: list[dict], names: tuple[str, ...], notes: list[str]) -> np.ndarray | None:
    """Keypoints float32 [N, K, 3] (x, y, visibility 0, 1, 2), zeros where an annotation has none; None without names.

    Annotations with keypoints in a file whose categories name none are noted.
    """
    if not names:
        unnamed = [record["id"] for record in records if record.get("keypoints")]
        note(notes, np.array(unnamed), "with keypoints, which no category names, read without them")
        return None
    found = np.zeros((len(records), len(names), 3), np.float32)
    for n, record in enumerate(records):
        values = record.pop("keypoints", None)
        if values is None or values == []:
            continue
        row = np.array(values, np.float64).reshape(-1, 3) if is_numbers(values, 3 * len(names)) else None
        if row is None or not (np.abs(row) <= MAX_COORDINATE).all() or not np.isin(row[:, 2], (0, 1, 2)).all():
            expected = f"{len(names)} times x, y, visibility (0, 1 or 2), {3 * len(names)} finite numbers"
            raise wrong(path, place("annotation", n, record), "keypoints", values, expected)
        found[n] = row
    return found
