"""Convolutions with a faster gradient of the weights in channels-last memory, without AVX-512 (docs/performance.md).

3x3: nine matrix products; oneDNN takes 1.4 to 7 times as long on large maps. Depth-wise 5x5: two of 5x3, for which
oneDNN has a kernel of its own; its general one, which it takes for 5x5, is up to three times as slow.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

WITHOUT_AVX512 = ("DEFAULT", "AVX2")  # torch's names of the levels of its kernels
# Multiply-adds of one tap from which on the products pay: at 19 million both take as long, at 164 million products
# take two fifths (python benchmarks/convolution.py).
LEAST_WORK = 2**26
LEAST_SIDE = 14  # of a map: the border of a padded one of 7 x 7 is two thirds of it, and products take longer there


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv2d of x [B,C,H,W] in channels-last memory, weight [C',C,3,3] and padding 1, with its own backward."""
    return _Conv3x3.apply(x, weight, bias)


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient [C',C,3,3] of a 3x3 convolution's weights, for its input [B,C,H,W] and its output's gradient.

    Both are laid out as rows of a padded image of (H+2) x (W+2) cells, in which a tap is a shift by a number of rows.
    """
    channels, width = x.shape[1], x.shape[3]
    inputs = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(-1, channels)
    outputs = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, 2, 0, 2)).reshape(-1, grad.shape[1])
    num = max(len(inputs) - 2 * (width + 2) - 2, 0)  # rows before the last tap leaves the image; the rest are zero
    shifts = [down * (width + 2) + right for down in range(3) for right in range(3)]
    taps = [outputs[:num].T @ inputs[shift : shift + num] for shift in shifts]
    return torch.stack(taps, dim=2).unflatten(2, (3, 3))


def depth_wise5x5(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """F.conv2d of x [B,C,H,W] in channels-last memory by weight [C,1,5,5], a channel each, with its own backward."""
    return _DepthWise5x5.apply(x, weight, stride, padding)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        once = (1, 1)
        grad_x, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, once, once, once, False, (0, 0), 1, (to_x, False, False)
        )
        return grad_x, weight_gradient(x, grad) if to_weight else None, grad.sum((0, 2, 3)) if to_bias else None


class _DepthWise5x5(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        down, right = ctx.padding
        grad = grad.contiguous(memory_format=torch.channels_last)

        def gradient(x: Tensor, weight: Tensor, padding: tuple[int, ...], wanted: tuple[bool, ...]) -> list[Tensor]:
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, ctx.stride, padding, (1, 1), False, (0, 0), len(weight), wanted
            )

        grad_x = gradient(x, weight, ctx.padding, (True, False, False))[0] if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None
        sides = (right, right - 2), (right - 2, right)  # of the columns under the left and the right three of the taps
        halves = [
            gradient(F.pad(x, (*side, 0, 0)), weight[..., :3], (down, 0), (False, True, False))[1] for side in sides
        ]
        return grad_x, torch.cat([halves[0], halves[1][..., 1:]], dim=3), None, None
