"""Multi-level RoIAlign as one weighted gather, and square windows around cells of the same maps.

B images, C channels, R regions, L levels, S output side. All levels are laid out as one table with a row of C numbers
per cell; an output bin is a weighted sum of 16 rows (2x2 samples of 4 neighbours). Forward and backward are the same
operation on a matrix and its transpose, both without a per-level or per-image branch.
N windows have the side S = 2 * radius + 1; a cell is numbered within its image: level by level, row by row, as the
anchors are.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from headstart.ops.fixed_shapes import constant
from headstart.ops.precision import at_least_float32
from headstart.ops.products import linear

SAMPLES = 2  # per bin and direction: the paper's sampling ratio (Detectron: ROI_XFORM_SAMPLING_RATIO 2)


def assign_levels(boxes: Tensor, *, min_level: int, max_level: int, canonical_size: float = 224.0) -> Tensor:
    """Pyramid level [...] of each box [...,4]: floor(4 + log2(sqrt(area) / 224)), clamped (FPN, eq. 1)."""
    size = torch.sqrt((boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0))
    # 1e-6 keeps a box of exactly the canonical size on its level in spite of rounding (Detectron, torchvision).
    level = torch.floor(4 + torch.log2(size / canonical_size + 1e-6))
    return level.clamp(min_level, max_level).long()


def roi_align(
    features: list[Tensor],
    boxes: Tensor,
    image: Tensor,
    level: Tensor,
    *,
    strides: list[float],
    size: int,
    aligned: bool,
) -> Tensor:
    """Features [R,C,S,S] of R regions, each from its own level.

    features: L tensors [B,C,H_l,W_l]; boxes [R,4] pixels of the padded image; image [R] and level [R] index into the
    batch and into `features`. `aligned` shifts by half a cell so that a pixel's centre is at +0.5 (detectron2's
    correction); without it the original rule holds, with regions at least one cell wide. Equals torchvision's roi_align
    with sampling_ratio=2. No region gives an empty tensor.
    """
    channels = features[0].shape[1]
    table = as_table(features)
    rows, weights = _taps(features, at_least_float32(boxes), image, level, strides, size, aligned)
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        out = _gather_by_tap(table, rows, weights)
    else:
        out = WeightedGather.apply(table, rows, weights)
    return out.reshape(-1, size, size, channels).permute(0, 3, 1, 2)


def as_table(features: list[Tensor]) -> Tensor:
    """A row of C numbers for each cell of L maps [B,C,H_l,W_l]: level by level, image by image, row by row."""
    return torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]) for feature in features])


@constant
def _level_constants(
    shapes: tuple[tuple[int, int, int], ...], strides: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Constants of L levels of (images, height, width), cached for each bucket.

    Cells per pixel [L], (width, height) [L,2], cells of an image [L], and the level's first row in the table [L].
    """
    starts = [0]
    for images, height, width in shapes:
        starts.append(starts[-1] + images * height * width)
    return (
        torch.tensor([1.0 / stride for stride in strides], dtype=dtype, device=device),
        torch.tensor([(width, height) for _, height, width in shapes], dtype=dtype, device=device),
        # int32 rows: half the memory of int64 to write and to read.
        torch.tensor([height * width for _, height, width in shapes], dtype=torch.int32, device=device),
        torch.tensor(starts[:-1], dtype=torch.int32, device=device),
    )


def _taps(features, boxes, image, level, strides, size, aligned) -> tuple[Tensor, Tensor]:
    """Table rows and weights [R*S*S,16] of every output bin."""
    shapes = tuple((feature.shape[0], *feature.shape[2:]) for feature in features)
    constants = _level_constants(shapes, tuple(strides), boxes.dtype, boxes.device)
    scale, cells, area, start = (part[level] for part in constants)
    boxes = (boxes * scale.unsqueeze(1)).view(-1, 2, 2)
    index, weight = _axes(boxes[:, 0], boxes[:, 1], cells, size, aligned)
    (x, y), (wx, wy) = index.unbind(1), weight.unbind(1)
    origin = start + image.int() * area
    y = origin.view(-1, 1, 1) + y * cells[:, 0].int().view(-1, 1, 1)
    # Both directions are spread to the 16 taps of a bin first, so that the loop over all taps runs along 16 numbers.
    rows = _each(y).unsqueeze(2) + _tiled(x).unsqueeze(1)
    weights = _each(wy).unsqueeze(2) * _tiled(wx).unsqueeze(1)
    return rows.view(-1, 16), weights.view(-1, 16)


def _each(values: Tensor) -> Tensor:
    """Entries of [R,S,4] repeated one by one (aaaabbbb…): [R,S,16]."""
    return values.unsqueeze(3).expand(-1, -1, -1, 4).reshape(*values.shape[:2], 16)


def _tiled(values: Tensor) -> Tensor:
    """Entries of [R,S,4] repeated as a block (abcdabcd…): [R,S,16]."""
    return values.unsqueeze(2).expand(-1, -1, 4, -1).reshape(*values.shape[:2], 16)


@constant
def _positions(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Positions [S*2] of a region's samples, as shares of its extent."""
    return (torch.arange(size * SAMPLES, device=device, dtype=dtype) + 0.5) / (size * SAMPLES)


def _axes(low: Tensor, high: Tensor, cells: Tensor, size: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """Neighbour cells and weights [R,2,S,4] along x and y: 2 samples a bin, 2 neighbours a sample.

    low, high [R,2] corners in cells; cells [R,2] how many the map has.
    """
    if aligned:
        low, extent = low - 0.5, high - low
    else:
        extent = (high - low).clamp(min=1.0)
    sample = low.unsqueeze(2) + _positions(size, low.dtype, low.device) * extent.unsqueeze(2)
    cells = cells.unsqueeze(2)
    inside = ((sample >= -1.0) & (sample <= cells)).to(low.dtype) / SAMPLES
    sample = torch.minimum(sample.clamp(min=0), cells - 1)
    near = sample.floor()
    fraction = sample - near
    far = torch.minimum(near + 1, cells - 1)
    index = torch.stack([near, far], dim=-1).int().view(-1, 2, size, 2 * SAMPLES)
    weight = torch.stack([(1 - fraction) * inside, fraction * inside], dim=-1).view(-1, 2, size, 2 * SAMPLES)
    return index, weight


def _gather_by_tap(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """WeightedGather's forward in operations that ONNX has; one tap at a time, to keep memory at one row."""
    taps = (table.index_select(0, row) * weight.unsqueeze(1) for row, weight in zip(rows.unbind(1), weights.unbind(1)))
    return sum(taps)


class WeightedGather(torch.autograd.Function):
    """out[n] = sum_t weights[n,t] * table[rows[n,t]].

    The backward is the same sum over the transposed pattern, so that it is deterministic and runs on all threads
    (torchvision's CPU backward adds one number at a time on one thread).
    """

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.num_rows = table.shape[0]
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights.to(table.dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        source, first, weights = transpose(*ctx.saved_tensors, ctx.num_rows)
        table = F.embedding_bag(
            source, gradient.contiguous(), first, mode="sum", per_sample_weights=weights.to(gradient.dtype)
        )
        return table, None, None


def transpose(rows: Tensor, weights: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pattern by table row: (n [N*T] ordered by row and within a row by n, first [num_rows], weights [N*T]).

    rows int32, weights [N,T]; entry first[r] is where row r begins.
    """
    if rows.device.type == "cpu" and not torch.compiler.is_compiling():
        return _transpose_by_counting(rows, weights, num_rows)
    ordered, tap = torch.sort(rows.flatten(), stable=True)
    cells = torch.arange(num_rows, device=rows.device, dtype=rows.dtype)
    source = torch.div(tap, rows.shape[1], rounding_mode="floor")
    return source.int(), torch.searchsorted(ordered, cells).int(), weights.flatten()[tap]


def _transpose_by_counting(rows: Tensor, weights: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """`transpose` by scipy's counting sort, in one pass: 1 ns a tap; torch's sort of int32 takes 26 (measured)."""
    bags = np.arange(0, rows.numel() + 1, rows.shape[1], dtype=np.int32)
    by_bag = csr_array((weights.numpy().ravel(), rows.numpy().ravel(), bags), shape=(rows.shape[0], num_rows))
    by_row = by_bag.tocsc()
    return tuple(torch.from_numpy(part) for part in (by_row.indices, by_row.indptr[:-1], by_row.data))


@constant
def _surroundings(
    shapes: tuple[tuple[int, int], ...], radius: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Constants of every cell of maps of the given (height, width), cached for each bucket.

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
