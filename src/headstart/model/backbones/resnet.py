"""ResNet, ResNeXt and DetNet, under torchvision's parameter names."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model.backbones import by_depth
from headstart.model.norm import norm
from headstart.model.pyramid import Conv2d, initialise_convolutions

# (residual blocks a stage, bottleneck or basic): torchvision's and the original papers' tables.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
# DetNet-59 (Li et al. 2018, table 1): ResNet-50's first stages and two that keep the stride.
DETNET = {59: (3, 4, 6, 3, 3)}
DETNET_STRIDED = 3  # its stages that are ResNet's


class ResidualBlock(nn.Module):
    """A residual block: two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 (bottleneck, stride on the 3x3).

    `dilation` spreads every 3x3; `project` puts a 1x1 convolution on the shortcut where shapes do not require one.
    """

    def __init__(
        self,
        in_channels: int,
        middle: int,
        out_channels: int,
        *,
        stride: int,
        bottleneck: bool,
        groups: int,
        norm_kind: str,
        norm_groups: int,
        dilation: int = 1,
        project: bool = False,
    ):
        super().__init__()
        plan = [(1, 1, 1), (3, stride, groups), (1, 1, 1)] if bottleneck else [(3, stride, 1), (3, 1, 1)]
        widths = [in_channels] + [middle] * (len(plan) - 1) + [out_channels]
        bias = norm_kind == "none"
        for index, ((kernel, step, split), (a, b)) in enumerate(zip(plan, pairwise(widths)), 1):
            spread = dilation if kernel > 1 else 1
            padding = spread * (kernel // 2)
            conv = Conv2d(a, b, kernel, step, padding=padding, dilation=spread, groups=split, bias=bias)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", norm(norm_kind, b, groups=norm_groups))
        self.downsample = None
        if stride != 1 or in_channels != out_channels or project:
            shortcut = Conv2d(in_channels, out_channels, 1, stride, bias=bias)
            self.downsample = nn.Sequential(shortcut, norm(norm_kind, out_channels, groups=norm_groups))
        self.names = tuple((f"conv{index + 1}", f"bn{index + 1}") for index in range(len(plan)))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        pairs = [(self._modules[conv], self._modules[bn]) for conv, bn in self.names]
        for conv, bn in pairs[:-1]:
            x = F.relu(bn(conv(x)), inplace=True)
        conv, bn = pairs[-1]
        return F.relu(bn(conv(x)).add_(shortcut), inplace=True)


class ResNet(nn.Module):
    """ResNet or ResNeXt without its classifier; parameters are named as in torchvision.

    `depth`: 18, 34, 50, 101, 152, or the residual blocks a stage, with `bottleneck`; `width` channels of the first
    stage (64; 16 makes the demo's narrow net); `groups` x `group_width` gives ResNeXt's grouped 3x3. Each stage after
    the first doubles stride and channels, up to `strided` stages; later ones keep both and dilate by 2, with a
    projection in their first block: DetNet's stages 5 and 6. Returns a map a stage: C2..C5 at strides 4, 8, 16, 32, or
    DetNet's five at 4, 8, 16, 16, 16.
    """

    initialiser = "MSRA, fan-out"

    def __init__(
        self,
        depth: int | Sequence[int],
        *,
        bottleneck: bool | None = None,
        width: int = 64,
        groups: int = 1,
        group_width: int | None = None,
        norm_kind: str = "group",
        norm_groups: int = 32,
        in_channels: int = 3,
        strided: int | None = None,
    ):
        super().__init__()
        blocks = by_depth(depth, {known: plan for known, (plan, _) in DEPTHS.items()}, "four block counts")
        bottleneck = DEPTHS[depth][1] if isinstance(depth, int) else bool(bottleneck)
        strided = len(blocks) if strided is None else strided
        expansion = 4 if bottleneck else 1
        group_width = width if group_width is None else group_width
        # ResNeXt's middle width: groups x group_width at the first stage, doubling a stage (1611.05431, table 1).
        middle = groups * group_width if bottleneck else width
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=norm_kind == "none")
        self.bn1 = norm(norm_kind, width, groups=norm_groups)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, scales = width, [2 ** min(stage, strided - 1) for stage in range(len(blocks))]
        options = {"bottleneck": bottleneck, "groups": groups, "norm_kind": norm_kind, "norm_groups": norm_groups}
        self.channels = tuple(width * scale * expansion for scale in scales)
        for stage, (count, scale, out) in enumerate(zip(blocks, scales, self.channels)):
            flat, layer = stage >= strided, []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 and not flat else 1
                spread = {"dilation": 2 if flat else 1, "project": flat and index == 0}
                layer.append(ResidualBlock(channels, middle * scale, out, stride=stride, **spread, **options))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.layers = tuple(f"layer{stage + 1}" for stage in range(len(blocks)))
        self.strides = tuple(4 * scale for scale in scales)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        features = []
        for name in self.layers:
            x = self._modules[name](x)
            features.append(x)
        return features

    def parts(self) -> dict[str, list[nn.Module]]:
        """Modules by part, from the input up; DetNet has a stage5 too."""
        stages = {name.replace("layer", "stage"): [self.get_submodule(name)] for name in self.layers}
        return {"stem": [self.conv1, self.bn1], **stages}


def build_detnet(
    depth: int | Sequence[int], *, width: int, norm_kind: str, norm_groups: int, in_channels: int
) -> ResNet:
    """DetNet (Li et al. 2018) by its depth (59) or by its blocks a stage: a ResNet whose last two stages stay at 16.

    Those keep the fourth stage's channels (256 in the bottleneck, 1024 out), the reading of the paper that gives its
    4.8 GFLOPs.
    """
    return ResNet(
        by_depth(depth, DETNET, "five block counts"),
        bottleneck=True,
        width=width,
        norm_kind=norm_kind,
        norm_groups=norm_groups,
        in_channels=in_channels,
        strided=DETNET_STRIDED,
    )
