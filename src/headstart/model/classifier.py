"""The same backbone with a classification head: pre-training, and the transfer-learning modes.

B images, W channels of the last stage, C classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model.backbone import Backbone


class Classifier(nn.Module):
    """Average pooling of C5 and one fully connected layer, initialised N(0, 0.01) with zero bias.

    The deviation is Detectron's for class layers (paper.md 2.2), and Goyal et al. 2017's for ImageNet.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, dropout: float = 0.0):
        super().__init__()
        assert num_classes >= 1
        self.backbone, self.dropout = backbone, dropout
        self.fc = nn.Linear(backbone.channels[-1], num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [B,W] of normalised images [B,3,H,W]: what a frozen backbone can compute once and keep."""
        return self.backbone(images)[-1].mean(dim=(2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B,C] in fp32 of pooled features [B,W]."""
        return self.fc(F.dropout(features, self.dropout, self.training)).float()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,C] of normalised images [B,3,H,W]."""
        return self.classify(self.features(images))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of logits [B,C] and labels [B] in 0..C-1; an empty batch gives a connected zero."""
        return F.cross_entropy(logits, labels, reduction="sum") / max(labels.shape[0], 1)
