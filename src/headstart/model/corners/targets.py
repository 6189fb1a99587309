"""Targets of corners: Gaussian heat maps, cells and offsets (Law and Deng 2018, sections 3.2 and 3.4).

B images, G ground-truth slots, C classes, H x W cells. Corners are top left and bottom right, in that order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.batch import Batch


@dataclass(frozen=True)
class CornerTargets:
    """Targets of one kind of corner.

    heat [B,C,H,W]: 1 at corners, falling around them; cell [B,G] index of each corner's cell in H*W; offset [B,G,2]
    (x, y) of the corner in its cell, in cells: below 1, except at the right and bottom border of the padded image.
    """

    heat: Tensor
    cell: Tensor
    offset: Tensor


def corner_radius(width: Tensor, height: Tensor, min_iou: float) -> Tensor:
    """Largest whole radius within which both corners of a box may move so that its IoU stays at least `min_iou`.

    width, height [...] in cells. The smallest over three cases: one corner moves in and one out, both in, both out.
    The correct roots: CornerNet's released code divides by 2 instead of 2a, and takes larger roots in two cases.
    """
    total, area = width + height, width * height
    one = (total - (total**2 - 4 * area * (1 - min_iou) / (1 + min_iou)).clamp(min=0).sqrt()) / 2
    inside = (2 * total - (4 * total**2 - 16 * (1 - min_iou) * area).clamp(min=0).sqrt()) / 8
    part = 2 * min_iou * total
    outside = ((part**2 + 16 * min_iou * (1 - min_iou) * area).sqrt() - part) / (8 * min_iou)
    return torch.minimum(torch.minimum(one, inside), outside).clamp(min=0).floor()


@torch.no_grad()
def corner_targets(
    batch: Batch, *, num_classes: int, size: tuple[int, int], stride: int, min_iou: float
) -> tuple[list[CornerTargets], Tensor, Tensor]:
    """Targets of both kinds of corners, which slots hold an object [B,G], and cells in crowds [B,H,W] to ignore.

    size: (H, W). Crowds are no objects, and no corner in them is wrong.
    """
    valid = batch.gt_valid & ~batch.gt_crowd
    boxes = batch.gt_boxes / stride
    sides = (boxes[..., 2:] - boxes[..., :2]).ceil()  # as released code and MMDetection have it
    radius = corner_radius(sides[..., 0], sides[..., 1], min_iou)
    targets = [
        _corner(corner, radius, batch.gt_labels, valid, num_classes, size)
        for corner in (boxes[..., :2], boxes[..., 2:])
    ]
    crowd = (batch.gt_valid & batch.gt_crowd).unsqueeze(2)
    columns, rows = (
        (cells + 1 > low) & (cells < high)
        for cells, low, high in zip(_cells(size, boxes), boxes[..., :2].split(1, dim=2), boxes[..., 2:].split(1, dim=2))
    )
    ignored = ((rows & crowd).unsqueeze(3) & columns.unsqueeze(2)).any(dim=1)
    return targets, valid, ignored


def _cells(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [W] and rows [H] of cells."""
    return tuple(torch.arange(side, device=like.device, dtype=like.dtype) for side in reversed(size))


def _corner(
    corner: Tensor, radius: Tensor, labels: Tensor, valid: Tensor, num_classes: int, size: tuple[int, int]
) -> CornerTargets:
    """Targets of corners [B,G,2] (x, y) in cells. A Gaussian ends at its radius; objects of a class join by maximum."""
    height, width = size
    x, y = corner[..., 0].floor().clamp(0, width - 1), corner[..., 1].floor().clamp(0, height - 1)
    scale = 2 * ((2 * radius + 1) / 6).square().unsqueeze(2)  # sigma is a sixth of the diameter
    sides = []
    for cells, place in zip(_cells(size, corner), (x, y)):
        distance = cells - place.unsqueeze(2)
        sides.append(torch.exp(-distance.square() / scale) * (distance.abs() <= radius.unsqueeze(2)))
    peaks = (sides[1] * valid.unsqueeze(2)).unsqueeze(3) * sides[0].unsqueeze(2)
    heat = peaks.new_zeros(len(corner), num_classes, height * width)
    index = labels.unsqueeze(2).expand(-1, -1, height * width)
    heat = heat.scatter_reduce(1, index, peaks.flatten(2), "amax").view(-1, num_classes, height, width)
    return CornerTargets(heat, (y * width + x).long(), corner - torch.stack([x, y], dim=2))
