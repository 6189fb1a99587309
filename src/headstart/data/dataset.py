"""A detection data set as flat arrays, and the digest of its annotations."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from headstart.data.images import load_image

NO_SEGMENT, POLYGONS, RLE = 0, 1, 2  # segment_kind
MASKED = 0.95  # share of objects with a segmentation from which masks are trained
SMALL, LARGE = 32**2, 96**2  # square pixels: COCO's bounds of small, medium and large objects


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

    def __repr__(self) -> str:
        counts = f"{self.num_images:,} images, {self.num_annotations:,} objects, {self.num_classes} classes"
        return f"Dataset({self.path!r}: {counts})"

    def has_masks(self) -> tuple[bool, str]:
        """True where enough objects have outlines to train masks, and the reason; crowds do not count."""
        outlined = self.segment_kind[~self.crowd] != NO_SEGMENT
        share = float(outlined.mean()) if len(outlined) else 0.0
        return (
            share >= MASKED,
            f"{100 * share:.0f} % of the objects have outlines" if share else "the objects have boxes only",
        )

    @cached_property
    def image_of(self) -> np.ndarray:
        """Image index of each annotation, int64 [N], ascending."""
        return np.repeat(np.arange(self.num_images), np.diff(self.first))

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of image index i (not id)."""
        return int(self.heights[i]), int(self.widths[i])

    def clipped(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] of the annotations, cut at the borders of their images."""
        return np.clip(boxes, 0, np.stack([self.widths, self.heights] * 2, axis=1)[self.image_of])

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

    def load_image(self, i: int, channels: int | None = None) -> np.ndarray:
        """Image index i (not id) as uint8 [H, W, 3] RGB; other channels, and errors, as `images.load_image`."""
        return load_image(self.image_path(i), channels)

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

    def take(
        self, images: np.ndarray | Sequence[int] | None = None, annotations: np.ndarray | None = None
    ) -> "Dataset":
        """The data set of some images, some annotations, or both; all classes stay.

        images: indices (not ids), each at most once, in the new order; None for all. annotations: bool [N], those to
        keep; None for all. Images whose annotations are all left out stay.
        """
        chosen = np.arange(self.num_images) if images is None else np.asarray(images, np.int64)
        assert np.unique(chosen).size == chosen.size, "an image index is given twice"
        kept, first = gather(self.first, chosen)
        if annotations is not None:
            keep = annotations[kept]
            kept, first = kept[keep], np.concatenate([[0], np.cumsum(keep)])[first]
        polygons, polygon_first = gather(self.polygon_first, kept)
        coords, coord_first = gather(self.coord_first, polygons)
        per_annotation = ("annotation_ids", "boxes", "labels", "crowd", "difficult", "areas", "segment_kind")
        return replace(
            self,
            file_names=tuple(self.file_names[i] for i in chosen),
            **{name: getattr(self, name)[chosen] for name in ("image_ids", "heights", "widths")},
            **{name: getattr(self, name)[kept] for name in per_annotation},
            first=first,
            polygon_first=polygon_first,
            coord_first=coord_first,
            coords=self.coords[coords],
            rles={k: self.rles[n] for k, n in enumerate(kept.tolist()) if n in self.rles},
            keypoints=None if self.keypoints is None else self.keypoints[kept],
        )


def gather(first: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members of the chosen groups, in order, and the new offsets; group g has members first[g]:first[g + 1]."""
    counts = first[chosen + 1] - first[chosen]
    offsets = np.concatenate(([0], np.cumsum(counts)))
    members = np.arange(offsets[-1]) + np.repeat(first[chosen] - offsets[:-1], counts)
    return members, offsets


def index_of(known: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each id in `known` (int64, different, any order), and bool: True for an id that is in `known`."""
    if not len(known):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    order = np.argsort(known, kind="stable")
    index = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
    return index, known[index] == ids


def left_right(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Index pairs (left, right) of names that differ only in a leading left_ and right_."""
    at = {name: k for k, name in enumerate(names)}
    mirrored = [(k, at.get("right_" + name.removeprefix("left_"))) for name, k in at.items() if name[:5] == "left_"]
    return tuple((k, other) for k, other in mirrored if other is not None)


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

    Not of path, image_dir, notes and skeleton, so a copy elsewhere has the same; nor of the images (`data_content`).
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
