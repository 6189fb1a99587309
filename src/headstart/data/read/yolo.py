"""YOLO's data.yaml and label text files -> Dataset."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.images import SUFFIXES, image_size, without_copies
from headstart.data.read.coco import from_document
from headstart.data.read.coco_records import show
from headstart.data.read.data_yaml import class_names, keypoint_numbers, load_config, yolo_splits
from headstart.data.read.files import SPLITS, read_text, walk
from headstart.ops.polygons import area

SLACK = 0.01  # exporters round and clip carelessly; further outside, the numbers are not normalised at all


def read_yolo(data_yaml: str | Path, split: str = "train") -> Dataset:
    """A YOLO data set: data.yaml with names, optionally path, and train, val, … (folder, text file, or a list).

    "valid" is taken for val. Without data.yaml a list of class names, a line each (classes.txt, obj.names), whose one
    split train is all images of its folder, unless obj.data beside it names lists of several.

    Label rows are "class cx cy width height" or "class x1 y1 x2 y2 x3 y3 …" (a polygon; its box is the tightest), as
    fractions of the image; they become XYXY pixels. With kpt_shape in data.yaml keypoints follow the box, and are left
    out. Labels lie in labels/ where the images lie in images/, or beside the image. Images without a label file are
    negatives, counted in notes; boxes without width or height are left out and named there. Category ids are the class
    numbers of names. ValueError naming file, line and value otherwise, if not one image has a label file, and where two
    images share one or an image has two.
    """
    data_yaml = Path(data_yaml)
    config = load_config(data_yaml)
    names, keypoints = class_names(data_yaml, config), keypoint_numbers(data_yaml, config)
    files = _split_images(data_yaml, config, split)
    folder = Path(os.path.commonpath([file.parent for file in files]))

    document: dict = {"images": [], "annotations": []}
    document["categories"] = [{"id": c, "name": name} for c, name in names.items()]
    left_out, unlabelled, labelled = [], [], {}
    for number, file in enumerate(files, 1):
        height, width = image_size(file)
        name = file.relative_to(folder).as_posix()
        document["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        labels = label_file(file)
        try:
            text = read_text(labels, "rows of numbers")
        except FileNotFoundError:
            unlabelled.append(name)
            continue
        if labels in labelled:
            raise ValueError(f"{labels}: fits the pictures {labelled[labels]} and {name}: expected one")
        labelled[labels] = name
        for line, row in enumerate(text.splitlines(), 1):
            if not row.strip():
                continue
            record = _record(f"{labels}: line {line}", row.split(), names, width, height, keypoints)
            if min(record["bbox"][2:]) <= 0:
                left_out.append(f"{labels.name} line {line}")
                continue
            document["annotations"].append(record | {"id": len(document["annotations"]) + 1, "image_id": number})
    if len(unlabelled) == len(files):
        raise ValueError(f"{data_yaml}: {split}: none of {len(files)} images has a label file: expected for example "
                         f"{label_file(files[0])}")  # fmt: skip
    dataset = from_document(document, data_yaml, folder)
    notes = [f"{len(unlabelled)} images without a label file taken as images without objects"] if unlabelled else []
    if keypoints:
        notes.append("keypoints left out: read from COCO JSON only")
    if left_out:
        notes.append(f"{len(left_out)} boxes without width or height left out: {', '.join(left_out)}")
    return replace(dataset, notes=dataset.notes + tuple(notes))


def _split_images(path: Path, config: dict, split: str) -> list[Path]:
    field = next((name for name in (split, *SPLITS) if SPLITS.get(name) == SPLITS.get(split) and config.get(name)), "")
    if not field:
        raise ValueError(f"{path}: split = {split!r}: expected one of {list(yolo_splits(config))}")
    places = config[field] if isinstance(config[field], list) else [config[field]]
    base = path.parent / str(config.get("path") or ".")
    files = {file for place in places for file in _images_at(path, split, base, str(place).replace("\\", "/"))}
    if not files:
        raise ValueError(
            f"{path}: {field} = {show(config[field])}: no image there: expected files {', '.join(SUFFIXES)}"
        )
    return sorted(files)


def _images_at(path: Path, split: str, base: Path, place: str) -> list[Path]:
    """Images of one entry. "../train/images" is also looked for below data.yaml: a widespread export writes it so."""
    candidates = [base / place, path.parent / place, path.parent / place.removeprefix("../")]
    found = next((c for c in candidates if os.path.exists(c)), None)
    if found is None:
        raise ValueError(f"{path}: {split} = {show(place)}: no such folder or file: looked at {str(candidates[0])!r}")
    if place.startswith("../") and found != candidates[2] and os.path.exists(candidates[2]):
        raise ValueError(f"{path}: {split} = {show(place)}: fits {found} and {candidates[2]}: expected one of them")
    if os.path.isdir(found) and path.suffix.lower() not in (".yaml", ".yml"):  # other pictures may lie there too
        images = _images_at(path.with_suffix(".yaml"), split, base, place)
        folders = {image.parent for image in images if label_file(image).is_file()}
        return [image for image in images if image.parent in folders] or images
    if os.path.isdir(found):
        return without_copies(Path(os.path.abspath(p)) for p in walk(found) if p.suffix.lower() in SUFFIXES)
    listed = []
    for number, line in enumerate(read_text(found, "a path of an image a line").splitlines(), 1):
        if name := line.strip():
            ways = (
                name,
                name.replace("\\", "/"),
                name.removeprefix("data/"),
            )  # CVAT's lists begin each name with data/
            fitting = [way for way in ways if os.path.isfile(found.parent / way)]
            if not fitting:
                raise ValueError(f"{found}: line {number}: {show(name)}: no such file")
            listed.append(Path(os.path.abspath(found.parent / fitting[0])))
    return listed


def label_file(image: Path) -> Path:
    """The label file of a picture: in labels/ where it lies in images/, or beside it; ValueError for both."""
    parts = list(image.parts)
    beside = image.with_suffix(".txt")
    if "images" not in parts[:-1]:
        return beside
    last = len(parts) - 2 - parts[-2::-1].index("images")
    parts[last] = "labels"
    labels = Path(*parts).with_suffix(".txt")
    if os.path.lexists(beside):
        if os.path.lexists(labels):
            raise ValueError(f"{image}: has two label files, {labels} and {beside}: expected one")
        return beside
    return labels


def _record(
    where: str, row: list[str], names: dict[int, str], width: int, height: int, keypoints: int
) -> dict[str, Any]:
    try:
        numbers = [float(text) for text in row]
    except ValueError:
        raise ValueError(f"{where}: {' '.join(row)[:80]!r}: expected numbers only") from None
    label, values = numbers[0], numbers[1:]
    if label not in names:
        raise ValueError(
            f"{where}: class = {row[0][:80]}: expected one of {min(names)} to {max(names)}, as names lists"
        )
    if keypoints:
        if len(values) not in (4, 4 + keypoints):
            expected = f"4 (a box) or {4 + keypoints} (with keypoints, as kpt_shape says)"
            raise ValueError(f"{where}: {len(values)} numbers after the class: expected {expected}")
        values = values[:4]
    elif len(values) != 4 and (len(values) < 6 or len(values) % 2):
        expected = "4 (a box) or an even number of 6 or more (a polygon)"
        raise ValueError(f"{where}: {len(values)} numbers after the class: expected {expected}")
    outside = [text for text, value in zip(row[1:], values) if not -SLACK <= value <= 1 + SLACK]  # NaN is outside
    if outside:
        raise ValueError(f"{where}: coordinate = {outside[0][:80]}: expected a fraction of the image, 0 to 1")
    record: dict[str, Any] = {"category_id": int(label), "iscrowd": 0}
    if len(values) == 4:
        cx, cy, w, h = values
        box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
        return record | {"bbox": box, "area": box[2] * box[3]}
    polygon = [v * (height if k % 2 else width) for k, v in enumerate(values)]
    xs, ys = polygon[0::2], polygon[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return record | {"bbox": box, "segmentation": [polygon], "area": area(np.array(polygon).reshape(-1, 2))}
