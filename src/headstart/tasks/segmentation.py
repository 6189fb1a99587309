"""The segmentation task: a class for each pixel, from label maps or annotated instances; and use of a trained model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from headstart.data.augment.rules import Augmentation
from headstart.data.dataset import Dataset
from headstart.data.images import as_rgb
from headstart.data.label_maps import InstanceLabels, LabelMaps, PixelLabels, PixelStream
from headstart.data.order import Resize
from headstart.data.read.coco import read
from headstart.data.stream import EvalImages, make_batch
from headstart.metrics.pixels import PixelRecords, class_ious, count_pixels, pixel_metrics
from headstart.model.build import input_spec
from headstart.model.semantic_head import Segmenter
from headstart.ops import processes as distributed
from headstart.recipe.recipe import SegmentRecipe
from headstart.tasks.draw import colour_of
from headstart.tasks.task import (
    EvalResult,
    StepFlops,
    Task,
    Trained,
    check_same_classes,
    eval_images,
    make_model,
    reading,
    require_images,
    take_fraction,
)

MOST_ID = 2**16 - 1  # of a 16-bit PNG
LABEL_SHARE = 0.5  # of colour in a picture of labels: enough to see, little enough to see through


def training_pixels(recipe: SegmentRecipe) -> Dataset:
    """Training images of a recipe: its fraction of the whole set."""
    return take_fraction(recipe, read(recipe.data.train, recipe.data.train_images))


def label_maps(dataset: Dataset, folder: str | Path | None, recipe: SegmentRecipe) -> LabelMaps:
    """Labels of a data set from a folder of PNGs, or from its instances if there is no folder."""
    if folder is None:
        return InstanceLabels(dataset)
    return PixelLabels(dataset, folder, ignore=recipe.data.ignore)


def validation_pixels(recipe: SegmentRecipe) -> LabelMaps:
    """Validation images of a recipe with their labels."""
    return label_maps(read(recipe.data.val, recipe.data.val_images), recipe.data.val_labels, recipe)


def num_training_images(recipe: SegmentRecipe) -> int:
    """Images that a recipe trains on."""
    return training_pixels(recipe).num_images


def data_fingerprint(recipe: SegmentRecipe, *, rehash: bool = False) -> str:
    """Digest of the content of training and validation data, label maps included."""
    maps = label_maps(training_pixels(recipe), recipe.data.train_labels, recipe)
    return maps.content(rehash=rehash).plus(validation_pixels(recipe).content(rehash=rehash)).digest


def pixel_stream(maps: LabelMaps, recipe: SegmentRecipe) -> PixelStream:
    """Training stream of a recipe on its label maps."""
    part = recipe.input
    return PixelStream(
        maps,
        Augmentation(part.short, part.long, part.flip),
        input_spec(recipe),
        reading(recipe),
        stride=recipe.model.semantic.loss_stride,
    )


def make_task(recipe: SegmentRecipe) -> Task:
    """The recipe's segmentation model and data, ready for the loop."""
    maps = label_maps(training_pixels(recipe), recipe.data.train_labels, recipe)
    held_out = validation_pixels(recipe)
    ours, theirs = (dict(zip(each.class_ids, each.class_names)) for each in (maps, held_out))
    check_same_classes(maps.dataset.path, ours, held_out.dataset.path, theirs)
    for each in (maps, held_out):
        require_images(each.dataset)
        each.check(recipe.data.num_workers)
    stream = pixel_stream(maps, recipe)
    model = make_model(recipe, len(maps.class_names))
    images = eval_images(recipe, held_out.dataset)
    key = f"{recipe.model.model_dump_json()} {len(maps.class_names)} {recipe.start.freeze}"
    return Task(
        model=model,
        batches=stream.batches,
        counts=stream.counts,
        flops=StepFlops(model, key),
        evaluate=lambda device: _result(count_all(model, held_out, images, device, bf16=recipe.train.bf16)),
        classes={"ids": list(maps.class_ids), "names": list(maps.class_names)},
        num_images=maps.dataset.num_images,
        num_eval_images=held_out.dataset.num_images,
        contents=(maps.content(), held_out.content()),
        image_ids=maps.dataset.image_ids.tolist(),
        notes=maps.notes,
    )


@torch.no_grad()
def count_all(
    model: Segmenter, maps: LabelMaps, images: EvalImages, device: torch.device, *, bf16: bool = False
) -> PixelRecords:
    """Pixel counts of every image, in its own pixels against its own label map; shared among processes."""
    was_training, data = model.training, images.dataset
    model.eval()
    parts: list[tuple[int, np.ndarray]] = []
    for indices, batch, sizes in images.batches(device, part=distributed.rank(), parts=distributed.num_processes()):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model.predict(batch)
        for index, one, size in zip(indices.tolist(), logits, sizes.tolist()):
            original = data.size(index)
            predicted = model.semantic_head.decode(one, tuple(size), original).cpu().numpy()
            parts.append((index, count_pixels(predicted, maps(index), len(maps.class_names))))
    model.train(was_training)
    gathered = sorted((part for share in distributed.gather(parts) for part in share), key=lambda part: part[0])
    counts = np.stack([counts for _, counts in gathered], axis=1)
    return PixelRecords(data.image_ids, maps.class_names, *counts)


def _result(records: PixelRecords) -> EvalResult:
    """mIoU and pixel accuracy; `save` writes the counts of each image."""
    per_class = {name: {"IoU": float(iou)} for name, iou in zip(records.class_names, class_ious(records))}

    def save(directory: Path, step: int) -> None:
        records.save(directory / f"records-semantic-{step}.npz")

    return EvalResult({"semantic": pixel_metrics(records)}, {"semantic": per_class}, save)


_INSTEAD = "evaluate and predict take a detector"


def evaluate_labels(trained: Trained, maps: LabelMaps) -> PixelRecords:
    """Pixel counts of a trained segmentation model on a data set with the same classes, in its run's precision.

    ValueError for other classes, and for a detector: use `evaluate` for that.
    """
    trained.require("segmentation", _INSTEAD)
    trained.require_classes(maps.dataset.path, maps.class_ids, maps.class_names)
    images = eval_images(trained.recipe, maps.dataset)
    return count_all(trained.model, maps, images, trained.device, bf16=trained.recipe.train.bf16)


@torch.no_grad()
def predict_labels(trained: Trained, image: str | Path | np.ndarray) -> np.ndarray:
    """Class id of each pixel, int64 [H,W], of an image (see `Trained.pixels`), in its own pixels.

    ValueError for an unreadable image, and for a detector: use `predict` for that.
    """
    trained.require("segmentation", _INSTEAD)
    pixels = trained.pixels(image)
    resize = Resize(trained.recipe.input.test_short, trained.recipe.input.test_long)
    batch, sizes = make_batch([pixels], resize, input_spec(trained.recipe), trained.device)
    with torch.autocast(trained.device.type, dtype=torch.bfloat16, enabled=trained.recipe.train.bf16):
        logits = trained.model.predict(batch)
    labels = trained.model.semantic_head.decode(logits[0], tuple(sizes[0].tolist()), pixels.shape[:2])
    return np.array(trained.category_ids)[labels.cpu().numpy()]


def evaluate_files(
    trained: Trained,
    data: str | None,
    images: Path | None,
    split: str | None,
    labels: Path | None,
    save: Path | None,
    *,
    force: bool = False,
) -> EvalResult:
    """`headstart eval` of a segmentation model: on its validation or training images, or on a COCO file.

    data: None, "train", or the file; labels: a folder of label maps for it, without which its instances are the ground
    truth. ValueError for split and save, which have no meaning here; so `force` has no effect.
    """
    if split is not None or save is not None:
        given = "--split" if split is not None else "--save"
        raise ValueError(f"{given}: means nothing for a segmentation model; `headstart predict` writes label maps")
    recipe = trained.recipe
    if data in (None, "train"):
        if labels is not None or images is not None:
            raise ValueError("--images, --labels: given without --data; expected the COCO JSON that they belong to")
        train = label_maps(training_pixels(recipe), recipe.data.train_labels, recipe) if data else None
        maps = train or validation_pixels(recipe)
    else:
        maps = label_maps(read(data, images), labels, recipe)
    maps.check(recipe.data.num_workers)
    return _result(evaluate_labels(trained, maps))


def predict_files(
    trained: Trained, files: list[Path], out: Path, *, score: float, advance: Callable[[], None]
) -> dict[str, int]:
    """`headstart predict` of a segmentation model: a label map and a picture of each image; returns their number.

    score has no effect: every pixel has a class.
    """
    named = dict(zip(trained.class_names, trained.category_ids, strict=True))
    # As data.label_maps.InstanceLabels names it, or a user's label maps.
    background = named.get("none" if trained.class_names[-1] == "none" else "background")
    for path in files:
        pixels = trained.pixels(path)
        ids = predict_labels(trained, pixels)
        save_labels(ids, out / f"{path.stem}-labels.png", background=background)
        draw_labels(pixels, ids, background=background).save(out / f"{path.stem}.png")
        advance()
    return {"label maps": len(files)}


def save_labels(ids: np.ndarray, path: str | Path, *, background: int | None = 0) -> None:
    """Write class ids [H,W] as the values of a PNG: with a palette up to 255, else as 16-bit grey.

    The background's id, if any, is black in the palette. ValueError for an id that a PNG cannot hold.
    """
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > MOST_ID:
        raise ValueError(f"{path}: class id {low if low < 0 else high}: a PNG holds ids from 0 to {MOST_ID:,}")
    if high > 255:
        Image.fromarray(ids.astype(np.uint16)).save(path)
        return
    colours = [(0, 0, 0) if number == background else colour_of(number) for number in range(256)]
    picture = Image.fromarray(ids.astype(np.uint8)).convert("P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(path)


def draw_labels(image: np.ndarray, ids: np.ndarray, *, background: int | None = 0) -> Image.Image:
    """Picture of an image [H,W,C], each pixel tinted in the colour of its class but for the background's, if any."""
    image = as_rgb(image)
    numbers, place = np.unique(ids, return_inverse=True)
    colours = np.array([colour_of(number) for number in numbers.tolist()])[place.reshape(ids.shape)]
    mixed = image * (1 - LABEL_SHARE) + colours * LABEL_SHARE
    return Image.fromarray(np.where((ids == background)[..., None], image, mixed).clip(0, 255).astype(np.uint8))
