"""Per-image match records, from which AP follows for any resample of the images.

Letters: D detections, I images, C classes, T IoU thresholds, S = T * C curves, P true positives of all curves.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from headstart.files import replacing
from headstart.hardware import usable_cores

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's IoU thresholds; the very floats of pycocotools
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision


def save_arrays(path: str | Path, values: dict[str, Any]) -> None:
    """Write a compressed npz, whole or not at all."""
    # a file, since savez would add an ending of its own to a name
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **values)


@contextmanager
def saved_arrays(path: str | Path, what: str) -> Iterator[dict[str, np.ndarray]]:
    """Arrays of an npz by name; ValueError naming the file for any error in it, and in what is done with them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
        yield values
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, numpy and field errors alike mean one thing to the reader
        raise ValueError(f"{path}: holds no {what} ({type(error).__name__}: {error})") from None


@dataclass(frozen=True, eq=False)
class Records:
    """One evaluation, image by image: detections sorted by (label, falling score, image id), and counts of annotations.

    An annotation counts unless it is crowd, difficult or outside the area range; a detection matched to an ignored
    annotation is ignored, as is an unmatched one outside the area range.
    """

    image_ids: np.ndarray  # int64 [I]
    category_ids: np.ndarray  # int64 [C]
    image: np.ndarray  # int32 [D], index into image_ids
    label: np.ndarray  # int16 [D]
    score: np.ndarray  # float64 [D]
    matched: np.ndarray  # bool [D, T]
    ignored: np.ndarray  # bool [D, T]
    gt_image: np.ndarray  # int32, one entry an (image, class) with annotations that count
    gt_label: np.ndarray  # int16
    gt_count: np.ndarray  # int32

    def save(self, path: str | Path) -> None:
        """Write a compressed npz; matched and ignored as bits."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("matched", "ignored"):
            values[name] = np.packbits(values[name], axis=1)
        save_arrays(path, {"num_thresholds": self.matched.shape[1], **values})

    @classmethod
    def load(cls, path: str | Path) -> "Records":
        """Read what `save` wrote; ValueError naming the file if it is something else."""
        with saved_arrays(path, "match records") as values:
            num_thresholds = int(values.pop("num_thresholds"))
            for name in ("matched", "ignored"):
                values[name] = np.unpackbits(values[name], axis=1, count=num_thresholds).astype(bool)
            return cls(**values)


class Curves:
    """Records prepared once for many weightings of the images.

    Along a curve, true positives that follow each other directly form a streak: precision only rises within one, so
    that its end stands for the whole streak. Q counts the streaks of all curves.
    """

    def __init__(self, records: Records):
        num_classes, num_thresholds = len(records.category_ids), records.matched.shape[1]
        num_detections = max(len(records.label), 1)
        label = records.label.astype(np.intp)
        level, place = np.divmod(np.flatnonzero((records.matched & ~records.ignored).T), num_detections)
        curve = level * num_classes + label[place]
        skip = np.flatnonzero(records.ignored.T)
        every = np.arange(num_thresholds * num_classes + 1)
        # Place of the first detection of each label, intp [C].
        self.label_place = np.searchsorted(label, np.arange(num_classes))
        starts = np.arange(num_thresholds)[:, None] * num_detections + self.label_place
        self.num_thresholds = num_thresholds
        self.image = records.image.astype(np.intp)  # [D], of every detection
        # Image of every true positive, intp [P], by (threshold, label, falling score); range of each curve [S + 1].
        self.tp_image = records.image[place].astype(np.intp)
        self.tp_first = np.searchsorted(curve, every)
        # Last true positive of each streak, intp [Q], its place among the detections; streaks of each curve [S + 1].
        self.last_tp = np.flatnonzero((np.diff(place, append=-1) != 1) | (np.diff(curve, append=-1) != 0))
        self.place = place[self.last_tp]
        self.first = np.searchsorted(curve[self.last_tp], every)
        # Image of every ignored detection; how many are before the end of each streak [Q], and before each curve [S].
        self.skip_image = records.image[skip % num_detections].astype(np.intp)
        self.skip_upto = np.searchsorted(skip, (level * num_detections + place)[self.last_tp])
        self.skip_first = np.searchsorted(skip, starts.ravel())
        self.gt_image, self.gt_label = records.gt_image.astype(np.intp), records.gt_label.astype(np.intp)
        self.gt_count = records.gt_count.astype(np.int64)

    def average_precisions(self, weights: np.ndarray) -> np.ndarray:
        """COCO's AP of each threshold and class, float64 [T, C], where image i stands weights[i] (int64 [I]) times.

        NaN for classes without an annotation that counts. The copies of a detection follow each other directly.
        """
        num_classes, sizes = len(self.label_place), np.diff(self.first)
        hits, precision = self._interpolated(weights)
        num_gt = np.bincount(self.gt_label, weights[self.gt_image] * self.gt_count, num_classes).astype(np.int64)
        reached, table_first = _recalls_reached(num_gt)
        recalls = reached[hits + np.repeat(np.tile(table_first, self.num_thresholds), sizes)]
        starts = self.first[:-1][sizes > 0]
        new = np.diff(recalls, prepend=0)  # recalls reached within this streak, which all read its precision
        new[starts] = recalls[starts]
        sums = np.zeros(len(sizes))
        sums[sizes > 0] = np.add.reduceat(precision * new, starts) if len(starts) else 0
        result = (sums / len(RECALLS)).reshape(self.num_thresholds, num_classes)
        result[:, num_gt == 0] = np.nan
        return result

    def _interpolated(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True positives of its curve up to the end of each streak [Q], and the best precision from there on [Q]."""
        sizes = np.diff(self.first)
        running, hits_at = _running(weights[self.image]), _running(weights[self.tp_image])
        hits = hits_at[1:][self.last_tp] - np.repeat(hits_at[self.tp_first[:-1]], sizes)
        seen = running[1:][self.place] - np.repeat(np.tile(running[self.label_place], self.num_thresholds), sizes)
        if len(self.skip_image):
            skipped = _running(weights[self.skip_image])
            seen -= skipped[self.skip_upto] - np.repeat(skipped[self.skip_first], sizes)
        precision = hits / (seen + np.spacing(1))  # the same small term as pycocotools
        for begin, end in pairwise(self.first.tolist()):
            backward = precision[begin:end][::-1]
            np.maximum.accumulate(backward, out=backward)
        return hits, precision


def _running(values: np.ndarray) -> np.ndarray:
    """Cumulative sum with a zero before it."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total


def _recalls_reached(num_gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of COCO's recalls reached with 0, 1, ... num_gt[c] true positives, for all classes in one table.

    Returns the table and the place of each class in it. Recall 0 asks for the best precision anywhere, which is at a
    true positive: it is reached with the first. Compared as floats, like pycocotools.
    """
    total = np.maximum(num_gt, 1)[:, None]
    needed = np.ceil(RECALLS * total)
    needed -= (needed - 1) / total >= RECALLS
    needed += needed / total < RECALLS
    needed = np.maximum(needed, 1).astype(np.int64)
    first = np.cumsum(total[:, 0] + 1) - total[:, 0] - 1
    steps = np.bincount((first[:, None] + needed).ravel(), minlength=int((total + 1).sum()))
    reached = np.cumsum(steps)
    return reached - np.repeat(np.arange(len(num_gt)) * len(RECALLS), total[:, 0] + 1), first


def mean_precisions(precisions: np.ndarray) -> dict[str, float]:
    """AP, AP50, AP75 from average precisions [T, C]: means over the classes that have any, NaN if none has."""
    levels = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
    defined = precisions[:, ~np.isnan(precisions).any(axis=0)]
    parts = {name: defined[at] for name, at in levels.items()}
    return {name: float(part.mean()) if part.size else float("nan") for name, part in parts.items()}


def ap_from_records(records: Records, image_weights: np.ndarray | None = None) -> dict[str, float]:
    """AP, AP50 and AP75 where image i stands image_weights[i] (int [I], 0 allowed; None: 1) times in the data set.

    Equals `evaluate` on a data set in which the copies of an image follow each other in order of ids, if no two
    detections of one image and class share a score: copies of a detection are taken together, before the next one.
    """
    if image_weights is None:
        image_weights = np.ones(len(records.image_ids), np.int64)
    assert image_weights.shape == records.image_ids.shape, (image_weights.shape, records.image_ids.shape)
    return mean_precisions(Curves(records).average_precisions(image_weights.astype(np.int64)))


def draw_images(
    paired: Sequence[Any], same: Sequence[str], num_resamples: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Count each image in resamples of I images with replacement, int64 [I] each.

    ValueError unless all records of `paired` have equal fields `same`.
    """
    for index, records in enumerate(paired):
        for name in same:
            if not np.array_equal(getattr(records, name), getattr(paired[0], name)):
                raise ValueError(f"records {index} were made on other {name} than records 0, expected the same")
    num = len(paired[0].image_ids)
    return [np.bincount(generator.integers(0, num, num), minlength=num) for _ in range(num_resamples)]


def bootstrap_ap(paired: Sequence[Records], *, num_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """AP, AP50 and AP75 of runs evaluated on the same images, each resampled: float64 [num_resamples, runs, 3].

    A resample draws I images with replacement, the same ones for all runs, so that differences between runs are
    paired. Raises ValueError unless all runs hold the same images and categories.
    """
    drawn = draw_images(paired, ("image_ids", "category_ids"), num_resamples, generator)
    prepared = [Curves(records) for records in paired]

    def resample(weights: np.ndarray) -> list[list[float]]:
        return [list(mean_precisions(run.average_precisions(weights)).values()) for run in prepared]

    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy releases the GIL in its long loops
        return np.array(list(pool.map(resample, drawn))).reshape(num_resamples, len(prepared), 3)
