"""Convolutions with normalisation, and the feature pyramid made of them (Lin et al. 2017): C2..C5 to P2..P6."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model.norm import norm
from headstart.ops.products import LEAST_SIDE, LEAST_TAP, WITHOUT_AVX512, conv3x3, linear

# Channels below which a 1x1 convolution with a stride is a product too: with AVX-512, oneDNN's gradient of 4 or 8
# channels on maps of 64 x 64 writes outside its memory and the process crashes (torch 2.15); of 12 or more it does not.
LEAST_STRIDED = 16


class Conv2d(nn.Conv2d):
    """nn.Conv2d that uses matrix products on a CPU: for 1x1 kernels, and for the gradient of 3x3 kernels.

    In channels-last memory the cells are the rows of a matrix already. oneDNN's convolution of 1x1 kernels takes as
    long forward and up to half as long again backward, where it also needs its copies and zeros
    (docs/performance.md); its gradient of 3x3 kernels is slow without AVX-512 (`ops/products.py`).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self._is_product(x):
            rows = x.permute(0, 2, 3, 1)[:, :: self.stride[0], :: self.stride[1]]
            return linear(rows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        if self._has_own_gradient(x):
            return conv3x3(x, self.weight, self.bias)
        return super().forward(x)

    def _is_product(self, x: Tensor) -> bool:
        is_kept = self.stride == (1, 1) or self.in_channels < LEAST_STRIDED
        return self.kernel_size == (1, 1) and self.padding == (0, 0) and is_kept and self._has_rows(x)

    def _has_own_gradient(self, x: Tensor) -> bool:
        return (
            self.kernel_size == (3, 3)
            and self.stride == (1, 1)
            and self.padding == self.dilation == (1, 1)
            and self.weight.requires_grad
            and torch.is_grad_enabled()
            and self._has_rows(x)
            and min(x.shape[2:]) >= LEAST_SIDE
            and x.numel() * self.out_channels >= LEAST_TAP
            and x.dtype == self.weight.dtype
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.cpu.get_cpu_capability() in WITHOUT_AVX512
        )

    def _has_rows(self, x: Tensor) -> bool:
        return (
            self.groups == 1
            and x.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and x.is_contiguous(memory_format=torch.channels_last)
        )


def initialise_convolutions(module: nn.Module, *, mode: str = "fan_out") -> None:
    """MSRA initialisation of every convolution (He et al. 2015; fan-out as torchvision and detectron2 do).

    Detectron's GN bodies used Xavier; under a normaliser the scale has no effect (paper.md 2.2).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ConvNorm(nn.Module):
    """A convolution and its normalisation; the bias is left out where a norm follows."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, norm_kind: str, norm_groups: int, relu: bool = False
    ):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm_kind == "none")
        self.norm = norm(norm_kind, out_channels, groups=norm_groups)
        self.relu = relu

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        x = self.norm(self.conv(x), weight)
        return F.relu(x, inplace=True) if self.relu else x


class Pyramid(nn.Module):
    """Lateral 1x1 and output 3x3 convolutions, nearest-neighbour top-down sums.

    `map_strides` are those of the backbone's maps; regions are pooled from these levels. With `subsample` a last level
    at twice the stride (P6) takes every second cell of the one before, for the RPN only. `strides` are of all levels.
    With `finest` the level of this stride is the only one, made of the maps that are not finer.
    """

    initialiser = "Xavier uniform"

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        norm_kind: str,
        norm_groups: int,
        map_strides: Sequence[int] = (4, 8, 16, 32),
        subsample: bool = True,
        finest: int | None = None,
    ):
        super().__init__()
        assert len(map_strides) == len(in_channels) and not (subsample and finest)
        self.skipped = 0 if finest is None else list(map_strides).index(finest)
        in_channels = in_channels[self.skipped :]
        self.pooled_strides = tuple(map_strides) if finest is None else (finest,)
        self.strides = (*map_strides, 2 * map_strides[-1]) if subsample else self.pooled_strides
        options = {"norm_kind": norm_kind, "norm_groups": norm_groups}
        self.lateral = nn.ModuleList(ConvNorm(width, channels, 1, **options) for width in in_channels)
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3, **options) for _ in self.pooled_strides)
        self.channels = channels
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # Detectron: XavierFill, which is kaiming_uniform with a=1
                nn.init.kaiming_uniform_(layer.weight, a=1)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """P2..P6 [B,C,H/4..H/64,...] from C2..C5 (maps of one stride are added without resizing)."""
        features = features[self.skipped :]
        sums = [self.lateral[-1](features[-1])]
        for level in range(len(features) - 2, -1, -1):
            lateral = self.lateral[level](features[level])
            sums.insert(0, lateral + F.interpolate(sums[0], size=lateral.shape[-2:], mode="nearest"))
        maps = [output(each) for output, each in zip(self.output, sums)]
        if len(self.strides) == len(maps):
            return maps
        # A max-pool of one cell: the subsampling of the original, as torchvision and Detectron do it.
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]


class LastMap(nn.Module):
    """No pyramid: RPN and heads on the backbone's last map, as in the first Faster R-CNN (Ren et al. 2015)."""

    initialiser = "no tensors"

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels = channels
        self.strides = self.pooled_strides = (stride,)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [features[-1]]
