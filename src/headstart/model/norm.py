"""Normalisation layers by kind.

R samples, C channels. Every kind takes `forward(x, weight=None)`: `weight` [R] is 1 for real samples and 0 for padding,
which statistics over a batch then exclude. GroupNorm has no such statistics and ignores it.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.ops.precision import at_least_float32
from headstart.ops.processes import is_shared

KINDS = ("group", "batch", "sync_batch", "frozen_batch", "none")
EPSILON = 1e-5  # Detectron's and torchvision's value for GN and BN alike, and torch's default


def norm(kind: str, channels: int, *, groups: int = 32) -> nn.Module:
    """A normalisation layer for `channels` channels; kind is one of KINDS.

    group: GroupNorm with `groups` groups (the paper: 32). batch: BatchNorm over this process. sync_batch: over all
    processes. frozen_batch: fixed statistics and affine. none: identity.
    """
    if kind == "group":
        if channels % groups:
            fit = max(g for g in range(1, groups + 1) if channels % g == 0)
            raise ValueError(
                f"model.norm_groups: {groups} groups do not divide {channels} channels; "
                f"the nearest number that does is {fit}"
            )
        return GroupNorm(groups, channels)
    layers = {"batch": BatchNorm, "sync_batch": SyncBatchNorm, "frozen_batch": FrozenBatchNorm, "none": NoNorm}
    if kind not in layers:
        raise ValueError(f"model.norm: unknown kind {kind!r}, expected one of {', '.join(KINDS)}")
    return layers[kind](channels)


class NoNorm(nn.Identity):
    """No normalisation (VGG, and heads without it)."""

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return x


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu and He, 2018); independent of the batch."""

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return super().forward(x)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm with torch's parameter names; with `weight`, statistics over the samples of weight 1 only."""

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return super().forward(x) if weight is None or not self.training else self.normalise(x, weight)

    def normalise(self, x: Tensor, weight: Tensor | None, *, shared: bool = False) -> Tensor:
        """Normalise by weighted moments, with `shared` those of all processes.

        Running statistics have the unbiased variance, as torch's. Without any real sample they stay as they are, and
        mean and variance count as 0.
        """
        values = at_least_float32(x)
        weight = values.new_ones(x.shape[0]) if weight is None else weight.to(values.dtype)
        weighted = values * weight.view(-1, 1, 1, 1)
        moments = torch.cat(
            [
                weighted.sum((0, 2, 3)),
                (weighted * values).sum((0, 2, 3)),
                (weight.sum() * (x.shape[2] * x.shape[3])).view(1),
            ]
        )
        moments = _AllReduceSum.apply(moments) if shared else moments
        count = moments[-1]
        mean, square = moments[:-1].view(2, -1) / count.clamp(min=1.0)
        variance = (square - mean * mean).clamp(min=0)
        with torch.no_grad():
            rate = self.momentum * (count > 0).to(self.running_mean.dtype)
            unbiased = variance * count / (count - 1).clamp(min=1.0)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out = values * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)
        return out.to(x.dtype)


class SyncBatchNorm(BatchNorm):
    """BatchNorm over the joined batch of all processes.

    One differentiable all-reduce adds up (sum, sum of squares, count). torch's own module refuses CPU tensors when
    distributed; this one runs on gloo, and a process without any sample takes part with a count of zero.
    """

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.training and is_shared(x):
            return self.normalise(x, weight, shared=True)
        return super().forward(x, weight)


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes; the gradient of a sum is the sum of the gradients."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics and affine: a constant scale and shift per channel.

    Buffers carry BatchNorm's names, so that a classification checkpoint loads as it is. With its initial identity
    statistics it is no normalisation at all; the initialisation audit refuses that.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.eps = EPSILON
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
