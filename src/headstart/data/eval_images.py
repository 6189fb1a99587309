"""The images of a detection data set as they are evaluated: each once, whole, as often resized as somebody asks."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from headstart.batch import InputSpec
from headstart.data.buckets import Resize, bucket_of, group_by_bucket
from headstart.data.dataset import Dataset
from headstart.data.stream import Images, Raw, ahead
from headstart.data.upload import to_device
from headstart.data.views import View, stack_images


def show(
    images: Sequence[np.ndarray],
    resize: Resize,
    convention: InputSpec,
    device: torch.device | str,
    *,
    flip: bool = False,
    bucket: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole images uint8 [h,w,3] as a batch [B,3,H,W], and their sizes [B,2]; by default padded to a bucket for all."""
    sides = [image.shape[:2] for image in images]
    if bucket is None:
        buckets = [bucket_of(height, width, resize) for height, width in sides]
        bucket = (max(height for height, _ in buckets), max(width for _, width in buckets))
    views = [View(resize.size(height, width), flip) for height, width in sides]
    batch = stack_images(images, views, bucket, convention, device)
    return batch, to_device(np.array([view.size for view in views]), device)


class EvalImages:
    """Every image once, in batches of one bucket, without augmentation."""

    def __init__(
        self, dataset: Dataset, resize: Resize, convention: InputSpec, *, batch: int, cache: bool, num_workers: int
    ):
        self.dataset, self.resize, self.convention, self.num_workers = dataset, resize, convention, num_workers
        self.batch = batch
        self.images = Images(dataset, keep=cache)
        groups = group_by_bucket(dataset.heights, dataset.widths, resize, smallest=1)
        self.plan = [
            (bucket, group[at : at + batch]) for bucket, group in groups.items() for at in range(0, len(group), batch)
        ]

    def first(self, most: int) -> "EvalImages":
        """The first `most` images alone, for a timing; nothing of them is kept."""
        some = self.dataset.take(np.arange(min(most, self.dataset.num_images)))
        return EvalImages(
            some, self.resize, self.convention, batch=self.batch, cache=False, num_workers=self.num_workers
        )

    def raw(self, place: int) -> Raw:
        """Batch number `place`."""
        bucket, indices = self.plan[place]
        sizes = [self.resize.size(int(self.dataset.heights[i]), int(self.dataset.widths[i])) for i in indices]
        return Raw(
            [self.images(int(i)) for i in indices], [View(size, False) for size in sizes], bucket, indices, indices
        )

    def batches(
        self, device: torch.device | str = "cpu", *, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """(image indices, images [B,3,H,W], sizes [B,2]) until every image has been seen once.

        `part` of `parts` takes every such batch.
        """
        for raw in self.decoded(part=part, parts=parts):
            yield raw.indices, *self.show(raw, device)

    def decoded(self, *, part: int = 0, parts: int = 1) -> Iterator[Raw]:
        """The same batches before they are shown, for whoever looks at them more than once."""
        return ahead(self.raw, range(part, len(self.plan), parts), self.num_workers)

    def show(
        self, raw: Raw, device: torch.device | str, resize: Resize | None = None, *, flip: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """images [B,3,H,W] and sizes [B,2] of a decoded batch, as planned or resized otherwise."""
        bucket = raw.bucket if resize in (None, self.resize) else None
        return show(raw.images, resize or self.resize, self.convention, device, flip=flip, bucket=bucket)
