"""Records of COCO JSON and their faults: messages with file, id, field, value and expectation."""

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from headstart.data import rle
from headstart.data.images import MAX_PIXELS

MAX_COORDINATE = 1e6  # pixels; pycocotools walks polygon edges in fifths of a pixel with 32-bit integers
MISSING = object()  # the value of a field that a record does not have
PLURAL = {"image": "images", "annotation": "annotations", "category": "categories"}
_SHOWN = 80  # characters of a wrong value in a message: enough to recognise it, still one line

Segmentation = TypeVar("Segmentation")
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, Meta(ge=1, le=10**6)]
Text = Annotated[str, Meta(min_length=1)]
Flag = float | bool | None
Polygons = list[list[float]] | dict[str, Any] | None  # polygons, or an RLE


class ImageRecord(Struct, gc=False):
    """One of `images`."""

    id: Id
    file_name: Text
    height: Side
    width: Side


class CategoryRecord(Struct, gc=False):
    """One of `categories`. Names of keypoints are checked by `category_faults`, these and skeleton by the reader."""

    id: Id
    name: Text
    keypoints: Any = None
    skeleton: Any = None


class AnnotationRecord(Struct, Generic[Segmentation], gc=False):
    """One of `annotations`; the segmentation as text (msgspec.Raw, decoded one by one) or as parsed (Any)."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]  # x, y, width, height
    iscrowd: Flag = None
    difficult: Flag = None
    area: float | None = None
    keypoints: Any = None  # checked by `keypoint_row`, where a category names some
    segmentation: Segmentation = None


_EXPECTED = {
    "id": "an integer",
    "file_name": "text",
    "height": "an integer number of pixels, 1 to 1000000",
    "width": "an integer number of pixels, 1 to 1000000",
    "name": "text",
    "image_id": "the id of one of the images",
    "category_id": "the id of one of the categories",
    "bbox": "four numbers [x, y, width, height] in pixels",
    "iscrowd": "0 or 1",
    "difficult": "0 or 1",
    "area": "a number of 0 or more",
}
_UNICODE = "text that UTF-8 can hold"


@dataclass(frozen=True)
class Fault:
    """A wrong field of a record; value is MISSING where the record has no such field."""

    field: str
    value: Any
    expected: str

    def text(self, record: Mapping) -> str:
        """The message without file and record; a missing field is matched to the nearest name the record has."""
        if self.value is not MISSING:
            return f"{self.field} = {show(self.value)}: expected {self.expected}"
        near = difflib.get_close_matches(self.field, [name for name in record if name != self.field], 1)
        return f"field '{self.field}' is missing: expected {self.expected}{did_you_mean(near)}"


@dataclass(frozen=True)
class Known:
    """Records of the file that annotations refer to."""

    image_ids: Collection[int]
    category_ids: Collection[int]
    sizes: Mapping[int, tuple[int, int]]  # image id -> (height, width)
    num_keypoints: int


def did_you_mean(near: list[str]) -> str:
    """End of a message that gives the nearest name, if there is one."""
    return f" (nearest name there: '{near[0]}')" if near else ""


def show(value: Any) -> str:
    """A value on one line, cut where it is long; its type where it has no short text."""
    try:
        text = " ".join(repr(value).split())
    except (RecursionError, ValueError):  # nested deeply; a number of more digits than Python writes
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def place(kind: str, position: int, record: Any) -> str:
    """A record's name in messages: its own id, or its position where it has none."""
    own = record.get("id") if isinstance(record, dict) else None
    return f"{kind} {own}" if type(own) is int else f"{PLURAL[kind]}[{position}]"


def fits(value: Any, kind: Any) -> bool:
    """True if a parsed JSON value has this type, by msgspec's rules."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


def _wrong_types(record: Mapping, kind: type[Struct]) -> Iterator[Fault]:
    if fits(record, kind):
        return
    for field in msgspec.structs.fields(kind):
        value = record.get(field.name, MISSING)
        if field.required if value is MISSING else not fits(value, field.type):
            yield Fault(field.name, value, _EXPECTED[field.name])


def category_faults(record: Mapping, names: list[str]) -> list[Fault]:
    """Faults of a category; names are the keypoints that another category lists, [] if none does."""
    found = list(_wrong_types(record, CategoryRecord))
    if all(fault.field != "name" for fault in found) and not is_unicode(record["name"]):
        found.append(Fault("name", record["name"], _UNICODE))
    own = record.get("keypoints") or []
    if type(own) is not list or set(map(type, own)) - {str} or len(set(own)) < len(own) or not is_unicode(own):
        found.append(Fault("keypoints", own, "a list of different names"))
    elif own and names and own != names:
        found.append(Fault("keypoints", own, f"the same names as the other categories, {names}"))
    return found


def image_faults(record: Mapping) -> list[Fault]:
    """Faults of an image."""
    found = list(_wrong_types(record, ImageRecord))
    wrong = {fault.field for fault in found}
    if "file_name" not in wrong and not is_unicode(record["file_name"]):
        found.append(Fault("file_name", record["file_name"], _UNICODE))
    elif "file_name" not in wrong and leaves_folder(record["file_name"]):
        found.append(Fault("file_name", record["file_name"], "a path that stays inside the image folder"))
    if not wrong & {"height", "width"} and record["height"] * record["width"] > MAX_PIXELS:
        sides = [record["height"], record["width"]]
        expected = f"at most {MAX_PIXELS} pixels (got {sides[0] * sides[1]} pixels)"
        found.append(Fault("height, width", sides, expected))
    return found


def is_unicode(names: Iterable[str]) -> bool:
    """True unless a text has a lone surrogate, as JSON escapes and undecodable file names may: it cannot be written."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return False
    return True


def leaves_folder(name: str) -> bool:
    """True if a file_name leads out of the image folder: absolute, with a drive, or through '..'."""
    if ".." in name or name[0] in "./\\" or ":" in name or "\0" in name:  # cheap first; pathlib only for the few
        parts = PureWindowsPath(name)  # knows both separators, drives and shares
        return bool(parts.anchor) or ".." in parts.parts or not parts.name or "\0" in name
    return False


def annotation_faults(record: Mapping, known: Known) -> list[Fault]:
    """Faults of an annotation, its references to image and category included.

    A box without a positive, finite width and height is no fault: the reader leaves it out and notes it.
    """
    found = list(_wrong_types(record, AnnotationRecord[Any]))
    wrong = {fault.field for fault in found}
    for field, ids in (("image_id", known.image_ids), ("category_id", known.category_ids)):
        if field not in wrong and record[field] not in ids:
            nearest = f" (nearest: {min(ids, key=lambda own: abs(own - record[field]))})" if ids else ""
            found.append(Fault(field, record[field], _EXPECTED[field] + nearest))
    if "bbox" not in wrong and any(math.isfinite(v) and abs(v) > MAX_COORDINATE for v in record["bbox"]):
        found.append(Fault("bbox", record["bbox"], f"coordinates within ±{MAX_COORDINATE:.0f} pixels"))
    for field in ("iscrowd", "difficult"):
        if field not in wrong and record.get(field) not in (0, 1, None):
            found.append(Fault(field, record[field], _EXPECTED[field]))
    area = record.get("area")
    if "area" not in wrong and area is not None and not (area >= 0 and math.isfinite(area)):
        found.append(Fault("area", area, _EXPECTED["area"]))
    if known.num_keypoints:
        try:
            keypoint_row(record.get("keypoints"), known.num_keypoints)
        except ValueError as expected:
            found.append(Fault("keypoints", record["keypoints"], str(expected)))
    size = None if "image_id" in wrong else known.sizes.get(record["image_id"])
    return found + list(_segmentation_faults(record.get("segmentation"), size))


def keypoint_row(values: Any, num_keypoints: int) -> np.ndarray | None:
    """Keypoints float64 [K, 3] of a record's list; None without. ValueError whose text is what was expected."""
    if values is None or values == []:
        return None
    if fits(values, list[float]) and len(values) == 3 * num_keypoints:
        row = np.array(values, np.float64).reshape(-1, 3)
        if (np.abs(row) <= MAX_COORDINATE).all() and np.isin(row[:, 2], (0, 1, 2)).all():
            return row
    raise ValueError(f"{num_keypoints} times x, y, visibility (0, 1 or 2), {3 * num_keypoints} finite numbers")


def _segmentation_faults(value: Any, size: tuple[int, int] | None) -> Iterator[Fault]:
    """At most one; RLE is checked where the size of its image is known."""
    if type(value) is list:
        for position, polygon in enumerate(value):
            field = f"segmentation[{position}]"
            if not fits(polygon, list[float]) or len(polygon) < 6 or len(polygon) % 2:
                yield Fault(field, polygon, "a list of polygons, each [x1, y1, x2, y2, …] of 3 points or more")
                return
            bad = [number for number in polygon if not abs(number) <= MAX_COORDINATE]  # NaN compares False
            if bad:
                yield Fault(field, bad[0], f"finite coordinates within ±{MAX_COORDINATE:.0f} pixels")
                return
    elif type(value) is dict:
        try:
            if size is not None:
                rle.checked(value, *size)
        except ValueError as expected:
            yield Fault("segmentation", value, str(expected))
        except OverflowError:
            yield Fault("segmentation", value, "RLE with counts that fit an image")
    elif value is not None:
        yield Fault("segmentation", value, "polygons or RLE")


def refusal(path: Any, document: dict) -> ValueError | None:
    """The error of the first record that is wrong, in a document that has the three lists."""
    known, names = Known((), (), {}, 0), []
    for kind in ("image", "category", "annotation"):
        for position, record in enumerate(document[PLURAL[kind]]):
            where = f"{path}: {place(kind, position, record)}"
            if type(record) is not dict:
                return ValueError(f"{where} = {show(record)}: expected a JSON object")
            if kind == "annotation":
                faults = annotation_faults(record, known)
            else:
                faults = image_faults(record) if kind == "image" else category_faults(record, names)
            if faults:
                return ValueError(f"{where}: {faults[0].text(record)}")
            if kind == "category":
                names = names or record.get("keypoints") or []
        if kind == "category":
            sizes = {record["id"]: (record["height"], record["width"]) for record in document["images"]}
            known = Known(sizes, {record["id"] for record in document["categories"]}, sizes, len(names))
    return None
