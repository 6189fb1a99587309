"""Square windows of a feature pyramid around chosen cells.

B images, C channels, L levels, N windows of side S = 2 * radius + 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.ops.roi_align import as_table


def windows(
    features: list[Tensor], level: Tensor, image: Tensor, y: Tensor, x: Tensor, *, radius: int
) -> tuple[Tensor, Tensor]:
    """Values [N,S,S,C] around N cells, zeros beyond the border of a map, and which of them are inside it [N,S,S].

    features: L tensors [B,C,H_l,W_l]; level, image, y and x [N] say where the centres are. Differentiable in features;
    the gradient reaches only what the windows show. The same cell may be in several windows.
    """
    device = level.device
    shapes = [(feature.shape[0] * feature.shape[2] * feature.shape[3], *feature.shape[2:]) for feature in features]
    starts = torch.tensor([sum(num for num, _, _ in shapes[:own]) for own in range(len(shapes))], device=device)
    sides = torch.tensor([shape[1:] for shape in shapes], device=device)[level]
    height, width = sides[:, 0].view(-1, 1, 1), sides[:, 1].view(-1, 1, 1)
    reach = torch.arange(-radius, radius + 1, device=device)
    rows, columns = y.view(-1, 1, 1) + reach.view(1, -1, 1), x.view(-1, 1, 1) + reach.view(1, 1, -1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    origin = starts[level].view(-1, 1, 1) + image.view(-1, 1, 1) * (height * width)
    cells = torch.where(inside, origin + rows * width + columns, 0)
    return F.embedding(cells, as_table(features)) * inside.unsqueeze(3), inside


def valid_conv(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution [out,C,3,3] of windows [N,S,S,C] without padding, [N,S-2,S-2,out], as one matrix product."""
    patches = values.unfold(1, 3, 1).unfold(2, 3, 1)
    return F.linear(patches.flatten(3), weight.flatten(1), bias)
