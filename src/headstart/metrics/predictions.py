"""Detections as flat arrays, read from and written to COCO's results format.

Letters: D detections, K keypoints. Boxes are XYXY in pixels of the original image, and [x, y, width, height] in files.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
from msgspec import Meta, Struct
from pycocotools import mask as coco_mask

from headstart.data import rle
from headstart.data.read.coco_records import Id, fits, show
from headstart.files import named, write_whole

_Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
_Extent = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
_Side = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class _Rle(Struct):
    size: tuple[_Side, _Side]


# Type and description of each field of the results format.
_FIELDS: dict[str, tuple[Any, str]] = {
    "image_id": (Id, "a whole number"),
    "category_id": (Id, "a whole number"),
    "score": (_Finite, "a finite number"),
    "bbox": (
        tuple[_Finite, _Finite, _Extent, _Extent],
        "four finite numbers [x, y, width, height] with width and height of at least 0",
    ),
    "segmentation": (_Rle, "an RLE object with the size [height, width] of its image"),
    "keypoints": (Annotated[list[_Finite], Meta(min_length=3)], "finite numbers x, y, score for each keypoint"),
}


@dataclass(frozen=True, eq=False)
class Predictions:
    """The detections of any number of images, in any order, with the image and category ids of the data set.

    image_ids, category_ids int64 [D]; boxes float64 [D, 4] XYXY pixels of the original image; scores float64 [D];
    masks: D compressed COCO RLE dicts ({"size": [h, w], "counts": bytes}) over the whole image, or None;
    keypoints float32 [D, K, 3] (x, y, score) or None. D may be 0.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: tuple[dict, ...] | None = None
    keypoints: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.image_ids)
        assert self.category_ids.shape == self.scores.shape == (count,), (self.category_ids.shape, self.scores.shape)
        assert self.boxes.shape == (count, 4), self.boxes.shape
        assert self.masks is None or len(self.masks) == count, len(self.masks)
        assert self.keypoints is None or self.keypoints.shape[::2] == (count, 3), self.keypoints.shape

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return f"Predictions({len(self):,} detections on {len(np.unique(self.image_ids)):,} images)"

    def rows(self) -> list[dict[str, Any]]:
        """COCO results: one object a detection.

        A box that is read back from [x, y, width, height] equals the original to within one rounding of x + width.
        """
        extents = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        columns = (self.image_ids.tolist(), self.category_ids.tolist(), extents.tolist(), self.scores.tolist())
        rows = [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(*columns)
        ]
        for row, mask in zip(rows, self.masks or ()):
            row["segmentation"] = {"size": [int(side) for side in mask["size"]], "counts": mask["counts"].decode()}
        if self.keypoints is not None:
            for row, points in zip(rows, self.keypoints):
                row["keypoints"] = points.ravel().tolist()
        return rows

    def to_json(self, path: str | Path) -> None:
        """Write `rows` as JSON, replacing `path` in one step."""
        write_whole(path, orjson.dumps(self.rows()))

    @classmethod
    def from_json(cls, path: str | Path) -> "Predictions":
        """Read a COCO results file.

        An entry without `bbox` takes the box around its mask. Masks and keypoints must be in all entries or in none.
        Raises ValueError naming the file, the entry (from 0), the field and the value; OSError if it cannot be read.
        """
        try:
            with named(path):
                rows = orjson.loads(Path(path).read_bytes())
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{path}: is not JSON ({error})") from None
        if not isinstance(rows, list):
            raise ValueError(f"{path}: holds {_kind(rows)}, expected a list of results as COCO's results format has it")
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"{path}: entry {index} is {_kind(row)}, expected an object")
        masks = _masks(rows, path) if any("segmentation" in row for row in rows) else None
        if masks is not None and not all("bbox" in row for row in rows):
            for row, around in zip(rows, coco_mask.toBbox(list(masks)).tolist()):
                row.setdefault("bbox", around)
        boxes = np.array(_column(rows, "bbox", path), dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return cls(
            image_ids=np.array(_column(rows, "image_id", path), dtype=np.int64),
            category_ids=np.array(_column(rows, "category_id", path), dtype=np.int64),
            boxes=boxes,
            scores=np.array(_column(rows, "score", path), dtype=np.float64),
            masks=masks,
            keypoints=_keypoints(rows, path) if any("keypoints" in row for row in rows) else None,
        )


def empty(*, masks: bool = False, num_keypoints: int = 0) -> Predictions:
    """Predictions without a detection; with masks and keypoints present (and empty) if asked for."""
    ids = np.zeros(0, np.int64)
    keypoints = np.zeros((0, num_keypoints, 3), np.float32) if num_keypoints else None
    return Predictions(ids, ids, np.zeros((0, 4)), np.zeros(0), () if masks else None, keypoints)


def concat(parts: Iterable[Predictions]) -> Predictions:
    """One Predictions of all parts in order; none at all gives the empty one.

    Either all parts with detections hold masks (keypoints) or none does; otherwise ValueError.
    """
    parts = list(parts)
    filled = [part for part in parts if len(part)] or parts[:1]
    if not filled:
        return empty()
    for name in ("masks", "keypoints"):
        if len({getattr(part, name) is None for part in filled}) > 1:
            raise ValueError(f"cannot join predictions: only some of the {len(filled)} parts hold {name}")
    return Predictions(
        image_ids=np.concatenate([part.image_ids for part in filled]),
        category_ids=np.concatenate([part.category_ids for part in filled]),
        boxes=np.concatenate([part.boxes for part in filled]),
        scores=np.concatenate([part.scores for part in filled]),
        masks=None if filled[0].masks is None else tuple(mask for part in filled for mask in part.masks),
        keypoints=None if filled[0].keypoints is None else np.concatenate([part.keypoints for part in filled]),
    )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _column(rows: list[dict], field: str, path: str | Path) -> list:
    """Values of a field that all entries must have."""
    kind, expected = _FIELDS[field]
    for index, row in enumerate(rows):
        if field not in row:
            raise ValueError(f"{path}: entry {index} has no {field!r}")
        if not fits(row[field], kind):
            raise _wrong(path, index, field, row[field], expected)
    return [row[field] for row in rows]


def _wrong(path: str | Path, index: int, field: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{path}: entry {index}: {field!r} is {show(value)}, expected {expected}")


def _masks(rows: list[dict], path: str | Path) -> tuple[dict, ...]:
    masks = []
    for index, mask in enumerate(_column(rows, "segmentation", path)):
        try:
            masks.append(rle.checked(mask, *mask["size"]))
        except ValueError as expected:
            raise _wrong(path, index, "segmentation", mask, str(expected)) from None
    return tuple(masks)


def _keypoints(rows: list[dict], path: str | Path) -> np.ndarray:
    points = _column(rows, "keypoints", path)
    for index, row in enumerate(points):
        if len(row) % 3:
            raise _wrong(path, index, "keypoints", row, _FIELDS["keypoints"][1])
        if len(row) != len(points[0]):
            counts = f"{len(row) // 3} points, expected {len(points[0]) // 3} as in entry 0"
            raise ValueError(f"{path}: entry {index}: 'keypoints' holds {counts}")
    return np.array(points, np.float32).reshape(len(points), -1, 3)
