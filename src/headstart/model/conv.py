"""The convolution that backbones and pyramids are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """nn.Conv2d whose 1x1 kernels of stride 1 are matrix products on a CPU.

    In channels-last memory the cells are the rows of a matrix already. oneDNN's convolution of them takes as long
    forward and up to half as long again backward, where it also needs its copies and zeros (docs/performance.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_product(x):
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    def _is_product(self, x: Tensor) -> bool:
        return (
            self.kernel_size == self.stride == (1, 1)
            and self.padding == (0, 0)
            and self.groups == 1
            and x.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and x.is_contiguous(memory_format=torch.channels_last)
        )
