"""Heads on sampled regions (He et al. 2017): masks by a small FCN, keypoints by one heat map each, on 14x14 cells.

S region slots (pooled over the batch), C classes, K keypoints, M side of the ground-truth frame. T side of the output:
twice the pooled side for masks (28), four times for heat maps (56), which cover the region's box; a keypoint is one of
the T*T cells, found by a softmax over all of them.
"""

from collections.abc import Sequence

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
    """Mask targets [S,T,T] of regions `boxes` [S,4], cut from frames [S,M,M] over `gt_boxes` [S,4], all in pixels.

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
        """The 2x2 transposed convolution of x [S,C,H,W] as one matrix product: [S,H,W,2,2,C'].

        Outputs of neighbouring cells do not overlap, so each cell is mapped by itself. The last layer is 1x1, so cells
        need not be put in order before it. oneDNN's transposed convolution takes more than twice as long backward.
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


def cells_of(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The heat-map cell [S,K] of keypoints [S,K,3] in boxes [S,4] (all in pixels), and whether there is one, bool.

    Rows before columns: y * T + x. A keypoint on the right or bottom edge belongs to the last cell; one that is not
    labelled (visibility 0) or lies outside the box has no cell and gives 0. Rule: Detectron's keypoints_to_heatmap.
    """
    low, high, points = boxes[:, None, :2], boxes[:, None, 2:], keypoints[..., :2]
    cell = ((points - low) * (size / (high - low).clamp(min=1e-3))).floor()
    cell = torch.where(points == high, size - 1, cell)
    inside = ((cell >= 0) & (cell < size)).all(dim=2) & (keypoints[..., 2] > 0)
    column, row = cell.long().unbind(dim=2)
    return torch.where(inside, row * size + column, 0), inside


def peaks(heat_maps: Tensor, boxes: Tensor) -> Tensor:
    """Peak [S,K,3] (x, y, score) of each heat map [S,K,T,T] in its box [S,4], in the boxes' pixels.

    Each map is resized to its box by bicubic interpolation, one point a pixel; the highest point is the keypoint and
    its value, a logit, the score: torchvision's heatmaps_to_keypoints, after Detectron. Data-dependent sizes: for the
    host's side of inference, like the pasting of masks. Boxes below one pixel count as one pixel.
    """
    heat_maps = at_least_float32(heat_maps)
    found = heat_maps.new_zeros(*heat_maps.shape[:2], 3)
    sides = at_least_float32(boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    for region, (width, height) in enumerate(sides.ceil().int().tolist()):
        maps = heat_maps[region].unsqueeze(1)
        maps = F.interpolate(maps, size=(height, width), mode="bicubic", align_corners=False)
        score, place = maps.flatten(1).max(dim=1)
        grid = torch.stack([place % width, torch.div(place, width, rounding_mode="floor")], dim=1)
        step = sides[region] / sides[region].ceil()
        found[region] = torch.cat([(grid + 0.5) * step + boxes[region, :2], score.unsqueeze(1)], dim=1)
    return found


class KeypointHead(nn.Module):
    """Predicts one heat map a keypoint for each region, for any class.

    `mirror` [K] has the index of each keypoint's map in a mirrored image; the pairs left_right change places.
    """

    initialiser = "MSRA, fan-out"

    def __init__(self, convs: RegionConvs, *, num_keypoints: int, left_right: Sequence[tuple[int, int]] = ()):
        super().__init__()
        assert num_keypoints > 0, "the keypoints of the data"
        self.convs, self.size = convs, 4 * convs.pooler.size
        order = list(range(num_keypoints))
        for a, b in left_right:
            order[a], order[b] = b, a
        self.mirror = tuple(order)
        self.deconv = nn.ConvTranspose2d(convs.channels, num_keypoints, 4, stride=2, padding=1)
        initialise_convolutions(self)

    def predict(self, features: list[Tensor], boxes: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """Heat-map logits [S,K,T,T] of boxes [S,4] (pixels; image [S]): doubled by a deconvolution, then bilinearly."""
        x = self.convs(features, boxes, image, valid)
        return F.interpolate(at_least_float32(self.deconv(x)), scale_factor=2.0, mode="bilinear", align_corners=False)

    def loss(self, logits: Tensor, keypoints: Tensor, boxes: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Softmax cross-entropy over the cells, averaged over the labelled keypoints inside their region.

        logits [S,K,T,T]; keypoints [S,K,3] of each region's object and boxes [S,4] in pixels; valid [S]. No such
        keypoint gives zero. Detectron's normaliser (NORMALIZE_BY_VISIBLE_KEYPOINTS) and torchvision's.
        """
        cells, inside = cells_of(keypoints, boxes, self.size)
        weight = (inside & valid.unsqueeze(1)).to(logits.dtype).flatten()
        count = mean_over_processes(weight.sum()).clamp(min=1.0)
        per_point = F.cross_entropy(logits.flatten(2).flatten(0, 1), cells.flatten(), reduction="none")
        return {"keypoints": (per_point * weight).sum() / count}
