"""Checks of boxes, segmentations, counts and classes of one split, and of class lists across splits.

Letters: N annotations, C classes.
"""

from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from headstart.data.check import ERROR, NOTE, WARNING, Problem, some
from headstart.data.dataset import POLYGONS, Dataset
from headstart.data.read.coco_columns import segment_areas

REACH = 1.0  # pixels a box may extend beyond its image: tools round, and some count the last pixel
TOLERANCE_PIXELS = 3.0  # a segmentation's bounds may differ from the box by this much (a sharp tip holds no pixel),
TOLERANCE_SHARE = 0.05  # or by this share of the box's longer side, whichever is more
SMALL_SIDE = 1.0  # pixels: a thinner box may hold no pixel centre
FIRST_PIXEL = 1.01  # coordinates up to here are shares of the image, as some tools write them, with rounding
RARE = 10  # instances below which the AP of a class is mostly noise
DEGENERATE = ("without a positive width and height", "without width or height")  # the readers' notes of such boxes

Mask = NDArray[np.bool_]
Finding = tuple[str, ...]  # the fields of a Problem but its split


def problems(dataset: Dataset, split: str, *, max_objects: int) -> list[Problem]:
    """Problems of boxes, segmentations, counts and classes of one split."""
    found = chain(
        _repairs(dataset),
        _box_problems(dataset),
        _segment_problems(dataset),
        _twice(dataset),
        _count_problems(dataset, max_objects),
        _class_problems(dataset),
    )
    return [Problem(level, code, split, *rest) for level, code, *rest in found]


def _repairs(dataset: Dataset) -> Iterator[Finding]:
    """The reader's notes; of COCO files `check.records` has named degenerate boxes one by one."""
    for note in dataset.notes:
        if any(phrase in note for phrase in DEGENERATE):
            yield ERROR, "box-degenerate", dataset.path, "", note, "left out"
        elif "left out" in note:
            yield WARNING, "left-out", dataset.path, "", note, "left out"
        else:
            yield NOTE, "repaired", dataset.path, "", note, "filled in"


def outside(dataset: Dataset) -> Mask:
    """Bool [N]: boxes without any part inside their image."""
    clipped = dataset.clipped(dataset.boxes)
    return (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)


def reach(dataset: Dataset) -> NDArray[np.float64]:
    """Pixels by which each box extends beyond its image, at most: float64 [N]."""
    return np.abs(dataset.boxes - dataset.clipped(dataset.boxes)).max(axis=1, initial=0)


def _at(dataset: Dataset, chosen: Mask) -> Iterator[tuple[int, str, str]]:
    """(index, place, name and size of its image) of each chosen annotation."""
    for n in np.flatnonzero(chosen):
        i = dataset.image_of[n]
        picture = f"{dataset.file_names[i]}, {dataset.widths[i]} x {dataset.heights[i]}"
        yield int(n), f"{dataset.path}: annotation {dataset.annotation_ids[n]}", picture


def _shown(box: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box) + "]"


def _box_problems(dataset: Dataset) -> Iterator[Finding]:
    if dataset.num_annotations and np.abs(dataset.boxes).max() <= FIRST_PIXEL:
        message = (
            f"all {dataset.num_annotations} boxes lie in the first pixel: expected pixels, not shares of the image"
        )
        yield ERROR, "box-shares", dataset.path, _shown(dataset.boxes[0]), message
        return
    away, out = outside(dataset), reach(dataset)
    for n, where, picture in _at(dataset, away):
        box = _shown(dataset.boxes[n])
        message = f"box {box} (x1, y1, x2, y2) lies wholly outside its image ({picture})"
        yield ERROR, "box-outside", where, box, message, "left out"
    for n, where, picture in _at(dataset, ~away & (out > REACH)):
        box = _shown(dataset.boxes[n])
        message = f"box {box} (x1, y1, x2, y2) reaches {out[n]:.6g} px out of its image ({picture})"
        yield WARNING, "box-reaches-out", where, box, message, "clipped"
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]
    for n, where, picture in _at(dataset, ~away & (sides < SMALL_SIDE).any(axis=1)):
        size = f"{sides[n, 0]:.3g} x {sides[n, 1]:.3g}"
        yield WARNING, "box-thin", where, size, f"box of {size} px ({picture}) is thinner than a pixel"


def segment_bounds(dataset: Dataset) -> NDArray[np.float64]:
    """XYXY bounds [N, 4] of polygons or RLE; NaN without a segmentation, width or height 0 where it is empty."""
    bounds = np.full((dataset.num_annotations, 4), np.nan)
    chosen = np.flatnonzero(dataset.segment_kind == POLYGONS)
    if len(chosen):
        starts = dataset.coord_first[dataset.polygon_first[chosen]] // 2
        points = dataset.coords.reshape(-1, 2)  # of these annotations only: the others have no polygons
        bounds[chosen] = np.hstack([np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)])
    if dataset.rles:
        numbers = sorted(dataset.rles)
        xywh = coco_mask.toBbox([dataset.rles[n] for n in numbers])
        bounds[numbers] = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
    return bounds


def _segment_problems(dataset: Dataset) -> Iterator[Finding]:
    columns = ("segment_kind", "polygon_first", "coord_first", "coords", "rles")
    empty = segment_areas(**{name: getattr(dataset, name) for name in columns}) == 0
    for _, where, picture in _at(dataset, empty):
        yield WARNING, "segment-empty", where, "0", f"the segmentation encloses no area ({picture})"
    bounds = segment_bounds(dataset)
    away = np.abs(dataset.clipped(bounds) - dataset.clipped(dataset.boxes)).max(axis=1, initial=0)
    longer = (dataset.boxes[:, 2:] - dataset.boxes[:, :2]).max(axis=1, initial=0)
    allowed = np.maximum(TOLERANCE_PIXELS, TOLERANCE_SHARE * longer)
    for n, where, picture in _at(dataset, ~empty & (away > allowed)):  # NaN, no segmentation, compares False
        message = (
            f"the segmentation's bounds {_shown(bounds[n])} differ from the box {_shown(dataset.boxes[n])} by "
            f"{away[n]:.6g} px ({picture}): expected at most {allowed[n]:.3g}"
        )
        yield WARNING, "segment-box", where, f"{away[n]:.6g}", message


def _twice(dataset: Dataset) -> Iterator[Finding]:
    """The same box and class in the same image more than once."""
    keys = np.column_stack([dataset.image_of, dataset.labels, dataset.boxes])
    order = np.lexsort(keys.T)
    repeated = np.zeros(len(keys), bool)
    repeated[order[1:]] = (np.diff(keys[order], axis=0) == 0).all(axis=1)
    for n, where, picture in _at(dataset, repeated):
        box = _shown(dataset.boxes[n])
        message = f"box {box} of class {dataset.class_names[dataset.labels[n]]!r} is there before ({picture})"
        yield WARNING, "annotation-twice", where, box, message


def _count_problems(dataset: Dataset, max_objects: int) -> Iterator[Finding]:
    counts = np.bincount(dataset.image_of[~dataset.crowd], minlength=dataset.num_images)
    for i in np.flatnonzero(counts > max_objects):
        where = f"{dataset.path}: image {dataset.image_ids[i]}"
        message = (
            f"{counts[i]} objects in {dataset.file_names[i]}: only the best {max_objects} detections are evaluated"
        )
        yield WARNING, "many-objects", where, str(counts[i]), message
    empty = int((np.diff(dataset.first) == 0).sum())
    if empty == dataset.num_images:
        yield ERROR, "no-annotations", dataset.path, str(empty), f"none of the {empty} images has an annotation"
    elif empty:
        message = f"{empty} of {dataset.num_images} images have no objects and are used as negatives"
        yield NOTE, "negatives", dataset.path, str(empty), message


def _class_problems(dataset: Dataset) -> Iterator[Finding]:
    counts = np.bincount(dataset.labels[~dataset.crowd], minlength=dataset.num_classes)
    absent = [name for name, count in zip(dataset.class_names, counts) if count == 0]
    rare = [f"{name} ({count})" for name, count in zip(dataset.class_names, counts) if 0 < count < RARE]
    if absent:
        message = f"{len(absent)} of {dataset.num_classes} classes have no object here: {some(absent)}"
        yield WARNING, "class-absent", dataset.path, str(len(absent)), message
    if rare:
        message = f"{len(rare)} of {dataset.num_classes} classes have fewer than {RARE} objects here: {some(rare)}"
        yield WARNING, "class-rare", dataset.path, str(len(rare)), message


def class_differences(datasets: Mapping[str, Dataset]) -> Iterator[Problem]:
    """Splits whose categories (ids and names) are not those of the first split."""
    splits = list(datasets)
    first = {int(i): name for i, name in zip(datasets[splits[0]].category_ids, datasets[splits[0]].class_names)}
    for split in splits[1:]:
        dataset = datasets[split]
        own = {int(i): name for i, name in zip(dataset.category_ids, dataset.class_names)}
        differing = [
            f"{i}: {own.get(i, 'none')!r} here, {first.get(i, 'none')!r} there"
            for i in sorted(own.keys() | first.keys()) if own.get(i) != first.get(i)
        ]  # fmt: skip
        if differing:
            message = f"categories are not those of split {splits[0]!r}: {some(differing)}"
            yield Problem(ERROR, "classes-differ", split, dataset.path, str(len(differing)), message)
