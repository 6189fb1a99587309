"""Backbones: images to feature maps and their strides, under torchvision's parameter names."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")


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


def by_depth(depth: int | Sequence[int], known: dict[int, tuple[int, ...]], otherwise: str) -> tuple[int, ...]:
    """Blocks a stage: those of a depth, or as they are given; ValueError names the known depths."""
    if not isinstance(depth, int):
        return tuple(depth)
    if depth not in known:
        raise ValueError(
            f"model.backbone.depth: {depth} is not known, "
            f"expected {'one of ' if len(known) > 1 else ''}{', '.join(map(str, known))} or {otherwise}"
        )
    return known[depth]
