"""Random colours of training images: brightness, contrast, saturation and lighting as CornerNet has them, and hue.

Only a few numbers are drawn, as a function of the slot; pixels are changed on the training device.
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
    """Change of one image: factors by name in the order in which they apply, what is then added, in 0..255, and `hue`.

    hue is a rotation of the colour circle in turns, before the addition.
    """

    factors: tuple[tuple[str, float], ...]
    shift: tuple[float, float, float]
    hue: float = 0.0


@dataclass(frozen=True)
class ColourJitter:
    """Largest change of each factor from 1, the deviation of `lighting`, and the largest turn of `hue`; 0 for none."""

    brightness: float
    contrast: float
    saturation: float
    lighting: float
    hue: float = 0.0

    def draw(self, generator: np.random.Generator) -> Colour:
        """A random change; always draws the same number of random numbers."""
        reach = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        drawn = dict(zip(reach, generator.uniform(-1, 1, 3).tolist()))
        order = [list(reach)[place] for place in generator.permutation(3).tolist()]
        amounts = generator.normal(0.0, 1.0, 3) * self.lighting * np.array(DEVIATIONS)
        shift = (255 * np.array(DIRECTIONS) @ amounts).tolist()
        hue = generator.uniform(-1, 1) * self.hue  # last: the other numbers are those of recipes without it
        factors = tuple((name, 1 + drawn[name] * reach[name]) for name in order)
        return Colour(factors, (shift[0], shift[1], shift[2]), hue)


def recolour(pixels: Tensor, colour: Colour) -> Tensor:
    """RGB pixels [h,w,3] in 0..255 with other colours; not cut to 0..255, as in the released code.

    Grey is computed once from the input pixels, for all factors, as in the released code.
    """
    red, green, blue = pixels.unbind(2)
    grey = (GREY[0] * red + GREY[1] * green + GREY[2] * blue).unsqueeze(2)
    around = {"brightness": torch.zeros_like(grey), "contrast": grey.mean(), "saturation": grey}
    for name, factor in colour.factors:
        pixels = pixels * factor + around[name] * (1 - factor)
    if colour.hue:
        pixels = _rotate_hue(pixels, colour.hue)
    return torch.stack([channel + amount for channel, amount in zip(pixels.unbind(2), colour.shift)], dim=2)


def _rotate_hue(pixels: Tensor, turns: float) -> Tensor:
    """RGB pixels [h,w,3] with another hue; largest and smallest channel of each pixel stay, as in HSV."""
    red, green, blue = pixels.unbind(2)
    high, low = pixels.amax(2), pixels.amin(2)
    span = high - low
    safe = torch.where(span > 0, span, torch.ones_like(span))  # grey has no hue, and keeps its colour
    others = torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sector = torch.where(high == red, (green - blue) / safe, others)
    # Sextants of the circle from the one in which a channel is largest: Smith 1978, in its form without cases.
    places = ((start + sector + 6 * turns) % 6 for start in (5, 3, 1))
    return torch.stack([high - span * torch.minimum(k, 4 - k).clamp(0, 1) for k in places], dim=2)
