"""A detection data set as flat arrays, read from and written to COCO JSON."""

import gc
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson

from headstart.data import coco_fields, coco_json
from headstart.data.coco_segments import POLYGONS, RLE, Segments, gather
from headstart.data.images import load_image


@dataclass(frozen=True, eq=False)
class Dataset:
    """I images, N annotations sorted by image, C classes, K keypoints, P polygons, Q coordinates.

    Boxes are XYXY in continuous pixels of the upright image, as annotated: they may reach outside it. Label c stands
    for category_ids[c]. Annotations of image i are first[i]:first[i + 1]; an image may have none. Polygons of
    annotation n are polygon_first[n]:polygon_first[n + 1], those of polygon p coord_first[p]:coord_first[p + 1] in
    coords, x and y in turn. notes says in one line each what was repaired or left out.
    """

    path: str  # the annotation file, for messages
    image_dir: Path
    image_ids: np.ndarray  # int64 [I], own ids
    file_names: tuple[str, ...]  # I, relative to image_dir
    heights: np.ndarray  # int32 [I]
    widths: np.ndarray  # int32 [I]
    category_ids: np.ndarray  # int64 [C], own ids, ascending
    class_names: tuple[str, ...]  # C
    first: np.ndarray  # int64 [I + 1]
    annotation_ids: np.ndarray  # int64 [N], own ids
    boxes: np.ndarray  # float64 [N, 4]
    labels: np.ndarray  # int32 [N]
    crowd: np.ndarray  # bool [N]
    difficult: np.ndarray  # bool [N]
    areas: np.ndarray  # float64 [N]
    segment_kind: np.ndarray  # uint8 [N]: NO_SEGMENT, POLYGONS or RLE
    polygon_first: np.ndarray  # int64 [N + 1]
    coord_first: np.ndarray  # int64 [P + 1]
    coords: np.ndarray  # float64 [Q]
    rles: dict[int, dict]  # annotation index -> {"size": [h, w], "counts": bytes}
    keypoints: np.ndarray | None  # float32 [N, K, 3] x, y, visibility; None without keypoint names
    keypoint_names: tuple[str, ...]  # K
    left_right: tuple[tuple[int, int], ...]  # indices that a mirror swaps
    skeleton: tuple[tuple[int, int], ...]  # indices that a drawing joins
    notes: tuple[str, ...]

    def size_of(self, annotation: int) -> tuple[int, int]:
        """(height, width) of the image that an annotation belongs to."""
        image = int(np.searchsorted(self.first, annotation, side="right")) - 1
        return int(self.heights[image]), int(self.widths[image])

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.image_ids)

    @property
    def num_annotations(self) -> int:
        """N."""
        return len(self.annotation_ids)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.category_ids)

    def image_path(self, i: int) -> Path:
        """The file of image index i (not id)."""
        return self.image_dir / self.file_names[i]

    def load_image(self, i: int) -> np.ndarray:
        """Image index i (not id) as uint8 [H, W, 3] RGB; ValueError naming the file if it cannot be read."""
        return load_image(self.image_path(i))

    def polygons(self, n: int) -> list[np.ndarray]:
        """Polygons of annotation index n as float64 [points, 2] in image pixels; empty unless it has polygons."""
        bounds = self.coord_first[self.polygon_first[n] : self.polygon_first[n + 1] + 1]
        return [self.coords[a:b].reshape(-1, 2) for a, b in pairwise(bounds)]

    def categories(self) -> list[dict]:
        """COCO category records; keypoint names and skeleton, where there are any, are repeated in each."""
        names: dict[str, list] = {"keypoints": list(self.keypoint_names)} if self.keypoint_names else {}
        if self.skeleton:
            names["skeleton"] = [[a + 1, b + 1] for a, b in self.skeleton]  # COCO counts from 1
        return [{"id": int(c), "name": name, **names} for c, name in zip(self.category_ids, self.class_names)]


def read(path: str | Path, image_dir: str | Path | None = None, *, keep_difficult: bool = True) -> Dataset:
    """A COCO JSON file, checked.

    Category ids may have gaps, any order, and start at 0. Images without annotations stay, as negatives. Missing
    iscrowd counts as 0, missing area is the segmentation's, else the box's; annotations without a positive, finite
    width and height are left out, and difficult ones unless keep_difficult: all this is in notes. Without image_dir the
    images are looked for beside the file, in images/, and where COCO has them (annotations/instances_NAME.json ->
    NAME/). ValueError, one line naming file, record, field, value and expectation, for anything else that is wrong.
    """
    path = Path(path)
    collecting = gc.isenabled()
    gc.disable()  # millions of fresh lists and no cycles: collecting would only walk them again and again
    try:
        document, segments = coco_json.load(path)
        return _assemble(document, segments, path, image_dir, keep_difficult)
    finally:
        if collecting:
            gc.enable()


def from_document(
    document: dict, path: str | Path, image_dir: str | Path | None = None, *, keep_difficult: bool = True
) -> Dataset:
    """A parsed COCO document (lists images, annotations, categories) as read; the document is used up on the way."""
    coco_json.check_document(path, document)
    return _assemble(document, coco_json.take_segments(path, document), path, image_dir, keep_difficult)


def _assemble(
    document: dict, segments: Segments, path: str | Path, image_dir: str | Path | None, keep_difficult: bool
) -> Dataset:
    images, categories, records = (document.pop(k) for k in ("images", "categories", "annotations"))
    notes: list[str] = []
    columns = coco_json.image_columns(path, images)
    columns |= coco_json.category_columns(path, categories)
    names = columns["keypoint_names"]
    columns |= coco_json.annotation_columns(path, records, segments, columns, notes, keep_difficult)
    if image_dir is None:
        image_dir = _find_image_dir(Path(path), columns["file_names"][0])
    columns["left_right"] = left_right(names)
    columns["skeleton"] = coco_fields.skeleton(categories, len(names), notes)
    return Dataset(path=str(path), image_dir=Path(image_dir), notes=tuple(notes), **columns)


def _find_image_dir(path: Path, file_name: str) -> Path:
    split = path.stem.rpartition("_")[2]
    folders = [path.parent, path.parent / path.stem, path.parent / split]  # beside it, and as `data shapes` writes
    folders += [path.parent / "images", path.parent.parent / split, path.parent.parent / "images"]  # and as COCO does
    return next((folder for folder in folders if (folder / file_name).is_file()), path.parent)


def left_right(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Index pairs (left, right) of names that differ only in a leading left_ and right_."""
    at = {name: k for k, name in enumerate(names)}
    mirrored = [(k, at.get("right_" + name.removeprefix("left_"))) for name, k in at.items() if name[:5] == "left_"]
    return tuple((k, other) for k, other in mirrored if other is not None)


def write(dataset: Dataset, path: str | Path) -> None:
    """COCO JSON from which read gives the same data set again (bit for bit; notes and places apart).

    Written beside the target and renamed, so that a torn file is never left. Polygons and compressed RLE as they are.
    """
    path = Path(path)
    document = {
        "images": [
            {"id": i, "file_name": name, "height": h, "width": w}
            for i, name, h, w in zip(
                dataset.image_ids.tolist(), dataset.file_names, dataset.heights.tolist(), dataset.widths.tolist()
            )
        ],
        "annotations": _annotation_records(dataset),
        "categories": dataset.categories(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))
    os.replace(temporary, path)


def _annotation_records(dataset: Dataset) -> list[dict]:
    image_ids = np.repeat(dataset.image_ids, np.diff(dataset.first)).tolist()
    categories = dataset.category_ids[dataset.labels].tolist()
    bboxes = _exact_xywh(dataset.boxes).tolist()
    records = []
    for n, own in enumerate(dataset.annotation_ids.tolist()):
        record = {
            "id": own, "image_id": image_ids[n], "category_id": categories[n], "bbox": bboxes[n],
            "area": float(dataset.areas[n]), "iscrowd": int(dataset.crowd[n]),
        }  # fmt: skip
        if dataset.difficult[n]:
            record["difficult"] = 1
        if dataset.segment_kind[n] == POLYGONS:
            record["segmentation"] = [polygon.ravel() for polygon in dataset.polygons(n)]
        elif dataset.segment_kind[n] == RLE:
            mask = dataset.rles[n]
            record["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        if dataset.keypoints is not None:
            record["keypoints"] = dataset.keypoints[n].ravel().tolist()
            record["num_keypoints"] = int((dataset.keypoints[n, :, 2] > 0).sum())
        records.append(record)
    return records


def _exact_xywh(boxes: np.ndarray) -> np.ndarray:
    """Widths and heights w [N] such that x1 + w gives x2 again in float64, with the fewest decimals that do."""
    low, high = boxes[:, :2], boxes[:, 2:]
    sides = high - low
    sides += high - (low + sides)  # a rounding tie
    for decimals in range(6, -1, -1):
        rounded = np.round(sides, decimals)
        sides = np.where(low + rounded == high, rounded, sides)
    return np.concatenate((low, sides), 1)


def subset(dataset: Dataset, image_indices: np.ndarray | Sequence[int]) -> Dataset:
    """The data set of these image indices (not ids; each at most once), in the given order, with all classes."""
    images = np.asarray(image_indices, np.int64)
    assert np.unique(images).size == images.size, "an image index is given twice"
    kept, first = gather(dataset.first, images)
    polygons, polygon_first = gather(dataset.polygon_first, kept)
    coords, coord_first = gather(dataset.coord_first, polygons)
    new = {int(n): k for k, n in enumerate(kept) if dataset.segment_kind[n] == RLE}
    per_annotation = ("annotation_ids", "boxes", "labels", "crowd", "difficult", "areas", "segment_kind")
    return replace(
        dataset,
        file_names=tuple(dataset.file_names[i] for i in images),
        **{name: getattr(dataset, name)[images] for name in ("image_ids", "heights", "widths")},
        **{name: getattr(dataset, name)[kept] for name in per_annotation},
        first=first,
        polygon_first=polygon_first,
        coord_first=coord_first,
        coords=dataset.coords[coords],
        rles={k: dataset.rles[n] for n, k in new.items()},
        keypoints=None if dataset.keypoints is None else dataset.keypoints[kept],
    )


def nested_fraction(num_images: int, fraction: float, seed: int) -> np.ndarray:
    """Image indices int64: the first max(1, round(fraction * num_images)) of one permutation drawn from seed.

    Smaller fractions of one seed are prefixes of larger ones. Not sorted. ValueError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction}: expected more than 0 and at most 1")
    permutation = np.random.RandomState(seed).permutation(num_images)  # NumPy promises this stream never changes
    return permutation[: max(1, round(fraction * num_images))].astype(np.int64)


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 hex digest of everything annotated: ids, file names, sizes, boxes, segments, keypoints.

    Not of path, image_dir, notes and skeleton, so a copy elsewhere has the same; nor of the images (see content.py).
    """
    digest = hashlib.sha256()
    for field in fields(dataset):
        if field.name in ("path", "image_dir", "notes", "skeleton"):
            continue
        value = getattr(dataset, field.name)
        digest.update(field.name.encode())
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value))
        elif isinstance(value, dict):
            digest.update(repr([(n, mask["size"], mask["counts"]) for n, mask in sorted(value.items())]).encode())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
