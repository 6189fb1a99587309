"""Regions: sampled proposals with their targets, and their pooled features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.batch import Batch
from headstart.model.targets import match, sample, take
from headstart.ops.fixed_shapes import pool_slots
from headstart.ops.random import uniform
from headstart.ops.roi_align import assign_levels, roi_align

SALT = 2


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
    matches = match(
        candidates,
        batch.gt_boxes,
        batch.gt_valid,
        batch.gt_crowd,
        high=iou_threshold,
        low=iou_threshold,
        low_quality=False,
        inside=inside,
    )
    chosen = sample(matches.labels, keys, num=num, max_positive=max_positive, salt=SALT)
    gt = take(matches.matched, chosen.index)
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
    matches = match(
        boxes,
        batch.gt_boxes,
        batch.gt_valid,
        batch.gt_crowd,
        high=iou_threshold,
        low=iou_threshold,
        low_quality=False,
        inside=inside,
    )
    positive = matches.labels == 1
    labels = torch.where(positive, take(batch.gt_labels, matches.matched), num_classes)
    return Regions(boxes, labels, matches.matched, positive, matches.labels >= 0, boxes.shape[1])


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
        """[R,C,S,S] from features P2.. [B,C,H_l,W_l], boxes [R,4] pixels, image [R] index into the batch."""
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


def image_index(boxes: Tensor) -> Tensor:
    """For boxes [B,R,4]: the image [B*R] each belongs to."""
    return torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
