"""Exponential moving average of a model's trainable parameters, evaluated beside the live ones.

Buffers are not averaged: an evaluation of the average uses the live model's, or PreciseBN's for the average.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Averages of trainable parameters by name, updated after each step.

    It begins with the model's weights, or continues `kept`, the `state` of a checkpoint, where names and shapes fit.
    `statistics` are those of PreciseBN under the averages, if they were evaluated after the last update.
    """

    def __init__(self, model: nn.Module, decay: float, kept: Mapping[str, Any] | None = None):
        self.decay, self.statistics = decay, dict[str, Tensor]()
        self.live = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        self.weights = {name: value.clone() for name, value in self.live.items()}
        for name, value in (kept or {"weights": {}})["weights"].items():
            if name in self.weights and self.weights[name].shape == value.shape:
                self.weights[name].copy_(value)

    def update(self, step: int) -> None:
        """Move the averages towards the weights after `step` finished updates.

        Early steps count more, so that the initial weights are soon forgotten: the decay is at most (1 + step) /
        (10 + step), as in TensorFlow's ExponentialMovingAverage.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), list(self.live.values()), 1 - decay)
        self.statistics = {}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Averages and statistics, as a checkpoint keeps them."""
        return {"weights": self.weights, "statistics": self.statistics}
