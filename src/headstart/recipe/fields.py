"""Sections of recipes that tasks share, and the types of their fields."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
DataShare = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Sizes = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
Channels = tuple[float, float, float]  # of an image, in the order that `order` names
Deviations = tuple[Positive, Positive, Positive]
Order = Literal["rgb", "bgr"]
Stages = tuple[int, int, int, int]


class Part(BaseModel):
    """A frozen section of a recipe that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Start(Part):
    kind: Literal["random", "backbone", "detector"]
    weights: str | None
    freeze: Literal["none", "stem", "stage1", "stage2", "stage3", "stage4", "backbone"]

    @model_validator(mode="after")
    def _complete(self) -> "Start":
        if self.kind == "random" and self.weights is not None:
            raise ValueError(
                f"start.weights: {self.weights!r} is given but start.kind is 'random'; "
                "expected null, or start.kind 'backbone' or 'detector'"
            )
        if self.kind != "random" and self.weights is None:
            raise ValueError(f"start.weights: missing for start.kind {self.kind!r}; expected a weights file")
        return self


class Train(Part):
    batch: Count
    reference_batch: Count
    rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    norm_weight_decay: float = Field(ge=0)
    warmup: int | str
    warmup_from: Share
    base: int | str
    schedule: str
    drop_factor: float = Field(gt=0, le=1)
    clip_norm: float | None
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool
    channels_last: bool
    log_every: Count
    threads: int | None

    @property
    def bf16(self) -> bool:
        """True if the network computes in bf16; ValueError for `auto`, which only a machine can settle."""
        if self.precision == "auto":
            raise ValueError("train.precision: auto, expected fp32 or bf16: settle(recipe) says which it is here")
        return self.precision == "bf16"


class ResNetPart(Part):
    kind: Literal["resnet"]
    depth: int | Stages
    bottleneck: bool | None = None
    width: int = Field(default=64, gt=0)
    groups: int = Field(default=1, gt=0)
    group_width: int | None = None


class TimmPart(Part):
    kind: Literal["timm"]
    name: str


class DetNetPart(Part):
    kind: Literal["detnet"]
    depth: int | tuple[int, int, int, int, int]
    width: int = Field(default=64, gt=0)


class VggPart(Part):
    kind: Literal["vgg"]
    depth: int | tuple[int, int, int, int, int]
    width: int = Field(default=64, gt=0)


class Net(Part):
    """The model section of any task: a backbone and its normalisation."""

    backbone: Annotated[ResNetPart | TimmPart | DetNetPart | VggPart, Field(discriminator="kind")]
    norm: Literal["group", "batch", "sync_batch", "frozen_batch", "none"]
    norm_groups: Count

    @model_validator(mode="after")
    def _norm_fits(self) -> "Net":
        if self.backbone.kind == "vgg" and self.norm != "none":
            raise ValueError(f"model.norm: {self.norm!r} for a vgg backbone, which has no normalisation; expected none")
        return self
