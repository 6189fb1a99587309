"""COCO's greedy matching, for all images, classes, area ranges and IoU thresholds at once.

Detections and annotations are sorted by image and class once; everything else is arithmetic on arrays.
Letters: D detections kept, G annotations, P pairs of a detection and an annotation, A area ranges, T thresholds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headstart.data.dataset import Dataset, index_of
from headstart.metrics.overlaps import Measures
from headstart.metrics.predictions import Predictions

MAX_PAIRS = 1 << 20  # pairs matched at once: bounds the memory to some 100 MB


class Groups:
    """Detections sorted by (image, class, falling score), annotations by (image, class), both stable.

    The `max_detections` best of each image and class are kept (on equal scores the first given).
    Images are in ascending order of their ids, as in pycocotools (which decides ties between scores); `image` is still
    the index in the data set. A group is one (image, class); gt_begin:gt_end is the range of sorted annotations in a
    detection's group. ValueError for an image or category id that the data set does not hold, or a value that is not
    finite.
    """

    def __init__(self, dataset: Dataset, predictions: Predictions, max_detections: int):
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
        order, key = order[kept], key[kept]
        gt_key = place_of[dataset.image_of] * num_classes + dataset.labels
        gt = np.argsort(gt_key, kind="stable")
        gt_key = gt_key[gt]
        self.det = order  # int64 [D], index into the predictions
        self.image = image[order]  # int64 [D], index of the image in the data set
        self.place = key // max(num_classes, 1)  # int64 [D], place of the image in ascending order of ids
        self.label = label[order]  # int64 [D]
        self.score = predictions.scores[order]  # float64 [D]
        self.rank = rank[kept]  # int64 [D], 0 for the best score of the group
        self.gt_begin = np.searchsorted(gt_key, key, side="left")  # int64 [D]
        self.gt_end = np.searchsorted(gt_key, key, side="right")  # int64 [D]
        self.gt = gt  # int64 [G], index into the annotations
        self.gt_image = dataset.image_of[gt]  # int64 [G]
        self.gt_place = place_of[self.gt_image]  # int64 [G], place of the image in ascending order of ids
        self.gt_label = dataset.labels[gt].astype(np.int64)  # int64 [G]


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


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches of detections and annotations, both in the order of the groups.

    Most detections overlap no annotation enough; only the n that do have a row.
    """

    det: np.ndarray  # int64 [n], places of the detections with an overlap above the lowest threshold, ascending
    winner: np.ndarray  # int64 [n, A, T], place of the matched annotation, -1 for none
    ignored: np.ndarray  # bool [n, A, T], matched to an ignored annotation
    outside: np.ndarray  # bool [D, A], the detection's area is outside the range
    counts: np.ndarray  # bool [G, A], the annotation is not ignored


def match_groups(
    dataset: Dataset, groups: Groups, measures: Measures, area_ranges: np.ndarray, thresholds: np.ndarray
) -> Matches:
    """Match all groups. area_ranges float64 [A, 2], both ends included; thresholds float64 [T] ascending."""
    det_area, areas = measures.det_area[groups.det, None], dataset.areas[groups.gt, None]
    gt_ignored = measures.gt_ignored[groups.gt, None] | (areas < area_ranges[:, 0]) | (areas > area_ranges[:, 1])
    outside = (det_area < area_ranges[:, 0]) | (det_area > area_ranges[:, 1])
    crowd = dataset.crowd[groups.gt]
    found, winners = [np.zeros(0, np.int64)], [np.zeros((0, len(area_ranges), len(thresholds)), np.int64)]
    for det, gt in pairs(groups.gt_begin, groups.gt_end, MAX_PAIRS):
        overlap = measures.overlap(groups.det[det], groups.gt[gt])
        rows, winner = match(det, gt, overlap, groups.gt_begin[det], gt_ignored, crowd, thresholds)
        found.append(rows), winners.append(winner)
    winner = np.concatenate(winners)
    ignored = gt_ignored[winner, np.arange(len(area_ranges))[:, None]] & (winner >= 0)
    return Matches(np.concatenate(found), winner, ignored, outside, ~gt_ignored)


def match(
    det: np.ndarray,
    gt: np.ndarray,
    overlap: np.ndarray,
    group: np.ndarray,
    gt_ignored: np.ndarray,
    crowd: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Match each detection, in order of place, to the best annotation of its group that is still free.

    det, gt int64 [P] places of the pairs, det by group and falling score; overlap float64 [P]; group int64 [P];
    gt_ignored bool [G, A]; crowd bool [G]; thresholds float64 [T] ascending. Among the annotations above
    the threshold, one that counts goes before an ignored one, then the larger overlap, then the later one; a crowd
    stays free when matched. Returns the places of the detections above the lowest threshold, int64 [d], and the
    annotation each is matched to, int64 [d, A, T], -1 for none.
    """
    reaching = np.flatnonzero(overlap >= thresholds[0])
    reaching = reaching[np.lexsort((gt[reaching], overlap[reaching], det[reaching]))]
    first = np.flatnonzero(np.diff(det[reaching], prepend=-1))
    detections = det[reaching][first]
    groups = group[reaching][first]
    turn = np.arange(len(first)) - np.searchsorted(groups, groups)  # n-th of its group
    num_pairs = np.diff(first, append=len(reaching))
    taken = np.zeros((len(crowd), gt_ignored.shape[1], len(thresholds)), bool)
    winners = np.full((len(first), gt_ignored.shape[1], len(thresholds)), -1, np.int64)
    by_turn = np.argsort(turn, kind="stable")
    for chosen in np.split(by_turn, np.flatnonzero(np.diff(turn[by_turn])) + 1) if len(first) else ():
        ends = np.cumsum(num_pairs[chosen])
        starts = ends - num_pairs[chosen]
        spots = reaching[np.repeat(first[chosen] - starts, num_pairs[chosen]) + np.arange(ends[-1])]
        winners[chosen] = _choose(gt[spots], overlap[spots], starts, gt_ignored, crowd, thresholds, taken)
    return detections, winners


def _choose(gt, overlap, starts, gt_ignored, crowd, thresholds, taken) -> np.ndarray:
    """Match one detection of every group and mark its annotation as taken; pairs in rising order of preference."""
    free = ~taken[gt]
    free |= crowd[gt][:, None, None]
    free &= (overlap[:, None] >= thresholds)[:, None, :]
    preference = np.arange(len(gt), dtype=np.int32)[:, None] + np.where(gt_ignored[gt], 0, len(gt)).astype(np.int32)
    best = np.maximum.reduceat(np.where(free, preference[:, :, None], -1), starts, axis=0)
    winners = np.where(best >= 0, gt[best % len(gt)], -1)
    _, ranges, levels = taking = np.nonzero(best >= 0)
    taken[winners[taking], ranges, levels] = True
    return winners
