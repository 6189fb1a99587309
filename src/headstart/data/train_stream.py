"""Training streams by step: augmented images with their ground truth, and square crops with one label each."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from headstart.batch import Batch, InputSpec, LabelledBatch
from headstart.data.augment.rules import Augmentation
from headstart.data.dataset import Dataset
from headstart.data.order import repeat_factors, slot_generator
from headstart.data.paste import Paste, alpha_of, choose, paste_images, visible_objects
from headstart.data.stream import Images, MapsOf, MosaicTile, Raw, Reading, Stream, common_size
from headstart.data.targets import Targets
from headstart.data.views import View, stack_images, to_device

Crop = tuple[int, int, int, int, bool]  # top, left, height, width, flip
PASTED = 4  # the part of a slot that is pasted: a mosaic has the parts 0 to 3


class TrainStream:
    """Batches of a training run by step; errors as in `Stream`.

    maps: gives backbone maps in place of images, which are then not decoded. repeat_threshold: see `repeat_factors`.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        spec: InputSpec,
        reading: Reading,
        *,
        mask_frame: int,
        max_objects: int | None,
        maps: MapsOf | None = None,
        repeat_threshold: float | None = None,
    ):
        self.maps = maps
        self.augmentation, self.spec = augmentation, spec
        groups = augmentation.groups(dataset, smallest=reading.batch)
        seen = (dataset.image_of, dataset.labels, dataset.num_images)
        repeats = None if repeat_threshold is None else repeat_factors(*seen, repeat_threshold)
        self.stream = Stream(dataset, groups, reading, channels=len(spec.mean), repeats=repeats)
        copies = augmentation.most_images
        self.targets = Targets(dataset, mask_frame=mask_frame, max_objects=max_objects, copies=copies)

    def raw(self, step: int) -> Raw:
        """This process's part of a step, decoded; a pure function of (seed, step)."""
        indices, slots = self.stream.own(step)
        parts = [self._parts(slot, i) for slot, i in zip(slots.tolist(), indices.tolist())]
        views, images, tiles = [shown[0][1] for shown in parts], [], []
        for slot, shown in zip(slots.tolist(), parts) if not self.maps else ():
            own, *others = (MosaicTile(self._image(i, slot, part), i, view) for part, (i, view) in enumerate(shown))
            images.append(own.image)
            tiles.append(others)
        bucket = self.stream.bucket(step)
        pastes = [self._paste(slot, bucket) for slot in slots.tolist()] if self.augmentation.copy_paste else ()
        jitter = self.augmentation.colour
        colours = [jitter.draw(slot_generator(self.stream.seed, 5, slot)) for slot in slots.tolist()] if jitter else ()
        return Raw(images, views, bucket, indices, slots, pastes, colours=colours, tiles=tiles)

    def _parts(self, slot: int, index: int) -> list[tuple[int, View]]:
        """Image indices of a slot with their views: `index` alone, or first in a mosaic of four."""
        generator, size = slot_generator(self.stream.seed, 6, slot), self.stream.dataset.size
        quadrants = self.augmentation.mosaic_of(self.stream.dataset.num_images, generator)
        if not quadrants:
            return [(index, self.augmentation.view(*size(index), slot_generator(self.stream.seed, 3, slot)))]
        shown = [(quadrant, index if other < 0 else other) for quadrant, other in quadrants]
        return [(i, self.augmentation.view(*size(i), generator, quadrant)) for quadrant, i in shown]

    def _image(self, index: int, slot: int, part: int) -> np.ndarray:
        """The decoded image [h,w,C] of a part of a slot, after the user's transform."""
        image, transform = self.stream.images(index), self.augmentation.transform
        if transform is None:
            return image
        generator = slot_generator(self.stream.seed, 7, slot, part)
        return transform(image, generator, self.stream.dataset.image_path(index))

    def _chosen_paste(self, slot: int) -> tuple[int, View, np.ndarray]:
        """Source image of a slot's paste, its view, and the objects to paste: a function of the slot alone.

        Every image of the data set is equally likely. Crowds, difficult objects and those without a segmentation are
        not pasted.
        """
        data, generator = self.stream.dataset, slot_generator(self.stream.seed, 4, slot)
        index = int(generator.integers(data.num_images))
        view = self.augmentation.view(*data.size(index), generator)
        shown = self.targets.in_view(index, view)
        fit = (data.segment_kind[shown] != 0) & ~data.crowd[shown] & ~data.difficult[shown]
        return index, view, choose(shown[fit], generator)

    def _paste(self, slot: int, bucket: tuple[int, int]) -> Paste | None:
        index, view, chosen = self._chosen_paste(slot)
        if not len(chosen):
            return None
        objects = visible_objects(self.targets.dataset, self.targets.frames, chosen, view)
        return Paste(self._image(index, slot, PASTED), view, objects, alpha_of(objects, bucket))

    def counts(self, step: int) -> tuple[int, int]:
        """Instances and pixels (before padding) of a whole step, all processes together.

        Under jitter every object counts whose box is partly in the window, whatever its mask shows there.
        """
        instances, pixels = 0, 0
        for index, slot in zip(*(values.tolist() for values in self.stream.step(step))):
            parts = self._parts(slot, index)
            instances += sum(len(self.targets.in_view(i, view)) for i, view in parts)
            views = [view for _, view in parts]
            if self.augmentation.copy_paste:
                _, other, chosen = self._chosen_paste(slot)
                instances += len(chosen)
                views += [other] if len(chosen) else []
            height, width = common_size(views)
            pixels += height * width
        return instances, pixels

    def batches(self, start: int, stop: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Batches of steps start..stop-1, decoded by prefetching threads, resized and normalised on the device."""
        ids = self.stream.dataset.image_ids
        for raw in self.stream.prefetch(self.raw, start, stop):
            targets = {name: to_device(array, device) for name, array in self.targets.fill(raw).items()}
            yield Batch(
                images=self.maps(raw, device) if self.maps else self._pixels(raw, device),
                sizes=to_device(np.array(raw.sizes()), device),
                image_ids=to_device(ids[raw.indices].astype(np.int64), device),
                slots=to_device(raw.slots.astype(np.int64), device),
                **targets,
            )

    def _pixels(self, raw: Raw, device: torch.device | str) -> torch.Tensor:
        tiles = [(slot, tile) for slot, shown in enumerate(raw.tiles) for tile in shown]
        images = [*raw.images, *(tile.image for _, tile in tiles)]
        views = [*raw.views, *(tile.view for _, tile in tiles)]
        slots = [*range(len(raw.images)), *(slot for slot, _ in tiles)]
        batch = stack_images(images, views, raw.bucket, self.spec, device, raw.colours, slots)
        return paste_images(batch, raw.pastes, self.spec, raw.colours)


class CropStream:
    """Random square crops by step; errors as in `Stream`."""

    def __init__(self, dataset: Dataset, spec: InputSpec, reading: Reading, *, size: int, min_area: float, flip: float):
        self.spec, self.size, self.min_area, self.flip = spec, size, min_area, flip
        groups = {(size, size): np.arange(dataset.num_images)}
        self.stream = Stream(dataset, groups, reading, channels=len(spec.mean))

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
) -> torch.Tensor:
    """Crops of images [h,w,C], resized to [B,C,size,size] and normalised."""
    cut = [
        image[top : top + height, left : left + width] for image, (top, left, height, width, _) in zip(images, crops)
    ]
    return stack_images(cut, [View((size, size), crop[4]) for crop in crops], (size, size), spec, device)


def whole_images(
    images: Images, num: int, *, size: int, spec: InputSpec, batch: int, device: torch.device | str
) -> Iterator[torch.Tensor]:
    """Images 0..num-1, resized to the square `size` and normalised: batches [B,3,size,size]."""
    for at in range(0, num, batch):
        shown = [images(i) for i in range(at, min(at + batch, num))]
        crops = [(0, 0, *image.shape[:2], False) for image in shown]
        yield crop_images(shown, crops, size, spec, device)
