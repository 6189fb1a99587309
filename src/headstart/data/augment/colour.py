"""Random colours of training images: brightness, contrast, saturation and lighting, as CornerNet has them.

What is drawn is a few numbers, a function of the slot; images change on the device that trains.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Weights of red, green and blue in grey (ITU-R BT.601, as OpenCV converts).
GREY = (0.299, 0.587, 0.114)
# Principal components of the colours of ImageNet in 0..1: standard deviations and directions (red, green, blue), as
# CornerNet's released code has them.
DEVIATIONS = (0.2141788, 0.01817699, 0.00341571)
DIRECTIONS = (
    (-0.56089297, 0.71832671, 0.41158938),
    (-0.5832747, 0.00994535, -0.81221408),
    (-0.58752847, -0.69563484, 0.41340352),
)


@dataclass(frozen=True)
class Colour:
    """Change of one image: factors by name in the order in which they apply, and what is then added, in 0..255."""

    factors: tuple[tuple[str, float], ...]
    shift: tuple[float, float, float]


@dataclass(frozen=True)
class ColourJitter:
    """Largest change of each factor from 1, and the deviation of `lighting`; 0 for none."""

    brightness: float
    contrast: float
    saturation: float
    lighting: float

    def draw(self, generator: np.random.Generator) -> Colour:
        """A random change; always draws as many numbers."""
        reach = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        drawn = dict(zip(reach, generator.uniform(-1, 1, 3).tolist()))
        order = [list(reach)[place] for place in generator.permutation(3).tolist()]
        amounts = generator.normal(0.0, 1.0, 3) * self.lighting * np.array(DEVIATIONS)
        shift = (255 * np.array(DIRECTIONS) @ amounts).tolist()
        return Colour(tuple((name, 1 + drawn[name] * reach[name]) for name in order), (shift[0], shift[1], shift[2]))


def recolour(pixels: Tensor, colour: Colour) -> Tensor:
    """RGB pixels [h,w,3] in 0..255 with other colours; not cut to 0..255, as in the released code.

    Grey is that of the pixels as they come, for all factors (the released code's order of work).
    """
    red, green, blue = pixels.unbind(2)
    grey = (GREY[0] * red + GREY[1] * green + GREY[2] * blue).unsqueeze(2)
    around = {"brightness": torch.zeros_like(grey), "contrast": grey.mean(), "saturation": grey}
    for name, factor in colour.factors:
        pixels = pixels * factor + around[name] * (1 - factor)
    return torch.stack([channel + amount for channel, amount in zip(pixels.unbind(2), colour.shift)], dim=2)
