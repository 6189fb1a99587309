"""PASCAL VOC's average precision, by the rules of its development kit (VOC2007 and VOC2010 to 2012).

Letters: D detections, C classes, P pairs of a detection and an annotation.
"""

from dataclasses import dataclass, replace

import numpy as np

from headstart.data.dataset import Dataset
from headstart.metrics.coco import Evaluation
from headstart.metrics.matching import MAX_PAIRS, Groups, pairs
from headstart.metrics.overlaps import measure
from headstart.metrics.predictions import Predictions


@dataclass(frozen=True)
class VocEvaluation:
    """AP in 0..1: the mean over the classes with objects, and by class name; NaN without objects."""

    mean: float
    per_class: dict[str, float]


def with_voc(result: Evaluation, dataset: Dataset, predictions: Predictions) -> Evaluation:
    """An evaluation with VOC's AP at an IoU of 0.5 as one more kind, "voc".

    AP is the area under the curve (VOC2010 on), AP07 the mean at eleven recalls (VOC2007); both for every class too.
    """
    rules = {"AP": False, "AP07": True}
    found = {name: evaluate_voc(dataset, predictions, eleven_points=eleven) for name, eleven in rules.items()}
    means = {name: one.mean for name, one in found.items()}
    classes = {label: {name: one.per_class[label] for name, one in found.items()} for label in dataset.class_names}
    return replace(result, metrics={**result.metrics, "voc": means}, per_class={**result.per_class, "voc": classes})


def evaluate_voc(
    dataset: Dataset, predictions: Predictions, *, threshold: float = 0.5, eleven_points: bool = False
) -> VocEvaluation:
    """Average precision of boxes at one IoU threshold.

    Each detection is compared only with the annotation of its class that it overlaps most (the first, among equals),
    matched or not: the best-scored detection above the threshold is a true positive, further ones are false positives,
    and all are ignored if it is difficult or a crowd (VOC has no crowds; the overlap is the share of the detection in
    it, as in COCO). The number of detections has no limit.
    eleven_points: the mean of the best precision at recalls 0, 0.1 ... 1 (VOC2007), else the area under the best
    precision (VOC2010 on). Boxes are continuous; VOC's pixels, both ends included and counted from 1, must be given as
    x1 - 1, y1 - 1, x2, y2.
    Raises ValueError for ids that the data set does not hold.
    """
    groups = Groups(dataset, predictions, max(len(predictions), 1))
    best = _most_overlapped(dataset, predictions, groups, threshold)
    ignored = (dataset.crowd | dataset.difficult)[groups.gt]
    order = np.lexsort((-groups.score, groups.label))
    order = order[~ignored[best[order]] | (best[order] < 0)] if len(ignored) else order
    best, label = best[order], groups.label[order]
    reaching = np.flatnonzero(best >= 0)
    right = np.zeros(len(order), bool)
    right[reaching[np.unique(best[reaching], return_index=True)[1]]] = True  # the first to come
    num_gt = np.bincount(groups.gt_label[~ignored], minlength=len(dataset.category_ids)).tolist()
    bounds = np.searchsorted(label, np.arange(len(num_gt) + 1))
    parts = zip(bounds, bounds[1:], num_gt)
    values = [_average_precision(right[begin:end], num, eleven_points=eleven_points) for begin, end, num in parts]
    defined = [value for value, num in zip(values, num_gt) if num]
    return VocEvaluation(float(np.mean(defined)) if defined else float("nan"), dict(zip(dataset.class_names, values)))


def _most_overlapped(dataset: Dataset, predictions: Predictions, groups: Groups, threshold: float) -> np.ndarray:
    """Place of the annotation that each detection overlaps most, int64 [D]; -1 where that is below the threshold."""
    overlap = measure(dataset, predictions, "box", least=threshold).overlap
    best = np.full(len(groups.det), -1, np.int64)
    for det, gt in pairs(groups.gt_begin, groups.gt_end, MAX_PAIRS):
        values = overlap(groups.det[det], groups.gt[gt])
        order = np.lexsort((-gt, values, det))  # the last of each detection is its best
        last = order[np.flatnonzero(np.diff(det[order], append=-1))]
        last = last[values[last] >= threshold]
        best[det[last]] = gt[last]
    return best


def _average_precision(right: np.ndarray, num_gt: int, *, eleven_points: bool) -> float:
    """AP of one class from which of its detections, best first, are right; NaN without annotations."""
    if not num_gt:
        return float("nan")
    place = np.flatnonzero(right)
    number = np.arange(1, len(place) + 1)
    best = np.maximum.accumulate((number / (place + 1))[::-1])[::-1]  # precision from each true positive on
    if not eleven_points:
        return float(best.sum() / num_gt)
    reached = np.searchsorted(10 * number, num_gt * np.arange(11))  # whole numbers: 3 of 10 do reach a recall of 0.3
    return float(np.append(best, 0)[reached].mean())
