"""Stacked hourglasses (Newell et al. 2016) as CornerNet has them (Law and Deng 2018): a map of stride 4 from each."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model.backbones import STAGES
from headstart.model.backbones.resnet import ResidualBlock
from headstart.model.norm import norm
from headstart.model.pyramid import ConvNorm

# (stacks, channels by depth, residual blocks by depth): CornerNet's own, and CornerNet-Lite's (1904.08900, section 3.1)
DEPTHS = {
    104: (2, (256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4)),
    54: (3, (256, 384, 384, 512), (1, 1, 1, 1)),
}


class _Level(nn.Module):
    """One depth of an hourglass and all below it: the sum of a skip and of what the smaller map gives."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], norms: dict):
        super().__init__()
        width, below, count = widths[0], widths[1], blocks[0]
        self.skip = _residuals([width] * (count + 1), norms)
        self.down = _residuals([width] + [below] * count, norms, stride=2)
        deeper = len(widths) > 2
        self.inner = _Level(widths[1:], blocks[1:], norms) if deeper else _residuals([below] * (blocks[1] + 1), norms)
        self.up = _residuals([below] * count + [width], norms)

    def forward(self, x: Tensor) -> Tensor:
        low = F.interpolate(self.up(self.inner(self.down(x))), scale_factor=2.0, mode="nearest")
        # A map of an odd side n becomes one of (n + 1) / 2, and that twice as large is cut to n again.
        return self.skip(x) + low[:, :, : x.shape[2], : x.shape[3]]


class Hourglass(nn.Module):
    """Stacks of hourglasses on a stem of stride 4.

    `depth`: 104 or 54; or residual blocks by depth, from the outside in, with as many `widths`, and `stacks`. Each
    stack starts from the stem's map and the map before, merged. A 3x3 convolution ends each stack. Returns a map a
    stack, all [B,widths[0],H/4,W/4]. Initial values are torch's, as in the released code.
    """

    initialiser = "torch's own"

    def __init__(
        self,
        depth: int | Sequence[int],
        *,
        widths: Sequence[int] | None = None,
        stacks: int | None = None,
        norm_kind: str,
        norm_groups: int = 32,
        in_channels: int = 3,
    ):
        super().__init__()
        stacks, widths, blocks = DEPTHS[depth] if isinstance(depth, int) else (stacks, widths, depth)
        norms = {"norm_kind": norm_kind, "norm_groups": norm_groups}
        width, first = widths[0], max(widths[0] // 2, 1)
        self.conv1 = nn.Conv2d(in_channels, first, 7, 2, 3, bias=norm_kind == "none")
        self.bn1 = norm(norm_kind, first, groups=norm_groups)
        self.reduce = _residuals([first, width], norms, stride=2)
        self.stacks = nn.ModuleList(_Level(widths, blocks, norms) for _ in range(stacks))
        self.outputs = nn.ModuleList(ConvNorm(width, width, 3, relu=True, **norms) for _ in range(stacks))
        self.keep = nn.ModuleList(ConvNorm(width, width, 1, **norms) for _ in range(stacks - 1))
        self.add = nn.ModuleList(ConvNorm(width, width, 1, **norms) for _ in range(stacks - 1))
        self.merged = nn.ModuleList(_residuals([width, width], norms) for _ in range(stacks - 1))
        self.channels, self.strides = (width,) * stacks, (4,) * stacks

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.reduce(F.relu(self.bn1(self.conv1(images)), inplace=True))
        maps = [self.outputs[0](self.stacks[0](x))]
        for keep, add, merged, stack, output in zip(
            self.keep, self.add, self.merged, self.stacks[1:], self.outputs[1:]
        ):
            x = merged(F.relu(keep(x) + add(maps[-1])))
            maps.append(output(stack(x)))
        return maps

    def parts(self) -> dict[str, list[nn.Module]]:
        """The stem, and a stage a stack; a stack's merge with the map before belongs to it."""
        parts: dict[str, list[nn.Module]] = {part: [] for part in STAGES}
        parts["stem"] = [self.conv1, self.bn1, self.reduce]
        for index, stage in zip(range(len(self.stacks)), STAGES[1:]):
            merge = [self.keep[index - 1], self.add[index - 1], self.merged[index - 1]] if index else []
            parts[stage] = [*merge, self.stacks[index], self.outputs[index]]
        return parts


def _residuals(widths: Sequence[int], norms: dict, stride: int = 1) -> nn.Sequential:
    """Basic residual blocks between these widths; the first has the stride."""
    return nn.Sequential(
        *(
            ResidualBlock(a, b, b, stride=1 if index else stride, bottleneck=False, groups=1, **norms)
            for index, (a, b) in enumerate(pairwise(widths))
        )
    )
