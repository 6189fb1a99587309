"""Instance masks in the frame of their own box: M x M cells over the annotated box, rows = y, packed to bits.

A flip or a resize then changes only the box, and 28 x 28 targets are sampled straight from the frame.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from headstart.data import rle
from headstart.data.dataset import POLYGONS, RLE, Dataset
from headstart.ops import polygons


def annotation_rle(dataset: Dataset, n: int) -> dict:
    """COCO's compressed RLE of annotation index n on its whole image, as pycocotools makes it.

    An annotation without a segmentation is its box, filled by pycocotools as a polygon.
    """
    if dataset.segment_kind[n] == RLE:
        return dataset.rles[n]
    outlines = [polygon.ravel() for polygon in dataset.polygons(n)] or [dataset.boxes[n][[0, 1, 2, 1, 2, 3, 0, 3]]]
    return coco_mask.merge(coco_mask.frPyObjects(outlines, *dataset.size(dataset.image_of[n])))


def annotation_mask(dataset: Dataset, n: int) -> np.ndarray:
    """Bool [H, W] of annotation index n on its whole image, for evaluation and drawing."""
    return rle.decode(annotation_rle(dataset, n))


class FrameTable:
    """Masks of all N annotations of a data set in their box frames, made on demand and kept packed.

    size M is a multiple of 4 (whole bytes a frame). The table takes N * M * M / 8 bytes, touched only as it is filled.
    Threads share it without a lock: two that meet at one annotation write the same bytes, and a frame is marked as
    made only after it is written.
    """

    def __init__(self, dataset: Dataset, size: int) -> None:
        if size < 4 or size % 4:
            raise ValueError(f"mask frame size = {size}: expected a multiple of 4")
        self.dataset, self.size = dataset, size
        self.packed = np.zeros((dataset.num_annotations, size * size // 8), np.uint8)
        self._made = np.zeros(dataset.num_annotations, bool)

    def frames(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Bool [n, M, M] of these annotation indices.

        Polygons: exact at cell centres. RLE: the pixel that holds the cell centre, False outside the image. No
        segmentation: all True.
        """
        indices = np.asarray(indices, np.int64)
        self.fill(indices)
        return np.unpackbits(self.packed[indices], axis=1).reshape(-1, self.size, self.size).view(bool)

    def fill(self, indices: np.ndarray) -> None:
        """Make the frames of these annotation indices that are not made yet."""
        for n in indices[~self._made[indices]].tolist():
            self.packed[n] = np.packbits(self.over(n, self.dataset.boxes[n]))
            self._made[n] = True

    def over(self, n: int, box: np.ndarray) -> np.ndarray:
        """Bool [M, M] of annotation n over any box [4] XYXY in pixels of its image; such frames are not kept."""
        kind = self.dataset.segment_kind[n]
        if kind == POLYGONS:
            return polygons.inside(self.dataset.polygons(n), box, self.size, self.size)
        if kind == RLE:
            centres = (np.arange(self.size) + 0.5) / self.size
            columns, rows = (box[:2] + centres[:, None] * (box[2:] - box[:2])).T
            return rle.sample(self.dataset.rles[n], np.floor(rows).astype(int), np.floor(columns).astype(int))
        return np.ones((self.size, self.size), bool)
