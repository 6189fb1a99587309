"""Error types of a detector, and the AP that each type costs at an IoU of 0.5.

After TIDE (Bolya et al., arXiv:2008.08115): give every wrong detection one type, fix all errors of a type, recompute
AP. Letters: D detections, G annotations, P pairs of a detection and an annotation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.data.dataset import Dataset
from headstart.metrics.coco import AREA_RANGES
from headstart.metrics.matching import MAX_PAIRS, Groups, match_groups, pairs
from headstart.metrics.overlaps import Measures, measure
from headstart.metrics.predictions import Predictions
from headstart.metrics.records import Records, ap_from_records

FOREGROUND = 0.5  # the overlap from which a detection is a true positive
BACKGROUND = 0.1  # the overlap below which a detection covers background only (TIDE's choice)
TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")


@dataclass(frozen=True)
class ErrorTypes:
    """AP50 as `evaluate` gives it; for each of TYPES the number of errors, and the gain in AP50 if they were fixed."""

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN becomes null."""
        values = {"ap50": self.ap50, **self.gains}
        known = {name: None if value != value else value for name, value in values.items()}
        return {"ap50": known.pop("ap50"), "counts": self.counts, "gains": known}


def error_types(
    dataset: Dataset, predictions: Predictions, kind: str = "box", *, max_detections: int = 100
) -> ErrorTypes:
    """Assign wrong detections and missed annotations to types, and fix each type by itself.

    A false positive has the first type that fits, by its overlap with counted annotations: `duplicate`, at least 0.5
    with its own class (already matched); `localisation`, 0.1 to 0.5 with its own class; `classification`, at least 0.5
    with another class; `both`, 0.1 to 0.5 with another class; `background`.
    `missed` is an annotation without a match that is not the target of a classification or localisation error.

    The fix of a classification or localisation error matches it to its target, the annotation it overlaps most; of
    several detections with one target only the best-scored stays. Other false positives are removed; missed
    annotations are removed (a class without any other leaves the mean). Gains are NaN without counted annotations.
    Raises ValueError as `evaluate` does.
    """
    groups = Groups(dataset, predictions, max_detections)
    measures = measure(dataset, predictions, kind, least=BACKGROUND, across_classes=True)
    matches = match_groups(dataset, groups, measures, AREA_RANGES[:1], np.array([FOREGROUND]))
    match = np.full(len(groups.det), -1, np.int64)
    match[matches.det] = matches.winner[:, 0, 0]
    ignored = matches.outside[:, 0] & (match < 0)
    ignored[matches.det] |= matches.ignored[:, 0, 0]
    state = _State(dataset, groups, match, ignored, matches.counts[:, 0])
    wrong = (match < 0) & ~ignored
    (own, own_gt), (other, other_gt) = _nearest(state, measures, wrong)
    fits = [own >= FOREGROUND, own >= BACKGROUND, other >= FOREGROUND, other >= BACKGROUND]
    names = np.array(["duplicate", "localisation", "classification", "both", "background"])
    error = np.where(wrong, names[np.select(fits, range(4), default=4)], "")
    target = np.where(error == "localisation", own_gt, np.where(error == "classification", other_gt, -1))
    missed = state.counts.copy()
    missed[match[match >= 0]] = False
    missed[target[target >= 0]] = False
    ap50 = _ap(state, match, np.ones(len(match), bool), state.counts)
    fixed = {name: _fixed_ap(state, error == name, target) for name in TYPES[:-1]}
    fixed["missed"] = _ap(state, match, np.ones(len(match), bool), state.counts & ~missed)
    counts = {name: int((error == name).sum()) for name in TYPES[:-1]} | {"missed": int(missed.sum())}
    return ErrorTypes(ap50, counts, {name: fixed[name] - ap50 for name in TYPES})


@dataclass(frozen=True, eq=False)
class _State:
    dataset: Dataset
    groups: Groups
    match: np.ndarray  # int64 [D], place of the matched annotation, -1 for none
    ignored: np.ndarray  # bool [D]
    counts: np.ndarray  # bool [G], annotation counts


def _nearest(state: _State, measures: Measures, chosen: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Largest overlap of each chosen detection with a counted annotation, [D], and its place, -1 for none.

    First for annotations of the detection's class, then for those of other classes.
    """
    groups = state.groups
    begin = np.searchsorted(groups.gt_place, groups.place, side="left")
    end = np.searchsorted(groups.gt_place, groups.place, side="right")
    found = [(np.zeros(len(groups.det)), np.full(len(groups.det), -1, np.int64)) for _ in range(2)]
    for det, gt in pairs(begin, np.where(chosen, end, begin), MAX_PAIRS):
        counting = state.counts[gt]
        det, gt = det[counting], gt[counting]
        overlap = measures.overlap(groups.det[det], groups.gt[gt])
        order = np.lexsort((gt, overlap, det))
        own = (groups.label[det] == groups.gt_label[gt])[order]
        for (most, nearest), part in zip(found, (order[own], order[~own])):
            last = part[np.flatnonzero(np.diff(det[part], append=-1))]  # the largest overlap of each detection
            most[det[last]], nearest[det[last]] = overlap[last], gt[last]
    return found


def _fixed_ap(state: _State, chosen: np.ndarray, target: np.ndarray) -> float:
    """AP50 where the chosen detections match their targets; those without a target are removed."""
    match = np.where(chosen & (target >= 0), target, state.match)
    kept = ~chosen | (target >= 0)
    rivals = np.flatnonzero((match >= 0) & ~state.ignored & kept)
    # One match an annotation: the best score, on a tie the detection that had it before.
    order = rivals[np.lexsort((chosen[rivals], -state.groups.score[rivals], match[rivals]))]
    kept[order[np.diff(match[order], prepend=-1) == 0]] = False
    return _ap(state, match, kept, state.counts)


def _ap(state: _State, match: np.ndarray, kept: np.ndarray, counts: np.ndarray) -> float:
    """AP50 of the detections kept, each counted to the class of the annotation it matches."""
    groups = state.groups
    label = (
        np.where((match >= 0) & ~state.ignored, groups.gt_label[match], groups.label) if len(counts) else groups.label
    )
    order = np.lexsort((-groups.score, label))
    order = order[kept[order]]
    counted = np.flatnonzero(counts)
    records = Records(
        image_ids=state.dataset.image_ids,
        category_ids=state.dataset.category_ids,
        image=groups.image[order],
        label=label[order],
        score=groups.score[order],
        matched=(match[order] >= 0)[:, None],
        ignored=state.ignored[order, None],
        gt_image=groups.gt_image[counted],
        gt_label=groups.gt_label[counted],
        gt_count=np.ones(len(counted), np.int64),
    )
    return ap_from_records(records)["AP50"]
