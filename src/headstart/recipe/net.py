"""Backbones, and the model section that all tasks have."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headstart.recipe.fields import Flag, Part, Width, whole

Blocks = Annotated[int, whole(1, 200)]  # of a stage; the deepest stage of a ResNet-200 has 36
Stages = tuple[Blocks, Blocks, Blocks, Blocks]
FiveStages = tuple[Blocks, Blocks, Blocks, Blocks, Blocks]


class ResNetPart(Part):
    kind: Literal["resnet"]
    depth: Literal[18, 34, 50, 101, 152] | Stages
    bottleneck: Flag | None = None
    width: Width = 64
    groups: Width = 1
    group_width: Width | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ResNetPart":
        has_bottlenecks = bool(self.bottleneck)
        if isinstance(self.depth, int):
            has_bottlenecks = self.depth >= 50  # He et al. 2016, table 1
            if self.bottleneck not in (None, has_bottlenecks):
                raise ValueError(
                    f"model.backbone.bottleneck: {str(self.bottleneck).lower()}, which depth {self.depth} contradicts; "
                    "expected null, or four block counts as depth"
                )
        if not has_bottlenecks and (self.groups > 1 or self.group_width is not None):
            name = "groups" if self.groups > 1 else "group_width"
            raise ValueError(
                f"model.backbone.{name}: {getattr(self, name)} has no effect in blocks without a bottleneck; "
                "expected groups 1 and group_width null, or depth 50, 101 or 152, or bottleneck: true"
            )
        return self


class TimmPart(Part):
    kind: Literal["timm"]
    name: Annotated[str, Field(max_length=100, pattern="^[A-Za-z0-9_.-]+$")]  # timm would take "*" for every model


class DetNetPart(Part):
    kind: Literal["detnet"]
    depth: Literal[59] | FiveStages
    width: Width = 64


class VggPart(Part):
    kind: Literal["vgg"]
    depth: Literal[11, 13, 16, 19] | FiveStages
    width: Width = 64


class HourglassPart(Part):
    kind: Literal["hourglass"]
    depth: Literal[104, 54] | Annotated[tuple[Blocks, ...], Field(min_length=2, max_length=8)]
    widths: tuple[Width, ...] | None = None
    stacks: Annotated[int, whole(1, 4)] | None = None  # a stack is a stage of STAGES

    @model_validator(mode="after")
    def _complete(self) -> "HourglassPart":
        counts = None if isinstance(self.depth, int) else len(self.depth)
        misfits = {"widths": (self.widths and len(self.widths)) != counts, "stacks": bool(self.stacks) != bool(counts)}
        for name in (name for name, is_odd in misfits.items() if is_odd):
            raise ValueError(
                f"model.backbone.{name}: {getattr(self, name)} for depth {self.depth}; expected null for 104 and 54, "
                "else a width for each block count, and stacks"
            )
        return self


class Net(Part):
    """The model section of any task: a backbone and its normalisation."""

    backbone: Annotated[ResNetPart | TimmPart | DetNetPart | VggPart | HourglassPart, Field(discriminator="kind")]
    norm: Literal["group", "batch", "sync_batch", "frozen_batch", "none"]
    norm_groups: Width

    @model_validator(mode="after")
    def _norm_fits(self) -> "Net":
        if self.backbone.kind == "vgg" and self.norm != "none":
            raise ValueError(f"model.norm: {self.norm!r} for a vgg backbone, which has no normalisation; expected none")
        if self.backbone.kind in ("resnet", "detnet"):  # timm knows its own widths, when the model is built
            self.require_groups("model.backbone.width", self.backbone.width)
        if self.backbone.kind == "resnet" and (self.backbone.groups > 1 or self.backbone.group_width is not None):
            width = self.backbone.groups * (self.backbone.group_width or self.backbone.width)
            self.require_groups("model.backbone.groups x group_width", width)
        if self.backbone.kind == "hourglass":
            for width in self.backbone.widths or ():
                self.require_groups("model.backbone.widths", width)
        return self

    def require_groups(self, field: str, channels: int) -> None:
        """ValueError where GroupNorm's groups do not divide the channels that `field` gives."""
        if self.norm == "group" and channels % self.norm_groups:
            fit = max(groups for groups in range(1, self.norm_groups) if channels % groups == 0)
            raise ValueError(
                f"model.norm_groups: {self.norm_groups} do not divide the {channels} channels of {field}; "
                f"expected a divisor, the nearest is {fit}"
            )
