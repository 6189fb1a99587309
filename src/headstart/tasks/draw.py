"""Pictures of annotated or predicted objects: boxes, masks, labels, scores, keypoints. Imports no torch."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from headstart.data.images import as_rgb

# Okabe and Ito 2008, distinct for all common kinds of colour vision; without black, which vanishes in photographs.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
MASK_SHARE = 0.45  # of colour in a masked pixel: enough to see, little enough to see through
LEAST_LOGIT = 2.0  # of a keypoint that is drawn (Detectron's kp_thresh)
_GOLDEN = 0.6180339887498949  # hues that far apart stay distinct for any number of classes


@dataclass(frozen=True, eq=False)
class Shape:
    """One object: box XYXY pixels, label, category id or index (its colour), mask bool [H,W], keypoints [K,3].

    Keypoints are (x, y, logit) as COCO counts pixels. dashed: the outline of a wrong detection.
    """

    box: np.ndarray
    label: str
    category: int
    mask: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    dashed: bool = False


def colour_of(category: int) -> tuple[int, int, int]:
    """A stable colour for a category id or index: the palette from 0 on, saturated hues beyond it and below 0."""
    if 0 <= category < len(PALETTE):
        return PALETTE[category]
    red, green, blue = colorsys.hsv_to_rgb((category * _GOLDEN) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_shapes(
    image: np.ndarray,
    shapes: Sequence[Shape],
    *,
    scale: float,
    text_size: int,
    skeleton: Sequence[tuple[int, int]] = (),
) -> Image.Image:
    """A picture of an image [H,W,C] (`as_rgb`) times `scale`, with the shapes on it; the first shape is drawn last."""
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    filter = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    picture = Image.fromarray(as_rgb(image)).resize(size, filter)
    for shape in reversed(shapes):
        if shape.mask is not None and shape.mask.any():
            cover = Image.fromarray((shape.mask * round(255 * MASK_SHARE)).astype(np.uint8))
            colour = Image.new("RGB", size, colour_of(shape.category))
            picture.paste(colour, mask=cover.resize(size, Image.Resampling.BILINEAR))
    pen, width = ImageDraw.Draw(picture), max(1, round(text_size / 6))
    for shape in reversed(shapes):
        _outline(pen, shape, scale, width)
    for shape in reversed(shapes):
        _label(pen, shape, scale, text_size, size)
    for shape in reversed(shapes):
        if shape.keypoints is not None:
            _keypoints(pen, shape, skeleton, scale, radius=max(2, text_size // 6))
    return picture


def _outline(pen: ImageDraw.ImageDraw, shape: Shape, scale: float, width: int) -> None:
    x1, y1, x2, y2 = (float(value) * scale for value in shape.box)
    for (ax, ay), (bx, by) in pairwise(((x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1))):
        length = max(abs(bx - ax), abs(by - ay))
        dash = 3 * width if shape.dashed else length
        for start in np.arange(0, length, 2 * dash) if length > 0 else ():
            ends = [start / length, min(start + dash, length) / length]
            pen.line([(ax + (bx - ax) * t, ay + (by - ay) * t) for t in ends], colour_of(shape.category), width)


def _label(pen: ImageDraw.ImageDraw, shape: Shape, scale: float, text_size: int, size: tuple[int, int]) -> None:
    """The label above the box's upper left corner, moved into the picture."""
    font, colour = _font(text_size), colour_of(shape.category)
    left, top, right, bottom = pen.textbbox((0, 0), shape.label, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(0.0, float(shape.box[0]) * scale - 1), max(0, size[0] - width))
    y = min(max(0.0, float(shape.box[1]) * scale - height), max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    ink = "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else "white"
    pen.text((x + 4 - left, y + 3 - top), shape.label, fill=ink, font=font)


def _keypoints(
    pen: ImageDraw.ImageDraw, shape: Shape, skeleton: Sequence[tuple[int, int]], scale: float, *, radius: int
) -> None:
    points, colour = shape.keypoints, colour_of(shape.category)
    shown = points[:, 2] >= LEAST_LOGIT
    places = (points[:, :2] + 0.5) * scale  # a keypoint is the index of a pixel
    for a, b in skeleton:
        if shown[a] and shown[b]:
            pen.line([*places[a], *places[b]], fill=colour, width=max(1, radius // 2))
    for x, y in places[shown]:
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline="black")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own copy of DejaVu Sans: the same letters on every machine, accents included."""
    import matplotlib  # here: only pictures need it

    return ImageFont.truetype(str(matplotlib.get_data_path()) + "/fonts/ttf/DejaVuSans.ttf", size)
