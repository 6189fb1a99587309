"""Records of a COCO file as checked flat columns, the arrays of a Dataset."""

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any

import numpy as np

from headstart.data import rle
from headstart.data.dataset import NO_SEGMENT, POLYGONS, RLE, index_of, left_right
from headstart.data.images import MAX_PIXELS
from headstart.data.read.coco_records import (
    MAX_COORDINATE,
    PLURAL,
    AnnotationRecord,
    CategoryRecord,
    ImageRecord,
    fits,
    is_unicode,
    keypoint_row,
    leaves_folder,
    show,
)
from headstart.ops import polygons

_LISTED = 100  # ids named in one note
_BLOCK = 1 << 22  # coordinates checked together: keeps temporaries small beside COCO's 40 million


class Faulty(Exception):
    """Some record has a wrong value; `coco_records.refusal` says which."""


def images(path: Any, records: list[ImageRecord]) -> dict[str, Any]:
    """Ids, file names and sizes of I images."""
    ids = _ids(path, "image", records)
    heights, widths = (np.array([getattr(r, side) for r in records], np.int64) for side in ("height", "width"))
    names = tuple(record.file_name.replace("\\", "/") for record in records)  # as tools on Windows write them
    _check_unique(path, "image", "file_name", list(names))
    _require(not (heights * widths > MAX_PIXELS).any() and is_unicode(names) and not any(map(leaves_folder, names)))
    return {
        "image_ids": ids,
        "file_names": names,
        "heights": heights.astype(np.int32),
        "widths": widths.astype(np.int32),
    }


def categories(path: Any, records: list[CategoryRecord], notes: list[str]) -> dict[str, Any]:
    """Ids ascending and names in their order of C categories; names, left and right, and skeleton of K keypoints."""
    ids = _ids(path, "category", records)
    _check_unique(path, "category", "name", [record.name for record in records])
    _require(is_unicode(record.name for record in records))
    order = np.argsort(ids, kind="stable")
    listed = [record.keypoints for record in records if record.keypoints]
    _require(all(fits(names, list[str]) and len(set(names)) == len(names) and names == listed[0] for names in listed))
    _require(is_unicode(listed[0] if listed else ()))
    names = tuple(listed[0]) if listed else ()
    return {
        "category_ids": ids[order],
        "class_names": tuple(records[c].name for c in order),
        "keypoint_names": names,
        "left_right": left_right(names),
        "skeleton": _skeleton(records, len(names), notes),
    }


def empty_copies(names: Sequence[Any], ids: Sequence[Any], used: Collection[Any]) -> set[int]:
    """Positions of categories without an annotation whose name another has too: Roboflow lists a set's own name.

    Of copies that all have none the last stays.
    """
    counts = Counter(name for name in names if isinstance(name, str))
    last = {name: n for n, name in enumerate(names) if isinstance(name, str)}
    taken = {name for name, own in zip(names, ids) if own in used and isinstance(name, str)}
    return {
        n for n, (name, own) in enumerate(zip(names, ids))
        if isinstance(name, str) and counts[name] > 1 and own not in used and (name in taken or n != last[name])
    }  # fmt: skip


def annotations(
    path: Any, records: list[AnnotationRecord], parsed: Callable[[Any], list | dict | None], known: dict[str, Any],
    notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    """All per-annotation columns, sorted by image; `known` holds the columns of images and categories.

    parsed: polygons, RLE or None from a record's segmentation; raises msgspec.ValidationError for anything else.
    """
    ids = np.array([record.id for record in records], np.int64)
    _check_unique(path, "annotation", "id", ids)
    image, image_known = index_of(known["image_ids"], np.array([record.image_id for record in records], np.int64))
    categories = np.array([record.category_id for record in records], np.int64)
    labels, category_known = index_of(known["category_ids"], categories)
    xywh = np.fromiter(chain.from_iterable(record.bbox for record in records), np.float64).reshape(-1, 4)
    far = np.isfinite(xywh) & (np.abs(xywh) > MAX_COORDINATE)
    _require(image_known.all() and category_known.all() and not far.any())
    difficult, _ = _flags([record.difficult for record in records])

    keep = np.isfinite(xywh).all(1) & (xywh[:, 2:] > 0).all(1)
    _note(notes, ids[~keep], "without a positive width and height left out")
    order = np.argsort(image, kind="stable")
    order = order[keep[order]]
    records = [records[n] for n in order]
    ids, image, labels, xywh, difficult = (column[order] for column in (ids, image, labels, xywh, difficult))

    crowd, missing = _flags([record.iscrowd for record in records])
    _note(notes, ids[missing], "without iscrowd taken as single objects")
    segments = _segments(records, parsed, known["heights"][image].tolist(), known["widths"][image].tolist())
    return {
        "first": np.searchsorted(image, np.arange(len(known["image_ids"]) + 1)).astype(np.int64),
        "annotation_ids": ids,
        "boxes": np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1),
        "labels": labels.astype(np.int32),
        "crowd": crowd,
        "difficult": difficult,
        "keypoints": _keypoints(records, len(known["keypoint_names"]), notes),
        "areas": _areas(records, xywh, segments, notes),
        **segments,
    }


def segment_areas(
    *, segment_kind: np.ndarray, polygon_first: np.ndarray, coord_first: np.ndarray, coords: np.ndarray,
    rles: dict[int, dict],
) -> np.ndarray:  # fmt: skip
    """Areas float64 [N] in square pixels: the sum of an annotation's polygons; RLE by its pixels; else NaN."""
    found = np.full(len(segment_kind), np.nan)
    owner = np.repeat(np.arange(len(segment_kind)), np.diff(polygon_first))
    sums = np.bincount(owner, polygons.areas(coords, coord_first), minlength=len(segment_kind))
    found[segment_kind == POLYGONS] = sums[segment_kind == POLYGONS]
    for n, mask in rles.items():
        found[n] = rle.area(mask)
    return found


def _require(good: Any) -> None:
    if not good:
        raise Faulty


def _ids(path: Any, kind: str, records: list) -> np.ndarray:
    if not records:
        raise ValueError(f"{path}: {PLURAL[kind]} = []: expected at least one {kind}")
    ids = np.array([record.id for record in records], np.int64)
    _check_unique(path, kind, "id", ids)
    return ids


def _check_unique(path: Any, kind: str, field: str, values: np.ndarray | list) -> None:
    if isinstance(values, list):  # texts: NumPy would give each the room of the longest
        counts = Counter(values)
        value, times = min(((text, n) for text, n in counts.items() if n > 1), default=(None, 1))
    else:
        found, numbers = np.unique(values, return_counts=True)
        value, times = (found[np.argmax(numbers > 1)], numbers[numbers > 1][0]) if (numbers > 1).any() else (None, 1)
    if times > 1:
        shown = " ".join(value.split())[:80] if isinstance(value, str) else value
        raise ValueError(f"{path}: {PLURAL[kind]}: {field} = {shown} is given {times} times: expected once")


def _flags(values: list) -> tuple[np.ndarray, np.ndarray]:
    """A 0/1 field as bool [N], False where missing, and which were missing, bool [N]."""
    known = set(values)
    _require(known <= {0, 1, None})
    missing = np.array([value is None for value in values] if None in known else np.zeros(len(values)), bool)
    return np.array([value == 1 for value in values] if 1 in known else np.zeros(len(values)), bool), missing


def _note(notes: list[str], ids: np.ndarray, what: str) -> None:
    """Append one line "N annotations WHAT: ids ..." unless there is none."""
    if len(ids):
        listed = ", ".join(map(str, ids[:_LISTED])) + (f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else "")
        notes.append(f"{len(ids)} annotation{'s' if len(ids) > 1 else ''} {what}: id {listed}")


def _skeleton(records: list[CategoryRecord], num_keypoints: int, notes: list[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of keypoints, counted from 0, that a drawing joins: the first category's that lists any, else none.

    A list that is something else is noted: it matters to drawings only.
    """
    listed = next((record.skeleton for record in records if record.skeleton), [])
    if not fits(listed, list[tuple[float, float]]) or any(
        end not in range(1, num_keypoints + 1) for pair in listed for end in pair
    ):
        expected = f"pairs of numbers of keypoints, 1 to {num_keypoints}"
        notes.append(f"skeleton = {show(listed)} left out: expected {expected}")
        return ()
    return tuple((int(a) - 1, int(b) - 1) for a, b in listed)


def _keypoints(records: list[AnnotationRecord], num_keypoints: int, notes: list[str]) -> np.ndarray | None:
    """Keypoints float32 [N, K, 3] (x, y, visibility 0, 1, 2), zeros where an annotation has none; None without names.

    Annotations with keypoints in a file whose categories name none are noted.
    """
    if not num_keypoints:
        unnamed = [record.id for record in records if record.keypoints]
        _note(notes, np.array(unnamed), "with keypoints, which no category names, read without them")
        return None
    found = np.zeros((len(records), num_keypoints, 3), np.float32)
    for own, record in zip(found, records):
        try:
            row = keypoint_row(record.keypoints, num_keypoints)
        except ValueError:
            raise Faulty from None
        if row is not None:
            own[:] = row
    return found


def _segments(
    records: list[AnnotationRecord], parsed: Callable[[Any], list | dict | None], heights: list[int], widths: list[int]
) -> dict[str, Any]:
    """Segment columns as Dataset has them."""
    coords, coord_ends, polygon_ends, kinds, rles = array("d"), array("q", [0]), array("q", [0]), bytearray(), {}
    for n, record in enumerate(records):
        segmentation = None if record.segmentation is None else parsed(record.segmentation)
        kind = NO_SEGMENT
        if type(segmentation) is dict:
            kind = RLE
            try:
                rles[n] = rle.checked(segmentation, heights[n], widths[n])
            except (ValueError, OverflowError):
                raise Faulty from None
        elif segmentation:
            kind = POLYGONS
            for polygon in segmentation:
                coords.extend(polygon)
                coord_ends.append(len(coords))
        kinds.append(kind)
        polygon_ends.append(len(coord_ends) - 1)
    flat, coord_first = np.frombuffer(coords, np.float64) if coords else np.zeros(0), np.array(coord_ends, np.int64)
    lengths = np.diff(coord_first)
    _require((lengths >= 6).all() and (lengths % 2 == 0).all())
    for start in range(0, flat.size, _BLOCK):
        _require((np.abs(flat[start : start + _BLOCK]) <= MAX_COORDINATE).all())  # NaN compares False
    return {
        "segment_kind": np.frombuffer(bytes(kinds), np.uint8),
        "polygon_first": np.array(polygon_ends, np.int64),
        "coord_first": coord_first,
        "coords": flat,
        "rles": rles,
    }


def _areas(records: list[AnnotationRecord], xywh: np.ndarray, segments: dict, notes: list[str]) -> np.ndarray:
    """Areas float64 [N]: as given, else the segmentation's, else the box's."""
    given = [record.area for record in records]
    missing = np.array([area is None for area in given], bool)
    areas = np.array([0.0 if area is None else area for area in given] if missing.any() else given, np.float64)
    _require(((areas >= 0) & np.isfinite(areas)).all())
    if missing.any():
        measured = segment_areas(**segments)
        areas[missing] = np.where(np.isnan(measured), xywh[:, 2] * xywh[:, 3], measured)[missing]
        _note(notes, np.array([record.id for record in records])[missing],
              "without area measured from the segmentation or the box")  # fmt: skip
    return areas
