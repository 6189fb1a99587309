"""CornerNet (Law and Deng 2018) as in the paper's figure: a backbone, and a box as a pair of corners.

B images, C classes, K corners of a kind, N pairs. Shapes depend on the limits alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.batch import Batch, Detections
from headstart.model import Predictor
from headstart.model.backbones import Backbone
from headstart.model.box_head import DetectionLimits
from headstart.model.corner_head import CornerHead, CornerMaps, corner_targets
from headstart.model.detector import without_empty_slots
from headstart.model.pyramid import Pyramid
from headstart.model.regions import take
from headstart.ops.boxes import clip
from headstart.ops.nms import soft_nms


@dataclass(frozen=True)
class PairLimits:
    """Corners of a kind, pairs of an image, the largest distance of two embeddings, and sigma of soft-NMS."""

    num_corners: int
    num_pairs: int
    distance: float
    sigma: float


@dataclass(frozen=True)
class Corners:
    """The best corners of a kind: scores, labels and embeddings [B,K], places [B,K,2] (x, y) in pixels."""

    scores: Tensor
    labels: Tensor
    embeddings: Tensor
    places: Tensor


@torch.no_grad()
def best_corners(maps: CornerMaps, num: int, stride: int) -> Corners:
    """Local maxima (3x3 cells) of the heat maps with the highest scores, over all classes; others have score 0."""
    heat = maps.heat.sigmoid()
    heat = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    width = heat.shape[3]
    cells = heat.shape[2] * width
    scores, index = torch.topk(heat.flatten(1), min(num, heat.shape[1] * cells), dim=1)
    cell = index % cells
    x, y = cell % width, torch.div(cell, width, rounding_mode="floor")
    places = torch.stack([x, y], dim=2) + maps.offset.flatten(2).gather(2, cell.unsqueeze(1).expand(-1, 2, -1)).mT
    label = torch.div(index, cells, rounding_mode="floor")
    return Corners(scores, label, maps.embedding.flatten(1).gather(1, cell), places * stride)


@torch.no_grad()
def pair(corners: list[Corners], limits: PairLimits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best pairs of top left and bottom right corners: boxes [B,N,4] in pixels, scores, labels, valid [B,N].

    A pair has one class, near embeddings, two local maxima, and its bottom right corner neither left of nor above the
    other. Its score is the mean of both.
    """
    first, second = corners
    num_first, num_second = first.scores.shape[1], second.scores.shape[1]
    low, high = first.places.unsqueeze(2), second.places.unsqueeze(1)
    scores = (first.scores.unsqueeze(2) + second.scores.unsqueeze(1)) / 2
    valid = first.labels.unsqueeze(2) == second.labels.unsqueeze(1)
    valid &= (first.scores > 0).unsqueeze(2) & (second.scores > 0).unsqueeze(1)
    valid &= (first.embeddings.unsqueeze(2) - second.embeddings.unsqueeze(1)).abs() <= limits.distance
    valid &= (high >= low).all(dim=3)
    flat = scores.masked_fill(~valid, -1.0).flatten(1)
    scores, index = torch.topk(flat, min(limits.num_pairs, num_first * num_second), dim=1)
    own = torch.div(index, num_second, rounding_mode="floor")
    boxes = torch.cat([take(first.places, own), take(second.places, index % num_second)], dim=2)
    return boxes, scores, take(first.labels, own), scores >= 0


@torch.no_grad()
def decode(
    maps: list[CornerMaps], sizes: Tensor, *, stride: int, mirrored: bool, pairs: PairLimits, limits: DetectionLimits
) -> Detections:
    """Detections in pixels, cut to sizes [B,2]; `mirrored`: the maps' second half are of the images' mirror images."""
    boxes, scores, labels, valid = pair([best_corners(each, pairs.num_corners, stride) for each in maps], pairs)
    if mirrored:
        width = maps[0].heat.shape[3] * stride
        own, other = boxes.chunk(2)
        x1, y1, x2, y2 = other.unbind(2)
        boxes = torch.cat([own, torch.stack([width - x2, y1, width - x1, y2], dim=2)], dim=1)
        scores, labels, valid = (torch.cat(each.chunk(2), dim=1) for each in (scores, labels, valid))
    boxes = clip(boxes, sizes)
    valid = valid & ((boxes[..., 2:] - boxes[..., :2]) >= limits.min_size).all(dim=2)
    index, scores = soft_nms(boxes, scores, labels, valid, sigma=pairs.sigma, num=limits.num)
    found = scores > limits.score_threshold
    return Detections(take(boxes, index), scores.clamp(min=0), take(labels, index), found)


class CornerNet(nn.Module):
    """A one-stage detector of boxes by their corners, which keeps `AnyDetector`.

    One head a map of stride `stride`: the maps of the backbone (a stack of an hourglass each), or the finest of
    `pyramid`. Training averages the losses of all heads; prediction uses the last. With `flip` a prediction joins the
    pairs of an image and its mirror image.
    """

    kinds = ("box",)
    keypoint_mirror: tuple[int, ...] = ()

    def __init__(
        self,
        backbone: Backbone,
        pyramid: Pyramid | None,
        heads: Sequence[CornerHead],
        *,
        stride: int,
        min_iou: float,
        flip: bool,
        pairs: PairLimits,
        limits: DetectionLimits,
    ):
        super().__init__()
        self.backbone, self.pyramid, self.heads = backbone, pyramid, nn.ModuleList(heads)
        self.stride, self.min_iou, self.flip, self.pairs, self.limits = stride, min_iou, flip, pairs, limits

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, each a scalar, finite and connected to every parameter even without objects."""
        batch = without_empty_slots(batch)
        maps = self._maps(batch.images)
        size = (maps[0].shape[2], maps[0].shape[3])
        num_classes = self.heads[0].num_classes
        targets = corner_targets(batch, num_classes=num_classes, size=size, stride=self.stride, min_iou=self.min_iou)
        found = [head.loss(head.predict(each), *targets) for head, each in zip(self.heads, maps, strict=True)]
        return {f"corner_{name}": sum(losses[name] for losses in found) / len(found) for name in found[0]}

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone(images)
        return maps if self.pyramid is None else self.pyramid(maps)

    def predictors(self) -> tuple[Predictor, ...]:
        """The last layer of every heat map."""
        layers = [
            f"heads.{n}.{corner}.heat.2." for n in range(len(self.heads)) for corner in ("top_left", "bottom_right")
        ]
        return (Predictor("classes", tuple(layers), f"{layers[0]}weight"),)

    def initialisers(self) -> dict[str, str]:
        """Initial values of each part in words."""
        own = {} if self.pyramid is None else {"pyramid": self.pyramid.initialiser}
        return own | {"heads": CornerHead.initialiser}

    @torch.no_grad()
    def predict(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detections of images [B,3,H,W] (normalised, padded) with sizes [B,2] (height, width) before padding."""
        features = self.features(images)
        return self.complete(features, self.find(features, sizes))

    def features(self, images: Tensor) -> list[Tensor]:
        """The map that the last head predicts from; with `flip` [2B,...], the images' own before their mirrors'."""
        return self._maps(torch.cat([images, images.flip(3)]) if self.flip else images)[-1:]

    @torch.no_grad()
    def find(self, features: list[Tensor], sizes: Tensor) -> Detections:
        """Detections of boxes."""
        options = {"stride": self.stride, "mirrored": self.flip, "pairs": self.pairs, "limits": self.limits}
        return decode(self.heads[-1].predict(features[0]), sizes, **options)

    def complete(self, features: list[Tensor], detections: Detections) -> Detections:
        """The same detections: there is nothing to add to boxes."""
        return detections
