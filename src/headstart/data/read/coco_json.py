"""A COCO JSON document -> checked flat columns, the arrays of a Dataset."""

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from headstart.data.images import MAX_PIXELS
from headstart.data.read import coco_fields, coco_segments, json_pieces
from headstart.data.read.coco_segments import Segments

_PIECE = 1 << 24  # bytes parsed together; a smaller file is parsed whole


def load(path: Path) -> tuple[dict, Segments]:
    """The parsed file: lists images, annotations and categories; and the segmentations, taken out of the annotations.

    ValueError naming file and line. NaN and Infinity, which some tools write although JSON has none, are parsed so that
    the record can be named. A large file is parsed in pieces: COCO's own would take 4 GiB whole.
    """
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1)
        raise ValueError(f"{path}: no such annotation file{coco_fields.did_you_mean(near)}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): expected a COCO JSON file") from error
    parsed = _parse_in_pieces(path, raw) if len(raw) > _PIECE else None
    if parsed is not None:
        return parsed
    document = _parse(path, raw)
    del raw
    return check_document(path, document), take_segments(path, document)


def take_segments(path: Any, document: dict) -> Segments:
    """The segmentations of a checked document, taken out of its annotations."""
    segments = Segments(path)
    segments.add(document["annotations"])
    return segments


def check_document(path: Any, document: Any) -> dict:
    """The document; ValueError unless it is an object with the three lists."""
    if not isinstance(document, dict):
        expected = "a JSON object with images, annotations and categories"
        raise ValueError(f"{path}: {coco_fields.show(document)}: expected {expected}")
    for field in coco_fields.PLURAL.values():
        records = document.get(field, coco_fields.MISSING)
        if not isinstance(records, list):
            raise coco_fields.wrong(path, "file", field, records, "a list", document)
    return document


def _parse_in_pieces(path: Path, raw: bytes) -> tuple[dict, Segments] | None:
    """As load; None if anything is not as in a sound file, whose error then comes from parsing the whole."""
    found = json_pieces.split(raw, "annotations", _PIECE)
    if found is None:
        return None
    emptied, pieces = found
    segments, annotations = Segments(path), []
    try:
        document = check_document(path, orjson.loads(emptied))
        for number, piece in enumerate(pieces):
            records = orjson.loads(piece)
            if number and not records:  # a comma without a record
                return None
            segments.add(records)
            annotations += records
    except orjson.JSONDecodeError:
        return None
    document["annotations"] = annotations
    return document, segments


def _parse(path: Path, raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        try:
            text = raw.decode()
        except UnicodeDecodeError as bad:
            line = raw.count(b"\n", 0, bad.start) + 1
            raise ValueError(f"{path}: line {line}: byte {raw[bad.start]:#x} is not UTF-8 text") from None
        if text.startswith(("NaN", "Infinity", "-Infinity"), error.pos) or "NaN" in text or "Infinity" in text:
            return _parse_with_nan(path, text)
        raise _invalid_json(path, error) from None


def _parse_with_nan(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid_json(path, error) from None


def _invalid_json(path: Path, error: json.JSONDecodeError) -> ValueError:
    reason = error.msg.split(": line ")[0]
    return ValueError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({reason})")


def image_columns(path: Any, images: list) -> dict[str, Any]:
    """Ids, file names and sizes of I images."""
    coco_fields.check_records(path, "image", images)
    if not images:
        raise ValueError(f"{path}: images = []: expected at least one image")
    ids = coco_fields.integers(path, "image", images, "id", "an integer")
    coco_fields.check_unique(path, "image", "id", ids)
    names = coco_fields.texts(path, "image", images, "file_name")
    coco_fields.check_file_names(path, images, names)
    sides = [
        coco_fields.integers(path, "image", images, side, "an integer number of pixels, 1 to 1000000", 1, 10**6)
        for side in ("height", "width")
    ]
    bomb = sides[0] * sides[1] > MAX_PIXELS
    if bomb.any():
        bad = int(np.argmax(bomb))
        where = coco_fields.place("image", bad, images[bad])
        found = [int(side[bad]) for side in sides]
        raise coco_fields.wrong(path, where, "height, width", found, f"at most {MAX_PIXELS} pixels")
    heights, widths = (side.astype(np.int32) for side in sides)
    return {"image_ids": ids, "file_names": tuple(names), "heights": heights, "widths": widths}


def category_columns(path: Any, categories: list) -> dict[str, Any]:
    """Ids ascending, names in their order, and the keypoint names of C categories."""
    coco_fields.check_records(path, "category", categories)
    if not categories:
        raise ValueError(f"{path}: categories = []: expected at least one category")
    ids = coco_fields.integers(path, "category", categories, "id", "an integer")
    coco_fields.check_unique(path, "category", "id", ids)
    names = coco_fields.texts(path, "category", categories, "name")
    coco_fields.check_unique(path, "category", "name", names)
    order = np.argsort(ids, kind="stable")
    keypoint_names = coco_fields.keypoint_names(path, categories)
    return {
        "category_ids": ids[order],
        "class_names": tuple(names[c] for c in order),
        "keypoint_names": keypoint_names,
    }


def annotation_columns(
    path: Any, records: list, segments: Segments, known: dict[str, Any], notes: list[str], keep_difficult: bool
) -> dict[str, Any]:
    """All per-annotation columns, sorted by image; known holds the columns of images and categories."""
    ids = coco_fields.integers(path, "annotation", records, "id", "an integer")
    coco_fields.check_unique(path, "annotation", "id", ids)
    image = coco_fields.positions(path, records, "image_id", known["image_ids"], "images")
    labels = coco_fields.positions(path, records, "category_id", known["category_ids"], "categories")
    xywh = coco_fields.boxes(path, records)
    difficult, _ = coco_fields.flags(path, records, "difficult")

    keep = np.isfinite(xywh).all(1) & (xywh[:, 2:] > 0).all(1)
    coco_fields.note(notes, ids[~keep], "without a positive width and height left out")
    if not keep_difficult:
        coco_fields.note(notes, ids[keep & difficult], "marked difficult left out")
        keep &= ~difficult
    order = np.argsort(image, kind="stable")
    order = order[keep[order]]
    kept = [records[n] for n in order]
    ids, image, labels, xywh, difficult = (column[order] for column in (ids, image, labels, xywh, difficult))

    crowd, missing = coco_fields.flags(path, kept, "iscrowd")
    coco_fields.note(notes, ids[missing], "without iscrowd taken as single objects")
    areas = coco_fields.floats(path, kept, "area")
    keypoints = coco_fields.keypoints(path, kept, known["keypoint_names"], notes)
    segment_columns = segments.arrays(order, kept, known["heights"][image], known["widths"][image])
    _fill_areas(areas, xywh, segment_columns, ids, notes)
    return {
        "first": np.searchsorted(image, np.arange(len(known["image_ids"]) + 1)).astype(np.int64),
        "annotation_ids": ids,
        "boxes": np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1),
        "labels": labels.astype(np.int32),
        "crowd": crowd,
        "difficult": difficult,
        "areas": areas,
        "keypoints": keypoints,
        **segment_columns,
    }


def _fill_areas(areas: np.ndarray, xywh: np.ndarray, segments: dict, ids: np.ndarray, notes: list[str]) -> None:
    """Replace NaN areas in place by the segmentation's, else the box's."""
    missing = np.isnan(areas)
    if missing.any():
        measured = coco_segments.areas(segments)
        filled = np.where(np.isnan(measured), xywh[:, 2] * xywh[:, 3], measured)
        areas[missing] = filled[missing]
        coco_fields.note(notes, ids[missing], "without area measured from the segmentation or the box")
