"""VGG (Simonyan and Zisserman 2015) as a backbone: no normalisation, one map, torchvision's parameter names."""

from collections.abc import Sequence

from torch import Tensor, nn

from headstart.model.backbones import STAGES, by_depth
from headstart.model.pyramid import Conv2d, initialise_convolutions

# Convolutions a stage: configurations A, B, D and E of the paper.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDEST = 8  # times the first stage's channels: 64, 128, 256, 512, 512


class Vgg(nn.Module):
    """Five stages of 3x3 convolutions with a max-pool between them; returns the last map, conv5_3, at stride 16.

    `depth`: 11, 13, 16, 19, or the convolutions a stage; `width` channels of the first stage. The pooling after the
    last stage is left to the heads (RoIAlign; the classifier's own pooling), as in Fast R-CNN. MSRA initialisation by
    fan-in: without a norm nothing else keeps the features at the scale of the input (He et al. 2015, eq. 10).
    """

    strides = (16,)
    initialiser = "MSRA, fan-in"

    def __init__(self, depth: int | Sequence[int], *, width: int = 64, in_channels: int = 3):
        super().__init__()
        layers: list[nn.Module] = []
        channels, self.ends = in_channels, []
        for stage, count in enumerate(by_depth(depth, DEPTHS, "five counts of convolutions")):
            if stage:
                layers.append(nn.MaxPool2d(2, 2))
            out = width * min(2**stage, WIDEST)
            for _ in range(count):
                layers += [Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
            self.ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        self.channels = (channels,)
        initialise_convolutions(self, mode="fan_in")

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.features(images)]

    def parts(self) -> dict[str, list[nn.Module]]:
        """The five stages under the names of a ResNet's: Detectron freezes up to "stage1" (conv2_2) by default."""
        starts = [0, *self.ends[:-1]]
        return {name: [self.features[start:end]] for name, start, end in zip(STAGES, starts, self.ends)}
