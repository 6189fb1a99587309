"""Overlaps of detections and annotations: IoU of boxes and masks, object keypoint similarity.

An overlap is a function (det, gt) -> float64 [P] of two index arrays int64 [P] into the predictions and the
annotations. For a crowd annotation the union is the detection alone, as in COCO.
Letters: P pairs, D detections, N annotations, K keypoints.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from pycocotools import mask as coco_mask

from headstart.data.dataset import Dataset, index_of
from headstart.data.masks import annotation_rle
from headstart.metrics.predictions import Predictions

KINDS = ("box", "mask", "keypoints")
Overlap = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Spread of human clicks for COCO's 17 person keypoints (COCO keypoint evaluation page, table of sigmas).
COCO_SIGMAS = (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)  # thousandths


@dataclass(frozen=True, eq=False)
class Measures:
    """Overlap and areas of one kind (boxes, masks, keypoints)."""

    overlap: Overlap
    det_area: np.ndarray  # float64 [D]
    gt_ignored: np.ndarray  # bool [N], annotations that never count


def measure(
    dataset: Dataset,
    predictions: Predictions,
    kind: str,
    *,
    least: float,
    across_classes: bool = False,
    sigmas: Sequence[float] | None = None,
) -> Measures:
    """Measures of a kind; overlaps below `least` may come out as any smaller value.

    across_classes: pairs join different classes (matters for the speed of masks only).
    Areas are a detection's own box, mask, or box around its keypoints. Raises ValueError for an unknown kind and for
    predictions without this kind.
    """
    ignored = dataset.crowd | dataset.difficult
    if kind == "box":
        return Measures(_box_overlap(dataset, predictions), np.prod(_sides(predictions.boxes), axis=1), ignored)
    if kind == "mask":
        area = _mask_areas(dataset, predictions)
        return Measures(_mask_overlap(dataset, predictions, area, least, across_classes), area, ignored)
    if kind != "keypoints":
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    overlap = _keypoint_overlap(dataset, predictions, sigmas)
    points = dataset.keypoints[:0] if predictions.keypoints is None else predictions.keypoints
    extent = np.ptp(points[:, :, :2].astype(np.float64), axis=1)
    return Measures(overlap, np.prod(extent, axis=1), ignored | ~(dataset.keypoints[:, :, 2] > 0).any(axis=1))


def _box_overlap(dataset: Dataset, predictions: Predictions) -> Overlap:
    """Intersection over union of the boxes; 0 where either has no extent."""
    det_area, gt_area = np.prod(_sides(predictions.boxes), axis=1), np.prod(_sides(dataset.boxes), axis=1)

    def overlap(det: np.ndarray, gt: np.ndarray) -> np.ndarray:
        shared = _intersection(predictions.boxes, det, dataset.boxes, gt)
        union = np.where(dataset.crowd[gt], det_area[det], det_area[det] + gt_area[gt] - shared)
        return np.divide(shared, union, out=np.zeros(len(det)), where=shared > 0)

    return overlap


def _mask_areas(dataset: Dataset, predictions: Predictions) -> np.ndarray:
    """Pixels of each predicted mask, float64 [D]; ValueError where masks are missing or not of their image's size."""
    if predictions.masks is None:
        if len(predictions):
            raise ValueError(f"the {len(predictions)} predictions hold no masks, expected some for the kind 'mask'")
        return np.zeros(0)
    image, _ = index_of(dataset.image_ids, predictions.image_ids)
    sides = np.array([mask["size"] for mask in predictions.masks], np.int64).reshape(-1, 2)
    wrong = (sides[:, 0] != dataset.heights[image]) | (sides[:, 1] != dataset.widths[image])
    if wrong.any():
        bad = int(np.argmax(wrong))
        expected = f"expected {list(dataset.size(image[bad]))}, that of image id {predictions.image_ids[bad]}"
        raise ValueError(f"predictions: detection {bad} has a mask of size {sides[bad].tolist()}, {expected}")
    return _areas(predictions.masks)


def _mask_overlap(
    dataset: Dataset, predictions: Predictions, det_area: np.ndarray, least: float, across_classes: bool
) -> Overlap:
    """Intersection over union of the masks, exact where it is at least `least`, and otherwise any value below `least`.

    det_area float64 [D]: pixels of the predicted masks. The areas alone bound the overlap; only pairs that can reach
    `least` are compared run by run.
    """
    group = dataset.image_of
    if not across_classes:
        group = group * dataset.num_classes + dataset.labels

    def overlap(det: np.ndarray, gt: np.ndarray) -> np.ndarray:
        gts, gt_row = np.unique(gt, return_inverse=True)
        gt_masks = annotation_rles(dataset, gts)
        area, gt_area = det_area[det], _areas(gt_masks)[gt_row]
        shared = np.minimum(area, gt_area)
        union = np.where(dataset.crowd[gt], area, np.maximum(area, gt_area))
        values = np.zeros(len(det))
        near = np.flatnonzero(shared / np.maximum(union, 1) >= least)  # both are whole numbers of pixels
        values[near] = _mask_iou(
            predictions.masks, det[near], gt_masks, gt_row[near], dataset.crowd[gts], group[gt[near]]
        )
        return values

    return overlap


def _mask_iou(det_masks: Sequence[dict], det, gt_masks: Sequence[dict], gt, crowd, group) -> np.ndarray:
    """Exact IoU of the pairs: one call into pycocotools for each group and all its masks that occur in a pair.

    det, gt, group int64 [P], crowd bool, one for each of gt_masks. A call costs more (checks, parsing of the masks)
    than the few needless pairs among its masks.
    """
    groups, group = np.unique(group, return_inverse=True)
    dets, det_row = np.unique(group * len(det_masks) + det, return_inverse=True)
    gts, gt_row = np.unique(group * len(gt_masks) + gt, return_inverse=True)
    ends = np.arange(len(groups) + 1)
    det_first = np.searchsorted(dets, ends * len(det_masks))
    gt_first = np.searchsorted(gts, ends * len(gt_masks))
    left = [det_masks[index] for index in (dets % len(det_masks)).tolist()]
    right = [gt_masks[index] for index in (gts % len(gt_masks)).tolist()]
    flags = crowd[gts % len(gt_masks)].astype(np.uint8)
    tables = [
        coco_mask.iou(left[d:d_end], right[g:g_end], flags[g:g_end]).ravel()
        for (d, d_end), (g, g_end) in zip(pairwise(det_first.tolist()), pairwise(gt_first.tolist()))
    ]
    table_first = np.cumsum([0, *map(len, tables)])
    columns = np.diff(gt_first)[group]
    cell = table_first[group] + (det_row - det_first[group]) * columns + gt_row - gt_first[group]
    return np.concatenate(tables)[cell] if tables else np.zeros(0)


def annotation_rles(dataset: Dataset, annotations: np.ndarray) -> list[dict]:
    """Compressed RLE of each annotation (index array), as `data.masks.annotation_rle`; kept for the next call."""
    known = _rasterised(dataset)
    for index in annotations.tolist():
        if index not in known:
            known[index] = annotation_rle(dataset, index)
    return [known[index] for index in annotations.tolist()]


@lru_cache(maxsize=1)
def _rasterised(dataset: Dataset) -> dict[int, dict]:
    """Masks by annotation index, filled on demand: a training evaluates one data set many times."""
    return {}


def _keypoint_overlap(dataset: Dataset, predictions: Predictions, sigmas: Sequence[float] | None) -> Overlap:
    """Object keypoint similarity: the mean over labelled keypoints of exp(-distance² / (2 area (2 sigma)²)).

    An annotation without a labelled keypoint measures how far keypoints leave the doubled box, as COCO has it.
    Raises ValueError where there are no sigmas for the data set's K keypoints.
    """
    if dataset.keypoints is None:
        raise ValueError(f"{dataset.path} holds no keypoints, expected some for the kind 'keypoints'")
    num_keypoints = dataset.keypoints.shape[1]
    given = 0 if predictions.keypoints is None else predictions.keypoints.shape[1]
    if given != num_keypoints and len(predictions):
        raise ValueError(f"the predictions hold {given} keypoints, expected {num_keypoints} as in {dataset.path}")
    if sigmas is None and num_keypoints == len(COCO_SIGMAS):
        sigmas = np.array(COCO_SIGMAS) / 1000
    if sigmas is None or len(sigmas) != num_keypoints:
        given = "no sigmas" if sigmas is None else f"{len(sigmas)} sigmas"
        raise ValueError(f"{given} given for the {num_keypoints} keypoints of {dataset.path}, expected one for each")
    variances = (np.asarray(sigmas, np.float64) * 2) ** 2
    corners, sides = dataset.boxes[:, :2], _sides(dataset.boxes)

    def overlap(det: np.ndarray, gt: np.ndarray) -> np.ndarray:
        given, truth = predictions.keypoints[det].astype(np.float64), dataset.keypoints[gt].astype(np.float64)
        labelled = truth[:, :, 2] > 0
        low, high = (corners - sides)[gt, None], (corners + 2 * sides)[gt, None]
        beyond = np.maximum(0, low - given[:, :, :2]) + np.maximum(0, given[:, :, :2] - high)
        any_labelled = labelled.any(axis=1)
        offset = np.where(any_labelled[:, None, None], given[:, :, :2] - truth[:, :, :2], beyond)
        exponent = (offset**2).sum(axis=2) / variances / (dataset.areas[gt] + np.spacing(1))[:, None] / 2
        counted = labelled | ~any_labelled[:, None]
        return (np.exp(-exponent) * counted).sum(axis=1) / counted.sum(axis=1)

    return overlap


def _areas(masks: Sequence[dict]) -> np.ndarray:
    """Pixels of each RLE; in parts, since pycocotools 2.0.11 fails on more than 255 masks (its count is a byte)."""
    parts = [coco_mask.area(list(masks[begin : begin + 255])) for begin in range(0, len(masks), 255)]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def _sides(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2:] - boxes[:, :2]


def _intersection(det_boxes: np.ndarray, det: np.ndarray, gt_boxes: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """Area shared by the boxes of each pair; column by column, which is faster than rows of four."""
    shared = np.ones(len(det))
    for low, high in ((0, 2), (1, 3)):
        end = np.minimum(det_boxes[:, high][det], gt_boxes[:, high][gt])
        shared *= np.maximum(end - np.maximum(det_boxes[:, low][det], gt_boxes[:, low][gt]), 0)
    return shared
