"""Cascade R-CNN (Cai and Vasconcelos 2018): box heads one after another, each on the boxes that the one before it made.

B images, R regions, C classes. `heads` are the stages in order; a plain detector is a cascade of one.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from headstart.batch import Batch
from headstart.model.box_head import BoxHead
from headstart.model.regions import Regions, match_again
from headstart.ops.boxes import clip, decode


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(context, features: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None


def cascade_loss(
    heads: Sequence[BoxHead], features: list[Tensor], regions: Regions, batch: Batch, *, thresholds: Sequence[float]
) -> tuple[dict[str, Tensor], Regions]:
    """Losses of all stages, and the regions of the last one.

    The sampled regions stay the same set: a later stage has them where the stage before moved them, without gradient,
    matched again at its own IoU of `thresholds`. With several stages names end in _1, _2, ...; all losses count in
    full, but the gradient that reaches `features` is divided by the number of stages. That is the average of the
    losses with the heads' own gradients scaled up again: the authors' rule, as Detectron2 and tensorpack have it.
    """
    if len(heads) > 1:
        features = [_ScaleGradient.apply(level, 1.0 / len(heads)) for level in features]
    logits, deltas = heads[0].predict(features, regions.boxes, regions.valid)
    losses = [heads[0].loss(logits, deltas, regions, batch.gt_boxes)]
    for before, head, threshold in zip(heads, heads[1:], thresholds[1:]):
        boxes = _moved(before, deltas.detach(), regions.boxes, batch.sizes)
        regions = match_again(boxes, regions, batch, num_classes=head.num_classes, iou_threshold=threshold)
        logits, deltas = head.predict(features, regions.boxes, regions.valid)
        losses.append(head.loss(logits, deltas, regions, batch.gt_boxes))
    if len(heads) == 1:
        return losses[0], regions
    return {f"{name}_{k + 1}": value for k, own in enumerate(losses) for name, value in own.items()}, regions


def cascade_predict(
    heads: Sequence[BoxHead], features: list[Tensor], boxes: Tensor, valid: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Class scores [B,R,C+1], the mean over all stages, with the last one's deltas and the boxes [B,R,4] they move.

    boxes [B,R,4] are proposals in pixels; sizes [B,2] cut what each stage makes of them.
    """
    logits, deltas = heads[0].predict(features, boxes, valid)
    scores = [logits.softmax(dim=2)]
    for before, head in pairwise(heads):
        boxes = _moved(before, deltas, boxes, sizes)
        logits, deltas = head.predict(features, boxes, valid)
        scores.append(logits.softmax(dim=2))
    return torch.stack(scores).mean(dim=0), deltas, boxes


def _moved(head: BoxHead, deltas: Tensor, boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B,R,4] moved by a stage's deltas [B,R,4], one box for all classes, and cut to their images."""
    return clip(decode(deltas, boxes, head.weights), sizes)
