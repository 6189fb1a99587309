"""Square windows of a feature pyramid around chosen cells.

B images, C channels, L levels, N windows of side S = 2 * radius + 1. A cell is numbered within its image: level by
level, row by row, as the anchors are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.ops.fixed_shapes import constant
from headstart.ops.products import linear
from headstart.ops.roi_align import as_table


@constant
def _surroundings(
    shapes: tuple[tuple[int, int], ...], radius: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every cell of maps of the given (height, width): constants of a bucket, hence cached.

    Cells before its level [A], cells of its level [A], the cells around it counted within the level [A,S,S] (0 beyond
    the border), and which of these are inside [A,S,S].
    """
    before, areas, around, inside = [], [], [], []
    reach = torch.arange(-radius, radius + 1)
    for height, width in shapes:
        y = torch.arange(height).view(-1, 1, 1, 1) + reach.view(1, 1, -1, 1)
        x = torch.arange(width).view(1, -1, 1, 1) + reach.view(1, 1, 1, -1)
        within = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).flatten(0, 1)
        around.append(torch.where(within, (y * width + x).flatten(0, 1), 0).int())
        inside.append(within)
        before.append(torch.full((height * width,), sum(len(level) for level in before)))
        areas.append(torch.full((height * width,), height * width))
    return tuple(torch.cat(parts).to(device) for parts in (before, areas, around, inside))


def windows(features: list[Tensor], cell: Tensor, image: Tensor, *, radius: int) -> tuple[Tensor, Tensor]:
    """Values [N,S,S,C] around N cells, zeros beyond the border of a map, and which of them are inside it [N,S,S].

    features: L tensors [B,C,H_l,W_l]; cell [N] within image [N]. Differentiable in features; the gradient reaches only
    the cells in the windows. The same cell may be in several windows.
    """
    shapes = tuple((feature.shape[2], feature.shape[3]) for feature in features)
    before, area, around, inside = (part[cell] for part in _surroundings(shapes, radius, cell.device))
    origin = before * features[0].shape[0] + image * area  # in the table the images of a level follow one another
    rows = around + origin.view(-1, 1, 1)
    return F.embedding(rows, as_table(features)) * inside.unsqueeze(3), inside


def valid_conv(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution [out,C,3,3] of windows [N,S,S,C] without padding, [N,S-2,S-2,out], as one matrix product."""
    side = values.shape[1] - 2
    if side > 1:  # of a window of 3 x 3 the one patch is the window itself
        shifted = [values[:, y : y + side, x : x + side] for y in range(3) for x in range(3)]
        values = torch.stack(shifted, dim=3)
    patches = values.reshape(values.shape[0], side, side, 9 * weight.shape[1])
    return linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
