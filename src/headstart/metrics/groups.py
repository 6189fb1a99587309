"""Detections and annotations of each image side by side: sorted once, so that all the rest is arithmetic on arrays.

Letters: D detections kept, G annotations, P pairs of a detection and an annotation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headstart.data.dataset import Dataset, index_of
from headstart.metrics.predictions import Predictions


@dataclass(frozen=True, eq=False)
class Groups:
    """Detections sorted by (image, class, falling score), annotations by (image, class), both stable.

    Images stand in ascending order of their ids, as in pycocotools (it decides ties between scores); `image` is still
    the index in the data set. A group is one (image, class); gt_begin:gt_end is the range of annotations, in sorted
    order, that share the group of each detection.
    """

    det: np.ndarray  # int64 [D], index into the predictions
    image: np.ndarray  # int64 [D], index of the image in the data set
    place: np.ndarray  # int64 [D], place of the image in ascending order of ids
    label: np.ndarray  # int64 [D]
    score: np.ndarray  # float64 [D]
    rank: np.ndarray  # int64 [D], 0 for the best score of the group
    gt_begin: np.ndarray  # int64 [D]
    gt_end: np.ndarray  # int64 [D]
    gt: np.ndarray  # int64 [G], index into the annotations
    gt_image: np.ndarray  # int64 [G]
    gt_place: np.ndarray  # int64 [G], place of the image in ascending order of ids
    gt_label: np.ndarray  # int64 [G]


def group(dataset: Dataset, predictions: Predictions, max_detections: int) -> Groups:
    """Sort both sides, keeping the `max_detections` best of each image and class (the first given, among equal scores).

    Raises ValueError for an image or category id that the data set does not hold, or a value that is not finite.
    """
    image, label = _locate(dataset, predictions)
    place_of = np.empty(len(dataset.image_ids), np.int64)
    place_of[np.argsort(dataset.image_ids, kind="stable")] = np.arange(len(dataset.image_ids))
    num_classes = len(dataset.category_ids)
    order = np.argsort(-predictions.scores, kind="stable")
    key = (place_of[image] * num_classes + label)[order]
    resorted = np.argsort(key, kind="stable")
    order, key = order[resorted], key[resorted]
    rank = np.arange(len(key)) - np.searchsorted(key, key)
    kept = rank < max_detections
    order, key, rank = order[kept], key[kept], rank[kept]
    gt_image = dataset.image_of
    gt_key = place_of[gt_image] * num_classes + dataset.labels
    gt = np.argsort(gt_key, kind="stable")
    gt_key = gt_key[gt]
    return Groups(
        det=order,
        image=image[order],
        place=key // max(num_classes, 1),
        label=label[order],
        score=predictions.scores[order],
        rank=rank,
        gt_begin=np.searchsorted(gt_key, key, side="left"),
        gt_end=np.searchsorted(gt_key, key, side="right"),
        gt=gt,
        gt_image=gt_image[gt],
        gt_place=place_of[gt_image[gt]],
        gt_label=dataset.labels[gt].astype(np.int64),
    )


def _locate(dataset: Dataset, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Image index and label of each detection."""
    finite = np.isfinite(predictions.scores) & np.isfinite(predictions.boxes).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite))
        box, score = predictions.boxes[bad].tolist(), float(predictions.scores[bad])
        raise ValueError(f"predictions: detection {bad} has box {box} and score {score}, expected finite numbers")
    return (
        _index(dataset.image_ids, predictions.image_ids, "image", dataset.path),
        _index(dataset.category_ids, predictions.category_ids, "category", dataset.path),
    )


def _index(known: np.ndarray, ids: np.ndarray, kind: str, path: str) -> np.ndarray:
    index, there = index_of(known, ids)
    if not there.all():
        bad = int(np.argmin(there))
        nearest = f"; the nearest is {known[np.argmin(np.abs(known - ids[bad]))]}" if len(known) else ""
        expected = f"one of the {len(known)} of {path}{nearest}"
        raise ValueError(f"predictions: detection {bad} has {kind} id {ids[bad]}, expected {expected}")
    return index


def pairs(begin: np.ndarray, end: np.ndarray, max_pairs: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (place of the detection, place of the annotation), int64 [P] each, in blocks of about `max_pairs`.

    begin, end [D]: range of annotations that each detection is compared with. A block never splits the detections of
    one range, so that each can be matched by itself; blocks without any pair are left out.
    """
    counts = end - begin
    filled = np.flatnonzero(counts)
    if not len(filled):
        return
    total = np.cumsum(counts[filled])
    starts = np.flatnonzero(np.diff(begin[filled], prepend=-1))  # sorted by group: a new range is a new group
    before = total[starts] - counts[filled[starts]]
    cuts = np.flatnonzero(np.diff(before // max_pairs, prepend=-1))
    bounds = np.append(starts[cuts], len(filled))
    for low, high in pairwise(bounds.tolist()):
        part = filled[low:high]
        sizes = counts[part]
        offset = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield np.repeat(part, sizes), np.repeat(begin[part], sizes) + offset
