"""Pixel counts of each image and class, from which IoU and accuracy follow for any resample of the images.

Letters: I images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from headstart.metrics.records import draw_images, save_arrays, saved_arrays

COLUMNS = ("mIoU", "accuracy")
_IN_FILES = {"true_positives": "hits", "num_gt": "wanted", "num_predicted": "found"}  # names in the npz


@dataclass(frozen=True, eq=False)
class PixelRecords:
    """Diagonal and margins of each image's confusion matrix, without ignored pixels; int64 [I, C] each.

    num_gt: pixels of the class; num_predicted: pixels predicted as the class; true_positives: pixels that are both.
    """

    image_ids: np.ndarray  # int64 [I]
    class_names: tuple[str, ...]  # C
    true_positives: np.ndarray
    num_gt: np.ndarray
    num_predicted: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write a compressed npz."""
        values = {_IN_FILES.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}
        save_arrays(path, values | {"class_names": np.array(self.class_names, dtype=np.str_)})

    @classmethod
    def load(cls, path: str | Path) -> "PixelRecords":
        """Read what `save` wrote; ValueError naming the file if it is something else."""
        with saved_arrays(path, "pixel records") as saved:
            values = {field.name: saved[_IN_FILES.get(field.name, field.name)] for field in fields(cls)}
            return cls(**values | {"class_names": tuple(values["class_names"].tolist())})


def count_pixels(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """True positives, num_gt and num_predicted of one image, int64 [3, C].

    Both maps [H,W] hold 0..C-1; pixels of the truth below 0 are ignored.
    """
    counted = truth >= 0
    predicted, truth = predicted[counted], truth[counted]
    parts = (truth[predicted == truth], truth, predicted)
    return np.stack([np.bincount(values, minlength=num_classes) for values in parts])


def class_ious(records: PixelRecords, weights: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of each class, float64 [C], where image i stands weights[i] (int [I]; None: 1) times.

    NaN for classes without a pixel.
    """
    both, truth, predicted = _sums(records, weights)
    return np.divide(both, truth + predicted - both, out=np.full(len(both), np.nan), where=truth > 0)


def pixel_metrics(records: PixelRecords, weights: np.ndarray | None = None) -> dict[str, float]:
    """mIoU, the mean over classes with pixels, and accuracy, the share of correct pixels; NaN without any pixel."""
    both, truth, _ = _sums(records, weights)
    ious = class_ious(records, weights)
    shown = ious[~np.isnan(ious)]
    return {
        "mIoU": float(shown.mean()) if len(shown) else float("nan"),
        "accuracy": float(both.sum() / truth.sum()) if truth.any() else float("nan"),
    }


def bootstrap_pixels(
    paired: Sequence[PixelRecords], *, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """mIoU and accuracy of runs evaluated on the same images, each resampled: float64 [num_resamples, runs, 2].

    A resample draws I images with replacement, the same ones for all runs, so that differences between runs are paired.
    ValueError unless all runs hold the same images and classes.
    """
    drawn = draw_images(paired, ("image_ids", "class_names"), num_resamples, generator)
    values = [[list(pixel_metrics(run, weights).values()) for run in paired] for weights in drawn]
    return np.array(values).reshape(num_resamples, len(paired), len(COLUMNS))


def _sums(records: PixelRecords, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, num_gt and num_predicted over all images, int64 [C] each."""
    if weights is None:
        weights = np.ones(len(records.image_ids), np.int64)
    return tuple(weights @ counts for counts in (records.true_positives, records.num_gt, records.num_predicted))
