"""Box geometry. Boxes are XYXY in continuous pixel coordinates, without +1."""

import math

import torch
from torch import Tensor

from headstart.ops.fixed_shapes import constant
from headstart.ops.precision import at_least_float32

# exp() of a raw size delta is capped so that one wild prediction cannot overflow: 1000/16 is Detectron's bound,
# an object 62.5 times its anchor.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [...,4]; a negative width or height counts as zero."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp_(min=0)
    return size[..., 0] * size[..., 1]


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Intersection areas [...,N,M] of a [...,N,4] with b [...,M,4]; fastest where M is the larger number."""
    # One plane a coordinate, so that the N x M loops run over consecutive numbers; every temporary is reused.
    a, b = a.movedim(-1, 0).contiguous().unsqueeze(-1), b.movedim(-1, 0).contiguous().unsqueeze(-2)
    width = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0)
    height = torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).clamp_(min=0)
    return width.mul_(height)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [...,N,M] of a [...,N,4] with b [...,M,4]; zero where both are empty."""
    inter = intersection(a, b)
    union = (area(a).unsqueeze(-1) + area(b).unsqueeze(-2)).sub_(inter)
    return inter.div_(union.clamp_(min=torch.finfo(inter.dtype).tiny))


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B,N,4] cut to their images; sizes [B,2] (height, width) in pixels."""
    limit = sizes.flip(-1).to(boxes.dtype).repeat(1, 2).unsqueeze(1)
    return torch.minimum(boxes, limit).clamp_(min=0)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


@constant
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cached constants on a device: a copy of Python numbers to a GPU waits until all its queued work is done."""
    return torch.tensor(values, dtype=dtype, device=device)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Regression targets [...,4] (dx, dy, dw, dh) that move anchors [...,4] onto boxes [...,4].

    The offsets are in units of the anchor's size and multiplied by `weights` (R-CNN, appendix C). Sizes are floored at
    1e-3 pixel so that an empty padding slot gives finite numbers.
    """
    centre, size = _centre_form(boxes)
    anchor_centre, anchor_size = _centre_form(anchors)
    anchor_size = anchor_size.clamp(min=1e-3)
    offset = (centre - anchor_centre) / anchor_size
    scale = torch.log(size.clamp(min=1e-3) / anchor_size)
    return torch.cat([offset, scale], dim=-1) * _on_device(weights, offset.dtype, offset.device)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes [...,4] from raw deltas [...,4] and anchors [...,4]: the inverse of `encode`, in fp32 or better."""
    deltas = at_least_float32(deltas)
    deltas = deltas / _on_device(weights, deltas.dtype, deltas.device)
    anchor_centre, anchor_size = _centre_form(at_least_float32(anchors))
    centre = anchor_centre + deltas[..., :2] * anchor_size
    half = 0.5 * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_size
    return torch.cat([centre - half, centre + half], dim=-1)
