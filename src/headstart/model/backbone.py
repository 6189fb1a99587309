"""Backbones: images to feature maps at strides 4, 8, 16 and 32, under torchvision's parameter names."""

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model.norm import norm

# (residual blocks a stage, bottleneck or basic): torchvision's and the original papers' tables.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")


class Backbone(Protocol):
    """What the detector asks of a backbone: channels a level, feature maps, and its parts in the order of freezing."""

    channels: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]: ...

    def parts(self) -> dict[str, list[nn.Module]]: ...


class Block(nn.Module):
    """A residual block: two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 (bottleneck, stride on the 3x3)."""

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
    ):
        super().__init__()
        plan = [(1, 1, 1), (3, stride, groups), (1, 1, 1)] if bottleneck else [(3, stride, 1), (3, 1, 1)]
        widths = [in_channels] + [middle] * (len(plan) - 1) + [out_channels]
        for index, (kernel, step, split) in enumerate(plan):
            conv = nn.Conv2d(
                widths[index], widths[index + 1], kernel, step, kernel // 2, groups=split, bias=norm_kind == "none"
            )
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", norm(norm_kind, widths[index + 1], groups=norm_groups))
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=norm_kind == "none")
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

    `blocks` residual blocks a stage; `width` channels of the first stage (64; 16 makes the demo's narrow net);
    `groups` x `group_width` gives ResNeXt's grouped 3x3. Returns C2..C5 at strides 4, 8, 16, 32.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        bottleneck: bool,
        width: int = 64,
        groups: int = 1,
        group_width: int | None = None,
        norm_kind: str = "group",
        norm_groups: int = 32,
        in_channels: int = 3,
    ):
        super().__init__()
        expansion = 4 if bottleneck else 1
        group_width = width if group_width is None else group_width
        # ResNeXt's middle width: groups x group_width at the first stage, doubling a stage (1611.05431, table 1).
        middle = groups * group_width if bottleneck else width
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=norm_kind == "none")
        self.bn1 = norm(norm_kind, width, groups=norm_groups)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, widths = width, []
        for stage, count in enumerate(blocks):
            out = width * 2**stage * expansion
            layer = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layer.append(
                    Block(
                        channels,
                        middle * 2**stage,
                        out,
                        stride=stride,
                        bottleneck=bottleneck,
                        groups=groups,
                        norm_kind=norm_kind,
                        norm_groups=norm_groups,
                    )
                )
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
            widths.append(out)
        self.channels = tuple(widths)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features

    def parts(self) -> dict[str, list[nn.Module]]:
        """Modules by name, from the input up: what `freeze` counts in."""
        stages = {f"stage{index}": [self.get_submodule(f"layer{index}")] for index in range(1, 5)}
        return {"stem": [self.conv1, self.bn1], **stages}


class TimmBackbone(nn.Module):
    """Any timm model with a features interface that gives maps at strides 4, 8, 16 and 32.

    Its norm layers stay timm's own, except that `norm_kind="group"` or "frozen_batch" replaces BatchNorm throughout.
    Weights come from a file (model/weights.py); nothing is downloaded here.
    """

    def __init__(self, name: str, *, norm_kind: str, norm_groups: int = 32, in_channels: int = 3):
        super().__init__()
        import timm  # here, because timm takes a second to import and few recipes need it

        known = timm.list_models(name)
        if not known:
            from difflib import get_close_matches

            near = get_close_matches(name, timm.list_models(), n=1)
            raise ValueError(
                f"model.backbone.name: timm has no model {name!r}"
                + (f"; the nearest name is {near[0]!r}" if near else "")
            )
        self.body = timm.create_model(name, features_only=True, pretrained=False, in_chans=in_channels)
        chosen = [index for index, stride in enumerate(self.body.feature_info.reduction()) if stride in (4, 8, 16, 32)]
        if [self.body.feature_info.reduction()[index] for index in chosen] != [4, 8, 16, 32]:
            raise ValueError(
                f"model.backbone.name: {name!r} gives maps at strides {self.body.feature_info.reduction()}, "
                "expected 4, 8, 16 and 32 among them"
            )
        self.chosen = chosen
        self.channels = tuple(self.body.feature_info.channels()[index] for index in chosen)
        if norm_kind != "batch":
            replace_batch_norms(self.body, norm_kind, norm_groups)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        return [maps[index] for index in self.chosen]

    def parts(self) -> dict[str, list[nn.Module]]:
        """timm names its layers freely, so that only the whole body can be frozen."""
        return {"stem": [], "stage1": [], "stage2": [], "stage3": [], "stage4": [self.body]}


def replace_batch_norms(module: nn.Module, kind: str, groups: int) -> None:
    """Replace every BatchNorm below `module` by another kind, keeping an activation that timm fused into it."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            layer = norm(kind, child.num_features, groups=groups)
            activation = getattr(child, "act", None)
            module.add_module(
                name,
                layer
                if activation is None or isinstance(activation, nn.Identity)
                else nn.Sequential(layer, activation),
            )
        else:
            replace_batch_norms(child, kind, groups)


def initialise_convolutions(module: nn.Module) -> None:
    """MSRA initialisation of every convolution (He et al. 2015, fan-out, as torchvision and detectron2 do).

    Detectron's GN bodies used Xavier; under a normaliser the scale has no effect (paper.md 2.2).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def build_resnet(
    depth: int | Sequence[int],
    *,
    bottleneck: bool | None,
    width: int,
    groups: int,
    group_width: int | None,
    norm_kind: str,
    norm_groups: int,
    in_channels: int,
) -> ResNet:
    """A ResNet by its depth (18, 34, 50, 101, 152) or by its blocks a stage (then `bottleneck` must be given)."""
    if isinstance(depth, int):
        if depth not in DEPTHS:
            raise ValueError(
                f"model.backbone.depth: {depth} is not known, "
                f"expected one of {', '.join(map(str, DEPTHS))} or four block counts"
            )
        blocks, is_bottleneck = DEPTHS[depth]
    else:
        blocks, is_bottleneck = tuple(depth), bool(bottleneck)
    return ResNet(
        blocks,
        bottleneck=is_bottleneck,
        width=width,
        groups=groups,
        group_width=group_width,
        norm_kind=norm_kind,
        norm_groups=norm_groups,
        in_channels=in_channels,
    )
