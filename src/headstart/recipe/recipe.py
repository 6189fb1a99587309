"""Recipes: all settings of a run as data, frozen, complete, comparable and hashable.

Every value is in `recipes/base.yaml` (or `base_classify.yaml`, `base_segment.yaml`), which comments each field;
`load.py` makes recipes from files, arms and overrides. Nothing below `build` and `task` functions knows recipes.
"""

import hashlib
import json
import reprlib
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import model_validator

from headstart.files import MOST_BYTES, is_file_name
from headstart.recipe import labelling
from headstart.recipe.augment import NO_COLOUR
from headstart.recipe.detection import Data, Evaluate, Input, Model
from headstart.recipe.dotted import flatten
from headstart.recipe.fields import Checkpoint, EvaluatePart, InputPart, Part, Seed, Start, Train, whole
from headstart.recipe.schedule import Schedule, duration, multiple_of

# Fields that change how a run is carried out, not its result.
NOT_IN_DIGEST = (
    "name",
    "evaluate.every",
    "evaluate.train_images",
    "checkpoint.every",
    "train.log_every",
    "train.loggers",
    "data.num_workers",
    "data.cache",
    "processes",
    "device",
)
# Paths and durations: the digest takes the content of data and weights, and the schedule in steps.
DIGESTED_BY_CONTENT = (
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
# Fields that came later, at the values that change nothing: there they are no part of the digest, so that the runs made
# before are found.
ADDED: dict[str, Any] = {
    "train.optimizer": "sgd",
    "train.betas": [0.9, 0.999],
    "train.eps": 1e-8,
    **{f"train.rates.{part}": 1.0 for part in ("backbone", "pyramid", "heads")},
    "train.layer_decay": 1.0,
    "train.ema": None,
    "input.channels": 3,
    "start.stem": None,
    "data.cache_features": False,
    "input.crop.enabled": False,
    "input.crop.size": 512,
    "input.crop.scales": [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3],
    "input.crop.border": 128,
    **NO_COLOUR,
    "input.flip_vertical": 0.0,
    "input.quarter_turns": False,
    "input.mosaic": 0.0,
    "input.transform": None,
    "data.repeat_threshold": None,
    "model.corners.enabled": False,
    "model.corners.stride": 4,
    "model.corners.width": 256,
    "model.corners.min_iou": 0.3,
    "model.corners.pull": 0.1,
    "model.corners.push": 0.1,
    "model.corners.offset": 1.0,
    "model.corners.num_corners": 100,
    "model.corners.num_pairs": 1000,
    "model.corners.distance": 0.5,
    "model.corners.soft_nms": 0.5,
    "model.corners.flip": True,
}
ALWAYS = {"classification": ("data.cache_features",)}  # of ADDED: a part of a task's digests from the start
# Fields that may change between two evaluations of one checkpoint.
EVALUATION_FIELDS = ("evaluate.", "input.test_")
TRAINING_FIELDS = ("evaluate.every", "evaluate.train_images", "evaluate.precise_bn")  # of these, only a run's own


class AnyRecipe(Part):
    """The fields that recipes of all tasks have."""

    task: str
    name: str
    seed: Seed
    processes: Annotated[int, whole(1, 1024)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    data: Part
    input: InputPart
    model: Part
    start: Start
    train: Train
    evaluate: Part
    checkpoint: Checkpoint

    def __repr__(self) -> str:
        start, part = self.start.weights or self.start.kind, self.train
        length = f"{part.schedule} of {part.base}, {part.batch} images a step"
        return f"{type(self).__name__}({self.name}: from {start}, {length})"

    @model_validator(mode="after")
    def _can_be_run(self) -> "AnyRecipe":
        num_batches, norm = self.evaluate.precise_bn, self.model.norm
        if num_batches and norm not in ("batch", "sync_batch"):
            raise ValueError(
                f"evaluate.precise_bn: {num_batches}, but model.norm is {norm!r}, which keeps no statistics of "
                "batches; expected 0, or model.norm batch or sync_batch"
            )
        if not is_file_name(self.name):
            most = f"expected letters and digits, at most {MOST_BYTES} bytes"
            raise ValueError(f"name: {reprlib.repr(self.name)} cannot name a folder on every platform, {most}")
        unmoved = {"layer_decay": self.train.layer_decay, "rates.backbone": self.train.rates.backbone}
        for field, value in unmoved.items() if self.start.freeze == "backbone" else ():
            if value != 1:
                raise ValueError(
                    f"train.{field}: {value:g} has no effect with start.freeze 'backbone'; expected 1, or another "
                    "start.freeze"
                )
        if self.start.stem is not None and self.input.channels == 3:
            raise ValueError(
                f"start.stem: {self.start.stem!r} has no effect on RGB weights with input.channels 3; expected null"
            )
        if self.train.batch % self.processes:
            raise ValueError(f"train.batch: {self.train.batch} images do not divide among {self.processes} processes")
        if self.device == "mps" and self.processes > 1:
            raise ValueError(f"processes: {self.processes}, but device mps has one GPU; expected 1")
        return self


class Recipe(AnyRecipe):
    """A detection run, resolved."""

    task: Literal["detection"]
    data: Data
    input: Input
    model: Model
    evaluate: Evaluate

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.input.copy_paste and not self.model.mask.enabled:
            raise ValueError("input.copy_paste: pastes masks, but model.mask.enabled is false; expected it to be true")
        one_size = {"input.jitter.enabled": False, "input.crop.enabled": False, "input.short": [self.input.short[0]]}
        others = {"input.flip_vertical": 0.0, "input.quarter_turns": False, "input.transform": None}
        _require_unchanged_features(self, one_size | NO_COLOUR | others)
        if self.data.cache_features and self.model.corners.enabled:
            raise ValueError(
                "data.cache_features: true, but model.corners.enabled computes from images alone; expected false"
            )
        if not self.model.pyramid:
            self.train.rates.require_no_pyramid("model.pyramid false")
        if self.evaluate.keypoint_sigmas is not None and not self.model.keypoint.enabled:
            raise ValueError("evaluate.keypoint_sigmas: given, but model.keypoint.enabled is false; expected null")
        return self


class ClassifyRecipe(AnyRecipe):
    """A classification run (pre-training, or a study of its own), resolved."""

    task: Literal["classification"]
    data: labelling.ClassifyData
    input: labelling.ClassifyInput
    model: labelling.ClassifyModel
    evaluate: EvaluatePart

    @model_validator(mode="after")
    def _consistent(self) -> "ClassifyRecipe":
        self.train.rates.require_no_pyramid("task classification")
        _require_unchanged_features(self, {"input.min_area": 1.0, "input.flip": 0.0})
        return self


class SegmentRecipe(AnyRecipe):
    """A segmentation run, resolved: a class for each pixel, from label maps or from the instances of a COCO file."""

    task: Literal["segmentation"]
    data: labelling.SegmentData
    input: labelling.SegmentInput
    model: labelling.SegmentModel
    evaluate: EvaluatePart


def _require_unchanged_features(recipe: AnyRecipe, required: dict[str, Any]) -> None:
    """ValueError where features cannot be kept: the backbone trains, or a field {name: value} changes its input."""
    values = flatten(to_dict(recipe))
    for field, expected in {"start.freeze": "backbone", **required}.items() if values["data.cache_features"] else ():
        if values[field] != expected:
            raise ValueError(
                f"data.cache_features: true keeps the features of an image, but {field} is {values[field]!r}, "
                f"so that features change; expected {field} {expected!r}, or data.cache_features: false"
            )


def fraction_seed(recipe: AnyRecipe) -> int:
    """The seed that draws a recipe's fraction of the training images."""
    return recipe.seed if recipe.data.fraction_seed == "per_seed" else recipe.data.fraction_seed


def to_dict(recipe: AnyRecipe) -> dict[str, Any]:
    """A recipe as plain nested data, as it is written to a run."""
    return recipe.model_dump(mode="json")


def digest(recipe: AnyRecipe, *extra: str) -> str:
    """Twelve hex digits of all fields that can change the result, and of `extra` (data, weights, parent).

    ValueError for a recipe that is not settled: the same name would stand for two results.
    """
    flat = flatten(to_dict(recipe)) | {"train.precision": "bf16" if recipe.train.bf16 else "fp32"}
    if flat.get("model.mask.enabled") == "auto":
        raise ValueError("model.mask.enabled: auto, expected true or false: the training data decide which it is")
    flat = {
        key: value
        for key, value in flat.items()
        if key not in NOT_IN_DIGEST + DIGESTED_BY_CONTENT
        and (key not in ADDED or value != ADDED[key] or key in ALWAYS.get(recipe.task, ()))
    }
    return hashlib.sha256(json.dumps([flat, *extra], sort_keys=True).encode()).hexdigest()[:12]


def schedule_of(recipe: AnyRecipe, num_images: int, name: str | None = None) -> Schedule:
    """The learning rate schedule of a recipe on `num_images` images, with the rate of `scaled_rate`."""
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
    """The base learning rate at the actual batch.

    Linear scaling from the reference batch holds for SGD (Goyal et al. 2017); Adam and AdamW have `rate` as it is.
    """
    part = recipe.train
    return part.rate * part.batch / part.reference_batch if part.optimizer == "sgd" else part.rate


def rate_text(recipe: AnyRecipe) -> str:
    """The base learning rate with its derivation."""
    part = recipe.train
    if part.optimizer != "sgd":
        return f"{part.rate:g} ({part.optimizer}: not scaled with the batch)"
    scaled = f"{scaled_rate(recipe):g} = {part.rate:g} x {part.batch}/{part.reference_batch}"
    return f"{scaled} (linear scaling with the batch)"
