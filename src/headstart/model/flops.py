"""Cost of a model: parameters, multiply-adds of a prediction, floating-point operations of a training step.

Counted on a copy without values (torch's meta device), from the shapes of convolutions and dense layers and of their
gradients, as every published figure is. Norms, activations, RoIAlign and batched products (suppression, mask targets,
the mask head's last 1x1 at one class a region) are left out. Shapes are the fixed ones of a GPU or a traced graph: an
eager CPU skips what is empty, and does less.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from headstart.model.detector import AnyDetector

_LEFT_OUT = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def num_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def without_values(model: nn.Module) -> nn.Module:
    """A copy of a model, frozen parts and modes included, that holds shapes only; nothing is copied in between."""
    ghosts: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    ghosts |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, ghosts)


class _Counter(TorchDispatchMode):
    """Adds up torch's formulas; its FlopCounterMode also tracks modules, which takes twice as long."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        # torch's formula of a convolution's gradients counts grouped ones as if they were whole.
        if operation == torch.ops.aten.convolution_backward:
            grad, x, weight, transposed, wanted = *args[:3], args[7], args[10]
            self.flops += sum(wanted[:2]) * conv_flop_count(x.shape, weight.shape, grad.shape, transposed)
        elif operation in flop_registry and operation not in _LEFT_OUT:
            self.flops += flop_registry[operation](*args, **(kwargs or {}), out_val=out)
        return out


def count_macs(work: Callable[[], Any]) -> int:
    """Multiply-adds of the convolutions and dense layers that `work` computes."""
    with _Counter() as counter:
        work()
    return counter.flops // 2


def predict_macs(model: nn.Module, height: int, width: int, *, num_channels: int = 3) -> int:
    """Multiply-adds for one image of this padded size: of `predict`, or of a classifier's logits.

    A detector is counted with all its proposals, and the mask head with a region for every detection it may report.
    """
    ghost = without_values(model).eval()
    images = torch.empty(1, num_channels, height, width, device="meta")
    sizes = (torch.empty(1, 2, dtype=torch.int64, device="meta"),) if isinstance(ghost, AnyDetector) else ()
    with torch.no_grad():
        return count_macs(lambda: getattr(ghost, "predict", ghost)(images, *sizes))


def step_flops(model: nn.Module, losses: Callable[[nn.Module], dict[str, torch.Tensor]]) -> int:
    """Floating-point operations (two a multiply-add) of `losses` and of the gradients that are needed.

    `losses` gets a copy of the model without values, and must compute on tensors without values. Frozen parts have no
    gradients, and so none are counted.
    """
    ghost = without_values(model)

    def forward_and_backward() -> None:
        sum(losses(ghost).values()).backward()

    return 2 * count_macs(forward_and_backward)
