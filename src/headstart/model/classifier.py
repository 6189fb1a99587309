"""Backbone with a classification head, for pre-training and transfer learning.

B images, W channels of the last stage, S side of the pooled map, C classes.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model import Predictor
from headstart.model.backbones import Backbone
from headstart.ops.precision import at_least_float32
from headstart.ops.random import fold, uniform

SALT = 16  # and the following numbers: one a layer


class Classifier(nn.Module):
    """Average pooling of C5 and one fully connected layer, initialised N(0, 0.01) with zero bias.

    The deviation is Detectron's for class layers (paper.md 2.2), and Goyal et al. 2017's for ImageNet. VGG pools to a
    map of 7 by maxima (its pool5) and has two `hidden` layers with ReLU and dropout before the last (MSRA, fan-in).
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        dropout: float = 0.0,
        pool: int = 1,
        hidden: Sequence[int] = (),
        seed: int = 0,
    ):
        super().__init__()
        assert num_classes >= 1
        self.key = fold(seed) & 0xFFFFFFFF
        self.backbone, self.dropout, self.pool = backbone, dropout, pool
        widths = [backbone.channels[-1] * pool**2, *hidden]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.fc = nn.Linear(widths[-1], num_classes)
        for layer in self.fcs:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [B,W*S*S] of images [B,3,H,W], which a frozen backbone can compute once and keep."""
        last = self.backbone(images)[-1]
        return last.mean(dim=(2, 3)) if self.pool == 1 else F.adaptive_max_pool2d(last, self.pool).flatten(1)

    def classify(self, features: Tensor, slots: Tensor | None = None) -> Tensor:
        """Logits [B,C] in fp32 of pooled features [B,W*S*S]; slots [B] key the dropout, which acts in training only."""
        for place, layer in enumerate(self.fcs):
            features = F.relu(layer(self._drop(features, slots, place) if place else features), inplace=True)
        return at_least_float32(self.fc(self._drop(features, slots, len(self.fcs))))

    def _drop(self, features: Tensor, slots: Tensor | None, place: int) -> Tensor:
        """Dropout as a function of (seed, slot), equal after a resume and in any number of processes."""
        if not self.training or self.dropout == 0:
            return features
        assert slots is not None
        keep = uniform(slots ^ self.key, features.shape[1], salt=SALT + place) >= self.dropout
        return features * keep / (1 - self.dropout)

    def forward(self, images: Tensor, slots: Tensor | None = None) -> Tensor:
        """Logits [B,C] of normalised images [B,3,H,W], or of their pooled features [B,W*S*S] where these were kept."""
        return self.classify(images if images.dim() == 2 else self.features(images), slots)

    def predictors(self) -> tuple[Predictor, ...]:
        """None: a classifier's last layer is never loaded."""
        return ()

    def initialisers(self) -> dict[str, str]:
        """Initial values of each part in words."""
        return {"fcs": "MSRA, fan-in", "fc": "N(0, 0.01)"}


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B,C] and labels [B] in 0..C-1; a connected zero for an empty batch."""
    return F.cross_entropy(logits, labels) if len(labels) else logits.sum()
