"""Images of detection recipes: augmentation, the stream of training batches, and maps of a frozen backbone, kept."""

import torch
from torch import Tensor

from headstart.batch import InputSpec
from headstart.data.augment.colour import ColourJitter
from headstart.data.augment.own import load_transform, source_content
from headstart.data.augment.rules import Augmentation, Crop, Jitter
from headstart.data.dataset import Dataset
from headstart.data.digests import Content
from headstart.data.order import Resize, bucket_of
from headstart.data.stream import MapsOf, Raw, decode
from headstart.data.train_stream import TrainStream
from headstart.data.views import View, stack_images
from headstart.hardware import choose_device
from headstart.model.backbones import Backbone
from headstart.model.build import input_spec
from headstart.ops import memory
from headstart.ops.processes import num_processes
from headstart.recipe.recipe import Recipe
from headstart.tasks.task import reading

MOST = 1 / 8  # share of a device's memory for one data set: there are two, and some segments of a study run at a time


def augmentation_of(recipe: Recipe) -> Augmentation:
    """Augmentation of training images; ValueError where the recipe's transform cannot be imported."""
    own, part, square = recipe.input, recipe.input.jitter, recipe.input.crop
    jitter = Jitter(part.low, part.high, part.crop) if part.enabled else None
    crop = Crop(square.size, square.scales, square.border) if square.enabled else None
    colour = ColourJitter(**own.colour.model_dump()) if own.colour.enabled else None
    transform = load_transform(own.transform) if own.transform is not None else None
    options = {"flip_vertical": own.flip_vertical, "quarter_turns": own.quarter_turns, "mosaic": own.mosaic}
    return Augmentation(
        own.short, own.long, own.flip, jitter, own.copy_paste, crop, colour, **options, transform=transform
    )


def with_transform(recipe: Recipe, content: Content) -> Content:
    """The content of training images, the source of the recipe's transform included."""
    name = recipe.input.transform
    return content if name is None else content.plus(source_content(name))


def train_stream(recipe: Recipe, data: Dataset, maps: MapsOf | None = None) -> TrainStream:
    """Batches of a recipe's training on a data set, this process's part of them; maps as in `TrainStream`."""
    return TrainStream(
        data,
        augmentation_of(recipe),
        input_spec(recipe),
        reading(recipe),
        mask_frame=recipe.data.mask_frame if recipe.model.mask.enabled else 0,
        max_objects=recipe.data.max_objects,
        maps=maps,
        repeat_threshold=recipe.data.repeat_threshold,
    )


class KeptMaps:
    """Maps of images under a frozen backbone by image and view, computed at the first request and kept.

    Each image passes the backbone alone, so its maps do not depend on the batch or on the order of the images, which
    may change the rounding of sums. The backbone must be in its final state.
    """

    def __init__(self, backbone: Backbone, dataset: Dataset, spec: InputSpec, *, bf16: bool):
        self.backbone, self.dataset, self.spec, self.bf16 = backbone, dataset, spec, bf16
        self._kept: dict[tuple[int, View, tuple[int, int]], list[Tensor]] = {}

    @torch.no_grad()
    def __call__(self, raw: Raw, device: torch.device | str) -> list[Tensor]:
        """Maps [B,C,h,w] of a batch, one a level; its images need not be decoded."""
        parts = [self._maps(i, view, raw.bucket, device) for i, view in zip(raw.indices.tolist(), raw.views)]
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    def _maps(self, index: int, view: View, bucket: tuple[int, int], device: torch.device | str) -> list[Tensor]:
        key = (index, view, bucket)
        if key not in self._kept:
            image = decode(self.dataset, index, channels=len(self.spec.mean))
            pixels = stack_images([image], [view], bucket, self.spec, device)
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=self.bf16):
                self._kept[key] = self.backbone(pixels)
        return self._kept[key]


def kept_maps(recipe: Recipe, backbone: Backbone, data: Dataset, *, training: bool) -> KeptMaps | None:
    """Kept maps of a recipe's training or evaluation images; None where the recipe keeps none.

    ValueError where they may need more than MOST of the device's memory, at four bytes a value and the recipe's
    largest padded size.
    """
    own = recipe.input
    if not recipe.data.cache_features or (recipe.evaluate.tta.enabled and not training):
        return None
    short, long = (own.short[0], own.long) if training else (own.test_short, own.test_long)
    height, width = bucket_of(short, long, Resize(short, long))
    values = sum(c * -(-height // s) * -(-width // s) for c, s in zip(backbone.channels, backbone.strides))
    needed = 4 * values * data.num_images * (2 if training and 0 < own.flip < 1 else 1)
    device = choose_device(recipe.device).value
    if training and device != "cuda":
        needed *= max(recipe.processes, num_processes())  # each comes to see every image
    there = memory.limit(device)
    if there is not None and needed > MOST * there:
        raise ValueError(
            f"data.cache_features: true, but the maps of {data.path} take {needed / 2**30:,.1f} GiB, expected at most "
            f"{MOST * there / 2**30:,.1f} GiB on {'the GPU' if device == 'cuda' else 'this machine'}, or false"
        )
    return KeptMaps(backbone, data, input_spec(recipe), bf16=recipe.train.bf16)
