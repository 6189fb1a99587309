"""Matching and sampling with outputs of fixed size.

B images, N candidates (anchors or proposals), G ground-truth slots, K samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.ops.boxes import area, intersection, iou
from headstart.ops.random import uniform

# A candidate with more than this share of its area on a crowd region is neither positive nor negative
# (Detectron: TRAIN.CROWD_FILTER_THRESH).
CROWD_SHARE = 0.7


@dataclass(frozen=True)
class Assignment:
    """labels [B,N]: 1 positive, 0 negative, -1 takes no part; matched [B,N] the slot of the best ground truth."""

    labels: Tensor
    matched: Tensor


def match(
    candidates: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    gt_crowd: Tensor,
    *,
    high: float,
    low: float,
    low_quality: bool,
    inside: Tensor | None = None,
) -> Assignment:
    """Assign candidates [N,4] or [B,N,4] to ground truth [B,G,4] by IoU.

    IoU >= `high` is positive, below `low` negative, between them neither. With `low_quality` the best candidates of
    every object are positive whatever their IoU, ties included, but never at IoU 0 (Faster R-CNN, 3.1.2). Candidates on
    crowd regions, or not `inside` [B,N], take no part. An image without objects has negatives only.
    """
    # Boxes that must match nothing are emptied: IoU 0. In [B,G,N] the many candidates are innermost, so that every loop
    # over the overlaps is long and contiguous, and broadcast masks, which are not, are avoided.
    real = gt_boxes * (gt_valid & ~gt_crowd).unsqueeze(2)
    overlap = iou(real, candidates if inside is None else candidates * inside.unsqueeze(2))
    best, matched = overlap.max(dim=1)
    labels = (best >= high).char().sub_(((best < high) & (best >= low)).char())
    if low_quality:
        top = overlap.amax(dim=2, keepdim=True)
        difference = overlap.sub_(top.masked_fill_(top <= 0, 2.0))  # 0 exactly where a candidate is the best of one
        labels.masked_fill_(difference.amax(dim=1) == 0, 1)
    labels.masked_fill_((labels != 1) & _on_crowd(candidates, gt_boxes, gt_valid & gt_crowd), -1)
    if inside is not None:
        labels.masked_fill_(~inside, -1)
    return Assignment(labels, matched)


def _on_crowd(candidates: Tensor, gt_boxes: Tensor, crowd: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and crowd.device.type == "cpu" and not bool(crowd.any()):
        return torch.zeros((), dtype=torch.bool)  # crowds are rare: save the second pass over all pairs
    share = intersection(gt_boxes, candidates) / area(candidates).unsqueeze(-2).clamp(min=1e-6)
    return ((share > CROWD_SHARE) & crowd.unsqueeze(2)).any(dim=1)


@dataclass(frozen=True)
class SampledIndices:
    """K chosen candidates an image: index [B,K] into them; positive, valid [B,K] bool. Positives come first."""

    index: Tensor
    positive: Tensor
    valid: Tensor


def sample(labels: Tensor, keys: Tensor, *, num: int, max_positive: int, salt: int) -> SampledIndices:
    """A uniform random choice without replacement of up to `max_positive` positives, filled up with negatives.

    labels [B,N] as in Assignment; the choice is a function of keys [B] int64 and `salt`. Two top-k on random keys, so
    that shapes are fixed: slots that could not be filled are not valid.
    """
    chance = uniform(keys, labels.shape[1], salt=salt)
    num = min(num, labels.shape[1])
    positive_key = torch.where(labels == 1, chance, -1.0)
    value, index = torch.topk(positive_key, min(max_positive, num), dim=1)
    chosen = torch.zeros_like(labels, dtype=torch.bool).scatter(1, index, value >= 0)
    key = torch.where(chosen, 2.0 + chance, torch.where(labels == 0, 1.0 + 0.5 * chance, -1.0))
    value, index = torch.topk(key, num, dim=1)
    return SampledIndices(index, value >= 2.0, value >= 1.0)


def take(values: Tensor, index: Tensor) -> Tensor:
    """values [B,N] or [B,N,D] at index [B,K]: [B,K] or [B,K,D]."""
    if values.dim() == 2:
        return values.gather(1, index)
    return values.gather(1, index.unsqueeze(2).expand(-1, -1, values.shape[2]))
