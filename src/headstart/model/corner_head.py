"""CornerNet's prediction module and its targets (Law and Deng 2018, figure 7, sections 3.2 and 3.4).

B images, C classes, G ground-truth slots, H x W cells. Corners are top left and bottom right, in that order.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.batch import Batch
from headstart.model.pyramid import Conv2d, ConvNorm
from headstart.ops.precision import at_least_float32
from headstart.ops.processes import mean_over_processes

PRIOR = 0.1  # of a corner in a cell at the start: the released code's bias of -2.19
FLOOR = 1e-4  # of a probability in the heat-map loss, as in the released code


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


def corner_pool(x: Tensor, dim: int, *, ahead: bool) -> Tensor:
    """Largest value among each cell of x [B,C,H,W] and those after it (`ahead`) or before it along `dim`.

    The gradient goes to the cell that has the largest value.
    """
    if torch.is_grad_enabled():
        return x.flip(dim).cummax(dim).values.flip(dim) if ahead else x.cummax(dim).values
    # Values alone: log2(n) maxima of shifted maps, which every export format has (ONNX has no cumulative maximum).
    shift, side = 1, x.shape[dim]
    while shift < side:
        near, far = x.narrow(dim, 0, side - shift), x.narrow(dim, shift, side - shift)
        rest = x.narrow(dim, side - shift if ahead else 0, shift)
        joined = torch.maximum(near, far)
        x = torch.cat([joined, rest] if ahead else [rest, joined], dim=dim)
        shift *= 2
    return x


@dataclass(frozen=True)
class CornerMaps:
    """Raw outputs for one kind of corner: heat logits [B,C,H,W], embedding [B,H,W], offset [B,2,H,W] in cells."""

    heat: Tensor
    embedding: Tensor
    offset: Tensor


class CornerBranch(nn.Module):
    """Prediction module of one kind of corner; `ahead`: it pools from below and from the right (top left corners)."""

    def __init__(self, channels: int, *, ahead: bool, num_classes: int, width: int, norm_kind: str, norm_groups: int):
        super().__init__()
        norms = {"norm_kind": norm_kind, "norm_groups": norm_groups}
        self.ahead, half = ahead, max(width // 2, 1)
        self.vertical = ConvNorm(channels, half, 3, relu=True, **norms)
        self.horizontal = ConvNorm(channels, half, 3, relu=True, **norms)
        self.pooled = ConvNorm(half, width, 3, **norms)
        self.shortcut = ConvNorm(channels, width, 1, **norms)
        self.joined = ConvNorm(width, width, 3, relu=True, **norms)
        self.heat = _output(width, num_classes)
        self.embedding = _output(width, 1)
        self.offset = _output(width, 2)
        nn.init.constant_(self.heat[-1].bias, -math.log(1 / PRIOR - 1))

    def forward(self, x: Tensor) -> CornerMaps:
        pooled = corner_pool(self.vertical(x), 2, ahead=self.ahead) + corner_pool(
            self.horizontal(x), 3, ahead=self.ahead
        )
        x = self.joined(F.relu(self.pooled(pooled) + self.shortcut(x)))
        heat, embedding, offset = (at_least_float32(part(x)) for part in (self.heat, self.embedding, self.offset))
        return CornerMaps(heat, embedding.squeeze(1), offset)


def _output(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), Conv2d(width, channels, 1))


class CornerHead(nn.Module):
    """Both kinds of corners on one map; weights of the losses beside the heat map's."""

    initialiser = "torch's own; heat maps with a prior of 0.1"

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        width: int,
        norm_kind: str,
        norm_groups: int,
        pull: float,
        push: float,
        offset: float,
    ):
        super().__init__()
        options = {"num_classes": num_classes, "width": width, "norm_kind": norm_kind, "norm_groups": norm_groups}
        self.top_left = CornerBranch(channels, ahead=True, **options)
        self.bottom_right = CornerBranch(channels, ahead=False, **options)
        self.num_classes, self.weights = num_classes, {"pull": pull, "push": push, "offset": offset}

    def predict(self, x: Tensor) -> list[CornerMaps]:
        """Outputs for top left and bottom right corners of a map [B,channels,H,W]."""
        return [self.top_left(x), self.bottom_right(x)]

    def loss(
        self, maps: list[CornerMaps], targets: list[CornerTargets], valid: Tensor, ignored: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses by name; valid [B,G] and ignored [B,H,W] as `corner_targets` gives them."""
        heat = sum(heat_loss(each.heat, target.heat, ignored) for each, target in zip(maps, targets))
        offset = sum(offset_loss(each.offset, target, valid) for each, target in zip(maps, targets))
        pull, push = embedding_losses(
            *(each.embedding.flatten(1).gather(1, target.cell) for each, target in zip(maps, targets)), valid
        )
        named = {"pull": pull, "push": push, "offset": offset}
        return {"heat": heat} | {name: self.weights[name] * value for name, value in named.items()}


def heat_loss(logits: Tensor, heat: Tensor, ignored: Tensor) -> Tensor:
    """Focal loss of a heat map [B,C,H,W] (alpha 2, beta 4), divided by the corners of the whole batch.

    The paper divides by the objects of an image, the released code, as here, by those of the batch. Near a corner a
    negative counts less; at `ignored` cells [B,H,W] not at all.
    """
    probability = logits.sigmoid().clamp(FLOOR, 1 - FLOOR)
    positive = (heat == 1).to(logits.dtype)
    kept = ~ignored.unsqueeze(1) * (1 - heat).pow(4)  # 0 at corners
    terms = positive * (1 - probability).square() * probability.log()
    terms = terms + kept * probability.square() * (1 - probability).log()
    return -terms.sum() / mean_over_processes(positive.sum()).clamp(min=1.0)


def offset_loss(offset: Tensor, target: CornerTargets, valid: Tensor) -> Tensor:
    """Smooth L1 of offsets [B,2,H,W] at the corners' cells: summed over x and y, divided by the batch's objects."""
    found = offset.flatten(2).gather(2, target.cell.unsqueeze(1).expand(-1, 2, -1))
    losses = F.smooth_l1_loss(found, target.offset.transpose(1, 2).to(found.dtype), reduction="none").sum(1)
    count = mean_over_processes(valid.to(found.dtype).sum()).clamp(min=1.0)
    return (losses * valid).sum() / count


def embedding_losses(first: Tensor, second: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Pull and push of the embeddings [B,G] at both corners of each object; means over images.

    The paper's equations 4 and 5 hold for one image. The released code adds up the images of a GPU (4 or 5) instead,
    as MMDetection does: a weight of 0.1 there is 0.4 to 0.5 here, whatever the batch.
    """
    real = valid.to(first.dtype)
    count = real.sum(dim=1)
    mean = (first + second) / 2
    pull = (((first - mean).square() + (second - mean).square()) * real).sum(dim=1) / count.clamp(min=1)
    near = (1 - (mean.unsqueeze(2) - mean.unsqueeze(1)).abs()).clamp(min=0)
    others = (
        real.unsqueeze(2) * real.unsqueeze(1) * (1 - torch.eye(real.shape[1], dtype=real.dtype, device=real.device))
    )
    push = (near * others).sum(dim=(1, 2)) / (count * (count - 1)).clamp(min=1)
    return pull.mean(), push.mean()
