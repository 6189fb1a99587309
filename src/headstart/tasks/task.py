"""Parts that all tasks share: a task as the loop sees it, a trained model, and checks of data against each other."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.data.dataset import Dataset, nested_fraction
from headstart.data.digests import Content, FileState
from headstart.data.images import load_image
from headstart.data.order import Resize, bucket_of
from headstart.data.stream import EvalImages, MapsOf, Reading
from headstart.model.build import build, input_spec
from headstart.model.detector import Detector
from headstart.model.flops import step_flops
from headstart.model.semantic_head import Segmenter
from headstart.ops.processes import num_processes, rank
from headstart.recipe.recipe import AnyRecipe, ClassifyRecipe, fraction_seed


@dataclass(frozen=True)
class EvalResult:
    """One evaluation: metrics by kind, metrics of each class by kind; `save(directory, step)` writes its evidence."""

    metrics: dict[str, dict[str, float]]
    per_class: dict[str, dict[str, dict[str, float]]]
    save: Callable[[Path, int], None]


def describe_images(batch: Any) -> str:
    """Image ids of a batch, for messages."""
    return f"images {', '.join(str(i) for i in batch.image_ids.tolist())}"


def forward_losses(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Losses of a model that computes them itself, through its forward so that DDP sees it."""
    return model(batch)


@dataclass(frozen=True)
class Task:
    """A model and its data, ready for the loop.

    losses(model, batch) gives scalar losses by name (the model may be wrapped for several processes). batches(start,
    stop, device) yields the batches of those steps; counts(step) gives instances and pixels of a whole step,
    flops(batch) the floating-point operations of a training step on a batch, both over all processes.
    evaluate(device) evaluates the model (all processes call it); evaluate_train does so on some training images,
    evaluate_first(device, n) on the first n validation images, for a timing (None: evaluate takes seconds).
    describe(batch) names the images of a batch, for messages. classes and num_images describe the training data.
    contents are those of the training and of the validation data, as they were when `fingerprint` was taken.
    """

    model: nn.Module
    batches: Callable[[int, int, torch.device], Iterator[Any]]
    counts: Callable[[int], tuple[int, int]]
    flops: Callable[[Any], int]
    evaluate: Callable[[torch.device], EvalResult]
    classes: dict[str, Any]
    num_images: int
    num_eval_images: int
    contents: tuple[Content, Content]
    image_ids: list[Any]
    notes: list[str] = field(default_factory=list)
    losses: Callable[[nn.Module, Any], dict[str, Tensor]] = forward_losses
    describe: Callable[[Any], str] = describe_images
    evaluate_train: Callable[[torch.device], EvalResult] | None = None
    num_eval_train_images: int = 0
    evaluate_first: Callable[[torch.device, int], EvalResult] | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of the content of training and validation data."""
        return self.contents[0].plus(self.contents[1]).digest

    @property
    def files(self) -> Mapping[str, FileState]:
        """Files that batches and evaluations read."""
        return self.contents[0].plus(self.contents[1]).files

    @cached_property
    def overlap(self) -> tuple[str, ...]:
        """Validation images whose bytes are those of a training image."""
        return self.contents[1].shared_with(self.contents[0])


@dataclass(frozen=True)
class Trained:
    """A trained detector or segmentation model (an nn.Module in eval mode), its recipe, and its categories.

    category_ids and class_names are those of labels 0..C-1; skeleton: pairs of keypoints that a drawing joins.
    """

    model: Detector | Segmenter
    recipe: AnyRecipe
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    step: int
    skeleton: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        first = ", ".join(self.class_names[:3]) + (", …" if len(self.class_names) > 3 else "")
        kind = f"{self.recipe.task}, {len(self.class_names)} classes ({first})"
        return f"Trained({self.recipe.name}: {kind}, step {self.step}, {self.device.type})"

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def pixels(self, image: str | Path | np.ndarray) -> np.ndarray:
        """Pixels [H,W,C] of an image file, or the array itself: uint8 or float32 in 0..255.

        ValueError for another number of channels than the model has.
        """
        channels = self.recipe.input.channels
        if not isinstance(image, np.ndarray):
            return load_image(image, channels)
        if image.ndim != 3 or image.shape[2] != channels or not image.size or image.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"image: an array {image.dtype} {list(image.shape)}, expected uint8, or float32 in 0..255, "
                f"[H,W,{channels}] (input.channels)"
            )
        return np.require(image, requirements=["C", "W"])  # as torch takes arrays; a view of BGR turned to RGB is none

    def require(self, task: str, instead: str) -> None:
        """ValueError unless the model was trained for `task`; `instead` names the functions for others."""
        if self.recipe.task != task:
            raise ValueError(f"this is a {self.recipe.task} model, expected a {task} model; {instead}")

    def require_classes(self, path: Path | str, ids: Iterable[int], names: Iterable[str]) -> None:
        """ValueError unless the data set at `path` has the categories that the model was trained on."""
        known = dict(zip(self.category_ids, self.class_names))
        check_same_classes("the checkpoint", known, path, dict(zip(ids, names)))


def make_model(recipe: AnyRecipe, num_classes: int, *keypoints: Any) -> Any:
    """The recipe's model, in its memory format; further arguments as for `build`."""
    model = build(recipe, num_classes, *keypoints)
    return model.to(memory_format=torch.channels_last) if recipe.train.channels_last else model


def take_fraction(recipe: AnyRecipe, data: Dataset, most: int | None = None) -> Dataset:
    """The recipe's fraction of a data set, in the data set's order.

    most: number of images to take, the first of the nested order, which every larger fraction has too.
    """
    if recipe.data.fraction == 1.0 and most is None:
        return data
    chosen = nested_fraction(data.num_images, recipe.data.fraction, fraction_seed(recipe))
    return data.take(np.sort(chosen[:most]))


def require_images(*sets: Dataset) -> None:
    """ValueError naming the first image of the data sets whose file is not there."""
    for data in sets:
        known: dict[str, set[str]] = {}  # names by folder, each listed once
        for i, name in enumerate(data.file_names):
            folder, _, file = name.rpartition("/")
            if folder not in known:
                path = data.image_dir / folder
                known[folder] = set(os.listdir(path)) if path.is_dir() else set()
            # Looked up by its path too: some file systems ignore the case or the Unicode form of a name.
            if file not in known[folder] and not data.image_path(i).is_file():
                raise ValueError(
                    f"{data.path}: {name!r} is not in {data.image_dir}, expected every image that it lists"
                )


def reading(recipe: AnyRecipe) -> Reading:
    """Settings with which this process reads its part of a recipe's training images."""
    data = recipe.data
    return Reading(recipe.train.batch, recipe.seed, data.cache, data.num_workers, rank(), num_processes())


def eval_images(recipe: Any, data: Dataset, maps: MapsOf | None = None) -> EvalImages:
    """Images of a data set at the recipe's evaluation size, or maps in their place."""
    return EvalImages(
        data,
        Resize(recipe.input.test_short, recipe.input.test_long),
        input_spec(recipe),
        batch=recipe.evaluate.batch,
        cache=recipe.data.cache,
        num_workers=recipe.data.num_workers,
        maps=maps,
    )


def input_size(recipe: AnyRecipe) -> tuple[int, int]:
    """Padded (height, width) of a landscape image in evaluation."""
    if isinstance(recipe, ClassifyRecipe):
        return recipe.input.size, recipe.input.size
    short, long = recipe.input.test_short, recipe.input.test_long
    return bucket_of(short, long, Resize(short, long))


def check_same_classes(train: Path | str, known: Mapping[Any, str], val: Path | str, found: Mapping[Any, str]) -> None:
    """ValueError naming the first category, {id: name}, in which the validation set differs from the training set."""
    if dict(known) == dict(found):
        return
    odd = next(key for key in sorted({*known, *found}) if known.get(key) != found.get(key))
    ours, theirs = (repr(each[odd]) if odd in each else "missing" for each in (known, found))
    raise ValueError(
        f"{val}: classes differ from {train}: category {odd} is {theirs}, there it is {ours}; "
        "expected the same categories in both"
    )


_counted: dict[tuple, int] = {}  # tracing a model takes a second


class StepFlops:
    """Floating-point operations of a step by the shape of its images, counted when a shape first occurs.

    losses as in `Task`; `key` identifies the model: its shapes and its frozen parts. Steps on kept maps count without
    the backbone.
    """

    def __init__(
        self, model: nn.Module, key: str, losses: Callable[[nn.Module, Any], dict[str, Tensor]] = forward_losses
    ):
        self.model, self.losses, self.key = model, losses, key

    def __call__(self, batch: Any) -> int:
        inputs = batch.images if isinstance(batch.images, list) else [batch.images]
        shape = (self.key, *(tuple(each.shape) for each in inputs))
        if shape not in _counted:
            # Operations are counted in fp32: kept maps may be in bf16, for which losses would need autocast.
            plain = [each.to("meta").float() for each in inputs]
            ghost = replace(batch.to("meta"), images=plain if isinstance(batch.images, list) else plain[0])
            _counted[shape] = step_flops(self.model, lambda model: self.losses(model, ghost))
        return _counted[shape] * num_processes()
