"""Box head and Cascade R-CNN: 2fc (Fast R-CNN on a pyramid) or 4conv1fc (with a norm: the paper's).

B images, R regions, C classes (background is C). A cascade (Cai and Vasconcelos 2018) is a sequence of box heads, each
on the boxes of the one before; a plain detector is a cascade of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.batch import Batch, Detections
from headstart.model.pyramid import initialise_convolutions
from headstart.model.regions import RegionConvs, Regions, image_index, match_again, take
from headstart.ops.boxes import clip, decode, encode
from headstart.ops.nms import nms_by_label
from headstart.ops.precision import at_least_float32
from headstart.ops.processes import mean_over_processes
from headstart.ops.products import linear

Weights = tuple[float, float, float, float]


@dataclass(frozen=True)
class DetectionLimits:
    """Limits on detections; the base recipe has the paper's test settings (Detectron)."""

    score_threshold: float
    nms_threshold: float
    num: int
    # Candidates (region, class) an image that enter suppression: a cap for fixed shapes, far above what passes the
    # score threshold in practice (at a threshold of 0.05 a region can pass in at most 19 classes).
    num_candidates: int = 4096
    min_size: float = 1e-2  # pixels (torchvision's value)


class BoxHead(nn.Module):
    """Classifies regions and refines their boxes."""

    initialiser = "MSRA; fc Xavier uniform; classes N(0, 0.01), boxes N(0, 0.001)"

    def __init__(
        self,
        convs: RegionConvs,
        *,
        num_classes: int,
        fcs: int,
        fc_width: int,
        class_agnostic: bool,
        weights: Weights,
        smooth_l1_beta: float,
    ):
        super().__init__()
        self.convs, self.num_classes, self.weights, self.beta = convs, num_classes, weights, smooth_l1_beta
        inputs = [convs.channels * convs.pooler.size**2] + [fc_width] * fcs
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(inputs))
        self.classify = nn.Linear(inputs[-1], num_classes + 1)
        self.regress = nn.Linear(inputs[-1], 4 if class_agnostic else 4 * num_classes)
        initialise_convolutions(self.convs)
        for layer in self.fcs:  # XavierFill
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.normal_(self.regress.weight, std=0.001)
        for layer in [*self.fcs, self.classify, self.regress]:
            nn.init.zeros_(layer.bias)

    def predict(self, features: list[Tensor], boxes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B,R,C+1] and deltas [B,R,4C] (or 4) of boxes [B,R,4] in pixels; valid [B,R] marks real ones."""
        x = self.convs(features, boxes.flatten(0, 1), image_index(boxes), valid.flatten())
        x = F.relu(self._first_fc(x), inplace=True)
        for fc in self.fcs[1:]:
            x = F.relu(linear(x, fc.weight, fc.bias), inplace=True)
        shape = boxes.shape[:2]
        logits, deltas = at_least_float32(self.classify(x)), at_least_float32(self.regress(x))
        return logits.view(*shape, -1), deltas.view(*shape, -1)

    def _first_fc(self, x: Tensor) -> Tensor:
        """The first fc on x [R,C,S,S]. Its weights count channels before cells, as torchvision's and Detectron's do.

        In memory x has the channels last, so the weights are turned instead of x: there are fewer of them, and the
        gradient comes back in x's own layout.
        """
        fc, channels = self.fcs[0], x.shape[1]
        weight = fc.weight.view(-1, channels, *x.shape[2:]).permute(0, 2, 3, 1).flatten(1)
        return linear(x.permute(0, 2, 3, 1).flatten(1), weight, fc.bias)

    def loss(self, logits: Tensor, deltas: Tensor, regions: Regions, gt_boxes: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over all sampled regions and smooth L1 over the positive ones.

        logits [B,R,C+1], deltas [B,R,4C] (or 4); gt_boxes [B,G,4]. Both are divided by the number of sampled regions
        (Fast R-CNN with Detectron's normaliser). No valid region gives two zeros.
        """
        count = mean_over_processes(regions.valid.to(logits.dtype).sum()).clamp(min=1.0)
        losses = F.cross_entropy(logits.flatten(0, 1), regions.labels.flatten(), reduction="none")
        classify = (losses * regions.valid.flatten()).sum() / count
        head = regions.leading
        targets = encode(take(gt_boxes, regions.gt[:, :head]), regions.boxes[:, :head], self.weights)
        chosen = self._of_label(deltas[:, :head], regions.labels[:, :head])
        box = F.smooth_l1_loss(chosen, targets, beta=self.beta, reduction="none").sum(2)
        return {"box_class": classify, "box_delta": (box * regions.positive[:, :head]).sum() / count}

    def _of_label(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """The four deltas [B,R,4] of each region's class; background takes class 0's, to be weighted away."""
        if deltas.shape[2] == 4:
            return deltas
        index = torch.where(labels == self.num_classes, 0, labels).view(*labels.shape, 1, 1).expand(-1, -1, 1, 4)
        return deltas.view(*labels.shape, -1, 4).gather(2, index).squeeze(2)

    @torch.no_grad()
    def decode(
        self, scores: Tensor, deltas: Tensor, proposals: Tensor, valid: Tensor, sizes: Tensor, limits: DetectionLimits
    ) -> Detections:
        """Detections from class scores [B,R,C+1] and raw deltas on proposals [B,R,4] in pixels, cut to sizes [B,2]."""
        scores = scores[..., :-1].masked_fill(~valid.unsqueeze(2), 0.0)
        num_classes = self.num_classes
        flat = scores.flatten(1)
        score, index = torch.topk(flat, min(limits.num_candidates, flat.shape[1]), dim=1)
        region, label = torch.div(index, num_classes, rounding_mode="floor"), index % num_classes
        if deltas.shape[2] == 4:
            chosen = take(deltas, region)
        else:
            chosen = take(deltas.reshape(deltas.shape[0], -1, 4), index)
        boxes = clip(decode(chosen, take(proposals, region), self.weights), sizes)
        real = (score > limits.score_threshold) & ((boxes[..., 2:] - boxes[..., :2]) >= limits.min_size).all(dim=2)
        keep = nms_by_label(boxes, score, label, real, limits.nms_threshold)
        score, best = torch.topk(score.masked_fill(~keep, -1.0), min(limits.num, score.shape[1]), dim=1)
        return Detections(take(boxes, best), score.clamp(min=0), take(label, best), score > 0)


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

    All stages use the same sampled regions: each later one at the boxes that the stage before predicted, without
    gradient, matched again at its own IoU of `thresholds`. With several stages names end in _1, _2, ...; all losses
    count in full, but the gradient that reaches `features` is divided by the number of stages. That is the average of
    the losses with the heads' own gradients scaled up again: the authors' rule, as Detectron2 and tensorpack have it.
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
    """Class scores [B,R,C+1], the mean over stages; the last stage's deltas and the boxes [B,R,4] they apply to.

    boxes [B,R,4] are proposals in pixels; the boxes of each stage are clipped to sizes [B,2].
    """
    logits, deltas = heads[0].predict(features, boxes, valid)
    scores = [logits.softmax(dim=2)]
    for before, head in pairwise(heads):
        boxes = _moved(before, deltas, boxes, sizes)
        logits, deltas = head.predict(features, boxes, valid)
        scores.append(logits.softmax(dim=2))
    return torch.stack(scores).mean(dim=0), deltas, boxes


def _moved(head: BoxHead, deltas: Tensor, boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B,R,4] of a stage's class-agnostic deltas [B,R,4], clipped to their images."""
    return clip(decode(deltas, boxes, head.weights), sizes)
