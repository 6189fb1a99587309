"""timm's layers as a CPU computes them faster, under timm's names and with timm's values.

Convolutions become ours (`model/pyramid.py`), and inverted residuals (MobileNetV2, EfficientNet-Lite) the block below.
"""

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.padding import get_same_padding
from timm.models._efficientnet_blocks import InvertedResidual as TimmBlock
from torch import Tensor, nn

from headstart.model.pyramid import Conv2d, is_depth_wise5x5, is_rows
from headstart.ops.convolution import depth_wise5x5
from headstart.ops.expansion import Sides, expand, widened

HIGHEST = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}  # by activation; a block with another one stays timm's


def accelerate(module: nn.Module) -> None:
    """Replace convolutions and inverted residuals below a timm net; names, values and hooks stay."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and not _hooked(child):
            module.add_module(name, _as_ours(child))
            continue
        accelerate(child)
        if type(child) is TimmBlock and InvertedResidual.fits(child):
            module.add_module(name, InvertedResidual(child))


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depth-wise convolution, 1x1 convolution to fewer; the layers are timm's own.

    In channels-last memory on a CPU, the first convolution, its norm and the depth-wise padding are one function while
    training (`ops/expansion.py`). Without gradients and statistics, norms become part of the weights.
    """

    conv_pw: Conv2d
    conv_dw: nn.Conv2d
    conv_pwl: Conv2d
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    bn3: nn.BatchNorm2d
    aa: nn.Module
    se: nn.Module
    drop_path: nn.Module

    def __init__(self, block: TimmBlock):
        super().__init__()
        for name, layer in block.named_children():
            self.add_module(name, layer)
        self.has_skip = block.has_skip

    @staticmethod
    def fits(block: TimmBlock) -> bool:
        """Whether timm's layers are those of this block: BatchNorm, ReLU or ReLU6, no convolution before the first."""
        wide, deep, norms = block.conv_pw, block.conv_dw, (block.bn1, block.bn2, block.bn3)
        return (
            block.conv_s2d is None
            and type(wide) is type(block.conv_pwl) is Conv2d
            and (wide.kernel_size, wide.stride, wide.groups, wide.bias) == ((1, 1), (1, 1), 1, None)
            and wide.in_channels < wide.out_channels
            and type(deep) in (Conv2d, Conv2dSame)
            and all(type(norm) is BatchNormAct2d and norm.momentum is not None for norm in norms)
            and all(norm.affine and norm.track_running_stats and type(norm.drop) is nn.Identity for norm in norms)
            and {type(block.bn1.act), type(block.bn2.act)} <= HIGHEST.keys()
            and (type(block.bn3.act), deep.bias, block.conv_pwl.bias) == (nn.Identity, None, None)
            and block.conv_pwl.kernel_size == (1, 1)
            and not _hooked(block)
        )

    def forward(self, x: Tensor) -> Tensor:
        grads = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))
        live = any(norm.training for norm in (self.bn1, self.bn2, self.bn3))
        if is_rows(x, self.conv_pw.weight) and not live and not grads:
            out = self._predicted(x)
        else:
            if is_rows(x, self.conv_pw.weight) and self.bn1.training:
                inner = self._depth_wise(self._expanded(x))
            else:
                inner = self.conv_dw(self.bn1(self.conv_pw(x)))
            out = self.bn3(self.conv_pwl(self.se(self.aa(self.bn2(inner)))))
        return self.drop_path(out) + x if self.has_skip else out

    def _predicted(self, x: Tensor) -> Tensor:
        weight, bias = _joined(self.conv_pw, self.bn1)
        inner = widened(x, weight.flatten(1), bias, HIGHEST[type(self.bn1.act)], self._sides(x)).permute(0, 3, 1, 2)
        conv, (weight, bias) = self.conv_dw, _joined(self.conv_dw, self.bn2)
        inner = F.conv2d(inner, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        inner = self.se(self.aa(inner.clamp_(0, HIGHEST[type(self.bn2.act)])))
        weight, bias = _joined(self.conv_pwl, self.bn3)
        return F.linear(inner.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)

    def _expanded(self, x: Tensor) -> Tensor:
        norm = self.bn1
        out, mean, variance = expand(
            x, self.conv_pw.weight, norm.weight, norm.bias, norm.eps, HIGHEST[type(norm.act)], self._sides(x)
        )
        num = x[:, 0].numel()
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (num / max(num - 1, 1)), norm.momentum)
        return out

    def _sides(self, x: Tensor) -> Sides:
        """Padding of the depth-wise convolution that is not the same on all sides."""
        conv = self.conv_dw
        if not isinstance(conv, Conv2dSame):
            return (0, 0, 0, 0)
        down, right = (
            get_same_padding(x.shape[2 + d], conv.kernel_size[d], conv.stride[d], conv.dilation[d]) for d in (0, 1)
        )
        return (right // 2, right - right // 2, down // 2, down - down // 2)

    def _depth_wise(self, x: Tensor) -> Tensor:
        """The depth-wise convolution of what has its padding already."""
        conv = self.conv_dw
        if is_depth_wise5x5(conv, x):
            return depth_wise5x5(x, conv.weight, conv.stride, conv.padding)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _joined(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without bias and the running statistics' norm behind it."""
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * gain.view(-1, 1, 1, 1), norm.bias - norm.running_mean * gain


def _as_ours(conv: nn.Conv2d) -> Conv2d:
    """The same layer, with the same tensors, as one of ours; no random number is drawn."""
    layer = Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    layer.weight, layer.bias = conv.weight, conv.bias
    return layer


def _hooked(module: nn.Module) -> bool:
    return any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())
