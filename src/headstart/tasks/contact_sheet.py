"""Contact sheets of a data set: images with their annotations, as they are or as training shows them."""

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape
from io import BytesIO
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from PIL import Image

from headstart.data.dataset import NO_SEGMENT, Dataset, nested_fraction
from headstart.data.masks import annotation_mask
from headstart.data.paste import Objects, alpha_of
from headstart.data.targets import PIXEL_CENTRE
from headstart.model.build import input_spec
from headstart.recipe.recipe import Recipe
from headstart.tasks.detection_images import train_stream
from headstart.tasks.draw import LEAST_LOGIT, Shape, draw_shapes

CELL, GAP, TEXT_SIZE = 320, 8, 12  # pixels: longer side of a picture, between pictures, of letters


PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body {{ font: 16px/1.4 system-ui, sans-serif; margin: 1rem; color: #222; background: #fff }}
main {{ display: flex; flex-wrap: wrap; gap: 1rem }}
figure {{ margin: 0; max-width: {width}px; overflow-wrap: anywhere }}
img {{ max-width: 100% }}</style></head>
<body><h1>{title}</h1><main>
{figures}
</main></body></html>
"""


class Shown(NamedTuple):
    """A picture of a sheet, and a line below it: its file or place, and the objects by class."""

    picture: Image.Image
    caption: str


def annotated(data: Dataset, num: int, seed: int) -> list[Shown]:
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
        pictures.append(_shown(data, data.load_image(i), shapes, data.file_names[i]))
    return pictures


def augmented(recipe: Recipe, data: Dataset, num: int) -> list[Shown]:
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
            pictures.append(_shown(data, image, shapes, f"image {len(pictures) + 1}"))
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


def _shown(data: Dataset, image: np.ndarray, shapes: list[Shape], place: str) -> Shown:
    scale = CELL / max(image.shape[:2])
    objects = ", ".join(f"{count} {name}" for name, count in Counter(shape.label for shape in shapes).items())
    picture = draw_shapes(image, shapes, scale=scale, text_size=TEXT_SIZE, skeleton=data.skeleton)
    return Shown(picture, f"{place}: {objects or 'no object'}")


def html_sheet(title: str, shown: Sequence[Shown]) -> str:
    """A page that holds its pictures, each with its line as caption and alternative text; empty without any."""
    figures = []
    for picture, caption in shown:
        buffer = BytesIO()
        picture.save(buffer, "WEBP", quality=90)
        uri, text = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", escape(caption)
        figures.append(f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>')
    return PAGE.format(title=escape(title), width=CELL, figures="\n".join(figures))


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
