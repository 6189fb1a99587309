"""Sections of detection recipes."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from headstart.recipe.augment import ColourPart, CropPart, JitterPart
from headstart.recipe.fields import (
    Batch,
    BatchStatistics,
    BelowOne,
    DataShare,
    Duration,
    Factor,
    Flag,
    FractionSeed,
    Function,
    InputPart,
    Iou,
    Layers,
    Part,
    Pixels,
    Pool,
    Regions,
    Share,
    Side,
    Sizes,
    Text,
    Width,
    Workers,
    check_sides,
    real,
    whole,
)
from headstart.recipe.net import Net


class Data(Part):
    train: Text
    train_images: Text | None
    train_split: Text | None
    val: Text
    val_images: Text | None
    val_split: Text | None
    fraction: DataShare
    fraction_seed: FractionSeed
    mask_frame: Annotated[int, Field(strict=True, ge=4, le=512, multiple_of=4)]  # Detectron pools masks of 28 cells
    max_objects: Regions | None
    repeat_threshold: DataShare | None
    num_workers: Workers
    cache: Flag
    cache_features: Flag


class Input(InputPart):
    short: Sizes
    long: Side
    jitter: JitterPart
    crop: CropPart
    colour: ColourPart
    copy_paste: Flag
    mosaic: Share
    transform: Function | None
    test_short: Side
    test_long: Side
    flip: Share
    flip_vertical: Share
    quarter_turns: Flag

    @model_validator(mode="after")
    def _one_scaling(self) -> "Input":
        scaling = [name for name in ("jitter", "crop") if getattr(self, name).enabled]
        if len(scaling) > 1:
            raise ValueError("input.crop.enabled: true, as is input.jitter.enabled; expected one of both")
        if not scaling:
            check_sides("input.short", self.short, "input.long", self.long)
        check_sides("input.test_short", (self.test_short,), "input.test_long", self.test_long)
        if scaling and len(self.short) > 1:
            raise ValueError(
                f"input.short: {list(self.short)} has no effect with input.{scaling[0]}.enabled, which scales by "
                f"itself; expected a single size, or input.{scaling[0]}.enabled=false"
            )
        if self.colour.enabled and self.channels != 3:
            raise ValueError(f"input.colour: needs RGB images, but input.channels is {self.channels}; expected zeros")
        for name in ("copy_paste", "mosaic") if not self.jitter.enabled else ():
            if getattr(self, name):
                raise ValueError(
                    f"input.{name}: needs a fixed crop, expected input.jitter.enabled=true (low 1, high 1 for none)"
                )
        return self


class RpnPart(Part):
    anchor_sizes: tuple[Pixels, ...] = Field(min_length=1, max_length=32)
    ratios: tuple[Factor, ...] = Field(min_length=1, max_length=32)
    num_convs: Annotated[int, whole(1, 100)]
    num_samples: Regions
    positive_fraction: DataShare
    high: Annotated[float, real(gt=0, le=1)]
    low: Share
    straddle: Annotated[float, real(ge=0, le=100_000)] | None
    nms_threshold: Share
    train_before_nms: Regions
    train_after_nms: Regions
    test_before_nms: Regions
    test_after_nms: Regions

    @model_validator(mode="after")
    def _ordered(self) -> "RpnPart":
        if self.low > self.high:
            raise ValueError(
                f"model.rpn.low: {self.low:g} is above model.rpn.high, {self.high:g}: an anchor would be positive and "
                "negative at once; expected at most that"
            )
        return self


class BoxPart(Part):
    convs: Layers
    conv_channels: Width
    fcs: Annotated[int, whole(1, 16)]
    fc_width: Width
    norm: Flag
    class_agnostic: Flag
    num_regions: Regions
    positive_fraction: DataShare
    iou_threshold: Iou
    smooth_l1_beta: Annotated[float, real(ge=0, le=10_000)]  # 0: plain L1
    pool: Pool


class CascadePart(Part):
    enabled: Flag
    iou: tuple[Iou, ...] = Field(min_length=2, max_length=10)
    weights: tuple[tuple[Factor, Factor, Factor, Factor], ...]

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

    enabled: Flag
    convs: Layers
    conv_channels: Width
    norm: Flag
    slots: Regions
    pool: Pool


class MaskPart(ConvHead):
    enabled: Flag | Literal["auto"]  # auto: by the training data


class CornersPart(Part):
    enabled: Flag
    stride: Annotated[int, Field(strict=True, ge=4, le=8, multiple_of=4)]
    width: Width
    min_iou: Iou
    pull: Annotated[float, real(ge=0, le=10_000)]
    push: Annotated[float, real(ge=0, le=10_000)]
    offset: Annotated[float, real(ge=0, le=10_000)]
    num_corners: Annotated[int, whole(1, 10_000)]  # their pairs are as many squared
    num_pairs: Regions
    distance: Annotated[float, real(ge=0, le=10_000)]
    soft_nms: Annotated[float, real(ge=1e-4, le=10_000)]
    flip: Flag


class Model(Net):
    pyramid: Flag
    pyramid_channels: Width
    pyramid_norm: Flag
    canonical_size: Pixels
    aligned: Flag
    rpn: RpnPart
    box: BoxPart
    cascade: CascadePart
    mask: MaskPart
    keypoint: ConvHead
    corners: CornersPart

    @model_validator(mode="after")
    def _corners_alone(self) -> "Model":
        if not self.corners.enabled:
            return self
        for name in ("mask", "keypoint", "cascade"):
            if value := getattr(self, name).enabled:
                raise ValueError(
                    f"model.{name}.enabled: {str(value).lower()}, but model.corners.enabled finds boxes by their "
                    "corners alone; expected false"
                )
        if self.backbone.kind != "hourglass" and not self.pyramid:
            raise ValueError(
                f"model.pyramid: false, but model.corners need a map of stride {self.corners.stride}; expected true, "
                "with a backbone of several maps, or an hourglass"
            )
        if self.backbone.kind == "hourglass" and self.corners.stride != 4:
            raise ValueError("model.corners.stride: 8, but an hourglass gives maps of stride 4; expected 4")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Model":
        if self.backbone.kind in ("vgg", "hourglass") and self.pyramid:
            maps = "one map" if self.backbone.kind == "vgg" else "maps of one stride"
            raise ValueError(
                f"model.pyramid: true for model.backbone.kind {self.backbone.kind}, which gives {maps}; expected false"
            )
        if self.pyramid and self.pyramid_norm:
            self.require_groups("model.pyramid_channels", self.pyramid_channels)
        if self.box.norm and self.box.convs:
            self.require_groups("model.box.conv_channels", self.box.conv_channels)
        for name, head in (("mask", self.mask), ("keypoint", self.keypoint)):
            if head.enabled and head.norm and head.convs:
                self.require_groups(f"model.{name}.conv_channels", head.conv_channels)
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
    enabled: Flag
    shorts: Sizes
    long: Side
    flip: Flag
    vote_threshold: DataShare

    @model_validator(mode="after")
    def _distinct(self) -> "TtaPart":
        check_sides("evaluate.tta.shorts", self.shorts, "evaluate.tta.long", self.long)
        if len(set(self.shorts)) < len(self.shorts):
            raise ValueError(f"evaluate.tta.shorts: {list(self.shorts)} holds a size twice, expected each once")
        return self


class Evaluate(Part):
    every: Duration
    train_images: Annotated[int, whole(0, 10**9)]  # of as many as there are
    batch: Batch
    precise_bn: BatchStatistics
    score_threshold: BelowOne
    nms_threshold: Share
    detections: Regions
    keypoint_sigmas: Annotated[tuple[Factor, ...], Field(min_length=1, max_length=1000)] | None
    voc: Flag
    tta: TtaPart
