"""1x1 convolution to more channels, BatchNorm and a clamp, without the convolution's own output.

A normalised linear map is a linear map whose scale follows from its input's covariance, a matrix as narrow as the
input. So neither the statistics nor their gradient read the wide output, which is most of an inverted residual's
memory (docs/performance.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Sides = tuple[int, int, int, int]  # left, right, top, bottom: as F.pad has them


def expand(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, eps: float, highest: float, sides: Sides
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B,C',H+,W+] of x [B,C,H,W] and weight [C',C,1,1]; mean [C'] and biased variance [C'] over the batch.

    BatchNorm with this scale and shift, then a clamp to [0, highest], then zeros at the sides. x and output are in
    channels-last memory. Mean and variance have no gradient.
    """
    return _Expand.apply(x, weight.flatten(1), scale, shift, eps, highest, sides)


def widened(x: Tensor, weight: Tensor, bias: Tensor, highest: float, sides: Sides) -> Tensor:
    """Cells [B,H+,W+,C'] of a 1x1 convolution of x [B,C,H,W] by weight [C',C], clamped, with zeros at the sides."""
    out = F.linear(F.pad(x.permute(0, 2, 3, 1), (0, 0, *sides)), weight, bias).clamp_(0, highest)
    left, right, top, bottom = sides
    for dim, low, high in ((1, top, bottom), (2, left, right)):
        out.narrow(dim, 0, low).zero_()
        out.narrow(dim, out.shape[dim] - high, high).zero_()
    return out


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, eps: float, highest: float, sides: Sides
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        centre = rows.mean(0)
        centred = rows - centre
        spread = weight @ (centred.T @ centred / len(rows))  # [C',C], the weight times the covariance
        mean, variance = weight @ centre, (spread * weight).sum(1).clamp(min=0)
        inverse = torch.rsqrt(variance + eps)
        gain = scale * inverse
        wide = widened(x, weight * gain.unsqueeze(1), shift - mean * gain, highest, sides)
        ctx.save_for_backward(x, weight, scale, centre, spread, inverse, wide)
        ctx.highest, ctx.sides = highest, sides
        ctx.mark_non_differentiable(mean, variance)
        return wide.permute(0, 3, 1, 2), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, scale, centre, spread, inverse, wide = ctx.saved_tensors
        left, right, top, bottom = ctx.sides
        # stopped by the clamp, and by the zero of a side
        grad = torch.ops.aten.hardtanh_backward(grad.permute(0, 2, 3, 1), wide, 0, ctx.highest)
        rows = grad.reshape(-1, len(weight))
        centred = x.permute(0, 2, 3, 1) - centre
        products = rows.T @ F.pad(centred, (0, 0, *ctx.sides)).reshape(-1, x.shape[1])  # [C',C]
        to_scale, to_shift = inverse * (weight * products).sum(1), rows.sum(0)
        gain, ratio = (scale * inverse).unsqueeze(1), (inverse * to_scale).unsqueeze(1)
        to_weight = gain * (products - ratio * spread)
        to_x = None
        if ctx.needs_input_grad[0]:
            scaled, num = gain * weight, x[:, 0].numel()
            cells = (rows @ scaled).view(*grad.shape[:3], -1)
            cells = cells[:, top : grad.shape[1] - bottom, left : grad.shape[2] - right] - to_shift @ scaled / num
            cells.view(num, -1).addmm_(centred.view(num, -1), weight.T @ (ratio * scaled), alpha=-1 / num)
            to_x = cells.permute(0, 3, 1, 2)
        return to_x, to_weight, to_scale, to_shift, None, None, None
