"""Contact sheets of a data set: images with their annotations, as they are or as training shows them."""

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
from PIL import Image

from headstart.data.dataset import NO_SEGMENT, Dataset, nested_fraction
from headstart.data.masks import annotation_mask
from headstart.data.paste import Objects, alpha_of
from headstart.data.targets import PIXEL_CENTRE
from headstart.model.build import input_spec
from headstart.recipe.recipe import Recipe
from headstart.tasks.draw import LEAST_LOGIT, Shape, draw_shapes
from headstart.tasks.train_images import train_stream

CELL, GAP, TEXT_SIZE = 320, 8, 12  # pixels: longer side of a picture, between pictures, of letters


def annotated(data: Dataset, num: int, seed: int, channels: int | None = None) -> list[Image.Image]:
    """Pictures of `num` images, drawn by `seed`, with boxes, masks, keypoints and names; ignored objects are dashed."""
    pictures = []
    for i in nested_fraction(data.num_images, 1.0, seed)[:num].tolist():
        shapes = [
            _shape(
                data,
                data.boxes[n],
                int(data.labels[n]),
                ignored=bool(data.crowd[n] or data.difficult[n]),
                mask=annotation_mask(data, n) if data.segment_kind[n] != NO_SEGMENT else None,
                points=None if data.keypoints is None else data.keypoints[n],
            )
            for n in range(data.first[i], data.first[i + 1])
        ]
        pictures.append(_picture(data, data.load_image(i, channels), shapes))
    return pictures


def augmented(recipe: Recipe, data: Dataset, num: int) -> list[Image.Image]:
    """Pictures of the first `num` images that a recipe's training on a data set shows, padding included."""
    spec, pictures = input_spec(recipe), []
    for batch in train_stream(recipe, data).batches(0, ceil(num / recipe.train.batch)):
        pixels = batch.images.permute(0, 2, 3, 1).numpy()
        pixels = pixels[..., ::-1] if spec.order == "bgr" else pixels
        own = spec.in_order("rgb") if len(spec.mean) == 3 else spec
        pixels = (pixels * np.float32(own.std) + np.float32(own.mean)).clip(0, 255)
        for slot, image in enumerate(pixels):
            valid = np.flatnonzero(batch.gt_valid[slot].numpy())
            edge = np.array(image.shape[1::-1] * 2)
            boxes = np.clip(batch.gt_boxes[slot].double().numpy(), 0, edge)  # float32 may lie an ulp beyond it
            frames, points = batch.gt_masks[slot].numpy(), batch.gt_keypoints[slot].numpy()
            shapes = [
                _shape(
                    data,
                    boxes[n],
                    int(batch.gt_labels[slot, n]),
                    ignored=bool(batch.gt_crowd[slot, n]),
                    mask=alpha_of(Objects(valid, boxes[[n]], frames[[n]], None), image.shape[:2])
                    if frames[n].any()
                    else None,
                    points=points[n] - [PIXEL_CENTRE, PIXEL_CENTRE, 0] if points.shape[1] else None,
                )
                for n in valid.tolist()
            ]
            pictures.append(_picture(data, image, shapes))
    return pictures[:num]


def _shape(
    data: Dataset,
    box: np.ndarray,
    label: int,
    *,
    ignored: bool,
    mask: np.ndarray | None,
    points: np.ndarray | None,
) -> Shape:
    """An annotation as a drawing; points [K,3] (x, y, visibility): the labelled ones are drawn."""
    if points is not None:
        points = np.column_stack([points[:, :2], np.where(points[:, 2] > 0, LEAST_LOGIT, -LEAST_LOGIT)])
    name = data.class_names[label] + (" (ignored)" if ignored else "")
    return Shape(box, name, label, mask, points, dashed=ignored)


def _picture(data: Dataset, image: np.ndarray, shapes: list[Shape]) -> Image.Image:
    scale = CELL / max(image.shape[:2])
    return draw_shapes(image, shapes, scale=scale, text_size=TEXT_SIZE, skeleton=data.skeleton)


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures on one white sheet, row by row, about as many rows as columns; ValueError without any."""
    if not pictures:
        raise ValueError("a contact sheet needs an image, expected a data set with at least one")
    columns = ceil(sqrt(len(pictures)))
    rows, side = ceil(len(pictures) / columns), CELL + GAP
    sheet = Image.new("RGB", (columns * side + GAP, rows * side + GAP), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * side + GAP, place // columns * side + GAP))
    return sheet
