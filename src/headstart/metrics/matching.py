"""COCO's greedy matching, for all images, classes, area ranges and IoU thresholds at once.

Letters: P pairs of a detection and an annotation, G annotations, D detections, A area ranges, T thresholds.
"""

from dataclasses import dataclass

import numpy as np

from headstart.data.dataset import Dataset
from headstart.metrics.groups import Groups, pairs
from headstart.metrics.overlaps import Measures

MAX_PAIRS = 1 << 20  # pairs matched at once: bounds the memory to some 100 MB


@dataclass(frozen=True, eq=False)
class Matches:
    """What became of the detections and annotations, both in the order of the groups.

    Most detections reach no annotation; only the n that do have a row.
    """

    det: np.ndarray  # int64 [n], place of each detection that reaches an annotation, ascending
    winner: np.ndarray  # int64 [n, A, T], place of the annotation that it takes, -1 for none
    ignored: np.ndarray  # bool [n, A, T], it takes one that does not count
    outside: np.ndarray  # bool [D, A], area of the detection outside the range
    counts: np.ndarray  # bool [G, A], annotation counts


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
    """Detections in order of their place, each taking the best annotation of its group that is still free.

    det, gt int64 [P] places of the pairs, det by group and falling score; overlap float64 [P]; group int64 [P];
    gt_ignored bool [G, A]; crowd bool [G]; thresholds float64 [T] ascending. Among the annotations that a detection
    reaches, one that counts goes before one that is ignored, then the larger overlap, then the later; a taken one is
    free again only if it is a crowd. Returns the places of the detections that reach any annotation, int64 [d], and
    the annotation each one takes, int64 [d, A, T], -1 for none.
    """
    reaching = np.flatnonzero(overlap >= thresholds[0])
    reaching = reaching[np.lexsort((gt[reaching], overlap[reaching], det[reaching]))]
    first = np.flatnonzero(np.diff(det[reaching], prepend=-1))
    detections = det[reaching][first]
    groups = group[reaching][first]
    turn = np.arange(len(first)) - np.searchsorted(groups, groups)  # n-th of its group to choose
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
    """One detection of every group chooses; marks what is taken. Pairs come in rising order of preference."""
    free = ~taken[gt]
    free |= crowd[gt][:, None, None]
    free &= (overlap[:, None] >= thresholds)[:, None, :]
    preference = np.arange(len(gt), dtype=np.int32)[:, None] + np.where(gt_ignored[gt], 0, len(gt)).astype(np.int32)
    best = np.maximum.reduceat(np.where(free, preference[:, :, None], -1), starts, axis=0)
    winners = np.where(best >= 0, gt[best % len(gt)], -1)
    _, ranges, levels = taking = np.nonzero(best >= 0)
    taken[winners[taking], ranges, levels] = True
    return winners
