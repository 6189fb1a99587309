"""Detections drawn on an image: boxes, masks, labels, scores."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

MASK_SHARE = 0.45  # of colour in a masked pixel: enough to see, little enough to see through
LEAST_LOGIT = 2.0  # of a keypoint that is drawn (Detectron's kp_thresh)
_GOLDEN = 0.6180339887498949  # hues that far apart stay distinct for any number of classes


def colour_of(category_id: int) -> tuple[int, int, int]:
    """A stable, saturated colour for a category."""
    red, green, blue = colorsys.hsv_to_rgb((category_id * _GOLDEN) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    category_ids: Sequence[int],
    *,
    scores: Sequence[float] | None = None,
    masks: Sequence[dict[str, Any]] | None = None,
    keypoints: np.ndarray | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
    scale: int = 1,
) -> Image.Image:
    """A picture of image uint8 [H,W,3] with boxes [n,4] XYXY pixels.

    keypoints [n,K,3] (x, y, score) as COCO counts pixels: those whose score (a logit) is at least LEAST_LOGIT are dots,
    joined by lines for the pairs of `skeleton`. `scale` enlarges small images by a whole factor.
    """
    canvas = image.astype(np.float32)
    for mask, category in zip(masks or (), category_ids):
        inside = coco_mask.decode(mask).astype(bool)
        canvas[inside] = canvas[inside] * (1 - MASK_SHARE) + np.array(colour_of(category)) * MASK_SHARE
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    pen, side = ImageDraw.Draw(picture), max(10, min(picture.size) // 40)
    font = ImageFont.load_default(size=side)
    for index, (box, label, category) in enumerate(zip(boxes, labels, category_ids)):
        corners = [float(value) * scale for value in box]
        pen.rectangle(corners, outline=colour_of(category), width=max(1, side // 8))
        text = label if scores is None else f"{label} {scores[index]:.2f}"
        place = (corners[0], max(corners[1] - side - 2, 0))
        pen.rectangle(pen.textbbox(place, text, font=font), fill=colour_of(category))
        pen.text(place, text, fill="black", font=font)
    for points, category in zip(() if keypoints is None else keypoints, category_ids):
        _draw_points(pen, points, colour_of(category), skeleton, scale, radius=max(2, side // 6))
    return picture


def _draw_points(
    pen: ImageDraw.ImageDraw,
    points: np.ndarray,
    colour: tuple[int, int, int],
    skeleton: Sequence[tuple[int, int]],
    scale: int,
    *,
    radius: int,
) -> None:
    """Lines and dots of one object's keypoints [K,3]."""
    shown = points[:, 2] >= LEAST_LOGIT
    places = (points[:, :2] + 0.5) * scale  # a keypoint is the index of a pixel
    for a, b in skeleton:
        if shown[a] and shown[b]:
            pen.line([*places[a], *places[b]], fill=colour, width=max(1, radius // 2))
    for x, y in places[shown]:
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline="black")
