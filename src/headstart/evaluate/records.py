"""Per-image match records: what AP needs to be computed again for any resample of the images.

Letters: D detections, I images, C classes, T IoU thresholds, S = T * C curves, P true positives of all curves,
R recalls.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's IoU thresholds; the very floats of pycocotools
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision


@dataclass(frozen=True, eq=False)
class Records:
    """One evaluation, image by image: detections sorted by (label, falling score, image id), and counts of annotations.

    An annotation counts unless it is crowd, difficult or outside the area range; a detection that takes one that does
    not count is ignored, as is one that takes none and lies outside the area range.
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
        with Path(path).open("wb") as file:  # a file, since savez would add an ending of its own to a name
            np.savez_compressed(file, num_thresholds=self.matched.shape[1], **values)

    @classmethod
    def load(cls, path: str | Path) -> "Records":
        """Read what `save` wrote; ValueError naming the file if it is something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {name: file[name] for name in file.files}
            num_thresholds = int(values.pop("num_thresholds"))
            for name in ("matched", "ignored"):
                values[name] = np.unpackbits(values[name], axis=1, count=num_thresholds).astype(bool)
            return cls(**values)
        except FileNotFoundError:
            raise
        except Exception as error:  # zip, numpy and field errors alike mean one thing to the reader
            raise ValueError(f"{path}: holds no match records ({type(error).__name__}: {error})") from None


@dataclass(frozen=True, eq=False)
class Curves:
    """Records prepared for many weightings: only the detections that a curve can depend on, in curve order."""

    image: np.ndarray  # intp [D], of every detection
    tp_image: np.ndarray  # intp [P], of every true positive, by (threshold, label, falling score)
    tp_place: np.ndarray  # intp [P], its place among the detections
    tp_first: np.ndarray  # intp [S + 1], range of each curve
    label_place: np.ndarray  # intp [P], place of the first detection of its label
    skip_image: np.ndarray  # intp, of every ignored detection, in the same order
    skip_upto: np.ndarray  # intp [P], ignored ones before it, on all curves
    skip_base: np.ndarray  # intp [P], ignored ones before its own curve
    gt_image: np.ndarray  # intp
    gt_label: np.ndarray  # intp
    gt_count: np.ndarray  # int64
    num_classes: int


def curves(records: Records) -> Curves:
    """Sort out which detections are true positives and which are ignored, once for all weightings."""
    num_classes, num_thresholds = len(records.category_ids), records.matched.shape[1]
    num_detections = len(records.label)
    label = records.label.astype(np.int64)
    label_first = np.searchsorted(label, np.arange(num_classes))
    level, place = np.divmod(np.flatnonzero((records.matched & ~records.ignored).T), max(num_detections, 1))
    skip = np.flatnonzero(records.ignored.T)
    tp_label = label[place]
    return Curves(
        image=records.image.astype(np.intp),
        tp_image=records.image[place].astype(np.intp),
        tp_place=place,
        tp_first=np.searchsorted(level * num_classes + tp_label, np.arange(num_thresholds * num_classes + 1)),
        label_place=label_first[tp_label],
        skip_image=records.image[skip % max(num_detections, 1)].astype(np.intp),
        skip_upto=np.searchsorted(skip, level * num_detections + place),
        skip_base=np.searchsorted(skip, level * num_detections + label_first[tp_label]),
        gt_image=records.gt_image.astype(np.intp),
        gt_label=records.gt_label.astype(np.intp),
        gt_count=records.gt_count.astype(np.int64),
        num_classes=num_classes,
    )


def precisions(curves: Curves, weights: np.ndarray) -> np.ndarray:
    """COCO's interpolated precision, float64 [T, C, R], where image i stands weights[i] (int64 [I]) times in the data.

    NaN for classes without an annotation that counts. The copies of a detection follow each other directly.
    """
    running = _running(weights[curves.image])
    tp = _running(weights[curves.tp_image])
    skipped = _running(weights[curves.skip_image])
    base = tp[curves.tp_first]
    seen = running[curves.tp_place + 1] - running[curves.label_place]
    seen -= skipped[curves.skip_upto] - skipped[curves.skip_base]
    hits = tp[1:] - np.repeat(base[:-1], np.diff(curves.tp_first))
    precision = np.append(hits / (seen + np.spacing(1)), 0)  # the same small term as pycocotools; one cell to read past
    num_gt = np.bincount(curves.gt_label, weights[curves.gt_image] * curves.gt_count, curves.num_classes)
    num_curves = len(base) - 1
    needed = np.tile(_needed(num_gt), (num_curves // max(curves.num_classes, 1), 1))
    spots = np.searchsorted(tp[1:], base[:-1, None] + needed)
    spots = np.minimum(spots, curves.tp_first[1:, None])
    bounds = np.concatenate([spots, curves.tp_first[1:, None]], axis=1)
    best = np.maximum.reduceat(precision, bounds.ravel()).reshape(bounds.shape)[:, :-1]
    best[spots == curves.tp_first[1:, None]] = 0  # this recall is never reached
    best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1].reshape(-1, curves.num_classes, len(RECALLS))
    best[:, num_gt == 0] = np.nan
    return best


def _running(values: np.ndarray) -> np.ndarray:
    """Cumulative sum with a zero before it."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total


def _needed(num_gt: np.ndarray) -> np.ndarray:
    """Fewest true positives, int64 [C, R], whose share of `num_gt` [C] is at least each recall, as floats compare.

    At least 1: recall 0 asks for the best precision anywhere, and that is at a true positive.
    """
    total = np.maximum(num_gt, 1)[:, None]
    needed = np.ceil(RECALLS * total)
    needed -= (needed - 1) / total >= RECALLS
    needed += needed / total < RECALLS
    return np.maximum(needed, 1).astype(np.int64)


def mean_precisions(precision: np.ndarray) -> dict[str, float]:
    """AP, AP50, AP75 from precision [T, C, R]: means over what is defined, NaN if nothing is."""
    levels = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
    defined = precision[:, ~np.isnan(precision[0, :, 0])] if precision.size else precision[:, :0]
    return {name: float(defined[at].mean()) if defined.size else float("nan") for name, at in levels.items()}


def ap_from_records(records: Records, image_weights: np.ndarray | None = None) -> dict[str, float]:
    """AP, AP50 and AP75 where image i stands image_weights[i] (int [I], 0 allowed; None: 1) times in the data set.

    Equals `evaluate` on a data set in which the copies of an image follow each other in order of ids, if no two
    detections of one image and class share a score: copies of a detection are taken together, before the next one.
    """
    if image_weights is None:
        image_weights = np.ones(len(records.image_ids), np.int64)
    assert image_weights.shape == records.image_ids.shape, (image_weights.shape, records.image_ids.shape)
    return mean_precisions(precisions(curves(records), image_weights.astype(np.int64)))
