"""Boxes, masks, labels and scores drawn on an image with PIL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from headstart.data.dataset import RLE, Dataset
from headstart.metrics.predictions import Predictions

# Okabe and Ito 2008, told apart by all common kinds of colour vision; black is left out, it vanishes in photographs.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
SIDE = 460  # pixels of the longer side of a picture: two for each on the page, so that text stays sharp
MOST_SHAPES = 40  # a picture: more cannot be read
_LONGEST_NAME = 24
_DASH = 9


@dataclass(frozen=True, eq=False)
class Shape:
    """One object: XYXY box in image pixels, mask bool [H, W] or None, label with score, category, right or wrong."""

    box: np.ndarray
    mask: np.ndarray | None
    label: str
    category: int
    right: bool = True


def shapes_of_annotations(dataset: Dataset, i: int) -> list[Shape]:
    """The annotated objects of image index i, crowds left out."""
    size = int(dataset.heights[i]), int(dataset.widths[i])
    numbers = [n for n in range(dataset.first[i], dataset.first[i + 1]) if not dataset.crowd[n]]
    return [
        Shape(
            dataset.boxes[n],
            _annotated_mask(dataset, n, size),
            _short(dataset.class_names[dataset.labels[n]]),
            int(dataset.labels[n]),
        )
        for n in numbers
    ]


def shapes_of_predictions(
    dataset: Dataset, i: int, found: Predictions, annotated: list[Shape], *, min_score: float
) -> list[Shape]:
    """The detections of image index i, best first; right where one takes an annotation of its class (IoU >= 0.5)."""
    chosen = np.flatnonzero((found.image_ids == dataset.image_ids[i]) & (found.scores >= min_score))
    chosen = chosen[np.argsort(-found.scores[chosen], kind="stable")][:MOST_SHAPES]
    labels = np.searchsorted(dataset.category_ids, found.category_ids[chosen])
    taken: set[int] = set()
    shapes = []
    for k, label in zip(chosen, labels):
        overlaps = [
            _iou(found.boxes[k], shape.box) if shape.category == label and place not in taken else 0.0
            for place, shape in enumerate(annotated)
        ]
        right = bool(overlaps) and max(overlaps) >= 0.5
        if right:
            taken.add(int(np.argmax(overlaps)))
        mask = None if found.masks is None else coco_mask.decode(found.masks[k]).astype(bool)
        name = f"{_short(dataset.class_names[label])} {found.scores[k]:.2f}"
        shapes.append(Shape(found.boxes[k], mask, name, int(label), right))
    return shapes


def draw(pixels: np.ndarray, shapes: list[Shape]) -> Image.Image:
    """The image, enlarged or reduced to SIDE, with the shapes on it; the first shape is drawn last."""
    scale = SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    for shape in reversed(shapes):
        if shape.mask is not None and shape.mask.any():
            cover = Image.fromarray(shape.mask.astype(np.uint8) * 110).resize(size, Image.Resampling.BILINEAR)
            picture.paste(Image.new("RGB", size, _colour(shape)), mask=cover)
    canvas = ImageDraw.Draw(picture)
    for shape in reversed(shapes):
        _outline(canvas, shape, scale)
    for shape in reversed(shapes):
        _label(canvas, shape, scale, size)
    return picture


def _outline(canvas: ImageDraw.ImageDraw, shape: Shape, scale: float) -> None:
    x1, y1, x2, y2 = (float(v) * scale for v in shape.box)
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    for (ax, ay), (bx, by) in pairwise(corners):
        length = max(abs(bx - ax), abs(by - ay))
        step = length if shape.right else 2 * _DASH
        for at in np.arange(0, length, step) if length > 0 else ():
            ends = [
                (ax + (bx - ax) * t / length, ay + (by - ay) * t / length)
                for t in (at, min(at + (step if shape.right else _DASH), length))
            ]
            canvas.line(ends, fill=_colour(shape), width=3)


def _label(canvas: ImageDraw.ImageDraw, shape: Shape, scale: float, size: tuple[int, int]) -> None:
    left, top, right, bottom = canvas.textbbox((0, 0), shape.label, font=_font())
    width, height = right - left + 8, bottom - top + 6
    x = min(max(0.0, float(shape.box[0]) * scale - 1), max(0, size[0] - width))
    y = float(shape.box[1]) * scale - height
    y = min(max(0.0, y), max(0, size[1] - height))
    colour = _colour(shape)
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
    canvas.text((x + 4 - left, y + 3 - top), shape.label, fill=ink, font=_font())


@cache
def _font() -> ImageFont.FreeTypeFont:
    """matplotlib's own copy of DejaVu Sans: the same letters on every machine, accents included."""
    return ImageFont.truetype(str(matplotlib.get_data_path()) + "/fonts/ttf/DejaVuSans.ttf", 17)


def _colour(shape: Shape) -> tuple[int, int, int]:
    return PALETTE[shape.category % len(PALETTE)]


def _short(name: str) -> str:
    text = "".join(c if c.isprintable() else " " for c in name)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def _annotated_mask(dataset: Dataset, n: int, size: tuple[int, int]) -> np.ndarray | None:
    if dataset.segment_kind[n] == RLE:
        return coco_mask.decode(dataset.rles[n]).astype(bool)
    polygons = dataset.polygons(n)
    if not polygons:
        return None
    flat = [polygon.ravel().tolist() for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *size))).astype(bool)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / union if union > 0 else 0.0
