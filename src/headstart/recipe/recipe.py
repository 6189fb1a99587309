"""Recipes: what a run is, as data. Frozen, complete, comparable, hashable.

Every value lives in `recipes/base.yaml` (or `base_classify.yaml`, `base_segment.yaml`), which comments each field;
`resolve.py` makes recipes from files, arms and overrides. Nothing below `build` and `task` functions has seen one.
"""

import hashlib
import json
import reprlib
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from headstart.files import MOST_BYTES, is_file_name
from headstart.recipe.fields import (
    AnyBackbone,
    Input,
    KeypointPart,
    Norm,
    Part,
    Positive,
    RpnPart,
    Start,
    Train,
    TtaPart,
    check_norm,
    check_precise_bn,
)
from headstart.recipe.schedule import Schedule, duration, multiple_of

# Fields that change how a run is carried out, not what comes out of it: left out of the digest.
CLERICAL = (
    "name",
    "evaluate.every",
    "evaluate.train_images",
    "checkpoint.every",
    "train.log_every",
    "data.num_workers",
    "data.cache",
    "processes",
    "device",
)
# Where things lie, and what the digest takes in another form: the content of data and weights, the schedule in steps.
REPLACED = (
    "data.train",
    "data.train_images",
    "data.val",
    "data.val_images",
    "data.train_labels",
    "data.val_labels",
    "start.weights",
    "train.schedule",
    "train.base",
    "train.warmup",
)
# What may change between two evaluations of one checkpoint.
EVALUATION_FIELDS = ("evaluate.", "input.test_")
TRAINING_FIELDS = ("evaluate.every", "evaluate.train_images", "evaluate.precise_bn")  # of these, those of runs alone


class Data(Part):
    train: str
    train_images: str | None
    train_split: str | None
    val: str
    val_images: str | None
    val_split: str | None
    fraction: float = Field(gt=0, le=1)
    fraction_seed: int = Field(ge=0)
    mask_frame: int = Field(ge=4, multiple_of=4)
    max_objects: int | None = Field(ge=1)
    num_workers: int = Field(ge=0)
    cache: bool


class BoxPart(Part):
    convs: int = Field(ge=0)
    conv_channels: int = Field(ge=1)
    fcs: int = Field(ge=1)
    fc_width: int = Field(ge=1)
    norm: bool
    class_agnostic: bool
    num_regions: int = Field(ge=1)
    positive_fraction: float = Field(ge=0, le=1)
    iou_threshold: float
    smooth_l1_beta: float = Field(ge=0)
    pool: int = Field(ge=1)


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


class MaskPart(Part):
    enabled: bool
    convs: int = Field(ge=0)
    conv_channels: int = Field(ge=1)
    norm: bool
    slots: int = Field(ge=1)
    pool: int = Field(ge=1)


class Model(Part):
    backbone: AnyBackbone
    norm: Norm
    norm_groups: int = Field(ge=1)
    pyramid: bool
    pyramid_channels: int = Field(ge=1)
    pyramid_norm: bool
    canonical_size: float = Field(gt=0)
    aligned: bool
    rpn: RpnPart
    box: BoxPart
    cascade: CascadePart
    mask: MaskPart
    keypoint: KeypointPart

    @model_validator(mode="after")
    def _consistent(self) -> "Model":
        check_norm(self.backbone, self.norm)
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


class Classifier(Part):
    backbone: AnyBackbone
    norm: Norm
    norm_groups: int = Field(ge=1)
    pool: int = Field(ge=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...]
    dropout: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Classifier":
        check_norm(self.backbone, self.norm)
        return self


class ClassifyEvaluate(Part):
    every: int | str
    batch: int = Field(ge=1)
    precise_bn: int = Field(ge=0)


class Evaluate(Part):
    every: int | str
    train_images: int = Field(ge=0)
    batch: int = Field(ge=1)
    precise_bn: int = Field(ge=0)
    score_threshold: float = Field(ge=0, lt=1)
    nms_threshold: float = Field(ge=0, le=1)
    detections: int = Field(ge=1)
    keypoint_sigmas: tuple[Positive, ...] | None
    voc: bool
    tta: TtaPart


class Checkpoint(Part):
    every: int | str


class AnyRecipe(Part):
    """What recipes of every task have; those of segmentation are in recipe_segment.py."""

    task: str
    name: str
    seed: int = Field(ge=0)
    processes: int = Field(ge=1)
    device: Literal["auto", "cpu", "cuda", "mps"]
    data: Part
    input: Part
    model: Part
    start: Start
    train: Train
    evaluate: Part
    checkpoint: Checkpoint

    @model_validator(mode="after")
    def _can_be_run(self) -> "AnyRecipe":
        check_precise_bn(self.evaluate.precise_bn, self.model.norm)
        if not is_file_name(self.name):
            raise ValueError(
                f"name: {reprlib.repr(self.name)} cannot name a folder on every platform, expected letters and digits, "
                f"at most {MOST_BYTES} bytes"
            )
        if self.train.batch % self.processes:
            raise ValueError(f"train.batch: {self.train.batch} images do not divide among {self.processes} processes")
        if self.device == "mps" and self.processes > 1:
            raise ValueError(f"processes: {self.processes}, but device mps has one GPU; expected 1")
        return self


class Recipe(AnyRecipe):
    """A detection run, resolved."""

    task: Literal["detection"]
    name: str
    seed: int = Field(ge=0)
    data: Data
    input: Input
    model: Model
    start: Start
    train: Train
    evaluate: Evaluate
    checkpoint: Checkpoint

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.input.copy_paste and not self.model.mask.enabled:
            raise ValueError("input.copy_paste: pastes masks, but model.mask.enabled is false; expected it to be true")
        if self.evaluate.keypoint_sigmas is not None and not self.model.keypoint.enabled:
            raise ValueError("evaluate.keypoint_sigmas: given, but model.keypoint.enabled is false; expected null")
        return self


class ClassifyData(Part):
    train: str
    val: str
    fraction: float = Field(gt=0, le=1)
    fraction_seed: int = Field(ge=0)
    num_workers: int = Field(ge=0)
    cache: bool
    cache_features: bool


class ClassifyInput(Part):
    size: int = Field(gt=0)
    min_area: float = Field(gt=0, le=1)
    flip: float = Field(ge=0, le=1)
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    order: Literal["rgb", "bgr"]


class ClassifyRecipe(AnyRecipe):
    """A classification run (pre-training, or a study of its own), resolved."""

    task: Literal["classification"]
    name: str
    seed: int = Field(ge=0)
    data: ClassifyData
    input: ClassifyInput
    model: Classifier
    start: Start
    train: Train
    evaluate: ClassifyEvaluate
    checkpoint: Checkpoint

    @model_validator(mode="after")
    def _features_can_be_kept(self) -> "ClassifyRecipe":
        if not self.data.cache_features:
            return self
        wanted = (
            ("start.freeze", self.start.freeze, "backbone"),
            ("input.min_area", self.input.min_area, 1.0),
            ("input.flip", self.input.flip, 0.0),
        )
        for field, found, expected in wanted:
            if found != expected:
                raise ValueError(
                    f"data.cache_features: true keeps one feature vector an image, but {field} is {found!r}, "
                    f"so that features change; expected {field} {expected!r}, or data.cache_features: false"
                )
        return self


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {dotted path: value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = str(path).split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: {parent!r} holds a value, it has no fields")
        node[leaf] = unflatten(value) if isinstance(value, dict) else value
    return tree


def to_dict(recipe: AnyRecipe) -> dict[str, Any]:
    """A recipe as plain nested data, as it is written to a run."""
    return recipe.model_dump(mode="json")


def digest(recipe: AnyRecipe, *extra: str) -> str:
    """Twelve hex digits of all in a recipe that can change the result, and of `extra` (data, weights, parent).

    ValueError for a recipe whose precision is not settled: the same name would stand for two results.
    """
    flat = flatten(to_dict(recipe)) | {"train.precision": "bf16" if recipe.train.bf16 else "fp32"}
    flat = {key: value for key, value in flat.items() if key not in CLERICAL + REPLACED}
    return hashlib.sha256(json.dumps([flat, *extra], sort_keys=True).encode()).hexdigest()[:12]


def schedule_of(recipe: AnyRecipe, num_images: int, name: str | None = None) -> Schedule:
    """The learning-rate schedule of a recipe on `num_images` images, its rate scaled linearly by the batch."""
    train, name = recipe.train, name or recipe.train.schedule
    options = {"batch": train.batch, "num_images": num_images}
    base = duration(train.base, field="train.base", **options)
    warmup = duration(train.warmup, field="train.warmup", **options)
    try:
        return Schedule.nx(
            multiple_of(name, base, scale=Fraction(train.reference_batch, train.batch)),
            base,
            base_rate=scaled_rate(recipe),
            warmup=warmup,
            warmup_from=train.warmup_from,
            factor=train.drop_factor,
        )
    except ValueError as error:
        raise ValueError(f"schedule {name} with a base of {base} steps: {error}") from None


def scaled_rate(recipe: AnyRecipe) -> float:
    """The base rate of the actual batch: linear scaling from the reference batch (Goyal et al. 2017)."""
    return recipe.train.rate * recipe.train.batch / recipe.train.reference_batch


def derived(recipe: AnyRecipe) -> dict[str, Any]:
    """Values that follow from others, with their derivation."""
    train = recipe.train
    return {
        "train.rate (actual)": f"{scaled_rate(recipe):g} = {train.rate:g} x {train.batch}/{train.reference_batch}",
        "digest": digest(recipe),
    }
