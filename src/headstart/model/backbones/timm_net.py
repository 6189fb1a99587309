"""Backbones of timm through its features interface."""

from difflib import get_close_matches

import timm
from torch import Tensor, nn

from headstart.model.norm import norm


class TimmNet(nn.Module):
    """Any timm model with a features interface that gives maps at strides 4, 8, 16 and 32.

    Its norm layers stay timm's own, except that `norm_kind="group"` or "frozen_batch" replaces BatchNorm throughout.
    Weights come from a file (weights/load.py); nothing is downloaded.
    """

    strides = (4, 8, 16, 32)
    initialiser = "timm's own"

    def __init__(self, name: str, *, norm_kind: str, norm_groups: int = 32, in_channels: int = 3):
        super().__init__()
        known = timm.list_models(name)
        if not known:
            near = get_close_matches(name, timm.list_models(), n=1)
            raise ValueError(
                f"model.backbone.name: timm has no model {name!r}"
                + (f"; the nearest name is {near[0]!r}" if near else "")
            )
        self.body = timm.create_model(name, features_only=True, pretrained=False, in_chans=in_channels)
        reductions = self.body.feature_info.reduction()
        chosen = [index for index, stride in enumerate(reductions) if stride in self.strides]
        if tuple(reductions[index] for index in chosen) != self.strides:
            raise ValueError(
                f"model.backbone.name: {name!r} gives maps at strides {reductions}, expected 4, 8, 16 and 32 among them"
            )
        self.chosen = chosen
        self.channels = tuple(self.body.feature_info.channels()[index] for index in chosen)
        if norm_kind != "batch":
            replace_batch_norms(self.body, norm_kind, norm_groups)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        return [maps[index] for index in self.chosen]

    def parts(self) -> dict[str, list[nn.Module]]:
        """The whole body as the last stage: timm names its layers freely, so nothing less can be frozen."""
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
