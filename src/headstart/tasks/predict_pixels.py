"""From a segmentation checkpoint alone: evaluation on any data set, label maps of any images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from headstart.data.buckets import Resize, bucket_of
from headstart.data.images import load_image
from headstart.data.label_maps import LabelMaps
from headstart.data.views import View, stack_images
from headstart.metrics.pixels import PixelRecords
from headstart.model.build import build, input_spec
from headstart.model.semantic_head import Segmenter
from headstart.ops import processes as distributed
from headstart.recipe.load import settle, stored_recipe
from headstart.recipe.recipe import SegmentRecipe
from headstart.tasks.draw import colour_of
from headstart.tasks.segmentation import count_all, eval_pixels

LABEL_SHARE = 0.5  # of colour in a picture: enough to see, little enough to see through


@dataclass(frozen=True)
class TrainedSegmenter:
    """A trained segmentation model (an ordinary nn.Module in eval mode), its recipe, and the classes it knows."""

    model: Segmenter
    recipe: SegmentRecipe
    class_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    step: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def segmenter_of(state: dict[str, Any], path: Path, overrides: dict[str, Any]) -> TrainedSegmenter:
    """The segmentation model of a checkpoint's content, with overrides {dotted field: value} of how it evaluates."""
    recipe, _ = settle(stored_recipe(state["recipe"], str(path), overrides))
    classes = state["classes"]
    model = build(recipe, len(classes["names"]))
    model.load_state_dict(state["model"] | state.get("statistics", {}))
    model.to(distributed.device(recipe.device)).eval()
    if recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return TrainedSegmenter(model, recipe, tuple(classes["ids"]), tuple(classes["names"]), state["step"])


def evaluate_labels(trained: TrainedSegmenter, maps: LabelMaps) -> PixelRecords:
    """Counts of right and wrong pixels on a data set with the same classes, in the precision of the run."""
    if tuple(maps.class_ids) != trained.class_ids:
        raise ValueError(
            f"{maps.dataset.path}: has classes {list(maps.class_ids)[:10]}, "
            f"the checkpoint was trained on {list(trained.class_ids)[:10]}"
        )
    images = eval_pixels(trained.recipe, maps.dataset)
    return count_all(trained.model, maps, images, trained.device, bf16=trained.recipe.train.bf16)


@torch.no_grad()
def predict_labels(trained: TrainedSegmenter, image: str | Path | np.ndarray) -> np.ndarray:
    """The class id of each pixel, int64 [H,W], of an image (a file, or uint8 [H,W,3] RGB), in its own pixels."""
    pixels = image if isinstance(image, np.ndarray) else load_image(image)
    original = pixels.shape[:2]
    resize = Resize(trained.recipe.input.test_short, trained.recipe.input.test_long)
    size, bucket = resize.size(*original), bucket_of(*original, resize)
    batch = stack_images([pixels], [View(size, False)], bucket, input_spec(trained.recipe), trained.device)
    with torch.autocast(trained.device.type, dtype=torch.bfloat16, enabled=trained.recipe.train.bf16):
        logits = trained.model.predict(batch)
    labels = trained.model.semantic_head.decode(logits[0], size, original)
    return np.array(trained.class_ids)[labels.cpu().numpy()]


def save_labels(ids: np.ndarray, path: str | Path) -> None:
    """Write class ids [H,W] as a PNG: values are the ids, with a palette up to 255 and as 16-bit grey beyond."""
    if ids.max() > 255:
        Image.fromarray(ids.astype(np.uint16)).save(path)
        return
    picture = Image.fromarray(ids.astype(np.uint8)).convert("P")
    picture.putpalette([value for number in range(256) for value in _colour(number)])
    picture.save(path)


def draw_labels(image: np.ndarray, ids: np.ndarray) -> Image.Image:
    """A picture of image uint8 [H,W,3] with each pixel tinted in the colour of its class; id 0 is left as it is."""
    numbers, place = np.unique(ids, return_inverse=True)
    colours = np.array([_colour(number) for number in numbers.tolist()])[place.reshape(ids.shape)]
    mixed = image * (1 - LABEL_SHARE) + colours * LABEL_SHARE
    return Image.fromarray(np.where((ids == 0)[..., None], image, mixed).clip(0, 255).astype(np.uint8))


def _colour(number: int) -> tuple[int, int, int]:
    return (0, 0, 0) if number == 0 else colour_of(number)
