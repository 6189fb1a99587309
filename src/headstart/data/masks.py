"""Instance masks in the frame of their own box: M x M cells over the annotated box, rows = y, packed to bits.

A flip or a resize then changes only the box, and 28 x 28 targets are sampled straight from the frame.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from headstart.data import rle
from headstart.data.dataset import Dataset
from headstart.data.read.coco_segments import POLYGONS, RLE


def rasterise(polygons: Sequence[np.ndarray], box: np.ndarray, size: int) -> np.ndarray:
    """Bool [size, size]: which cell centres of the frame lie inside the polygons.

    polygons: each [points, 2] in image pixels; box [4] XYXY in the same pixels. Even-odd within one polygon, union over
    polygons; left and top edges belong to the inside, right and bottom ones do not. No polygons: all False.

    A ray goes from each cell centre to the right and counts the edges that it crosses: for a row that an edge spans,
    all cells left of the crossing are toggled, which is one entry of a histogram and a running sum from the right.
    """
    if not len(polygons):
        return np.zeros((size, size), bool)
    lengths = [len(polygon) for polygon in polygons]
    ends = np.cumsum(lengths)
    scale = size / (box[2:] - box[:2])
    start = (np.concatenate(polygons) - box[:2]) * scale - 0.5  # cell centres now have whole numbers
    stop = np.roll(start, -1, 0)
    stop[ends - 1] = start[ends - lengths]  # each polygon closes on itself
    owner = np.repeat(np.arange(len(polygons)), lengths)

    rows = np.arange(size)
    spans = (start[:, 1, None] <= rows) != (stop[:, 1, None] <= rows)  # half-open: a vertex on a row counts once
    edge, row = np.nonzero(spans)
    along = (row - start[edge, 1]) / (stop[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + along * (stop[edge, 0] - start[edge, 0])
    left_of = np.clip(np.ceil(crossing), 0, size).astype(np.int64)  # number of cell centres strictly left of it

    flat = (owner[edge] * size + row) * (size + 1) + left_of
    toggles = np.bincount(flat, minlength=len(polygons) * size * (size + 1)).reshape(-1, size, size + 1)
    odd = (toggles[:, :, :0:-1] & 1).astype(np.uint8)
    return np.bitwise_xor.accumulate(odd, axis=2).any(0)[:, ::-1].astype(bool)


def annotation_rle(dataset: Dataset, n: int) -> dict:
    """COCO's compressed RLE of annotation index n on its whole image, as pycocotools' annToRLE makes it.

    An annotation without a segmentation is its box: the pixels whose centres lie inside.
    """
    height, width = dataset.size_of(n)
    if dataset.segment_kind[n] == RLE:
        return dataset.rles[n]
    if dataset.segment_kind[n] == POLYGONS:
        polygons = [polygon.ravel().tolist() for polygon in dataset.polygons(n)]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    x1, y1, x2, y2 = np.ceil(dataset.boxes[n] - 0.5).clip(0, [width, height, width, height]).astype(int)
    inside = np.zeros((height, width), np.uint8, order="F")
    inside[y1:y2, x1:x2] = 1
    return coco_mask.encode(inside)


def annotation_mask(dataset: Dataset, n: int) -> np.ndarray:
    """Bool [H, W] of annotation index n on its whole image, for evaluation and drawing."""
    return rle.decode(annotation_rle(dataset, n))


def pack(frames: np.ndarray) -> np.ndarray:
    """Bool [n, M, M] -> uint8 [n, M * M / 8], row by row, first cell in the highest bit."""
    n, rows, columns = frames.shape
    return np.packbits(frames.reshape(n, rows * columns), axis=1)


def unpack(packed: np.ndarray, size: int) -> np.ndarray:
    """The inverse of pack: uint8 [n, M * M / 8] -> bool [n, M, M]."""
    return np.unpackbits(packed, axis=1).reshape(-1, size, size).view(bool)


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
        return unpack(self.packed[indices], self.size)

    def fill(self, indices: np.ndarray) -> None:
        """Make the frames of these annotation indices that are not made yet."""
        for n in indices[~self._made[indices]].tolist():
            self.packed[n] = pack(self._frame(n)[None])[0]
            self._made[n] = True

    def _frame(self, n: int) -> np.ndarray:
        return self.over(n, self.dataset.boxes[n])

    def over(self, n: int, box: np.ndarray) -> np.ndarray:
        """Bool [M, M] of annotation n over any box [4] XYXY in pixels of its image; such frames are not kept."""
        kind = self.dataset.segment_kind[n]
        if kind == POLYGONS:
            return rasterise(self.dataset.polygons(n), box, self.size)
        if kind == RLE:
            centres = (np.arange(self.size) + 0.5) / self.size
            columns, rows = (box[:2] + centres[:, None] * (box[2:] - box[:2])).T
            return rle.sample(self.dataset.rles[n], np.floor(rows).astype(int), np.floor(columns).astype(int))
        return np.ones((self.size, self.size), bool)
