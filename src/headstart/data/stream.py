"""Images by step, as every task trains on them, and evaluation images.

The content of (step, slot) depends on the seed alone: not on workers, processes, or the length of the schedule.
B images a batch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

import numpy as np
import torch

from headstart.batch import Inputs, InputSpec
from headstart.data.augment.colour import Colour
from headstart.data.dataset import Dataset
from headstart.data.order import Order, Resize, bucket_of, group_by_bucket
from headstart.data.paste import Paste
from headstart.data.views import View, stack_images, to_device

T = TypeVar("T")
Images = Callable[[int], np.ndarray]  # decoded images by their index


@dataclass(frozen=True)
class MosaicTile:
    """A further image of a mosaic: decoded, its index in the data set, and its view."""

    image: np.ndarray
    index: int
    view: View


@dataclass(frozen=True)
class Raw:
    """One batch as the decoding threads return it: images, their views, and what a task adds to these.

    pastes: one an image under copy-paste, else empty. labels: the label map of each image for segmentation, else empty.
    colours: one an image under colour jitter, else empty. tiles: the further images beside each one, or empty.
    """

    images: list[np.ndarray]
    views: list[View]
    bucket: tuple[int, int]
    indices: np.ndarray
    slots: np.ndarray
    pastes: Sequence[Paste | None] = ()
    labels: Sequence[np.ndarray] = ()
    colours: Sequence[Colour] = ()
    tiles: Sequence[Sequence[MosaicTile]] = ()

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image before padding, tiles and pasted objects included."""
        sizes = []
        for place, view in enumerate(self.views):
            views = [view, *(tile.view for tile in self.tiles[place])] if self.tiles else [view]
            paste = self.pastes[place] if self.pastes else None
            sizes.append(common_size([*views, paste.view] if paste else views))
        return sizes


def common_size(views: Sequence[View]) -> tuple[int, int]:
    """(height, width) that holds all views of one padded image."""
    ends = [view.end for view in views]
    return max(bottom for bottom, _ in ends), max(right for _, right in ends)


MapsOf = Callable[[Raw, torch.device | str], list[torch.Tensor]]  # a frozen backbone's maps of a batch, by level


def decode(dataset: Dataset, index: int, *, channels: int) -> np.ndarray:
    """Image `index` [h,w,C]; ValueError if its size is not the annotated one, or it has other channels."""
    image = dataset.load_image(index, channels)
    expected = dataset.size(index)
    if image.shape[:2] != expected:
        raise ValueError(
            f"{dataset.image_path(index)}: image {dataset.image_ids[index]} is "
            f"{image.shape[1]} x {image.shape[0]} pixels, the annotations say {expected[1]} x {expected[0]}"
        )
    return image


def decoder(dataset: Dataset, *, channels: int, keep: bool) -> Images:
    """`decode` of a data set's images; with `keep` each is decoded once and kept in memory."""
    load = partial(decode, dataset, channels=channels)
    return cache(load) if keep else load


@dataclass(frozen=True)
class Reading:
    """Read `batch` slots a step in the order of `seed`, decoded by `num_workers` threads.

    `cache` keeps decoded images in memory. `rank` of `num_ranks` processes takes its contiguous share of the slots.
    """

    batch: int
    seed: int
    cache: bool
    num_workers: int
    rank: int = 0
    num_ranks: int = 1


class Stream:
    """Images of a data set by step: order, one process's share of a step, decoded images, prefetching.

    groups: image indices by padded size (height, width); a step takes its images from one of them. repeats [I]: how
    often an epoch shows each image (`Order`). ValueError for a data set without images, and for a batch that does not
    divide among the processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        groups: dict[tuple[int, int], np.ndarray],
        reading: Reading,
        *,
        channels: int,
        repeats: np.ndarray | None = None,
    ):
        if dataset.num_images == 0:
            raise ValueError(f"{dataset.path}: has no images to train on")
        if reading.batch % reading.num_ranks:
            raise ValueError(f"train.batch: {reading.batch} images do not divide among {reading.num_ranks} processes")
        self.dataset, self.seed, self.num_workers = dataset, reading.seed, reading.num_workers
        self.images = decoder(dataset, channels=channels, keep=reading.cache)
        self.order = Order(list(groups.values()), batch=reading.batch, seed=reading.seed, repeats=repeats)
        self._buckets = list(groups)
        share = reading.batch // reading.num_ranks
        self._share = slice(reading.rank * share, (reading.rank + 1) * share)

    def step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Image indices [B] and slot numbers [B] of a whole step, all processes together."""
        return self.order.indices(step), np.arange(step * self.order.batch, (step + 1) * self.order.batch)

    def own(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Image indices and slot numbers of this process's share of a step."""
        indices, slots = self.step(step)
        return indices[self._share], slots[self._share]

    def bucket(self, step: int) -> tuple[int, int]:
        """Padded (height, width) of a step."""
        return self._buckets[self.order.group(step)]

    def prefetch(self, work: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
        """work(step) of steps start..stop-1, computed ahead by `num_workers` threads."""
        return prefetch(work, range(start, stop), self.num_workers)


def prefetch(work: Callable[[int], T], items: range, num_workers: int) -> Iterator[T]:
    """work(item) of each item in order, computed ahead by threads; without workers computed on demand."""
    if num_workers == 0:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="decode") as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def make_batch(
    images: Sequence[np.ndarray],
    resize: Resize,
    spec: InputSpec,
    device: torch.device | str,
    *,
    flip: bool = False,
    bucket: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole images [h,w,C] as a batch [B,C,H,W], and their sizes [B,2] before padding.

    bucket: the padded size (H, W); by default the smallest bucket that holds all of them.
    """
    sides = [image.shape[:2] for image in images]
    if bucket is None:
        buckets = [bucket_of(height, width, resize) for height, width in sides]
        bucket = (max(height for height, _ in buckets), max(width for _, width in buckets))
    views = [View(resize.size(height, width), flip) for height, width in sides]
    batch = stack_images(images, views, bucket, spec, device)
    return batch, to_device(np.array([view.size for view in views]), device)


class EvalImages:
    """Evaluation images: each once, unaugmented, in batches of one bucket, at any requested size.

    maps: gives backbone maps in place of images, which are then not decoded; at the evaluation's size only.
    """

    def __init__(
        self,
        dataset: Dataset,
        resize: Resize,
        spec: InputSpec,
        *,
        batch: int,
        cache: bool,
        num_workers: int,
        maps: MapsOf | None = None,
    ):
        self.maps = maps
        self.dataset, self.resize, self.spec, self.batch, self.num_workers = dataset, resize, spec, batch, num_workers
        self.images = decoder(dataset, channels=len(spec.mean), keep=cache)
        groups = group_by_bucket(dataset.heights, dataset.widths, resize, smallest=1)
        self.plan = [
            (bucket, group[at : at + batch]) for bucket, group in groups.items() for at in range(0, len(group), batch)
        ]

    def first(self, most: int) -> "EvalImages":
        """The first `most` images alone, without a cache and without kept maps, for a timing."""
        some = self.dataset.take(np.arange(min(most, self.dataset.num_images)))
        return EvalImages(some, self.resize, self.spec, batch=self.batch, cache=False, num_workers=self.num_workers)

    def decoded(self, *, part: int = 0, parts: int = 1) -> Iterator[Raw]:
        """Decoded batches, for callers that make several views of each; `part` of `parts` takes every such batch."""
        return prefetch(self._raw, range(part, len(self.plan), parts), self.num_workers)

    def _raw(self, place: int) -> Raw:
        bucket, indices = self.plan[place]
        views = [View(self.resize.size(*self.dataset.size(i)), False) for i in indices]
        images = [] if self.maps else [self.images(int(i)) for i in indices]
        return Raw(images, views, bucket, indices, indices)

    def batches(
        self, device: torch.device | str = "cpu", *, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Image indices [B], images [B,3,H,W] and sizes [B,2] of each batch; `part` and `parts` as in `decoded`."""
        for raw in self.decoded(part=part, parts=parts):
            yield raw.indices, *make_batch(raw.images, self.resize, self.spec, device, bucket=raw.bucket)

    def make_batch(
        self, raw: Raw, device: torch.device | str, resize: Resize | None = None, *, flip: bool = False
    ) -> tuple[Inputs, torch.Tensor]:
        """Images [B,3,H,W] or maps, and sizes [B,2], of a decoded batch; without maps also at another size."""
        if self.maps:
            return self.maps(raw, device), to_device(np.array(raw.sizes()), device)
        bucket = raw.bucket if resize in (None, self.resize) else None
        return make_batch(raw.images, resize or self.resize, self.spec, device, flip=flip, bucket=bucket)
