"""Dense layer on rows, computed by the library that is faster on this processor.

On processors with AVX-512 that are not Intel's, MKL computes with AVX2: oneDNN takes half of its time there
(docs/performance.md).
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of x [...,C] with weight [C',C] and bias [C'] to [...,C']."""
    if not goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    """True if `linear` of x [...,C] with weight [C',C] is computed by oneDNN, as it is faster there."""
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
    """oneDNN reads transposed operands as they lie: no copies."""

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
