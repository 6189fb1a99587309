"""CornerNet (Law and Deng 2018) as in the paper's figure: a backbone, and a box as a pair of corners."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headstart.batch import Batch, Detections
from headstart.model import Predictor
from headstart.model.backbones import Backbone
from headstart.model.box_head import DetectionLimits
from headstart.model.corners.head import CornerHead
from headstart.model.corners.pairs import PairLimits, decode
from headstart.model.corners.targets import corner_targets
from headstart.model.detector import without_empty_slots
from headstart.model.pyramid import Pyramid


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
