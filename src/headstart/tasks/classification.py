"""The classification task: pre-training on image folders with the detector's own backbone, and transfer learning."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from headstart.data.dataset import Dataset, data_digest, nested_fraction
from headstart.data.order import Order, slot_generator
from headstart.data.read import folder_images, read_folders
from headstart.data.stream import Images, ahead
from headstart.data.upload import to_device
from headstart.data.views import crop_images
from headstart.model.build import build, input_spec
from headstart.model.classifier import Classifier, mean_cross_entropy
from headstart.ops import processes as distributed
from headstart.ops.processes import num_processes
from headstart.recipe.recipe import ClassifyRecipe
from headstart.tasks.task import Judgement, StepFlops, Task


@dataclass(frozen=True)
class LabelledBatch:
    """images [B,3,S,S] normalised, or their features [B,W]; labels [B] in 0..C-1; slots [B] key randomness.

    indices [B] are those of the images in the data set.
    """

    images: Tensor
    labels: Tensor
    slots: Tensor
    indices: np.ndarray

    def to(self, device: torch.device | str) -> "LabelledBatch":
        """The same batch on another device."""
        return LabelledBatch(self.images.to(device), self.labels.to(device), self.slots.to(device), self.indices)


class CropStream:
    """Random square crops of image folders by step: a pure function of (seed, step, slot)."""

    def __init__(self, dataset: Dataset, recipe: ClassifyRecipe):
        self.dataset, self.recipe = dataset, recipe
        self.images = Images(dataset, keep=recipe.data.cache)
        self.order = Order([np.arange(dataset.num_images)], batch=recipe.train.batch, seed=recipe.seed)
        if recipe.train.batch % num_processes():
            raise ValueError(
                f"train.batch: {recipe.train.batch} images do not divide among {num_processes()} processes"
            )
        share = recipe.train.batch // num_processes()
        self.share = slice(distributed.rank() * share, (distributed.rank() + 1) * share)

    def raw(self, step: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Decoded images, their indices and slot numbers."""
        indices, slots = self.places(step)
        return [self.images(int(i)) for i in indices], indices, slots

    def places(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices into the data set and slot numbers of this process's share of a step."""
        slots = np.arange(step * self.order.batch, (step + 1) * self.order.batch)[self.share]
        return self.order.indices(step)[self.share], slots

    def batches(self, start: int, stop: int, device: torch.device) -> Iterator[LabelledBatch]:
        """Batches of steps start..stop-1."""
        part = self.recipe.input
        for images, indices, slots in ahead(self.raw, range(start, stop), self.recipe.data.num_workers):
            crops = [
                random_crop(image.shape[:2], part.min_area, slot_generator(self.recipe.seed, 4, int(slot)), part.flip)
                for image, slot in zip(images, slots)
            ]
            yield LabelledBatch(
                crop_images(images, crops, part.size, input_spec(self.recipe), device),
                to_device(self.dataset.labels[indices].astype(np.int64), device),
                to_device(slots.astype(np.int64), device),
                indices,
            )


class KeptFeatures:
    """What a frozen backbone makes of whole images: pooled features [N,W], computed when first asked for and kept.

    They are those that training would compute without augmentation at every step, as the recipe asserts.
    """

    def __init__(self, images: Images, recipe: ClassifyRecipe, *, bf16: bool):
        self.images, self.recipe, self.bf16 = images, recipe, bf16
        self._kept: Tensor | None = None

    @torch.no_grad()
    def all(self, model: Classifier, device: torch.device) -> Tensor:
        """Features [N,W] of every image, in the order of the data set; the backbone must be in its final state."""
        if self._kept is None:
            parts = []
            for shown in whole_images(self.images, self.recipe, device):
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    parts.append(model.features(shown))
            self._kept = torch.cat(parts)
        return self._kept

    def batches(
        self, stream: CropStream, model: Classifier, start: int, stop: int, device: torch.device
    ) -> Iterator[LabelledBatch]:
        """The batches of a stream's steps start..stop-1 with features in the place of images."""
        kept = self.all(model, device)
        labels = to_device(self.images.dataset.labels.astype(np.int64), device)
        for step in range(start, stop):
            indices, slots = stream.places(step)
            at = to_device(indices, device)
            yield LabelledBatch(kept[at], labels[at], to_device(slots.astype(np.int64), device), indices)


def whole_images(images: Images, recipe: ClassifyRecipe, device: torch.device) -> Iterator[Tensor]:
    """All images in the order of the data set, resized to the input square and normalised: batches [B,3,S,S]."""
    num, batch = images.dataset.num_images, recipe.evaluate.batch
    for at in range(0, num, batch):
        shown = [images(i) for i in range(at, min(at + batch, num))]
        crops = [(0, 0, *image.shape[:2], False) for image in shown]
        yield crop_images(shown, crops, recipe.input.size, input_spec(recipe), device)


def random_crop(
    shape: tuple[int, int], min_area: float, generator: np.random.Generator, flip: float
) -> tuple[int, int, int, int, bool]:
    """(top, left, height, width, flip) of a random square-ish crop: area share uniform in [min_area, 1], aspect in
    [3/4, 4/3].

    The sampling of Szegedy et al. 2015 as every ImageNet trainer does it, without its retries: sides are cut to the
    image.
    """
    area, aspect, top, left, coin = generator.random(5)
    target = (min_area + (1 - min_area) * area) * shape[0] * shape[1]
    ratio = 1.0 if min_area == 1.0 else float(np.exp((2 * aspect - 1) * np.log(4 / 3)))
    height = shape[0] if min_area == 1.0 else min(max(round(np.sqrt(target / ratio)), 1), shape[0])
    width = shape[1] if min_area == 1.0 else min(max(round(np.sqrt(target * ratio)), 1), shape[1])
    return int(top * (shape[0] - height + 1)), int(left * (shape[1] - width + 1)), height, width, bool(coin < flip)


def training_folders(recipe: ClassifyRecipe) -> Dataset:
    """The training images of a recipe: its fraction of the whole set."""
    data = read_folders(recipe.data.train)
    if recipe.data.fraction == 1.0:
        return data
    return data.take(np.sort(nested_fraction(data.num_images, recipe.data.fraction, recipe.data.fraction_seed)))


def num_training_images(recipe: ClassifyRecipe) -> int:
    """Images that a recipe trains on; only their names are read."""
    images, _ = folder_images(Path(recipe.data.train))
    return len(nested_fraction(len(images), recipe.data.fraction, recipe.data.fraction_seed))


def data_fingerprint(recipe: ClassifyRecipe) -> str:
    """The content of what a recipe trains and is judged on."""
    return data_digest(training_folders(recipe)) + data_digest(read_folders(recipe.data.val))


def classification_task(recipe: ClassifyRecipe) -> Task:
    """Everything the loop needs to train and judge this recipe's classifier."""
    train, val = training_folders(recipe), read_folders(recipe.data.val)
    if train.class_names != val.class_names:
        odd = sorted(set(train.class_names) ^ set(val.class_names))
        raise ValueError(
            f"{recipe.data.val}: classes differ from {recipe.data.train}: {odd[0]!r} is in one of them only"
        )
    stream, held_out = CropStream(train, recipe), Images(val, keep=recipe.data.cache)
    model = build(recipe, len(train.class_names))
    if recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    batches, features = stream.batches, None
    if recipe.data.cache_features:
        bf16 = recipe.train.bf16
        kept, features = KeptFeatures(stream.images, recipe, bf16=bf16), KeptFeatures(held_out, recipe, bf16=False)
        batches = partial(kept.batches, stream, model)
    return Task(
        model=model,
        losses=class_loss,
        batches=batches,
        counts=lambda step: (recipe.train.batch, recipe.train.batch * recipe.input.size**2),
        flops=StepFlops(
            model, class_loss, f"{recipe.model.model_dump_json()} {len(train.class_names)} {recipe.start.freeze}"
        ),
        evaluate=lambda device: judge(model, held_out, recipe, device, features=features),
        describe=lambda batch: f"images {', '.join(train.file_names[i] for i in batch.indices)}",
        classes={"ids": list(range(len(train.class_names))), "names": list(train.class_names)},
        num_images=train.num_images,
        num_eval_images=val.num_images,
        fingerprint=data_digest(train) + data_digest(val),
        image_ids=list(train.file_names),
        notes=list(train.notes),
    )


def class_loss(model: nn.Module, batch: LabelledBatch) -> dict[str, Tensor]:
    """Cross-entropy of a batch, through the model's forward so that DDP sees it."""
    return {"class": mean_cross_entropy(model(batch.images, batch.slots), batch.labels)}


@torch.no_grad()
def judge(
    model: Classifier,
    images: Images,
    recipe: ClassifyRecipe,
    device: torch.device,
    *,
    features: KeptFeatures | None = None,
) -> Judgement:
    """Top-1 accuracy on every image (the whole image, resized to the input square), over all and per class.

    features: the images' own, where a frozen backbone keeps them.
    """
    data = images.dataset
    if features is None:
        logits = torch.cat([model(shown) for shown in whole_images(images, recipe, device)])
    else:
        logits = model(features.all(model, device))
    right = logits.argmax(dim=1).cpu().numpy() == data.labels
    per_class = {
        name: {"top1": float(right[data.labels == label].mean())} for label, name in enumerate(data.class_names)
    }

    def save(directory: Path, step: int) -> None:
        np.savez(directory / f"records-class-{step}.npz", right=right)

    return Judgement({"class": {"top1": float(right.mean())}}, {"class": per_class}, save)
