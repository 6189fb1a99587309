"""Sections of recipes that tasks share, and the types of their fields with their ranges.

Numbers are strict and finite: text, true and false are refused. The bounds lie far outside real use; they refuse
values that would hang, overflow or change nothing.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from headstart.recipe.refusal import NotValid
from headstart.recipe.schedule import MOST_STEPS, parse_duration, parse_schedule


def whole(least: int, most: int) -> Any:
    """Range of a whole number, both ends included."""
    return Field(strict=True, ge=least, le=most)


def real(*, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None) -> Any:
    """Range of a finite number."""
    return Field(strict=True, allow_inf_nan=False, ge=ge, gt=gt, le=le, lt=lt)


def _taken_by(parse: Callable[[Any], object]) -> BeforeValidator:
    """Validator that accepts what `parse` accepts; its error holds only what was expected, `validate` adds the rest."""

    def check(value: object) -> object:
        try:
            parse(value)
        except ValueError as error:
            raise NotValid("expected" + str(error).rpartition("expected")[2]) from None
        return value

    return BeforeValidator(check)


def _base(value: Any) -> None:
    if not parse_duration(value)[0]:
        raise ValueError("expected more than nothing")


def _number(value: object) -> None:
    if isinstance(value, bool | float):  # which equal numbers of a list of choices
        raise ValueError("expected a whole number")


def _per_seed(value: object) -> None:
    if isinstance(value, str) and value != "per_seed":
        raise ValueError("expected a whole number, or per_seed")


def _function(value: object) -> None:
    if isinstance(value, str) and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise ValueError("expected MODULE:FUNCTION, such as transforms:blur")


Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]  # PATH_MAX of Linux; no path holds NUL
Function = Annotated[str, Field(max_length=4096), _taken_by(_function)]  # of Python, by the name of its module
Duration = Annotated[int | str, _taken_by(parse_duration)]
Base = Annotated[int | str, _taken_by(_base)]
ScheduleName = Annotated[str, _taken_by(parse_schedule)]
Stride = Annotated[Literal[1, 2, 4], _taken_by(_number)]
Share = Annotated[float, real(ge=0, le=1)]
DataShare = Annotated[float, real(gt=0, le=1)]
BelowOne = Annotated[float, real(ge=0, lt=1)]
Iou = Annotated[float, real(gt=0, lt=1)]
Decay = Annotated[float, real(ge=0, le=1)]  # of weights: 1 at a rate of 1 forgets everything at each step
Pixels = Annotated[float, real(ge=0.1, le=100_000)]
Factor = Annotated[float, real(ge=1e-4, le=10_000)]
RateFactor = Annotated[float, real(ge=1e-6, le=1000)]  # 0 is start.freeze
Seed = Annotated[int, whole(0, 2**32 - 1)]  # as NumPy takes them
FractionSeed = Annotated[Seed | Literal["per_seed"], _taken_by(_per_seed)]
Batch = Annotated[int, whole(1, 65_536)]  # images; ImageNet's largest batches have 64k
Width = Annotated[int, whole(1, 16_384)]  # channels of a layer; VGG's widest has 4,096
Layers = Annotated[int, whole(0, 100)]
Regions = Annotated[int, whole(1, 1_000_000)]  # of an image; Detectron's most are 12,000
Pool = Annotated[int, whole(1, 128)]  # cells a side; 7 and 14 are usual
Side = Annotated[int, whole(1, 16_384)]  # pixels; images of more than 16,384 x 5,461 are not decoded
Sizes = Annotated[tuple[Side, ...], Field(min_length=1, max_length=100)]
Workers = Annotated[int, whole(0, 256)]  # threads
Mean = Annotated[float, real(ge=-10_000, le=10_000)]
Deviation = Annotated[float, real(ge=0.001, le=10_000)]  # 0.004 where images are 0..1
MOST_CHANNELS = 12  # of an image; Sentinel-2 has 12 bands after atmospheric correction
Order = Literal["rgb", "bgr"]
BatchStatistics = Annotated[int, whole(0, 100_000)]  # batches; Detectron2 takes 200


class Part(BaseModel):
    """A frozen section of a recipe that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_sides(short: str, sides: tuple[int, ...], long: str, longest: int) -> None:
    """ValueError for a shorter side above the largest longer side, which would never be reached."""
    if max(sides) > longest:
        raise ValueError(f"{short}: {max(sides)} is above {long}, {longest}; expected at most that")


class InputPart(Part):
    """The images of any task: channels and their normalisation, a number a channel."""

    channels: Annotated[int, whole(1, MOST_CHANNELS)]
    mean: Annotated[tuple[Mean, ...], Field(min_length=1, max_length=MOST_CHANNELS)]
    std: Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=MOST_CHANNELS)]
    order: Order

    @model_validator(mode="after")
    def _a_number_a_channel(self) -> "InputPart":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"input.{name}: {len(values)} numbers, but input.channels is {self.channels}; "
                    "expected a number a channel"
                )
        if self.order == "bgr" and self.channels != 3:
            raise ValueError(f"input.order: 'bgr', but input.channels is {self.channels}; expected rgb, or 3 channels")
        return self


class Start(Part):
    kind: Literal["random", "backbone", "detector"]
    weights: Text | None
    stem: Literal["mean", "random"] | None
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
        if self.kind == "random" and self.stem is not None:
            raise ValueError(f"start.stem: {self.stem!r} is given but start.kind is 'random'; expected null")
        return self


class EvaluatePart(Part):
    every: Duration
    batch: Batch
    precise_bn: BatchStatistics


class Checkpoint(Part):
    every: Duration


class RatesPart(Part):
    backbone: RateFactor
    pyramid: RateFactor
    heads: RateFactor

    def require_no_pyramid(self, reason: str) -> None:
        """ValueError for a factor of a pyramid that a model does not have, because of `reason`."""
        if self.pyramid != 1:
            raise ValueError(f"train.rates.pyramid: {self.pyramid:g} has no effect with {reason}; expected 1")


class Train(Part):
    optimizer: Literal["sgd", "adam", "adamw"]
    batch: Batch
    reference_batch: Batch
    # Below 1e-9 float32 weights of 0.01 no longer change; above 1e6 they overflow within steps.
    rate: Annotated[float, real(ge=1e-9, le=1_000_000)]
    momentum: BelowOne
    betas: tuple[BelowOne, BelowOne]
    eps: Annotated[float, real(ge=1e-15, le=1)]  # 0 would divide by 0 where a gradient has always been 0
    weight_decay: Decay
    norm_weight_decay: Decay
    rates: RatesPart
    layer_decay: Annotated[float, real(ge=0.01, le=1)]  # ViTDet's lowest is 0.7; 0.01 leaves a stem 1e-10 of the rate
    ema: Annotated[float, real(gt=0, lt=1)] | None  # 1 keeps the initial weights, 0 is the live ones
    warmup: Duration
    warmup_from: Share
    base: Base
    schedule: ScheduleName
    drop_factor: Annotated[float, real(ge=1e-6, le=1)]
    clip_norm: Annotated[float, real(ge=1e-6, le=10**9)] | None  # 0 and less would stop or reverse training
    precision: Literal["auto", "fp32", "bf16"]
    compile: Flag
    channels_last: Flag
    log_every: Annotated[int, whole(1, MOST_STEPS)]
    threads: Annotated[int, whole(1, 1024)] | None  # 100,000 end the process
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...]

    @model_validator(mode="after")
    def _used(self) -> "Train":
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"train.loggers: {list(self.loggers)}, expected each once")
        for name, default in (("betas", (0.9, 0.999)), ("eps", 1e-8)) if self.optimizer == "sgd" else ():
            value = getattr(self, name)
            if value != default:
                shown, expected = (list(each) if name == "betas" else f"{each:g}" for each in (value, default))
                raise ValueError(
                    f"train.{name}: {shown} has no effect with train.optimizer sgd; expected {expected}, or "
                    "train.optimizer adam or adamw"
                )
        return self

    @property
    def bf16(self) -> bool:
        """True if the network computes in bf16; ValueError for `auto`, which only a machine can settle."""
        if self.precision == "auto":
            raise ValueError("train.precision: auto, expected fp32 or bf16: settle(recipe) says which it is here")
        return self.precision == "bf16"
