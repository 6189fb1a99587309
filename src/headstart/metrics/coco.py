"""COCO's detection metrics, equal to pycocotools, with per-image records for the bootstrap.

Letters: D detections kept, G annotations, A area ranges, T IoU thresholds, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstart.data.dataset import LARGE, SMALL, Dataset
from headstart.metrics.matching import Groups, Matches, match_groups
from headstart.metrics.overlaps import measure
from headstart.metrics.predictions import Predictions
from headstart.metrics.records import THRESHOLDS, Curves, Records, mean_precisions

# COCO's ranges of the annotated area in pixels, both ends included: all, small, medium, large.
AREA_RANGES = np.array([[0, 1e10], [0, SMALL], [SMALL, LARGE], [LARGE, 1e10]])
KEYPOINT_DETECTIONS = 20  # COCO's limit for keypoints, where it evaluates people only


@dataclass(frozen=True)
class Evaluation:
    """Metrics in 0..1 by kind; NaN where pycocotools has -1 (no annotation).

    metrics: box and mask have AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, and AR<max_detections> where that is
    more than 100; keypoints has AP, AP50, AP75, APm, APl, AR, AR50, AR75, ARm, ARl. per_class: AP, AP50, AP75 for each
    class name. records: the matches over all areas.
    """

    metrics: dict[str, dict[str, float]]
    per_class: dict[str, dict[str, dict[str, float]]]
    records: dict[str, Records]

    def __repr__(self) -> str:
        main = [
            f"{kind} {name} {100 * value:.1f}"
            for kind, values in self.metrics.items()
            for name, value in list(values.items())[:2]
        ]
        return f"Evaluation({', '.join(main)}; {len(next(iter(self.per_class.values()), ()))} classes)"


def evaluate(
    dataset: Dataset,
    predictions: Predictions,
    *,
    kinds: Sequence[str] = ("box", "mask"),
    max_detections: int = 100,
    sigmas: Sequence[float] | None = None,
) -> Evaluation:
    """Compare predictions with all annotations of a data set, by COCO's rules.

    max_detections: number of detections of each image and class that take part, the best (keypoints: 20, as in COCO).
    sigmas: spread of each keypoint, in units of the square root of the area; COCO's own by default for its 17.
    Crowd annotations are ignored and may be taken by any number of detections, the overlap being the covered share of
    the detection. Difficult annotations (VOC) are ignored too, but like any other are taken only once, by their IoU.
    Areas: an annotation's `area`, a detection's own box, mask, or box around its keypoints.
    Raises ValueError for what does not fit the data set: ids, kinds, mask sizes, numbers of keypoints.
    """
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}, expected at least 1")
    limits = {kind: KEYPOINT_DETECTIONS if kind == "keypoints" else max_detections for kind in kinds}
    groups = {limit: Groups(dataset, predictions, limit) for limit in set(limits.values())}
    evaluation = Evaluation({}, {}, {})
    for kind, limit in limits.items():
        measures = measure(dataset, predictions, kind, least=THRESHOLDS[0], sigmas=sigmas)
        matches = match_groups(dataset, groups[limit], measures, AREA_RANGES, THRESHOLDS)
        order = np.lexsort((-groups[limit].score, groups[limit].label))  # stable: equal scores stay in order of images
        records = [_records(dataset, groups[limit], matches, area, order) for area in range(len(AREA_RANGES))]
        weights = np.ones(len(dataset.image_ids), np.int64)
        precision = [Curves(record).average_precisions(weights) for record in records]
        recall = _recalls(groups[limit], matches, {1, 10, 100, limit}, len(dataset.category_ids))
        summary = _keypoint_metrics if kind == "keypoints" else _metrics
        evaluation.metrics[kind] = summary(precision, recall)
        classes = enumerate(dataset.class_names)
        evaluation.per_class[kind] = {name: mean_precisions(precision[0][:, [label]]) for label, name in classes}
        evaluation.records[kind] = records[0]
    return evaluation


def _records(dataset: Dataset, groups: Groups, matches: Matches, area: int, order: np.ndarray) -> Records:
    """Records of one area range; order: detections by label and falling score.

    A detection that is ignored at every threshold changes nothing, so the three partial ranges go without.
    """
    matched = np.zeros((len(order), len(THRESHOLDS)), bool)
    ignored = np.repeat(matches.outside[:, [area]], len(THRESHOLDS), axis=1)
    taken = matches.winner[:, area] >= 0
    matched[matches.det] = taken
    ignored[matches.det] = np.where(taken, matches.ignored[:, area], ignored[matches.det])
    if area > 0:
        order = order[~ignored.all(axis=1)[order]]
    num_classes = max(len(dataset.category_ids), 1)
    counted = np.flatnonzero(matches.counts[:, area])
    cells, count = np.unique(groups.gt_image[counted] * num_classes + groups.gt_label[counted], return_counts=True)
    return Records(
        image_ids=dataset.image_ids,
        category_ids=dataset.category_ids,
        image=groups.image[order].astype(np.int32),
        label=groups.label[order].astype(np.int16),
        score=groups.score[order],
        matched=matched[order],
        ignored=ignored[order],
        gt_image=(cells // num_classes).astype(np.int32),
        gt_label=(cells % num_classes).astype(np.int16),
        gt_count=count.astype(np.int32),
    )


def _recalls(groups: Groups, matches: Matches, limits: set[int], num_classes: int) -> dict[int, np.ndarray]:
    """Recall with at most `limit` detections an image and class, [C, A, T]; NaN without annotations."""
    shape = (num_classes, *matches.winner.shape[1:])
    row, area, level = np.nonzero((matches.winner >= 0) & ~matches.ignored)
    det = matches.det[row]
    cell = np.ravel_multi_index((groups.label[det], area, level), shape)
    gt, area = np.nonzero(matches.counts)
    total = np.bincount(groups.gt_label[gt] * shape[1] + area, minlength=shape[0] * shape[1]).reshape(*shape[:2], 1)
    recalls = {}
    for limit in limits:
        counts = np.bincount(cell[groups.rank[det] < limit], minlength=np.prod(shape)).reshape(shape)
        recalls[limit] = np.divide(counts, total, out=np.full(shape, np.nan), where=total > 0)
    return recalls


def _metrics(precision: list[np.ndarray], recall: dict[int, np.ndarray]) -> dict[str, float]:
    sizes = {f"AP{size}": mean_precisions(precision[area])["AP"] for area, size in enumerate("sml", 1)}
    limits = [limit for limit in sorted(recall) if limit in (1, 10) or limit >= 100]
    recalls = {f"AR{limit}": _mean(recall[limit][:, 0]) for limit in limits}
    return mean_precisions(precision[0]) | sizes | recalls


def _keypoint_metrics(precision: list[np.ndarray], recall: dict[int, np.ndarray]) -> dict[str, float]:
    values = recall[KEYPOINT_DETECTIONS]
    sizes = {"APm": mean_precisions(precision[2])["AP"], "APl": mean_precisions(precision[3])["AP"]}
    levels = {"AR": _mean(values[:, 0]), "AR50": _mean(values[:, 0, 0]), "AR75": _mean(values[:, 0, 5])}
    return mean_precisions(precision[0]) | sizes | levels | {"ARm": _mean(values[:, 2]), "ARl": _mean(values[:, 3])}


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
