"""What kinds of mistakes a detector makes, and what each kind costs in AP at an IoU of 0.5.

The idea is that of TIDE (Bolya et al., arXiv:2008.08115): give every wrong detection one reason, mend all of one
reason, evaluate again. Letters: D detections, G annotations, P pairs of a detection and an annotation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.data.dataset import Dataset
from headstart.metrics.coco import AREA_RANGES
from headstart.metrics.groups import Groups, group, pairs
from headstart.metrics.matching import MAX_PAIRS, match_groups
from headstart.metrics.overlaps import Measures, measure
from headstart.metrics.predictions import Predictions
from headstart.metrics.records import Records, ap_from_records

RIGHT = 0.5  # an overlap that makes a detection right
TOUCHING = 0.1  # below it, a detection has to do with background only (TIDE's choice)
TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")


@dataclass(frozen=True)
class ErrorTypes:
    """ap50 as `evaluate` gives it; for each of TYPES the number of mistakes, and how much AP50 rises without them."""

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not defined is null."""
        values = {"ap50": self.ap50, **self.gains}
        known = {name: None if value != value else value for name, value in values.items()}
        return {"ap50": known.pop("ap50"), "counts": self.counts, "gains": known}


def error_types(
    dataset: Dataset, predictions: Predictions, kind: str = "box", *, max_detections: int = 100
) -> ErrorTypes:
    """Sort wrong detections and missed annotations into types, and mend each type by itself.

    A wrong detection is the first of these that fits, by its overlap with annotations that count: `duplicate`, at least
    0.5 with its own class (it is taken, or this one would be right); `localisation`, 0.1 to 0.5 with its own class;
    `classification`, at least 0.5 with another class; `both`, 0.1 to 0.5 with another class; `background`.
    `missed` is an annotation that no detection takes, and that none of the classification or localisation
    mistakes is meant for. Mended, a classification or localisation mistake finds the annotation it overlaps most; of
    several on one annotation the best-scored stays, and the others go. The other wrong detections go; missed
    annotations are no longer asked for (a class without any other leaves the mean). Gains are NaN where nothing is
    asked for. Raises ValueError as `evaluate` does.
    """
    groups = group(dataset, predictions, max_detections)
    measures = measure(dataset, predictions, kind, least=TOUCHING, across_classes=True)
    matches = match_groups(dataset, groups, measures, AREA_RANGES[:1], np.array([RIGHT]))
    takes = np.full(len(groups.det), -1, np.int64)
    takes[matches.det] = matches.winner[:, 0, 0]
    ignored = matches.outside[:, 0] & (takes < 0)
    ignored[matches.det] |= matches.ignored[:, 0, 0]
    state = _State(dataset, groups, takes, ignored, matches.counts[:, 0])
    wrong = (takes < 0) & ~ignored
    (own, own_gt), (other, other_gt) = _nearest(state, measures, wrong)
    reasons = [own >= RIGHT, own >= TOUCHING, other >= RIGHT, other >= TOUCHING]
    names = np.array(["duplicate", "localisation", "classification", "both", "background"])
    reason = np.where(wrong, names[np.select(reasons, range(4), default=4)], "")
    meant = np.where(reason == "localisation", own_gt, np.where(reason == "classification", other_gt, -1))
    missed = state.counts.copy()
    missed[takes[takes >= 0]] = False
    missed[meant[meant >= 0]] = False
    ap50 = _ap(state, takes, np.ones(len(takes), bool), state.counts)
    mended = {name: _mend(state, reason == name, meant) for name in TYPES[:-1]}
    mended["missed"] = _ap(state, takes, np.ones(len(takes), bool), state.counts & ~missed)
    counts = {name: int((reason == name).sum()) for name in TYPES[:-1]} | {"missed": int(missed.sum())}
    return ErrorTypes(ap50, counts, {name: mended[name] - ap50 for name in TYPES})


@dataclass(frozen=True, eq=False)
class _State:
    dataset: Dataset
    groups: Groups
    takes: np.ndarray  # int64 [D], place of the annotation taken, -1 for none
    ignored: np.ndarray  # bool [D]
    counts: np.ndarray  # bool [G], annotation counts


def _nearest(state: _State, measures: Measures, asked: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Largest overlap of each detection asked for with an annotation that counts, [D], and its place, -1 for none.

    First for annotations of the detection's class, then for those of other classes.
    """
    groups = state.groups
    begin = np.searchsorted(groups.gt_place, groups.place, side="left")
    end = np.searchsorted(groups.gt_place, groups.place, side="right")
    found = [(np.zeros(len(groups.det)), np.full(len(groups.det), -1, np.int64)) for _ in range(2)]
    for det, gt in pairs(begin, np.where(asked, end, begin), MAX_PAIRS):
        counting = state.counts[gt]
        det, gt = det[counting], gt[counting]
        overlap = measures.overlap(groups.det[det], groups.gt[gt])
        order = np.lexsort((gt, overlap, det))
        own = (groups.label[det] == groups.gt_label[gt])[order]
        for (most, nearest), part in zip(found, (order[own], order[~own])):
            last = part[np.flatnonzero(np.diff(det[part], append=-1))]  # the largest overlap of each detection
            most[det[last]], nearest[det[last]] = overlap[last], gt[last]
    return found


def _mend(state: _State, chosen: np.ndarray, meant: np.ndarray) -> float:
    """AP50 where the chosen detections take the annotation they are meant for, if they have one, and go if not."""
    takes = np.where(chosen & (meant >= 0), meant, state.takes)
    kept = ~chosen | (meant >= 0)
    rivals = np.flatnonzero((takes >= 0) & ~state.ignored & kept)
    order = rivals[
        np.lexsort((chosen[rivals], -state.groups.score[rivals], takes[rivals]))
    ]  # on a tie the old one stays
    kept[order[np.diff(takes[order], prepend=-1) == 0]] = False
    return _ap(state, takes, kept, state.counts)


def _ap(state: _State, takes: np.ndarray, kept: np.ndarray, counts: np.ndarray) -> float:
    """AP50 of the detections kept, each counted to the class of the annotation it takes."""
    groups = state.groups
    label = (
        np.where((takes >= 0) & ~state.ignored, groups.gt_label[takes], groups.label) if len(counts) else groups.label
    )
    order = np.lexsort((-groups.score, label))
    order = order[kept[order]]
    wanted = np.flatnonzero(counts)
    records = Records(
        image_ids=state.dataset.image_ids,
        category_ids=state.dataset.category_ids,
        image=groups.image[order],
        label=label[order],
        score=groups.score[order],
        matched=(takes[order] >= 0)[:, None],
        ignored=state.ignored[order, None],
        gt_image=groups.gt_image[wanted],
        gt_label=groups.gt_label[wanted],
        gt_count=np.ones(len(wanted), np.int64),
    )
    return ap_from_records(records)["AP50"]
