"""Sections of recipes: what is done to images, how a run starts and trains, how test images are looked at."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A frozen section of a recipe that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    short: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    long: int = Field(gt=0)
    jitter: JitterPart
    copy_paste: bool
    test_short: int = Field(gt=0)
    test_long: int = Field(gt=0)
    flip: float = Field(ge=0, le=1)
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    order: Literal["rgb", "bgr"]

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


class TtaPart(Part):
    enabled: bool
    shorts: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    long: int = Field(gt=0)
    flip: bool
    vote_threshold: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _distinct(self) -> "TtaPart":
        if len(set(self.shorts)) < len(self.shorts):
            raise ValueError(f"evaluate.tta.shorts: {list(self.shorts)} holds a size twice, expected each once")
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
    batch: int = Field(ge=1)
    reference_batch: int = Field(ge=1)
    rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    norm_weight_decay: float = Field(ge=0)
    warmup: int | str
    warmup_from: float = Field(ge=0, le=1)
    base: int | str
    schedule: str
    drop_factor: float = Field(gt=0, le=1)
    clip_norm: float | None
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool
    channels_last: bool
    log_every: int = Field(ge=1)
    threads: int | None

    @property
    def bf16(self) -> bool:
        """Whether the network computes in bf16; ValueError for `auto`, which only a machine can settle."""
        if self.precision == "auto":
            raise ValueError("train.precision: auto, expected fp32 or bf16: settle(recipe) says which it is here")
        return self.precision == "bf16"


class ResNetBackbone(Part):
    kind: Literal["resnet"]
    depth: int | tuple[int, int, int, int]
    bottleneck: bool | None = None
    width: int = Field(default=64, gt=0)
    groups: int = Field(default=1, gt=0)
    group_width: int | None = None


class TimmBackbone(Part):
    kind: Literal["timm"]
    name: str


class DetNetBackbone(Part):
    kind: Literal["detnet"]
    depth: int | tuple[int, int, int, int, int]
    width: int = Field(default=64, gt=0)


class VggBackbone(Part):
    kind: Literal["vgg"]
    depth: int | tuple[int, int, int, int, int]
    width: int = Field(default=64, gt=0)


AnyBackbone = Annotated[ResNetBackbone | TimmBackbone | DetNetBackbone | VggBackbone, Field(discriminator="kind")]
Norm = Literal["group", "batch", "sync_batch", "frozen_batch", "none"]


def check_precise_bn(num_batches: int, norm: str) -> None:
    """ValueError where statistics are asked for that the norm does not have."""
    if num_batches and norm not in ("batch", "sync_batch"):
        raise ValueError(
            f"evaluate.precise_bn: {num_batches}, but model.norm is {norm!r}, which keeps no statistics of batches; "
            "expected 0, or model.norm batch or sync_batch"
        )


def check_norm(backbone: AnyBackbone, norm: str) -> None:
    if backbone.kind == "vgg" and norm != "none":
        raise ValueError(f"model.norm: {norm!r} for a vgg backbone, which has no normalisation; expected none")


class RpnPart(Part):
    anchor_sizes: tuple[Positive, ...] = Field(min_length=1)
    ratios: tuple[Positive, ...] = Field(min_length=1)
    num_convs: int = Field(ge=1)
    num_samples: int = Field(ge=1)
    positive_fraction: float = Field(ge=0, le=1)
    high: float
    low: float
    straddle: float | None
    nms_threshold: float
    train_before_nms: int = Field(ge=1)
    train_after_nms: int = Field(ge=1)
    test_before_nms: int = Field(ge=1)
    test_after_nms: int = Field(ge=1)


class KeypointPart(Part):
    enabled: bool
    convs: int = Field(ge=0)
    conv_channels: int = Field(ge=1)
    norm: bool
    slots: int = Field(ge=1)
    pool: int = Field(ge=1)
