"""Matrix products that are faster on this processor: dense layers, and the weights' gradient of 3x3 convolutions.

On processors with AVX-512 that are not Intel's, MKL computes with AVX2, and oneDNN takes half as long
(docs/performance.md). In channels-last memory and without AVX-512, oneDNN takes 1.4 to 7 times as long as nine products
for the gradient of a convolution's weights on large maps.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from headstart.hardware import processor

# Multiply-adds and width from which on oneDNN pays: below, its calls and a narrow gradient of the weights cost as much.
LEAST_WORK = 2**22
LEAST_WIDTH = 32
WITHOUT_AVX512 = ("DEFAULT", "AVX2")  # torch's names of the levels of its kernels
# Multiply-adds of one tap of a 3x3 kernel from which on products pay: at 19 million both take as long, at 164 million
# products take two fifths (python benchmarks/convolution.py).
LEAST_TAP = 2**26
LEAST_SIDE = 14  # of a map: the border of a padded one of 7 x 7 is two thirds of it, and products take longer there


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of x [...,C] with weight [C',C] and bias [C'] to [...,C']."""
    if not goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    """True if `linear` of x [...,C] with weight [C',C] is computed by oneDNN, where that is faster."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape) >= LEAST_WIDTH
        and x.numel() * len(weight) >= LEAST_WORK
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and mkl_is_held_back()
    )


@cache
def mkl_is_held_back() -> bool:
    """True if torch computes with AVX-512 and its products go to MKL, which uses less than that here."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and "intel" not in processor().lower()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """Dense layer by oneDNN, which reads transposed operands without copying them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T) if to_x else None,
            _product(grad.T, x.T) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


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
