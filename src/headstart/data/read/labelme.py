"""labelme's JSON files, one a picture -> Dataset."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import orjson

from headstart.data.dataset import Dataset
from headstart.data.images import image_size
from headstart.data.read.coco import from_document
from headstart.data.read.coco_records import show
from headstart.data.read.files import MOST_TEXT, find_pictures
from headstart.files import read_regular
from headstart.ops.polygons import area

SHAPES = {"polygon": 3, "rectangle": 2}  # kinds that are read, and their least number of points


def is_labelme(keys: Collection[str]) -> bool:
    """True if the keys of a JSON object are labelme's."""
    return "shapes" in keys or "imagePath" in keys


def read_labelme(
    root: str | Path, files: Sequence[Path], chosen: Collection[Path], image_dir: str | Path | None = None
) -> Dataset:
    """labelme files below a folder, of which the `chosen` ones are read: polygons, and rectangles as boxes.

    Shapes of one label and group_id are one object. Other kinds of shapes are left out, counted in notes. Classes are
    the sorted labels of all files, so that splits agree; category ids are 1..C, image ids count through all files.
    Points are continuous pixels. Pictures are found by name (`find_pictures`), their size is the file's, else read from
    the picture. ValueError naming file, shape and value for anything else that is wrong.
    """
    documents = [_document(file) for file in files]
    names = sorted({shape["label"] for document in documents for shape in document["shapes"]})
    if not names:
        raise ValueError(f"{root}: no shape in any of {len(files)} labelme files: expected polygons or rectangles")
    written = [
        PureWindowsPath(str(document.get("imagePath") or "")).name for document in documents
    ]  # or ../images/NAME
    folder, pictures = find_pictures(Path(root), list(zip(files, written)), Path(image_dir) if image_dir else None)
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": c, "name": name} for c, name in enumerate(names, 1)]
    others, own = 0, 0
    for number, (file, document, picture) in enumerate(zip(files, documents, pictures), 1):
        objects: dict[Any, dict[str, Any]] = {}
        for position, shape in enumerate(document["shapes"], 1):
            own += 1
            if file not in chosen:
                continue
            if str(shape.get("shape_type", "polygon")) not in SHAPES:  # JSON may have a list there, which has no hash
                others += 1
                continue
            record = _record(f"{file}: shape {position}", shape)
            group = shape.get("group_id")
            key = own if group is None else (record["label"], show(group))
            objects[key] = _joined(objects[key], record) if key in objects else record | {"id": own}
        if file in chosen:
            size = [document.get(name) for name in ("imageHeight", "imageWidth")]
            height, width = size if all(type(n) is int and n > 0 for n in size) else image_size(folder / picture)
            content["images"].append({"id": number, "file_name": picture, "height": height, "width": width})
            for record in objects.values():
                label = names.index(record.pop("label")) + 1
                content["annotations"].append(record | {"image_id": number, "category_id": label, "iscrowd": 0})
    dataset = from_document(content, root, folder)
    note = f"{others} shapes left out that are neither polygon nor rectangle"
    return replace(dataset, notes=(*dataset.notes, note)) if others else dataset


def _document(file: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(read_regular(file, most=MOST_TEXT))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{file}: line {error.lineno}: not valid JSON ({error.msg.split(': line ')[0]})") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}): expected labelme's JSON") from None
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list):
        raise ValueError(f"{file}: shapes = {show(shapes)}: expected a list, as labelme writes it")
    for position, shape in enumerate(shapes, 1):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label:
            raise ValueError(f"{file}: shape {position}: label = {show(label)}: expected the name of a class")
    return document


def _record(where: str, shape: dict[str, Any]) -> dict[str, Any]:
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    least = SHAPES[kind]
    is_pairs = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not is_pairs or len(points) < least:
        raise ValueError(f"{where}: points = {show(points)}: expected at least {least} pairs [x, y]")
    wrong = [v for p in points for v in p if type(v) not in (int, float) or not math.isfinite(v) or abs(v) > 1e9]
    if wrong:
        raise ValueError(f"{where}: coordinate = {show(wrong[0])}: expected pixels")
    at = np.asarray(points, float)
    (x1, y1), (x2, y2) = at.min(0).tolist(), at.max(0).tolist()
    record = {"label": shape["label"], "bbox": [x1, y1, x2 - x1, y2 - y1]}
    if kind == "rectangle":
        return record | {"area": (x2 - x1) * (y2 - y1)}
    return record | {"segmentation": [at.ravel().tolist()], "area": area(at)}


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """One object of two parts: both polygons, or the box around both."""
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (one["bbox"], other["bbox"])]
    (x1, y1), (x2, y2) = (map(min, zip(*[b[:2] for b in boxes])), map(max, zip(*[b[2:] for b in boxes])))
    joined = one | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": one["area"] + other["area"]}
    if "segmentation" in one and "segmentation" in other:
        return joined | {"segmentation": [*one["segmentation"], *other["segmentation"]]}
    joined.pop("segmentation", None)
    return joined
