"""Training images of detection recipes: their augmentation, and the stream of batches."""

from headstart.data.augment.colour import ColourJitter
from headstart.data.augment.own import load_transform, source_content
from headstart.data.augment.rules import Augmentation, Crop, Jitter
from headstart.data.dataset import Dataset
from headstart.data.digests import Content
from headstart.data.stream import MapsOf
from headstart.data.train_stream import TrainStream
from headstart.model.build import input_spec
from headstart.recipe.recipe import Recipe
from headstart.tasks.task import reading


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
