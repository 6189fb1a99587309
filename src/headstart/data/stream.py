"""The training stream of a detection data set.

The content of (step, slot) depends on the seed only: not on workers, processes, or how long the schedule is.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from headstart.batch import Batch, InputSpec
from headstart.data.buckets import Resize, group_by_bucket
from headstart.data.copy_paste import Paste, alpha_of, choose, paste_images
from headstart.data.dataset import Dataset
from headstart.data.keypoints import PIXEL_CENTRE
from headstart.data.masks import FrameTable
from headstart.data.order import Order, slot_generator
from headstart.data.upload import to_device
from headstart.data.views import (
    Jitter,
    View,
    draw_view,
    draw_window,
    move_boxes,
    move_keypoints,
    stack_images,
)
from headstart.data.visible import in_window, visible_objects

SLOT_MULTIPLE = 4  # ground-truth slots are rounded up to this


@dataclass(frozen=True)
class Raw:
    """One step's images as decoded, with their views and targets: what workers hand over."""

    images: list[np.ndarray]
    views: list[View]
    bucket: tuple[int, int]
    indices: np.ndarray
    slots: np.ndarray
    pastes: Sequence[Paste | None] = ()  # one an image where objects of others are pasted onto them, else none at all

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of what each image shows before padding, what is pasted onto it included."""
        sizes = [view.size for view in self.views]
        for place, paste in enumerate(self.pastes):
            if paste is not None:
                sizes[place] = tuple(map(max, sizes[place], paste.view.size))
        return sizes


class Images:
    """Decoded images of a data set, kept in memory if asked (a pure cache)."""

    def __init__(self, dataset: Dataset, *, keep: bool):
        self.dataset, self.kept = dataset, {} if keep else None

    def __call__(self, index: int) -> np.ndarray:
        if self.kept is None:
            return self._decode(index)
        if index not in self.kept:
            self.kept[index] = self._decode(index)
        return self.kept[index]

    def _decode(self, index: int) -> np.ndarray:
        image = self.dataset.load_image(index)
        expected = (int(self.dataset.heights[index]), int(self.dataset.widths[index]))
        if image.shape[:2] != expected:
            raise ValueError(
                f"{self.dataset.image_path(index)}: image {self.dataset.image_ids[index]} is "
                f"{image.shape[1]} x {image.shape[0]} pixels, "
                f"the annotations say {expected[1]} x {expected[0]}"
            )
        return image


class Targets:
    """Ground truth by image as arrays ready for a batch: boxes cut to the image, frames over the cut boxes, keypoints
    at the centres of their pixels.
    """

    def __init__(self, dataset: Dataset, *, mask_frame: int, max_objects: int | None, copies: int = 1):
        limit = np.stack([dataset.widths, dataset.heights] * 2, axis=1)[dataset.image_of]
        boxes = np.clip(dataset.boxes, 0, limit) if len(limit) else dataset.boxes.reshape(0, 4)
        points = dataset.keypoints
        if points is not None:
            points = points + np.array([PIXEL_CENTRE, PIXEL_CENTRE, 0], np.float32)
        self.dataset = replace(dataset, boxes=boxes, keypoints=points)
        # A box that lies outside its image entirely, or is thinner than a hundredth of a pixel, has nothing to learn
        # from.
        usable = ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(axis=1) if len(limit) else np.zeros(0, bool)
        self.chosen = [np.flatnonzero(usable[a:b]) + a for a, b in zip(dataset.first, dataset.first[1:])]
        self.left_out = int(len(usable) - usable.sum())
        fullest = max((len(chosen) for chosen in self.chosen), default=0)
        self.capped = 0
        if max_objects is not None and fullest > max_objects:
            self.capped = sum(max(len(chosen) - max_objects, 0) for chosen in self.chosen)
            self.chosen = [chosen[:max_objects] for chosen in self.chosen]
            fullest = max_objects
        fullest *= copies  # the images whose objects one may show: no object is dropped for lack of a slot
        self.num_slots = max(-(-fullest // SLOT_MULTIPLE) * SLOT_MULTIPLE, SLOT_MULTIPLE)
        self.frames = FrameTable(self.dataset, mask_frame) if mask_frame else None
        self.mask_frame = mask_frame
        self.num_keypoints = 0 if dataset.keypoints is None else dataset.keypoints.shape[1]

    def notes(self) -> list[str]:
        """What training leaves out, one line each."""
        lines = []
        if self.left_out:
            lines.append(
                f"{self.dataset.path}: {self.left_out} boxes lie outside their image and take no part in training"
            )
        if self.capped:
            lines.append(
                f"{self.dataset.path}: {self.capped} objects are over data.max_objects and take no part in training"
            )
        return lines

    def fill(self, raw: Raw) -> dict[str, np.ndarray]:
        """Target arrays of a batch (see Batch); objects without a segmentation get an empty frame."""
        num, slots, side, points = len(raw.views), self.num_slots, self.mask_frame, self.num_keypoints
        out = {
            "gt_boxes": np.zeros((num, slots, 4), np.float32),
            "gt_labels": np.zeros((num, slots), np.int64),
            "gt_valid": np.zeros((num, slots), bool),
            "gt_crowd": np.zeros((num, slots), bool),
            "gt_masks": np.zeros((num, slots, side, side), bool),
            "gt_keypoints": np.zeros((num, slots, points, 3), np.float32),
        }
        for slot, (index, view) in enumerate(zip(raw.indices.tolist(), raw.views)):
            place = {name: array[slot] for name, array in out.items()}
            if view.whole is None:
                self._fill_one(place, index, view)
            else:
                self._fill_window(place, index, view, raw.pastes[slot] if raw.pastes else None)
        return out

    def _fill_window(self, out: dict[str, np.ndarray], index: int, view: View, paste: Paste | None) -> None:
        """What a window shows of an image's objects, and what is pasted over them."""
        cover = None if paste is None else paste.alpha
        own = visible_objects(self.dataset, self.frames, self.chosen[index], view, cover)
        at, data = 0, self.dataset
        for part in (own, *(() if paste is None else (paste.objects,))):
            n, place = part.indices, slice(at, at + len(part.indices))
            out["gt_boxes"][place], out["gt_labels"][place], out["gt_valid"][place] = part.boxes, data.labels[n], True
            out["gt_crowd"][place] = data.crowd[n] | data.difficult[n]
            out["gt_masks"][place] = part.frames
            if part.keypoints is not None:
                out["gt_keypoints"][place] = part.keypoints
            at = place.stop

    def in_view(self, index: int, view: View) -> np.ndarray:
        """Annotations of an image whose boxes a view shows any of; whatever may hide them."""
        chosen, data = self.chosen[index], self.dataset
        if view.whole is None or not len(chosen):
            return chosen
        boxes = move_boxes(data.boxes[chosen], (int(data.heights[index]), int(data.widths[index])), view)
        return chosen[in_window(boxes, view.size)[1]]

    def _fill_one(self, out: dict[str, np.ndarray], index: int, view: View) -> None:
        chosen, data = self.chosen[index], self.dataset
        count, original = len(chosen), (int(data.heights[index]), int(data.widths[index]))
        if not count:
            return
        out["gt_boxes"][:count] = move_boxes(data.boxes[chosen], original, view)
        out["gt_labels"][:count] = data.labels[chosen]
        out["gt_valid"][:count] = True
        out["gt_crowd"][:count] = (
            data.crowd[chosen] | data.difficult[chosen]
        )  # difficult: neither learnt nor held against
        if self.frames is not None:
            frames = self.frames.frames(chosen) & (data.segment_kind[chosen] != 0)[:, None, None]
            out["gt_masks"][:count] = frames[:, :, ::-1] if view.flip else frames
        if data.keypoints is not None:
            out["gt_keypoints"][:count] = move_keypoints(data.keypoints[chosen], original, view, data.left_right)


@dataclass(frozen=True)
class Augmentation:
    """What training may do to an image."""

    shorts: tuple[int, ...]
    long: int
    flip: float
    jitter: Jitter | None = None  # in place of shorts and long
    copy_paste: bool = False  # with jitter only


class TrainStream:
    """Batches of a training run by step.

    `rank` of `num_ranks` processes takes its contiguous share of each step's slots.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        convention: InputSpec,
        *,
        batch: int,
        seed: int,
        mask_frame: int,
        max_objects: int | None,
        cache: bool,
        num_workers: int,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        if dataset.num_images == 0:
            raise ValueError(f"{dataset.path}: has no images to train on")
        if batch % num_ranks:
            raise ValueError(f"train.batch: {batch} images do not divide among {num_ranks} processes")
        self.augmentation, self.convention, self.batch, self.seed, self.num_workers = (
            augmentation,
            convention,
            batch,
            seed,
            num_workers,
        )
        self.images = Images(dataset, keep=cache)
        copies = 2 if augmentation.copy_paste else 1
        self.targets = Targets(dataset, mask_frame=mask_frame, max_objects=max_objects, copies=copies)
        groups = (
            group_by_bucket(
                dataset.heights, dataset.widths, Resize(max(augmentation.shorts), augmentation.long), smallest=batch
            )
            if augmentation.jitter is None
            else {(augmentation.jitter.crop,) * 2: np.arange(dataset.num_images)}
        )
        self.buckets = list(groups)
        self.order = Order(list(groups.values()), batch=batch, seed=seed)
        share = batch // num_ranks
        self.share = slice(rank * share, (rank + 1) * share)

    def raw(self, step: int) -> Raw:
        """This process's part of a step, decoded; a pure function of (seed, step)."""
        data, slots = self.images.dataset, np.arange(step * self.batch, (step + 1) * self.batch)[self.share]
        indices = self.order.indices(step)[self.share]
        views = [self._view(int(slot), int(data.heights[i]), int(data.widths[i])) for slot, i in zip(slots, indices)]
        images, bucket = [self.images(int(i)) for i in indices], self.buckets[self.order.group(step)]
        pastes = [self._paste(int(slot), bucket) for slot in slots] if self.augmentation.copy_paste else ()
        return Raw(images, views, bucket, indices, slots, pastes)

    def _view(self, slot: int, height: int, width: int) -> View:
        generator = slot_generator(self.seed, 3, slot)
        own = self.augmentation
        if own.jitter is not None:
            return draw_window(height, width, own.jitter, own.flip, generator)
        return draw_view(height, width, own.shorts, own.long, own.flip, generator)

    def _chosen_paste(self, slot: int) -> tuple[int, View, np.ndarray]:
        """The other image of a slot, its view, and which of its objects are to be pasted: all by the slot alone.

        Any image of the data set, as likely as any other. Crowds, difficult objects and those without a segmentation
        are not pasted.
        """
        data, generator = self.images.dataset, slot_generator(self.seed, 4, slot)
        index = int(generator.integers(data.num_images))
        size = int(data.heights[index]), int(data.widths[index])
        view = draw_window(*size, self.augmentation.jitter, self.augmentation.flip, generator)
        shown = self.targets.in_view(index, view)
        fit = (data.segment_kind[shown] != 0) & ~data.crowd[shown] & ~data.difficult[shown]
        return index, view, choose(shown[fit], generator)

    def _paste(self, slot: int, bucket: tuple[int, int]) -> Paste | None:
        """What is pasted onto the image of a slot; None for nothing."""
        index, view, chosen = self._chosen_paste(slot)
        if not len(chosen):
            return None
        objects = visible_objects(self.targets.dataset, self.targets.frames, chosen, view)
        return Paste(self.images(index), view, objects, alpha_of(objects, bucket))

    def counts(self, step: int) -> tuple[int, int]:
        """Instances and pixels (before padding) of a whole step, all processes together.

        Under jitter the objects with a part of their box in the window count, whatever their masks show there.
        """
        data, instances, pixels = self.images.dataset, 0, 0
        for slot, index in enumerate(self.order.indices(step).tolist(), start=step * self.batch):
            view = self._view(slot, int(data.heights[index]), int(data.widths[index]))
            size = view.size
            instances += len(self.targets.in_view(index, view))
            if self.augmentation.copy_paste:
                _, other, chosen = self._chosen_paste(slot)
                instances += len(chosen)
                size = tuple(map(max, size, other.size)) if len(chosen) else size
            pixels += size[0] * size[1]
        return instances, pixels

    def batches(self, start: int, stop: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Batches of steps start..stop-1, decoded ahead by `num_workers` threads."""
        for raw in ahead(self.raw, range(start, stop), self.num_workers):
            yield assemble(raw, self.targets, self.convention, device)


def ahead(work: Callable[[int], Raw], items: range, num_workers: int) -> Iterator[Raw]:
    """work(item) for each item in order, computed ahead by threads; with 0 workers, when asked."""
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


def assemble(raw: Raw, targets: Targets, convention: InputSpec, device: torch.device | str) -> Batch:
    """The batch of decoded images, resized and normalised on the device."""
    data = targets.dataset
    tensors = {name: to_device(array, device) for name, array in targets.fill(raw).items()}
    images = stack_images(raw.images, raw.views, raw.bucket, convention, device)
    return Batch(
        images=paste_images(images, raw.pastes, convention),
        sizes=to_device(np.array(raw.sizes()), device),
        image_ids=to_device(data.image_ids[raw.indices].astype(np.int64), device),
        slots=to_device(raw.slots.astype(np.int64), device),
        **tensors,
    )
