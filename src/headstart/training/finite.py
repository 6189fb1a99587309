"""Finite weights: all numbers that a checkpoint keeps, asked for in one pass before it is written."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def require_finite(
    model: nn.Module, optimizer: torch.optim.Optimizer, statistics: Mapping[str, Tensor], step: int
) -> None:
    """FloatingPointError naming the first tensor that holds NaN or infinity after `step` updates.

    Of the model's state, the optimizer's, and `statistics`. One transfer to the host.
    """
    named = [(name, tensor) for name, tensor in _tensors(model, optimizer, statistics) if tensor.numel()]
    if math.isfinite(nn.utils.get_total_norm([tensor for _, tensor in named], math.inf)):  # the largest of all |x|
        return
    name = next(name for name, tensor in named if not torch.isfinite(tensor).all())
    raise FloatingPointError(f"step {step}: {name} is not finite after the update; no checkpoint was written")


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, statistics: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors by name."""
    for name, tensor in (*model.state_dict().items(), *statistics.items()):
        if tensor.is_floating_point():
            yield name, tensor
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield f"{key} of {name}", value
