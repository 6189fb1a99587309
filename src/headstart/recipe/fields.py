"""Sections of recipes: those that tasks share, and those of detection."""

from itertools import pairwise
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


class Data(Part):
    train: str
    train_images: str | None
    train_split: str | None
    val: str
    val_images: str | None
    val_split: str | None
    fraction: DataShare
    fraction_seed: Seed
    mask_frame: int = Field(ge=4, multiple_of=4)
    max_objects: int | None = Field(ge=1)
    num_workers: int = Field(ge=0)
    cache: bool


class JitterPart(Part):
    enabled: bool
    low: Positive
    high: Positive
    crop: int = Field(gt=0, multiple_of=32)

    @model_validator(mode="after")
    def _ordered(self) -> "JitterPart":
        if self.low > self.high:
            raise ValueError(f"input.jitter.low: {self.low:g} is above input.jitter.high, {self.high:g}")
        return self


class Input(Part):
    short: Sizes
    long: int = Field(gt=0)
    jitter: JitterPart
    copy_paste: bool
    test_short: int = Field(gt=0)
    test_long: int = Field(gt=0)
    flip: Share
    mean: Channels
    std: Deviations
    order: Order

    @model_validator(mode="after")
    def _one_scaling(self) -> "Input":
        if self.jitter.enabled and len(self.short) > 1:
            raise ValueError(
                f"input.short: {list(self.short)} has no effect with input.jitter.enabled, which scales by itself; "
                "expected a single size, or input.jitter.enabled=false"
            )
        if self.copy_paste and not self.jitter.enabled:
            raise ValueError(
                "input.copy_paste: needs a fixed crop, expected input.jitter.enabled=true (low 1, high 1 for none)"
            )
        return self


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
        """Whether the network computes in bf16; ValueError for `auto`, which only a machine can settle."""
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


class RpnPart(Part):
    anchor_sizes: tuple[Positive, ...] = Field(min_length=1)
    ratios: tuple[Positive, ...] = Field(min_length=1)
    num_convs: Count
    num_samples: Count
    positive_fraction: Share
    high: float
    low: float
    straddle: float | None
    nms_threshold: float
    train_before_nms: Count
    train_after_nms: Count
    test_before_nms: Count
    test_after_nms: Count


class BoxPart(Part):
    convs: int = Field(ge=0)
    conv_channels: Count
    fcs: Count
    fc_width: Count
    norm: bool
    class_agnostic: bool
    num_regions: Count
    positive_fraction: Share
    iou_threshold: float
    smooth_l1_beta: float = Field(ge=0)
    pool: Count


class CascadePart(Part):
    enabled: bool
    iou: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=2)
    weights: tuple[tuple[Positive, Positive, Positive, Positive], ...]

    @model_validator(mode="after")
    def _complete(self) -> "CascadePart":
        if any(a >= b for a, b in pairwise(self.iou)):
            raise ValueError(f"model.cascade.iou: {list(self.iou)}, expected ascending thresholds")
        if len(self.weights) != len(self.iou):
            raise ValueError(
                f"model.cascade.weights: {len(self.weights)} given, expected {len(self.iou)}, one a stage of "
                "model.cascade.iou"
            )
        return self


class ConvHead(Part):
    """A head of convolutions on pooled regions: masks or keypoints."""

    enabled: bool
    convs: int = Field(ge=0)
    conv_channels: Count
    norm: bool
    slots: Count
    pool: Count


class Model(Net):
    pyramid: bool
    pyramid_channels: Count
    pyramid_norm: bool
    canonical_size: Positive
    aligned: bool
    rpn: RpnPart
    box: BoxPart
    cascade: CascadePart
    mask: ConvHead
    keypoint: ConvHead

    @model_validator(mode="after")
    def _consistent(self) -> "Model":
        if self.backbone.kind == "vgg" and self.pyramid:
            raise ValueError("model.pyramid: true for a vgg backbone, which gives one map; expected false")
        if self.cascade.enabled and not self.box.class_agnostic:
            raise ValueError(
                "model.box.class_agnostic: false, expected true with model.cascade.enabled: a stage hands one box a "
                "region to the next"
            )
        if self.cascade.enabled and self.cascade.iou[0] != self.box.iou_threshold:
            raise ValueError(
                f"model.cascade.iou: {self.cascade.iou[0]} first, expected {self.box.iou_threshold}, the value of "
                "model.box.iou_threshold"
            )
        return self


class TtaPart(Part):
    enabled: bool
    shorts: Sizes
    long: int = Field(gt=0)
    flip: bool
    vote_threshold: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _distinct(self) -> "TtaPart":
        if len(set(self.shorts)) < len(self.shorts):
            raise ValueError(f"evaluate.tta.shorts: {list(self.shorts)} holds a size twice, expected each once")
        return self


class Evaluate(Part):
    every: int | str
    train_images: int = Field(ge=0)
    batch: Count
    precise_bn: int = Field(ge=0)
    score_threshold: float = Field(ge=0, lt=1)
    nms_threshold: Share
    detections: Count
    keypoint_sigmas: tuple[Positive, ...] | None
    voc: bool
    tta: TtaPart
