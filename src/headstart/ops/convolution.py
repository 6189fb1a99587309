"""3x3 convolution whose gradient of the weights is nine matrix products.

In channels-last memory and without AVX-512, oneDNN takes 1.4 to 7 times as long for that gradient of large maps
(docs/performance.md).
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
