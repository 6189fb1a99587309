"""Overfitting by learning curves: the peak of validation, and what is lost from there to the end.

Letters: S seeds, P points of a curve. Scores in 0..1, higher is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headstart.verdict.curves import Curve
from headstart.verdict.paired import t_half_width


@dataclass(frozen=True)
class Overfit:
    """Best point of validation (`onset`), its fall from there to the end, and whether that is overfitting.

    The fall of a seed is measured from the peak of the *other* seeds, so selecting a peak from noise adds no bias.
    decided: the interval of the fall lies above the tolerance while training still improves.
    """

    arm: str
    axis: str
    level: float
    num_seeds: int
    onset: float
    fall: float
    half_width: float
    train_gain: float
    decided: bool
    judged: bool = False

    @property
    def indicative(self) -> bool:
        return self.num_seeds < 2


def falls_of(scores: np.ndarray) -> np.ndarray:
    """Fall of each seed to its end, from the peak of the other seeds, or of its own if alone: scores [S,P] -> [S]."""
    if len(scores) == 1:
        return scores.max(1) - scores[:, -1]
    peaks = [np.delete(scores, seed, 0).mean(0).argmax() for seed in range(len(scores))]
    return scores[np.arange(len(scores)), peaks] - scores[:, -1]


def overfit_onset(
    train: Curve,
    validation: Curve,
    *,
    level: float = 0.95,
    tolerance: float = 0.0,
    axis: str = "steps",
    judged: bool = False,
) -> Overfit:
    """Peak of validation, and whether it falls from there by more than `tolerance` while training still improves.

    Both curves have the same x. judged: `train` holds scores on training images; otherwise negated losses. One seed is
    indicative, never decided.
    """
    scores, num_seeds = validation.scores, len(validation.scores)
    if not np.array_equal(train.x, validation.x):
        raise ValueError(f"curve {train.arm}: training and validation have other x, expected the same points")
    onset = int(scores.mean(0).argmax())
    falls = falls_of(scores)
    half = float(t_half_width(falls, level))
    gain = float((train.scores[:, -1] - train.scores[:, onset]).mean())
    return Overfit(
        arm=validation.arm,
        axis=axis,
        level=level,
        num_seeds=num_seeds,
        onset=float(validation.x[onset]),
        fall=float(falls.mean()),
        half_width=half,
        train_gain=gain,
        decided=bool(falls.mean() - half > tolerance and gain > 0),
        judged=judged,
    )
