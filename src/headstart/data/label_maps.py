"""A class for each pixel, from PNGs or from annotated instances, and its training stream.

Labels are 0..C-1, or IGNORE_LABEL where the class is unknown: ignored in loss and metrics.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch

from headstart.batch import IGNORE_LABEL, InputSpec, PixelBatch
from headstart.data.augment.rules import Augmentation
from headstart.data.dataset import NO_SEGMENT, Dataset
from headstart.data.digests import Content, data_content, file_content
from headstart.data.images import open_image
from headstart.data.masks import annotation_mask
from headstart.data.order import slot_generator
from headstart.data.stream import Raw, Reading, Stream
from headstart.data.views import View, stack_images, to_device

MODES = ("L", "P")  # 8-bit grey and palette; in both the stored number is the id, whatever its colour


class PixelLabels:
    """Label maps from a folder of PNGs, one an image with the image's name: values are category ids of the data set.

    ValueError for values in `ignore` that are categories too, for category ids that no 8-bit map can hold, and for
    images that share a map.
    """

    def __init__(self, dataset: Dataset, folder: str | Path, *, ignore: Sequence[int]):
        self.dataset, self.folder, self.ignore = dataset, Path(folder), tuple(sorted(ignore))
        self.class_ids, self.class_names = tuple(dataset.category_ids.tolist()), dataset.class_names
        if outside := [value for value in self.ignore if not 0 <= value <= 255]:
            raise ValueError(f"data.ignore: {outside[0]}: expected values of 8-bit maps, 0 to 255")
        if both := sorted(set(ignore) & set(self.class_ids)):
            raise ValueError(f"data.ignore: {both[0]} is a category of {dataset.path}; expected values that are none")
        if outside := [c for c in self.class_ids if not 0 <= c <= 255]:
            cannot = f"category {outside[0]} cannot be a value of a label map"
            raise ValueError(f"{dataset.path}: {cannot}, expected ids 0 to 255")
        self._known = {**dict.fromkeys(ignore, IGNORE_LABEL), **{c: label for label, c in enumerate(self.class_ids)}}
        self._table = np.full(256, IGNORE_LABEL, np.int16)
        self._table[list(self._known)] = list(self._known.values())
        self.notes = list(dataset.notes)
        images: dict[str, str] = {}
        for index, name in enumerate(dataset.file_names):
            if (first := images.setdefault(self._name(index), name)) != name:
                raise ValueError(f"{self.path(index)}: fits the pictures {first} and {name}: expected one")

    def content(self, *, rehash: bool = False) -> Content:
        """Content of images, label maps, and the ignored values."""
        names = [self._name(index) for index in range(self.dataset.num_images)]
        images = data_content(self.dataset, rehash=rehash)
        maps = file_content(self.folder, names, [images.digest, repr(self.ignore)], rehash=rehash)
        return Content(maps.digest, images.images, maps.images)

    def check(self, num_workers: int) -> None:
        """Read all maps once, in `num_workers` threads.

        ValueError naming the file for a map that is missing, of another size or mode than expected, or that holds a
        value which is neither a category id nor in `ignore`.
        """
        with ThreadPoolExecutor(max(num_workers, 1)) as pool:
            for _ in pool.map(self._check, range(self.dataset.num_images)):
                pass

    def problems(self) -> list[tuple[Path, str]]:
        """Path and message of each label map that `check` would refuse."""
        found = []
        for index in range(self.dataset.num_images):
            try:
                self._check(index)
            except ValueError as error:
                found.append((self.path(index), str(error).removeprefix(f"{self.path(index)}: ")))
        return found

    def _name(self, index: int) -> str:
        return Path(self.dataset.file_names[index]).with_suffix(".png").as_posix()

    def path(self, index: int) -> Path:
        """The label map of image `index`."""
        return self.folder / self._name(index)

    def __call__(self, index: int) -> np.ndarray:
        """Labels int16 [H,W] of image `index` (not id)."""
        return self._table[_read(self.path(index))]

    def _check(self, index: int) -> None:
        path, data = self.path(index), self.dataset
        values = _read(path)
        if values.shape != (data.heights[index], data.widths[index]):
            raise ValueError(
                f"{path}: is {values.shape[1]} x {values.shape[0]} pixels, its image {data.image_ids[index]} is "
                f"{data.widths[index]} x {data.heights[index]}"
            )
        counts = np.bincount(values.ravel(), minlength=256)
        unknown = [value for value in np.flatnonzero(counts).tolist() if value not in self._known]
        if unknown:
            near = min(self.class_ids, key=lambda known: abs(known - unknown[0]))
            raise ValueError(
                f"{path}: {counts[unknown[0]]} pixels have the value {unknown[0]}, which is no category id of "
                f"{data.path} (the nearest is {near}) and not in data.ignore"
            )


class InstanceLabels:
    """Label maps made of annotated instances ("things as stuff"): a class is the union of its objects.

    Where objects overlap the smaller one has the pixel, of equal ones the later; pixels of none are the background, the
    last class. A crowd is an object like any other. In the box of an object without a segmentation, pixels that no
    other object has are unknown. ValueError if no object has a segmentation.
    """

    def __init__(self, dataset: Dataset):
        if not dataset.segment_kind.any():
            raise ValueError(
                f"{dataset.path}: no object has a segmentation; expected a COCO file with instances, or label maps "
                "(data.train_labels, data.val_labels)"
            )
        self.dataset = dataset
        taken = set(dataset.category_ids.tolist())
        free = next(number for number in range(len(taken) + 1) if number not in taken)
        self.class_ids = (*dataset.category_ids.tolist(), free)
        self.class_names = (*dataset.class_names, "background" if "background" not in dataset.class_names else "none")
        boxes = int((dataset.segment_kind == NO_SEGMENT).sum())
        unknown = f"{dataset.path}: {boxes} objects have no segmentation; the pixels of their boxes are unknown"
        self.notes = [*dataset.notes, *([unknown] if boxes else [])]

    def content(self, *, rehash: bool = False) -> Content:
        """Content of images and annotations."""
        images = data_content(self.dataset, rehash=rehash)
        return Content(hashlib.sha256(b"instances" + images.digest.encode()).hexdigest(), images.images)

    def check(self, num_workers: int) -> None:
        """Do nothing: instances were checked when they were read."""

    def __call__(self, index: int) -> np.ndarray:
        """Labels int16 [H,W] of image `index` (not id)."""
        data = self.dataset
        own = np.arange(data.first[index], data.first[index + 1])
        segmented = data.segment_kind[own] != NO_SEGMENT
        labels = np.full((data.heights[index], data.widths[index]), data.num_classes, np.int16)
        for n in own[~segmented]:
            labels[annotation_mask(data, n)] = IGNORE_LABEL
        objects = own[segmented]
        masks = [annotation_mask(data, n) for n in objects]
        for place in np.argsort([-mask.sum() for mask in masks], kind="stable"):
            labels[masks[place]] = data.labels[objects[place]]
        return labels


LabelMaps = PixelLabels | InstanceLabels


def sample_labels(labels: np.ndarray, view: View, bucket: tuple[int, int], stride: int) -> np.ndarray:
    """Labels int16 [h/stride, w/stride] of a padded image of size `bucket` (h, w) that shows labels [H,W] in a view.

    Each cell has the label of the pixel under its centre (nearest neighbour); padding has IGNORE_LABEL.
    """
    out = np.full((bucket[0] // stride, bucket[1] // stride), IGNORE_LABEL, np.int16)
    rows, columns = (_sources(size, side, stride) for size, side in zip(view.size, labels.shape))
    if view.flip:
        columns = labels.shape[1] - 1 - columns
    out[: len(rows), : len(columns)] = labels[rows[:, None], columns]
    return out


def _sources(size: int, side: int, stride: int) -> np.ndarray:
    """Along one axis: the pixel of `side` under the centre of each cell whose centre lies in the `size` shown pixels.

    The centre of cell i is at (2i + 1) * stride / 2; whole numbers throughout, so that nothing is rounded twice.
    """
    twice_centre = np.arange(stride, 2 * size, 2 * stride)
    return twice_centre * side // (2 * size)


class PixelStream:
    """Batches of images with the label of each pixel, by step; errors as in `Stream`.

    stride: input pixels a label cell.
    """

    def __init__(
        self,
        maps: LabelMaps,
        augmentation: Augmentation,
        spec: InputSpec,
        reading: Reading,
        *,
        stride: int,
    ):
        self.augmentation, self.spec, self.stride = augmentation, spec, stride
        self.labels = cache(maps) if reading.cache else maps
        groups = augmentation.groups(maps.dataset, smallest=reading.batch)
        self.stream = Stream(maps.dataset, groups, reading, channels=len(spec.mean))

    def _view(self, slot: int, index: int) -> View:
        return self.augmentation.view(*self.stream.dataset.size(index), slot_generator(self.stream.seed, 3, slot))

    def _raw(self, step: int) -> Raw:
        indices, slots = self.stream.own(step)
        images = [self.stream.images(i) for i in indices.tolist()]
        views = [self._view(slot, i) for slot, i in zip(slots.tolist(), indices.tolist())]
        labels = [self.labels(i) for i in indices.tolist()]
        return Raw(images, views, self.stream.bucket(step), indices, slots, labels=labels)

    def counts(self, step: int) -> tuple[int, int]:
        """Images (each one instance) and pixels before padding of a whole step, all processes together."""
        indices, slots = self.stream.step(step)
        views = [self._view(slot, i) for slot, i in zip(slots.tolist(), indices.tolist())]
        return len(views), sum(view.size[0] * view.size[1] for view in views)

    def batches(self, start: int, stop: int, device: torch.device | str) -> Iterator[PixelBatch]:
        """Batches of steps start..stop-1, decoded by prefetching threads."""
        for raw in self.stream.prefetch(self._raw, start, stop):
            maps = [sample_labels(one, view, raw.bucket, self.stride) for one, view in zip(raw.labels, raw.views)]
            yield PixelBatch(
                stack_images(raw.images, raw.views, raw.bucket, self.spec, device),
                to_device(np.stack(maps), device).long(),
                to_device(self.stream.dataset.image_ids[raw.indices].astype(np.int64), device),
            )


def _read(path: Path) -> np.ndarray:
    """The values uint8 [H,W] of an 8-bit grey or palette picture; ValueError naming the file for anything else."""
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such label map; expected a PNG with the image's name")
    try:
        with open_image(path) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # a decoder raises almost anything on a damaged file
        reason = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise ValueError(f"{path}: not a readable label map ({reason})") from None
    if mode not in MODES:
        raise ValueError(f"{path}: a label map of mode {mode}, expected 8-bit grey or palette")
    return values
