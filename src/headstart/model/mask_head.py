"""Mask head (He et al. 2017): a small FCN on 14x14 regions.

S mask slots (pooled over the batch), C classes, M side of the ground-truth frame, T side of the output (28).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model.pyramid import initialise_convolutions
from headstart.model.regions import RegionConvs
from headstart.ops.precision import at_least_float32
from headstart.ops.processes import mean_over_processes
from headstart.ops.products import linear

SAMPLES = 2  # a cell and direction, when a target is cut out of the box frame


def sample_frames(frames: Tensor, gt_boxes: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Mask targets [S,T,T] of regions `boxes` [S,4], cut from frames [S,M,M] that cover `gt_boxes` [S,4] (all in
    pixels).

    The frame is sampled bilinearly with zeros outside, 2x2 samples a cell, and thresholded at one half. Written as two
    small matrix products, because the weights are separable.
    """
    side = frames.shape[-1]
    rows = _axis_weights(gt_boxes[:, 1], gt_boxes[:, 3], boxes[:, 1], boxes[:, 3], side, size)
    columns = _axis_weights(gt_boxes[:, 0], gt_boxes[:, 2], boxes[:, 0], boxes[:, 2], side, size)
    return (torch.bmm(torch.bmm(rows, frames.to(rows.dtype)), columns.transpose(1, 2)) >= 0.5).to(rows.dtype)


def _axis_weights(gt_low: Tensor, gt_high: Tensor, low: Tensor, high: Tensor, side: int, size: int) -> Tensor:
    """Weights [S,T,M] of the frame's cells in each target cell, along one direction."""
    steps = (torch.arange(size * SAMPLES, device=low.device, dtype=low.dtype) + 0.5) / (size * SAMPLES)
    position = low.unsqueeze(1) + steps * (high - low).unsqueeze(1)
    cell = (position - gt_low.unsqueeze(1)) / (gt_high - gt_low).clamp(min=1e-3).unsqueeze(1) * side - 0.5
    weight = (1 - (cell.unsqueeze(2) - torch.arange(side, device=low.device, dtype=low.dtype)).abs()).clamp(min=0)
    return weight.view(-1, size, SAMPLES, side).mean(dim=2)


class MaskHead(nn.Module):
    """Predicts one mask a class for each region."""

    initialiser = "MSRA, fan-out"

    def __init__(self, convs: RegionConvs, *, num_classes: int, channels: int):
        super().__init__()
        self.convs = convs
        self.deconv = nn.ConvTranspose2d(convs.channels, channels, 2, 2)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        initialise_convolutions(self)

    def predict(self, features: list[Tensor], boxes: Tensor, image: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Mask logits [S,T,T] of boxes [S,4] (pixels; image [S]) for the given labels [S] only.

        The last 1x1 convolution is evaluated for one class a region, which saves C-1 of C channels.
        """
        x = self.convs(features, boxes, image, valid)
        fine = F.relu(self._deconvolve(x), inplace=True)
        num, height, width = fine.shape[:3]
        rows = self.classify.weight.flatten(1)[labels].to(x.dtype)
        logits = torch.bmm(fine.flatten(1, 4), rows.unsqueeze(2)).view(num, height, width, 2, 2)
        logits = logits + self.classify.bias[labels].view(-1, 1, 1, 1, 1).to(x.dtype)
        return at_least_float32(logits.permute(0, 1, 3, 2, 4).reshape(num, 2 * height, 2 * width))

    def _deconvolve(self, x: Tensor) -> Tensor:
        """The 2x2 transposed convolution of x [S,C,H,W] as one matrix product: [S,H,W,2,2,C'], four cells a cell.

        Its strides do not overlap, so every cell is mapped alone; the last layer is 1x1, so cells need not be put in
        their places before it. oneDNN's takes more than twice as long backward.
        """
        weight = self.deconv.weight.permute(2, 3, 1, 0).flatten(0, 2)
        cells = linear(x.permute(0, 2, 3, 1).flatten(0, 2), weight, self.deconv.bias.repeat(4))
        return cells.view(x.shape[0], *x.shape[2:], 2, 2, self.deconv.out_channels)

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Mean binary cross-entropy over the pixels of valid slots; logits, targets [S,T,T], valid [S].

        No valid slot gives zero.
        """
        weight = valid.to(logits.dtype)
        count = mean_over_processes(weight.sum()).clamp(min=1.0) * (logits.shape[1] * logits.shape[2])
        per_pixel = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return {"mask": (per_pixel.sum((1, 2)) * weight).sum() / count}
