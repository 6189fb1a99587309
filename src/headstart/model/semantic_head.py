"""Semantic segmentation by the branch of Panoptic FPN (Kirillov et al. 2019, section 3.2).

B images of H x W pixels (padded), C classes. The branch works at stride 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.batch import IGNORE_LABEL, PixelBatch
from headstart.model import Predictor
from headstart.model.backbones import Backbone
from headstart.model.pyramid import ConvNorm, Pyramid, initialise_convolutions
from headstart.ops.precision import at_least_float32
from headstart.ops.processes import mean_over_processes

STRIDE = 4


class SemanticHead(nn.Module):
    """Brings every level of the pyramid to stride 4, sums them, and classifies each cell."""

    initialiser = "MSRA, fan-out"

    def __init__(
        self,
        channels: int,
        strides: tuple[int, ...],
        *,
        num_classes: int,
        width: int,
        norm_kind: str,
        norm_groups: int,
        weight: float,
    ):
        super().__init__()
        self.num_classes, self.weight = num_classes, weight
        options = {"norm_kind": norm_kind, "norm_groups": norm_groups, "relu": True}
        # log2(stride / 4) times a convolution and a doubling; on the finest level one convolution
        self.doublings = tuple((stride // STRIDE).bit_length() - 1 for stride in strides)
        self.levels = nn.ModuleList(
            nn.ModuleList(ConvNorm(channels if n == 0 else width, width, 3, **options) for n in range(max(times, 1)))
            for times in self.doublings
        )
        self.classify = nn.Conv2d(width, num_classes, 1)
        initialise_convolutions(self)

    def predict(self, features: list[Tensor]) -> Tensor:
        """Class logits [B,C,H/4,W/4] of the pyramid's maps; those beyond the branch's levels are not used."""
        total = 0
        for x, convs, doublings in zip(features, self.levels, self.doublings):
            for conv in convs:
                x = conv(x)
                if doublings:
                    x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            total = total + x
        return at_least_float32(self.classify(total))

    def loss(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of logits [B,C,H/4,W/4], upsampled to the size of labels [B,h,w], over known labels.

        Averaged over the known labels of all processes. None known gives zero.
        """
        known = labels != IGNORE_LABEL
        count = mean_over_processes(known.to(logits.dtype).sum()).clamp(min=1.0)
        if labels.shape[1:] != logits.shape[2:]:
            logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="sum")
        return {"semantic": self.weight * total / count}

    def decode(self, logits: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Labels [h,w] of one image of `original` size from its logits [C,H/4,W/4].

        Logits are upsampled to the padded image, cropped to the image's `size` (height, width) there, and resized to
        the original; each pixel takes the class of its highest logit.
        """
        whole = F.interpolate(logits.unsqueeze(0), scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        shown = whole[:, :, : size[0], : size[1]]
        if tuple(size) != tuple(original):
            shown = F.interpolate(shown, size=original, mode="bilinear", align_corners=False)
        return shown[0].argmax(dim=0)


class Segmenter(nn.Module):
    """Backbone, pyramid and semantic branch: a class for each pixel, without boxes."""

    def __init__(self, backbone: Backbone, pyramid: Pyramid, semantic_head: SemanticHead):
        super().__init__()
        self.backbone, self.pyramid, self.semantic_head = backbone, pyramid, semantic_head

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        """Losses by name, each a scalar; connected to every parameter even when no label is known."""
        return self.semantic_head.loss(self._logits(batch.images), batch.labels)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class logits [B,C,H/4,W/4] of images [B,3,H,W] (normalised, padded)."""
        return self._logits(images)

    def predictors(self) -> tuple[Predictor, ...]:
        """The class predictor."""
        return (Predictor("classes", ("semantic_head.classify.",), "semantic_head.classify.weight"),)

    def initialisers(self) -> dict[str, str]:
        """Initial values of each part in words."""
        return {"pyramid": self.pyramid.initialiser, "semantic_head": self.semantic_head.initialiser}

    def _logits(self, images: Tensor) -> Tensor:
        return self.semantic_head.predict(self.pyramid(self.backbone(images)))
