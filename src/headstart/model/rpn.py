"""The region proposal network (Ren et al. 2015, with or without a pyramid): predict, loss, decode.

B images, L levels, A anchors over all levels (cell by cell, ratios and sizes within a cell), P proposals.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.batch import Batch
from headstart.model.regions import SampledIndices, match, sample, take
from headstart.ops.boxes import clip, decode, encode
from headstart.ops.fixed_shapes import constant
from headstart.ops.nms import nms
from headstart.ops.precision import at_least_float32
from headstart.ops.processes import mean_over_processes
from headstart.ops.roi_align import valid_conv, windows

WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # RPN deltas are not rescaled (Detectron, torchvision)
SMOOTH_L1_BETA = 1.0 / 9  # Detectron: SmoothL1 beta of the RPN
SALT = 1


@constant
def anchors_for(
    shapes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    sizes: tuple[tuple[float, ...], ...],
    ratios: tuple[float, ...],
    device: torch.device,
) -> Tensor:
    """All anchors [A,4] of a pyramid with feature maps of the given (height, width), in pixels of the padded image.

    The sizes of each level, within a ratio; ratio is height over width at equal area; centred on cell corners and
    rounded to whole half-sides, as torchvision and Detectron do. Constant for a bucket, hence cached.
    """
    levels = []
    for (height, width), stride, own in zip(shapes, strides, sizes, strict=True):
        root, size = torch.cartesian_prod(torch.tensor(ratios).sqrt(), torch.tensor(own)).unbind(1)
        half = torch.stack([-size / root, -size * root, size / root, size * root], dim=1).div(2).round()
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centre = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
        levels.append((centre + half).view(-1, 4))
    return torch.cat(levels).float().to(device)


@dataclass(frozen=True)
class ProposalLimits:
    """Proposals kept: per level before suppression, per image after it."""

    before_nms: int
    after_nms: int
    nms_threshold: float = 0.7
    min_size: float = 1e-3  # pixels; smaller boxes are rounding noise (torchvision's value)


class Rpn(nn.Module):
    """Shared 3x3 convolution(s) and two 1x1 outputs on every level; `anchor_sizes` lists each level's, equally many."""

    initialiser = "N(0, 0.01)"

    def __init__(
        self,
        channels: int,
        *,
        anchor_sizes: tuple[tuple[float, ...], ...],
        ratios: tuple[float, ...],
        strides: tuple[int, ...],
        num_convs: int,
        num_samples: int,
        positive_fraction: float,
        high: float,
        low: float,
        straddle: float | None,
        train_limits: ProposalLimits,
        test_limits: ProposalLimits,
    ):
        super().__init__()
        self.per_cell = len(ratios) * len(anchor_sizes[0])
        assert all(len(own) == len(anchor_sizes[0]) for own in anchor_sizes)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs))
        self.objectness = nn.Conv2d(channels, self.per_cell, 1)
        self.deltas = nn.Conv2d(channels, 4 * self.per_cell, 1)
        for layer in [*self.convs, self.objectness, self.deltas]:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.anchor_sizes, self.ratios, self.strides = anchor_sizes, ratios, strides
        self.num_samples, self.max_positive = num_samples, int(num_samples * positive_fraction)
        self.high, self.low, self.straddle = high, low, straddle
        self.train_limits, self.test_limits = train_limits, test_limits

    def anchors(self, features: list[Tensor]) -> Tensor:
        """Anchors [A,4] of these feature maps."""
        shapes = tuple((feature.shape[2], feature.shape[3]) for feature in features)
        return anchors_for(shapes, self.strides, self.anchor_sizes, self.ratios, features[0].device)

    def predict(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits [B,A_l] and deltas [B,A_l,4] a level, in the order of the anchors."""
        batch, levels = features[0].shape[0], []
        for x in features:
            for conv in self.convs:
                x = F.relu(conv(x), inplace=True)
            cells = F.linear(x.permute(0, 2, 3, 1).flatten(0, 2), *self._outputs())
            levels.append(cells.view(batch, -1, 5 * self.per_cell))
        num, counts = self.per_cell, [self.per_cell * level.shape[1] for level in levels]
        logits, deltas = at_least_float32(torch.cat(levels, dim=1)).split([num, 4 * num], dim=2)
        return list(logits.reshape(batch, -1).split(counts, 1)), list(deltas.reshape(batch, -1, 4).split(counts, 1))

    def predict_at(self, features: list[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B,K] and deltas [B,K,4] of the anchors `index` [B,K] alone, equal to those of `predict`.

        Training samples a few hundred anchors an image, so nearly all gradients of `predict` are zeros, and computing
        with them is a tenth of a training step. Here each anchor's surroundings are cut out, and only those computed.
        """
        cell, kind = index.flatten() // self.per_cell, index.flatten() % self.per_cell
        image = torch.arange(index.shape[0], device=index.device).unsqueeze(1).expand_as(index).flatten()
        values, inside = windows(features, cell, image, radius=len(self.convs))
        for depth, conv in enumerate(self.convs, start=1):
            values = F.relu(valid_conv(values, conv.weight, conv.bias), inplace=True)
            if depth < len(self.convs):  # the next convolution pads with zeros
                edge = slice(depth, inside.shape[1] - depth)
                values = values * inside[:, edge, edge].unsqueeze(3)
        found = at_least_float32(F.linear(values.flatten(1), *self._outputs()))
        logits, deltas = found[:, : self.per_cell], found[:, self.per_cell :].view(-1, self.per_cell, 4)
        logits = logits.gather(1, kind.unsqueeze(1)).view(index.shape)
        return logits, deltas.gather(1, kind.view(-1, 1, 1).expand(-1, 1, 4)).view(*index.shape, 4)

    def _outputs(self) -> tuple[Tensor, Tensor]:
        """Both 1x1 outputs as one matrix product over the cells, which in channels-last memory are rows already.

        A convolution of so few channels is slow on a CPU, and its gradients would arrive in pieces of another layout.
        """
        weight = torch.cat([self.objectness.weight, self.deltas.weight]).flatten(1)
        return weight, torch.cat([self.objectness.bias, self.deltas.bias])

    @torch.no_grad()
    def targets(self, anchors: Tensor, batch: Batch, keys: Tensor) -> tuple[SampledIndices, Tensor]:
        """Sampled anchors [B,K] of a batch, and target deltas [B,P,4] of the first P, which include all positives.

        anchors [A,4] pixels of the padded batch; keys [B] choose the sample. Anchors between the two IoU thresholds,
        and those on crowds, take no part. An image without objects gives negatives only.
        """
        objects, inside = (batch.gt_boxes, batch.gt_valid, batch.gt_crowd), self._inside(anchors, batch.sizes)
        labels, matched = match(anchors, *objects, high=self.high, low=self.low, low_quality=True, inside=inside)
        chosen = sample(labels, keys, num=self.num_samples, max_positive=self.max_positive, salt=SALT)
        # Positives come first: the box loss needs to look no further.
        head = min(self.max_positive, chosen.index.shape[1])
        gt = take(batch.gt_boxes, take(matched, chosen.index[:, :head]))
        return chosen, encode(gt, anchors[chosen.index[:, :head]], WEIGHTS)

    def loss(self, logits: Tensor, deltas: Tensor, chosen: SampledIndices, wanted: Tensor) -> dict[str, Tensor]:
        """Objectness and box losses of the anchors and deltas of `targets`: logits [B,K], deltas [B,K,4], raw outputs.

        Both terms are divided by the number of sampled anchors (Detectron's rule; eq. 1 of 1506.01497 divides the box
        term by the number of locations instead).
        """
        positive, valid = chosen.positive.to(logits.dtype), chosen.valid.to(logits.dtype)
        count = mean_over_processes(valid.sum()).clamp(min=1.0)
        objectness = F.binary_cross_entropy_with_logits(logits, positive, weight=valid, reduction="sum")
        head = wanted.shape[1]
        box = F.smooth_l1_loss(deltas[:, :head], wanted, beta=SMOOTH_L1_BETA, reduction="none").sum(2)
        return {"rpn_objectness": objectness / count, "rpn_box": (box * positive[:, :head]).sum() / count}

    def _inside(self, anchors: Tensor, sizes: Tensor) -> Tensor | None:
        if self.straddle is None:
            return None
        height, width = sizes[:, :1] + self.straddle, sizes[:, 1:] + self.straddle
        return (
            (anchors[:, 0] >= -self.straddle)
            & (anchors[:, 1] >= -self.straddle)
            & (anchors[:, 2] <= width)
            & (anchors[:, 3] <= height)
        )

    @torch.no_grad()
    def decode(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: Tensor, sizes: Tensor, limits: ProposalLimits
    ) -> tuple[Tensor, Tensor]:
        """Proposals [B,P,4] in pixels, best first, and which of them are real [B,P].

        Per level: the best `before_nms`, decoded and cut to the image, then suppression; then the best `after_nms` of
        all.
        """
        counts = [level.shape[1] for level in logits]
        starts = [sum(counts[:level]) for level in range(len(counts))]
        best = [torch.topk(level, min(limits.before_nms, level.shape[1]), dim=1) for level in logits]
        index = torch.cat([top.indices + start for top, start in zip(best, starts)], dim=1)
        boxes = clip(decode(take(torch.cat(deltas, dim=1), index), anchors[index], WEIGHTS), sizes)
        valid = ((boxes[..., 2:] - boxes[..., :2]) >= limits.min_size).all(dim=2)
        # Levels do not suppress one another.
        split = [top.indices.shape[1] for top in best]
        parts = zip(boxes.split(split, dim=1), valid.split(split, dim=1))
        keep = torch.cat([nms(*part, limits.nms_threshold) for part in parts], dim=1)
        score = torch.cat([top.values for top in best], dim=1).masked_fill(~keep, -torch.inf)
        score, index = torch.topk(score, min(limits.after_nms, score.shape[1]), dim=1)
        return take(boxes, index), score > -torch.inf
