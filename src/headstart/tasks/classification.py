"""The classification task: pre-training on image folders with the detector's own backbone, and transfer learning."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from headstart.batch import LabelledBatch
from headstart.data.dataset import Dataset, nested_fraction
from headstart.data.digests import data_content
from headstart.data.read import folder_images, open_folders
from headstart.data.stream import Images as Decoded
from headstart.data.stream import decoder
from headstart.data.train_stream import CropStream, whole_images
from headstart.data.views import to_device
from headstart.files import replacing
from headstart.model.build import input_spec
from headstart.model.classifier import Classifier, mean_cross_entropy
from headstart.recipe.recipe import ClassifyRecipe, fraction_seed
from headstart.tasks.task import EvalResult, StepFlops, Task, check_same_classes, make_model, reading, take_fraction


class Images:
    """All images of a data set in evaluation: whole, resized to the recipe's input square."""

    def __init__(self, dataset: Dataset, recipe: ClassifyRecipe, cache: Decoded | None = None):
        self.dataset, self.recipe = dataset, recipe
        self.cache = cache or decoder(dataset, channels=recipe.input.channels, keep=recipe.data.cache)
        self._features: Tensor | None = None

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """Batches [B,C,S,S] in the order of the data set."""
        size, batch = self.recipe.input.size, self.recipe.evaluate.batch
        options = {"size": size, "spec": input_spec(self.recipe), "batch": batch, "device": device}
        return whole_images(self.cache, self.dataset.num_images, **options)

    @torch.no_grad()
    def features(self, model: Classifier, device: torch.device, *, bf16: bool = False) -> Tensor:
        """Pooled features [N,W] under a frozen backbone in its final state, computed at the first call and kept.

        They equal those that training would compute at every step, because such a recipe has no augmentation.
        """
        if self._features is None:
            parts = []
            for shown in self.batches(device):
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    parts.append(model.features(shown))
            self._features = torch.cat(parts)
        return self._features

    def feature_batches(
        self, stream: CropStream, model: Classifier, start: int, stop: int, device: torch.device
    ) -> Iterator[LabelledBatch]:
        """Batches of a stream's steps start..stop-1 with features in place of images."""
        kept = self.features(model, device, bf16=self.recipe.train.bf16)
        labels = to_device(self.dataset.labels.astype(np.int64), device)
        for step in range(start, stop):
            indices, slots = stream.stream.own(step)
            at = to_device(indices, device)
            yield LabelledBatch(kept[at], labels[at], to_device(slots.astype(np.int64), device), indices)


def training_folders(recipe: ClassifyRecipe) -> Dataset:
    """Training images of a recipe: its fraction of the whole set."""
    return take_fraction(recipe, open_folders(recipe.data.train))


def num_training_images(recipe: ClassifyRecipe) -> int:
    """Images that a recipe trains on; of a folder reads only file names."""
    path = Path(recipe.data.train)
    num = len(folder_images(path)[0]) if path.is_dir() else open_folders(path).num_images
    return len(nested_fraction(num, recipe.data.fraction, fraction_seed(recipe)))


def data_fingerprint(recipe: ClassifyRecipe, *, rehash: bool = False) -> str:
    """Digest of the content of training and validation data."""
    train, val = training_folders(recipe), open_folders(recipe.data.val)
    return data_content(train, rehash=rehash).plus(data_content(val, rehash=rehash)).digest


def make_task(recipe: ClassifyRecipe) -> Task:
    """The recipe's classifier and data, ready for the loop."""
    train, val = training_folders(recipe), open_folders(recipe.data.val)
    ours, theirs = ({name: name for name in each.class_names} for each in (train, val))
    check_same_classes(recipe.data.train, ours, recipe.data.val, theirs)
    stream = CropStream(
        train,
        input_spec(recipe),
        reading(recipe),
        size=recipe.input.size,
        min_area=recipe.input.min_area,
        flip=recipe.input.flip,
    )
    held_out, model = Images(val, recipe), make_model(recipe, len(train.class_names))
    batches = stream.batches
    if recipe.data.cache_features:
        batches = partial(Images(train, recipe, stream.stream.images).feature_batches, stream, model)
    key = f"{recipe.model.model_dump_json()} {len(train.class_names)} {recipe.start.freeze}"
    return Task(
        model=model,
        losses=class_loss,
        batches=batches,
        counts=lambda step: (recipe.train.batch, recipe.train.batch * recipe.input.size**2),
        flops=StepFlops(model, key, class_loss),
        evaluate=partial(evaluate, model, held_out),
        describe=lambda batch: f"images {', '.join(train.file_names[i] for i in batch.indices)}",
        classes={"ids": list(range(len(train.class_names))), "names": list(train.class_names)},
        num_images=train.num_images,
        num_eval_images=val.num_images,
        contents=(data_content(train), data_content(val)),
        image_ids=list(train.file_names),
        notes=list(train.notes),
    )


def class_loss(model: nn.Module, batch: LabelledBatch) -> dict[str, Tensor]:
    """Cross-entropy of a batch, through the model's forward so that DDP sees it."""
    return {"class": mean_cross_entropy(model(batch.images, batch.slots), batch.labels)}


@torch.no_grad()
def evaluate(model: Classifier, images: Images, device: torch.device) -> EvalResult:
    """Top-1 accuracy on every image (whole, resized to the input square), over all and per class."""
    data = images.dataset
    if images.recipe.data.cache_features:
        logits = model(images.features(model, device))
    else:
        logits = torch.cat([model(shown) for shown in images.batches(device)])
    right = logits.argmax(dim=1).cpu().numpy() == data.labels
    per_class = {
        name: {"top1": float(right[data.labels == label].mean())} for label, name in enumerate(data.class_names)
    }

    def save(directory: Path, step: int) -> None:
        with replacing(directory / f"records-class-{step}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, right=right)

    return EvalResult({"class": {"top1": float(right.mean())}}, {"class": per_class}, save)
