"""Sections of detection recipes."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from headstart.recipe.fields import (
    Channels,
    Count,
    DataShare,
    Deviations,
    Net,
    Order,
    Part,
    Positive,
    Seed,
    Share,
    Sizes,
)


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
