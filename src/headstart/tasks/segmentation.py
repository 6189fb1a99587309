"""The segmentation task: a class for each pixel, from label maps or from annotated instances."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from headstart.batch import PixelBatch
from headstart.data.buckets import Resize, group_by_bucket
from headstart.data.dataset import Dataset, nested_fraction
from headstart.data.eval_images import EvalImages
from headstart.data.label_maps import InstanceLabels, LabelMaps, PixelLabels, sample_labels
from headstart.data.order import Order, slot_generator
from headstart.data.read.coco import read
from headstart.data.stream import Images, ahead
from headstart.data.upload import to_device
from headstart.data.views import View, draw_view, stack_images
from headstart.metrics.pixels import PixelRecords, class_ious, count_pixels, pixel_metrics
from headstart.model.build import build, input_spec
from headstart.model.semantic_head import Segmenter
from headstart.ops import processes as distributed
from headstart.ops.processes import num_processes
from headstart.recipe.recipe import SegmentRecipe
from headstart.tasks.task import Judgement, StepFlops, Task, forward_losses


@dataclass(frozen=True)
class RawPixels:
    """One step's images and label maps as decoded, with their views: what workers hand over."""

    images: list[np.ndarray]
    labels: list[np.ndarray]
    views: list[View]
    bucket: tuple[int, int]
    indices: np.ndarray


class PixelStream:
    """Images with their labels by step: a pure function of (seed, step, slot)."""

    def __init__(self, maps: LabelMaps, recipe: SegmentRecipe):
        self.maps, self.recipe, self.dataset = maps, recipe, maps.dataset
        batch, part = recipe.train.batch, recipe.input
        if batch % num_processes():
            raise ValueError(f"train.batch: {batch} images do not divide among {num_processes()} processes")
        self.images = Images(self.dataset, keep=recipe.data.cache)
        self.kept: dict[int, np.ndarray] | None = {} if recipe.data.cache else None
        largest = Resize(max(part.short), part.long)
        groups = group_by_bucket(self.dataset.heights, self.dataset.widths, largest, smallest=batch)
        self.buckets, self.order = list(groups), Order(list(groups.values()), batch=batch, seed=recipe.seed)
        share = batch // num_processes()
        self.share = slice(distributed.rank() * share, (distributed.rank() + 1) * share)

    def _labels(self, index: int) -> np.ndarray:
        if self.kept is None:
            return self.maps(index)
        if index not in self.kept:
            self.kept[index] = self.maps(index)
        return self.kept[index]

    def _view(self, slot: int, index: int) -> View:
        part, size = self.recipe.input, (int(self.dataset.heights[index]), int(self.dataset.widths[index]))
        return draw_view(*size, part.short, part.long, part.flip, slot_generator(self.recipe.seed, 3, slot))

    def raw(self, step: int) -> RawPixels:
        """This process's part of a step, decoded."""
        slots = np.arange(step * self.order.batch, (step + 1) * self.order.batch)[self.share].tolist()
        indices = self.order.indices(step)[self.share]
        own = indices.tolist()
        return RawPixels(
            [self.images(i) for i in own],
            [self._labels(i) for i in own],
            [self._view(slot, i) for slot, i in zip(slots, own)],
            self.buckets[self.order.group(step)],
            indices,
        )

    def counts(self, step: int) -> tuple[int, int]:
        """Images (each one instance) and pixels before padding of a whole step, all processes together."""
        first = step * self.order.batch
        views = [self._view(first + place, int(i)) for place, i in enumerate(self.order.indices(step))]
        return len(views), sum(view.size[0] * view.size[1] for view in views)

    def batches(self, start: int, stop: int, device: torch.device) -> Iterator[PixelBatch]:
        """Batches of steps start..stop-1, decoded ahead."""
        stride, convention = self.recipe.model.semantic.loss_stride, input_spec(self.recipe)
        for raw in ahead(self.raw, range(start, stop), self.recipe.data.num_workers):
            maps = [sample_labels(one, view, raw.bucket, stride) for one, view in zip(raw.labels, raw.views)]
            yield PixelBatch(
                stack_images(raw.images, raw.views, raw.bucket, convention, device),
                to_device(np.stack(maps), device).long(),
                to_device(self.dataset.image_ids[raw.indices].astype(np.int64), device),
            )


def training_pixels(recipe: SegmentRecipe) -> Dataset:
    """The training images of a recipe: its fraction of the whole set."""
    data = read(recipe.data.train, recipe.data.train_images)
    if recipe.data.fraction == 1.0:
        return data
    return data.take(np.sort(nested_fraction(data.num_images, recipe.data.fraction, recipe.data.fraction_seed)))


def label_maps(dataset: Dataset, folder: str | Path | None, recipe: SegmentRecipe) -> LabelMaps:
    """The labels of a data set: from a folder of PNGs, or without one from its instances."""
    if folder is None:
        return InstanceLabels(dataset)
    return PixelLabels(dataset, folder, ignore=recipe.data.ignore)


def validation_pixels(recipe: SegmentRecipe) -> LabelMaps:
    """The validation images of a recipe with their labels."""
    return label_maps(read(recipe.data.val, recipe.data.val_images), recipe.data.val_labels, recipe)


def num_training_images(recipe: SegmentRecipe) -> int:
    """Images that a recipe trains on."""
    return training_pixels(recipe).num_images


def data_fingerprint(recipe: SegmentRecipe) -> str:
    """The content of what a recipe trains and is judged on, label maps included."""
    maps = label_maps(training_pixels(recipe), recipe.data.train_labels, recipe)
    return maps.digest() + validation_pixels(recipe).digest()


def segmentation_task(recipe: SegmentRecipe) -> Task:
    """Everything the loop needs to train and judge this recipe's segmentation model."""
    maps = label_maps(training_pixels(recipe), recipe.data.train_labels, recipe)
    held_out = validation_pixels(recipe)
    check_same_labels(maps, held_out)
    for each in (maps, held_out):
        each.check(recipe.data.num_workers)
    stream = PixelStream(maps, recipe)
    model = build(recipe, len(maps.class_names))
    if recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    bf16 = recipe.train.bf16
    return Task(
        model=model,
        losses=forward_losses,
        batches=stream.batches,
        counts=stream.counts,
        flops=StepFlops(
            model,
            forward_losses,
            f"{recipe.model.model_dump_json()} {len(maps.class_names)} {recipe.start.freeze}",
        ),
        evaluate=partial(judge, model, held_out, eval_pixels(recipe, held_out.dataset), bf16=bf16),
        describe=lambda batch: f"images {', '.join(str(i) for i in batch.image_ids.tolist())}",
        classes={"ids": list(maps.class_ids), "names": list(maps.class_names)},
        num_images=maps.dataset.num_images,
        num_eval_images=held_out.dataset.num_images,
        fingerprint=maps.digest() + held_out.digest(),
        image_ids=maps.dataset.image_ids.tolist(),
        notes=maps.notes,
    )


def check_same_labels(train: LabelMaps, val: LabelMaps) -> None:
    """Both splits must have the same classes; ValueError names the first that differ."""
    ours, theirs = (dict(zip(maps.class_ids, maps.class_names)) for maps in (train, val))
    if ours != theirs:
        odd = next(key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key))
        raise ValueError(
            f"{val.dataset.path}: category {odd} is {theirs.get(odd)!r}, in {train.dataset.path} it is "
            f"{ours.get(odd)!r}; expected the same categories in both"
        )


def eval_pixels(recipe: SegmentRecipe, data: Dataset) -> EvalImages:
    """A data set's images as this recipe's model sees them in evaluation."""
    return EvalImages(
        data,
        Resize(recipe.input.test_short, recipe.input.test_long),
        input_spec(recipe),
        batch=recipe.evaluate.batch,
        cache=recipe.data.cache,
        num_workers=recipe.data.num_workers,
    )


@torch.no_grad()
def count_all(
    model: Segmenter, maps: LabelMaps, images: EvalImages, device: torch.device, *, bf16: bool = False
) -> PixelRecords:
    """Records of every image, judged in its own pixels against its own label map; shared among processes."""
    was_training, data = model.training, images.dataset
    model.eval()
    parts: list[tuple[int, np.ndarray]] = []
    for indices, batch, sizes in images.batches(device, part=distributed.rank(), parts=num_processes()):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model.predict(batch)
        for index, one, size in zip(indices.tolist(), logits, sizes.tolist()):
            original = (int(data.heights[index]), int(data.widths[index]))
            found = model.semantic_head.decode(one, tuple(size), original).cpu().numpy()
            parts.append((index, count_pixels(found, maps(index), len(maps.class_names))))
    model.train(was_training)
    gathered = sorted((part for share in distributed.gather(parts) for part in share), key=lambda part: part[0])
    hits, wanted, found = np.stack([counts for _, counts in gathered], axis=1)
    return PixelRecords(data.image_ids, maps.class_names, hits, wanted, found)


def judge(
    model: Segmenter, maps: LabelMaps, images: EvalImages, device: torch.device, *, bf16: bool = False
) -> Judgement:
    """mIoU and pixel accuracy of the model; `save` keeps the counts of each image."""
    records = count_all(model, maps, images, device, bf16=bf16)
    per_class = {name: {"IoU": float(iou)} for name, iou in zip(records.class_names, class_ious(records))}

    def save(directory: Path, step: int) -> None:
        records.save(directory / f"records-semantic-{step}.npz")

    return Judgement({"semantic": pixel_metrics(records)}, {"semantic": per_class}, save)
