"""Backbones: images to feature maps and their strides, under torchvision's parameter names."""

from typing import Protocol, TypeVar

from torch import Tensor, nn

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
Plan = TypeVar("Plan")


class Backbone(Protocol):
    """Contract of a backbone: images [B,C,H,W] to feature maps, one [B,channels[i],H/strides[i],W/strides[i]] each.

    `initialiser` says in words how its weights are drawn. `parts()` gives its modules by STAGES, from the input up, in
    the order in which `start.freeze` counts; a part that has no modules of its own is an empty list.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    initialiser: str

    def __call__(self, images: Tensor) -> list[Tensor]: ...

    def parts(self) -> dict[str, list[nn.Module]]: ...


def initialise_convolutions(module: nn.Module, *, mode: str = "fan_out") -> None:
    """MSRA initialisation of every convolution (He et al. 2015; fan-out as torchvision and detectron2 do).

    Detectron's GN bodies used Xavier; under a normaliser the scale has no effect (paper.md 2.2).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def by_depth(depth: int, known: dict[int, Plan], otherwise: str) -> Plan:
    """Plan of a depth; ValueError names the known depths."""
    if depth not in known:
        raise ValueError(
            f"model.backbone.depth: {depth} is not known, "
            f"expected {'one of ' if len(known) > 1 else ''}{', '.join(map(str, known))} or {otherwise}"
        )
    return known[depth]
