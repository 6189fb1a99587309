"""Square images of folders with one label each: random crops for training, whole images for evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from headstart.batch import InputSpec, LabelledBatch
from headstart.data.dataset import Dataset
from headstart.data.order import slot_generator
from headstart.data.stream import Cache, Stream
from headstart.data.views import View, stack_images, to_device

Crop = tuple[int, int, int, int, bool]  # top, left, height, width, flip


class CropStream:
    """Random square crops by step; rank, num_ranks and errors as in `Stream`."""

    def __init__(
        self,
        dataset: Dataset,
        spec: InputSpec,
        *,
        size: int,
        min_area: float,
        flip: float,
        batch: int,
        seed: int,
        cache: bool,
        num_workers: int,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        self.spec, self.size, self.min_area, self.flip = spec, size, min_area, flip
        groups = {(size, size): np.arange(dataset.num_images)}
        options = {"batch": batch, "seed": seed, "cache": cache, "num_workers": num_workers, "channels": len(spec.mean)}
        self.stream = Stream(dataset, groups, **options, rank=rank, num_ranks=num_ranks)

    def _raw(self, step: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        indices, slots = self.stream.own(step)
        return [self.stream.images(int(i)) for i in indices], indices, slots

    def batches(self, start: int, stop: int, device: torch.device | str) -> Iterator[LabelledBatch]:
        """Batches of steps start..stop-1, decoded by prefetching threads."""
        labels = self.stream.dataset.labels
        for images, indices, slots in self.stream.prefetch(self._raw, start, stop):
            crops = [
                random_crop(image.shape[:2], self.min_area, slot_generator(self.stream.seed, 4, slot), self.flip)
                for image, slot in zip(images, slots.tolist())
            ]
            yield LabelledBatch(
                crop_images(images, crops, self.size, self.spec, device),
                to_device(labels[indices].astype(np.int64), device),
                to_device(slots.astype(np.int64), device),
                indices,
            )


def random_crop(shape: tuple[int, int], min_area: float, generator: np.random.Generator, flip: float) -> Crop:
    """Random crop of an image (height, width): area share uniform in [min_area, 1], aspect in [3/4, 4/3].

    The sampling of Szegedy et al. 2015, as usual on ImageNet, without its retries: sides are cut to the image.
    """
    area, aspect, top, left, coin = generator.random(5)
    target = (min_area + (1 - min_area) * area) * shape[0] * shape[1]
    ratio = 1.0 if min_area == 1.0 else float(np.exp((2 * aspect - 1) * np.log(4 / 3)))
    height = shape[0] if min_area == 1.0 else min(max(round(np.sqrt(target / ratio)), 1), shape[0])
    width = shape[1] if min_area == 1.0 else min(max(round(np.sqrt(target * ratio)), 1), shape[1])
    return int(top * (shape[0] - height + 1)), int(left * (shape[1] - width + 1)), height, width, bool(coin < flip)


def crop_images(
    images: Sequence[np.ndarray], crops: Sequence[Crop], size: int, spec: InputSpec, device: torch.device | str
) -> Tensor:
    """Crops of images [h,w,C], resized to [B,C,size,size] and normalised."""
    cut = [
        image[top : top + height, left : left + width] for image, (top, left, height, width, _) in zip(images, crops)
    ]
    return stack_images(cut, [View((size, size), crop[4]) for crop in crops], (size, size), spec, device)


def whole_images(
    images: Cache, num: int, *, size: int, spec: InputSpec, batch: int, device: torch.device | str
) -> Iterator[Tensor]:
    """Images 0..num-1, resized to the square `size` and normalised: batches [B,3,size,size]."""
    for at in range(0, num, batch):
        shown = [images(i) for i in range(at, min(at + batch, num))]
        crops = [(0, 0, *image.shape[:2], False) for image in shown]
        yield crop_images(shown, crops, size, spec, device)
