"""Regions: candidates matched to objects, sampled with their targets, and their pooled features.

B images, N candidates (anchors or proposals), G ground-truth slots, K samples, R regions. Outputs have fixed sizes.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from headstart.batch import Batch
from headstart.model.pyramid import ConvNorm
from headstart.ops.boxes import area, intersection, iou
from headstart.ops.fixed_shapes import pool_slots
from headstart.ops.random import uniform
from headstart.ops.roi_align import assign_levels, roi_align

SALT = 2
# A candidate with more than this share of its area on a crowd region is neither positive nor negative
# (Detectron: TRAIN.CROWD_FILTER_THRESH).
CROWD_SHARE = 0.7


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
) -> tuple[Tensor, Tensor]:
    """Labels [B,N] of candidates [N,4] or [B,N,4], and the slot [B,N] of ground truth [B,G,4] with the best IoU.

    Labels: 1 positive, 0 negative, -1 takes no part. IoU >= `high` is positive, below `low` negative, between them
    neither. With `low_quality` the best candidates of every object are positive whatever their IoU, ties included, but
    never at IoU 0 (Faster R-CNN, 3.1.2). Candidates on crowd regions, or not `inside` [B,N], take no part. An image
    without objects has negatives only.
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
    return labels, matched


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

    labels [B,N] as `match` gives them; the choice is a function of keys [B] int64 and `salt`. Two top-k on random keys,
    so that shapes are fixed: slots that could not be filled are not valid.
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


@dataclass(frozen=True)
class Regions:
    """R sampled regions an image with their targets.

    boxes [B,R,4] pixels; labels [B,R] in 0..C-1, or C for background; gt [B,R] the slot of the object;
    positive, valid [B,R] bool; a slot that is not valid carries no weight. Positives lie in the first `leading` slots.
    """

    boxes: Tensor
    labels: Tensor
    gt: Tensor
    positive: Tensor
    valid: Tensor
    leading: int


@torch.no_grad()
def sample_regions(
    proposals: Tensor,
    proposal_valid: Tensor,
    batch: Batch,
    keys: Tensor,
    *,
    num_classes: int,
    iou_threshold: float,
    num: int,
    max_positive: int,
) -> Regions:
    """Sample `num` regions an image from proposals [B,P,4] joined with the ground truth.

    At most `max_positive` with IoU >= `iou_threshold`, the rest from below it. keys [B] decide the choice.
    """
    candidates = torch.cat([proposals, batch.gt_boxes], dim=1)
    inside = torch.cat([proposal_valid, batch.gt_valid & ~batch.gt_crowd], dim=1)
    objects = (batch.gt_boxes, batch.gt_valid, batch.gt_crowd)
    rule = {"high": iou_threshold, "low": iou_threshold, "low_quality": False}
    found, matched = match(candidates, *objects, **rule, inside=inside)
    chosen = sample(found, keys, num=num, max_positive=max_positive, salt=SALT)
    gt = take(matched, chosen.index)
    labels = torch.where(chosen.positive, take(batch.gt_labels, gt), num_classes)
    leading = min(max_positive, labels.shape[1])  # positives come first
    return Regions(take(candidates, chosen.index), labels, gt, chosen.positive, chosen.valid, leading)


@torch.no_grad()
def match_again(boxes: Tensor, regions: Regions, batch: Batch, *, num_classes: int, iou_threshold: float) -> Regions:
    """The same regions with new boxes [B,R,4] and the targets of these.

    IoU >= `iou_threshold` is positive, below it negative; any slot may be either now. Slots that were not valid
    stay so; empty boxes (outside their image after clipping) and those on a crowd become so.
    """
    inside = regions.valid & (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    objects = (batch.gt_boxes, batch.gt_valid, batch.gt_crowd)
    rule = {"high": iou_threshold, "low": iou_threshold, "low_quality": False}
    found, matched = match(boxes, *objects, **rule, inside=inside)
    labels = torch.where(found == 1, take(batch.gt_labels, matched), num_classes)
    return Regions(boxes, labels, matched, found == 1, found >= 0, boxes.shape[1])


def pool_regions(
    regions: Regions, flags: Tensor, keys: Tensor, *, slots: int, salt: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The flagged among the first P regions (flags [B,P]), pooled over the batch into S = `slots` an image.

    Returns boxes [S,4], image [S], the slot of their object [S], chosen [S] bool. Those that overflow are random.
    """
    head = flags.shape[1]
    index, chosen = pool_slots(flags.flatten(), slots * len(flags), uniform(keys, head, salt=salt).flatten())
    image, gt = torch.div(index, head, rounding_mode="floor"), regions.gt[:, :head].flatten()[index]
    return regions.boxes[:, :head].flatten(0, 1)[index], image, gt, chosen


@dataclass(frozen=True)
class RegionPooler:
    """Fixed-size features of regions, each from the pyramid level of its size."""

    size: int
    strides: tuple[int, ...]
    canonical_size: float = 224.0  # pixels: the region that belongs on level 4, ImageNet's crop (FPN, eq. 1)
    aligned: bool = True

    def __call__(self, features: list[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Features [R,C,S,S] from maps P2.. [B,C,H_l,W_l], boxes [R,4] pixels, image [R] index into the batch."""
        boxes = boxes.nan_to_num(0.0)  # of a diverged net: report its loss, not an index error
        low = self.strides[0].bit_length() - 1
        level = assign_levels(
            boxes, min_level=low, max_level=low + len(self.strides) - 1, canonical_size=self.canonical_size
        )
        return roi_align(
            features[: len(self.strides)],
            boxes,
            image,
            level - low,
            strides=[float(s) for s in self.strides],
            size=self.size,
            aligned=self.aligned,
        )


class RegionConvs(nn.ModuleList):
    """Pooled features of regions after `num` 3x3 convolutions with normalisation and ReLU; `num` may be 0."""

    def __init__(
        self, in_channels: int, pooler: RegionPooler, *, num: int, channels: int, norm_kind: str, norm_groups: int
    ):
        widths = [in_channels] + [channels] * num
        norms = {"norm_kind": norm_kind, "norm_groups": norm_groups}
        super().__init__(ConvNorm(a, b, 3, relu=True, **norms) for a, b in pairwise(widths))
        self.pooler, self.channels = pooler, widths[-1]

    def forward(self, features: list[Tensor], boxes: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """Features [R,C,S,S] of boxes [R,4] in pixels.

        image [R] index into the batch; valid [R] keeps padding out of batch statistics.
        """
        x, weight = self.pooler(features, boxes, image), valid.float()
        for conv in self:
            x = conv(x, weight)
        return x


def image_index(boxes: Tensor) -> Tensor:
    """Index [B*R] of the image to which each of boxes [B,R,4] belongs."""
    return torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
