"""How much a detection and an annotation overlap, for lists of pairs: boxes, masks, keypoints.

Each `*_overlap` gives a function (det, gt) -> float64 [P] of two index arrays int64 [P] into the predictions and the
annotations. With a crowd annotation the union is replaced by the detection alone, as COCO has it.
Letters: P pairs, D detections, N annotations, K keypoints.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from pycocotools import mask as coco_mask

from headstart.data.coco import POLYGONS, RLE, Dataset
from headstart.evaluate.predictions import Predictions

Overlap = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Spread of human clicks for COCO's 17 person keypoints (COCO keypoint evaluation page, table of sigmas).
COCO_SIGMAS = (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)  # thousandths


def box_overlap(dataset: Dataset, predictions: Predictions) -> Overlap:
    """Intersection over union of the boxes; 0 where either has no extent."""
    det_area, gt_area = np.prod(_sides(predictions.boxes), axis=1), np.prod(_sides(dataset.boxes), axis=1)

    def overlap(det: np.ndarray, gt: np.ndarray) -> np.ndarray:
        shared = _intersection(predictions.boxes, det, dataset.boxes, gt)
        union = np.where(dataset.crowd[gt], det_area[det], det_area[det] + gt_area[gt] - shared)
        return np.divide(shared, union, out=np.zeros(len(det)), where=shared > 0)

    return overlap


def mask_areas(dataset: Dataset, predictions: Predictions) -> np.ndarray:
    """Pixels of each predicted mask, float64 [D]; ValueError where masks are missing or not of their image's size."""
    if predictions.masks is None:
        if len(predictions):
            raise ValueError(f"the {len(predictions)} predictions hold no masks, expected some for the kind 'mask'")
        return np.zeros(0)
    order = np.argsort(dataset.image_ids, kind="stable")
    image = order[np.searchsorted(dataset.image_ids, predictions.image_ids, sorter=order)]
    sides = np.array([mask["size"] for mask in predictions.masks], np.int64).reshape(-1, 2)
    wrong = (sides[:, 0] != dataset.heights[image]) | (sides[:, 1] != dataset.widths[image])
    if wrong.any():
        bad = int(np.argmax(wrong))
        size = [int(dataset.heights[image[bad]]), int(dataset.widths[image[bad]])]
        where = f"that of image id {predictions.image_ids[bad]}"
        raise ValueError(
            f"predictions: detection {bad} has a mask of size {sides[bad].tolist()}, expected {size}, {where}"
        )
    return _areas(predictions.masks)


def mask_overlap(dataset: Dataset, predictions: Predictions, det_area: np.ndarray, least: float) -> Overlap:
    """Intersection over union of the masks, exact where it is at least `least`, and otherwise any value below `least`.

    det_area float64 [D]: pixels of the predicted masks. Boxes around two masks and their areas bound the overlap; only
    pairs that can reach `least` are compared run by run.
    """

    def overlap(det: np.ndarray, gt: np.ndarray) -> np.ndarray:
        dets, det = np.unique(det, return_inverse=True)
        gts, gt = np.unique(gt, return_inverse=True)
        det_masks = [predictions.masks[index] for index in dets.tolist()]
        gt_masks = annotation_rles(dataset, gts)
        area, gt_area = det_area[dets], _areas(gt_masks)
        boxes, gt_boxes = _corners(coco_mask.toBbox(det_masks)), _corners(coco_mask.toBbox(gt_masks))
        shared = np.minimum(np.minimum(area[det], gt_area[gt]), _intersection(boxes, det, gt_boxes, gt))
        crowd = dataset.crowd[gts]
        union = np.where(crowd[gt], area[det], area[det] + gt_area[gt] - shared)
        bound = np.divide(shared, union, out=np.zeros(len(det)), where=shared > 0)
        near = np.flatnonzero(bound >= least)
        bound[:] = 0
        bound[near] = _mask_iou(det_masks, det[near], gt_masks, gt[near], crowd)
        return bound

    return overlap


def _mask_iou(det_masks: list, det: np.ndarray, gt_masks: list, gt: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Exact IoU of the pairs: one call into pycocotools for each annotation and all detections near it."""
    order = np.argsort(gt, kind="stable")
    values = np.empty(len(det))
    starts = np.flatnonzero(np.diff(gt[order], prepend=-1))
    places = det[order].tolist()
    flags = crowd.astype(np.uint8).tolist()
    for begin, end in pairwise([*starts.tolist(), len(order)]):
        annotation = gt[order[begin]]
        near = [det_masks[place] for place in places[begin:end]]
        values[order[begin:end]] = coco_mask.iou(near, [gt_masks[annotation]], [flags[annotation]])[:, 0]
    return values


def annotation_rles(dataset: Dataset, annotations: np.ndarray) -> list[dict]:
    """Compressed RLE of each annotation (index array): polygons rasterised as COCO does, RLE as it is.

    An annotation without a segmentation stands for its whole box.
    """
    image = np.searchsorted(dataset.first, annotations, side="right") - 1
    rles = []
    for index, height, width in zip(
        annotations.tolist(), dataset.heights[image].tolist(), dataset.widths[image].tolist()
    ):
        kind = dataset.segment_kind[index]
        if kind == RLE:
            rles.append(dataset.rles[index])
            continue
        if kind == POLYGONS:
            bounds = dataset.coord_first[dataset.polygon_first[index] : dataset.polygon_first[index + 1] + 1].tolist()
            polygons = [dataset.coords[begin:end] for begin, end in pairwise(bounds)]
        else:
            polygons = [dataset.boxes[index][[0, 1, 2, 1, 2, 3, 0, 3]]]
        parts = coco_mask.frPyObjects(polygons, height, width)
        rles.append(parts[0] if len(parts) == 1 else coco_mask.merge(parts))
    return rles


def keypoint_overlap(dataset: Dataset, predictions: Predictions, sigmas: Sequence[float] | None) -> Overlap:
    """Object keypoint similarity: the mean over labelled keypoints of exp(-distance² / (2 area (2 sigma)²)).

    An annotation without a labelled keypoint measures how far keypoints leave the doubled box, as COCO has it.
    Raises ValueError where there are no sigmas for the data set's K keypoints.
    """
    if dataset.keypoints is None:
        raise ValueError(f"{dataset.path} holds no keypoints, expected some for the kind 'keypoint'")
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


def _corners(extents: np.ndarray) -> np.ndarray:
    return np.concatenate([extents[:, :2], extents[:, :2] + extents[:, 2:]], axis=1)


def _intersection(det_boxes: np.ndarray, det: np.ndarray, gt_boxes: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """Area shared by the boxes of each pair; column by column, which is faster than rows of four."""
    shared = np.ones(len(det))
    for low, high in ((0, 2), (1, 3)):
        end = np.minimum(det_boxes[:, high][det], gt_boxes[:, high][gt])
        shared *= np.maximum(end - np.maximum(det_boxes[:, low][det], gt_boxes[:, low][gt]), 0)
    return shared
