"""Averages for evaluation, beside what is trained: of trainable weights, and PreciseBN's BatchNorm statistics.

Buffers are not averaged: an evaluation of the averaged weights uses the live model's, or PreciseBN's for them. Running
averages lag behind the weights and are noisy at small batches (Wu and Johnson 2021, section 3); PreciseBN computes
statistics from many batches under the current weights. Training is not affected: its running averages are restored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.ops import processes as distributed
from headstart.weights.freeze import frozen_modules, set_train_mode

_NOTHING = -1.0  # an impossible variance: a layer that keeps it saw no sample


class Average:
    """Exponential moving averages of trainable parameters by name, updated after each step.

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


def live_norms(model: nn.Module, freeze: str) -> dict[str, _BatchNorm]:
    """BatchNorm layers, of either kind, whose statistics follow the batches; those in frozen parts do not."""
    frozen = {id(layer) for part in frozen_modules(model, freeze) for layer in part.modules()}
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and id(layer) not in frozen
    }


@torch.no_grad()
def precise_statistics(
    model: nn.Module, forward: Callable[[Any], object], batches: Iterable[Any], *, freeze: str
) -> dict[str, Tensor]:
    """Mean and variance of every live norm's input over `batches`, by buffer name; the model is left as it was.

    forward(batch) runs the model in its training mode. The variance is that of the batches pooled: E[mean^2 + variance]
    - E[mean]^2. A layer that saw no sample in any batch keeps its running averages. Processes are averaged.
    """
    norms = live_norms(model, freeze)
    kept = {name: (layer.momentum, [b.clone() for b in layer.buffers()]) for name, layer in norms.items()}
    sums = {name: torch.zeros(3, layer.num_features, device=layer.running_mean.device) for name, layer in norms.items()}
    set_train_mode(model, freeze)
    for layer in norms.values():
        layer.momentum = 1.0  # the running averages become the last batch's own
    for batch in batches:
        for layer in norms.values():
            layer.running_var.fill_(_NOTHING)
        forward(batch)
        for name, layer in norms.items():
            mean, seen = layer.running_mean, (layer.running_var != _NOTHING).float()
            sums[name] += seen * torch.stack([mean, mean**2 + layer.running_var, torch.ones_like(mean)])
    for name, layer in norms.items():
        layer.momentum, buffers = kept[name]
        for buffer, value in zip(layer.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return {
        f"{name}.{kind}": value
        for name, layer in norms.items()
        for kind, value in _pooled(distributed.mean_over_processes(sums[name]), layer).items()
    }


def _pooled(sums: Tensor, layer: _BatchNorm) -> dict[str, Tensor]:
    seen, count = sums[2] > 0, sums[2].clamp(min=1e-6)
    mean = sums[0] / count
    variance = (sums[1] / count - mean**2).clamp(min=0)
    return {
        "running_mean": torch.where(seen, mean, layer.running_mean),
        "running_var": torch.where(seen, variance, layer.running_var),
    }


@contextmanager
def holding(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Use these values of parameters and buffers in the model within the block."""
    places = model.state_dict()  # without gradients, so that parameters can be written
    own = {name: places[name].clone() for name in tensors}
    for name, value in tensors.items():
        places[name].copy_(value)
    try:
        yield
    finally:
        for name, value in own.items():
            places[name].copy_(value)
