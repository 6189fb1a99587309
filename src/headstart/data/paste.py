"""Objects that a crop or pasted objects leave visible, and copy-paste augmentation (Ghiasi et al. 2021).

n objects, M side of a mask frame, K keypoints; H, W of the padded image. Masks are rasterised again over the visible
part of their box, straight from the annotation, so that a cut costs no precision.

Copy-paste: objects of one image, cut out by their masks, are pasted onto another; both images are under large-scale
jitter first. A random part of the objects is pasted, its size uniform between none and all (as in MMDetection), without
blending (the paper: "simply composing without any blending has similar performance").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstart.batch import InputSpec
from headstart.data.augment.colour import Colour
from headstart.data.dataset import Dataset
from headstart.data.masks import FrameTable
from headstart.data.views import (
    View,
    move_boxes,
    move_boxes_back,
    move_frames,
    move_keypoints,
    stack_images,
    to_device,
)

# An object is left out when a side of its visible box is not longer than this (pixels), or nothing of its mask is
# visible. MMDetection's large-scale jitter has the same bound (FilterAnnotations, min_gt_bbox_wh 1e-2).
MIN_SIDE = 1e-2
# An object that others were pasted over stays if no side of its box moved by more than 10 pixels, or if more than 300
# of its pixels are visible: MMDetection's CopyPaste (bbox_occluded_thr, mask_occluded_thr) on images of 1024 pixels.
COVERED_SIDE, COVERED_AREA, COVERED_IMAGE = 10.0, 300.0, 1024


@dataclass(frozen=True)
class Objects:
    """Visible objects of one image in a view: annotation indices [n], boxes [n,4] in pixels of the padded image, mask
    frames [n,M,M] over these boxes (M = 0 without masks), keypoints [n,K,3] or None.
    """

    indices: np.ndarray
    boxes: np.ndarray
    frames: np.ndarray
    keypoints: np.ndarray | None


def in_window(boxes: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n,4] cut to the window of a view, and bool [n]: True where both sides are longer than MIN_SIDE."""
    cut = np.clip(boxes, [view.place[1], view.place[0]] * 2, [view.end[1], view.end[0]] * 2)
    return cut, ((cut[:, 2:] - cut[:, :2]) > MIN_SIDE).all(axis=1)


def visible_objects(
    data: Dataset, table: FrameTable | None, indices: np.ndarray, view: View, cover: np.ndarray | None = None
) -> Objects:
    """Visible part of the annotations `indices` of one image in a view; cover [H,W] bool: pixels under pasted objects.

    A box that is cut or covered becomes the tight box around what is visible of its mask, to one cell of the frame (an
    object without a segmentation only has its box cut). Rules for leaving out: MIN_SIDE, COVERED_SIDE, COVERED_AREA.
    """
    original = data.size(data.image_of[indices[0]]) if len(indices) else (1, 1)
    whole = move_boxes(data.boxes[indices], original, view)
    boxes, keep = in_window(whole, view)
    frames = np.zeros((len(indices), *[table.size if table else 0] * 2), bool)
    for place in np.flatnonzero(keep & (data.segment_kind[indices] != 0)) if table else ():
        n, is_cut = int(indices[place]), bool((boxes[place] != whole[place]).any())
        covered = cover is not None and bool(_pixels(cover, boxes[place]).any())
        if is_cut or covered:
            found = _visible(table, n, boxes[place], original, view, cover if covered else None)
            keep[place] = found is not None
            if found is not None:
                boxes[place], frames[place] = found
        else:
            frames[place] = move_frames(table.frames([n])[0], view)
    keypoints = None if data.keypoints is None else _visible_keypoints(data, indices, original, view, cover)[keep]
    return Objects(indices[keep], boxes[keep], frames[keep], keypoints)


def _visible(
    table: FrameTable, n: int, box: np.ndarray, original: tuple[int, int], view: View, cover: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Tight box around the visible part of one mask within `box`, and its frame; None if too little is visible."""
    cells = _frame(table, n, box, original, view, cover)
    if not cells.any():
        return None
    tight = _tight(cells, box)
    frame = _frame(table, n, tight, original, view, cover)
    if not frame.any():
        return None
    if cover is not None:
        share = max(cover.shape) / COVERED_IMAGE
        area = frame.mean() * np.prod(tight[2:] - tight[:2])
        if np.abs(tight - box).max() > COVERED_SIDE * share and area <= COVERED_AREA * share**2:
            return None
    return tight, frame


def _frame(
    table: FrameTable, n: int, box: np.ndarray, original: tuple[int, int], view: View, cover: np.ndarray | None
) -> np.ndarray:
    """The visible mask of annotation n over any box [4] in pixels of the padded image, bool [M,M]."""
    frame = move_frames(table.over(n, move_boxes_back(box[None], original, view)[0]), view)
    if cover is None:
        return frame
    centres = (np.arange(table.size)[:, None] + 0.5) / table.size * (box[2:] - box[:2]) + box[:2]
    columns, rows = np.minimum(centres.astype(int), [cover.shape[1] - 1, cover.shape[0] - 1]).T
    return frame & ~cover[np.ix_(rows, columns)]


def _tight(cells: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Box [4] around the set cells of a frame over `box`; a side that they reach is kept exactly."""
    rows, columns = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
    first = np.array([columns[0], rows[0]]) / len(cells)
    last = np.array([columns[-1] + 1, rows[-1] + 1]) / len(cells)
    low, extent = box[:2], box[2:] - box[:2]
    return np.concatenate([low + first * extent, np.where(last == 1, box[2:], low + last * extent)])


def _pixels(cover: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of cover [H,W] that a box [4] touches."""
    x1, y1, x2, y2 = np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]).astype(int)
    return cover[y1:y2, x1:x2]


def _visible_keypoints(
    data: Dataset, indices: np.ndarray, original: tuple[int, int], view: View, cover: np.ndarray | None
) -> np.ndarray:
    """Keypoints [n,K,3] in a view: outside its window they are not labelled (all zero), under a cover not visible."""
    moved = move_keypoints(data.keypoints[indices], original, view, data.left_right)
    inside = ((moved[..., :2] >= view.place[::-1]) & (moved[..., :2] < view.end[::-1])).all(axis=2)
    moved[~inside] = 0
    if cover is not None and moved.size:
        columns, rows = moved[..., 0].astype(int), moved[..., 1].astype(int)
        moved[..., 2] = np.where(cover[rows, columns], np.minimum(moved[..., 2], 1), moved[..., 2])
    return moved


@dataclass(frozen=True)
class Paste:
    """Objects to paste onto an image: the decoded source image, its view, the objects, and their pixels [H,W] bool."""

    image: np.ndarray
    view: View
    objects: Objects
    alpha: np.ndarray


def choose(candidates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random part of the candidates, in their order; its size is uniform between none and all."""
    count = int(generator.integers(len(candidates) + 1))
    return candidates[np.sort(generator.permutation(len(candidates))[:count])]


def alpha_of(objects: Objects, shape: tuple[int, int]) -> np.ndarray:
    """The pixels [H,W] bool that any of the objects covers.

    A pixel is covered where the frame, sampled bilinearly at its centre and zero outside, is at least one half: the
    rule by which predicted masks are pasted (`data.rle`).
    """
    alpha = np.zeros(shape, bool)
    for box, frame in zip(objects.boxes, objects.frames):
        low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        rows = _weights(low[1], high[1], box[1], box[3], len(frame))
        columns = _weights(low[0], high[0], box[0], box[2], len(frame))
        alpha[low[1] : high[1], low[0] : high[0]] |= rows @ frame.astype(np.float32) @ columns.T >= 0.5
    return alpha


def _weights(first: int, last: int, low: float, high: float, side: int) -> np.ndarray:
    """Weights [P,M] of a frame's cells, from low to high, at the centres of the pixels first..last-1."""
    cell = (np.arange(first, last) + 0.5 - low) / (high - low) * side - 0.5
    return np.clip(1 - np.abs(cell[:, None] - np.arange(side)), 0, None).astype(np.float32)


def paste_images(
    batch: Tensor, pastes: Sequence[Paste | None], spec: InputSpec, colours: Sequence[Colour] = ()
) -> Tensor:
    """The batch [B,3,H,W] with the pixels of each paste in place of its own; changed in place.

    colours: as in `stack_images`; a paste has those of its place.
    """
    for slot, (canvas, paste) in enumerate(zip(batch, pastes)):
        if paste is not None:
            own = colours[slot : slot + 1]
            other = stack_images([paste.image], [paste.view], batch.shape[2:], spec, batch.device, own)[0]
            canvas.copy_(torch.where(to_device(paste.alpha, batch.device), other, canvas))
    return batch
