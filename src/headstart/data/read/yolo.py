"""YOLO's data.yaml and label text files -> Dataset."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from headstart.data.dataset import Dataset
from headstart.data.images import SUFFIXES, image_size
from headstart.data.polygons import area
from headstart.data.read.coco import from_document

_SLACK = 0.01  # exporters round and clip carelessly; further outside, the numbers are not normalised at all


def read_yolo(data_yaml: str | Path, split: str = "train") -> Dataset:
    """A YOLO data set: data.yaml with names, optionally path, and train, val, … (folder, text file, or a list).

    Label rows are "class cx cy width height" or "class x1 y1 x2 y2 x3 y3 …" (a polygon; its box is the tightest), as
    fractions of the image; they become XYXY pixels. Labels lie in labels/ where the images lie in images/, else beside
    the image. Images without a label file are negatives, counted in notes; boxes without width or height are left out
    and named there. Category ids are the class numbers of names. ValueError naming file, line and value otherwise, and
    if not one image has a label file.
    """
    data_yaml = Path(data_yaml)
    config = _load_yaml(data_yaml)
    names = _class_names(data_yaml, config)
    files = _split_images(data_yaml, config, split)
    folder = Path(os.path.commonpath([file.parent for file in files]))

    document: dict = {"images": [], "annotations": []}
    document["categories"] = [{"id": c, "name": name} for c, name in names.items()]
    left_out, unlabelled = [], []
    for number, file in enumerate(files, 1):
        height, width = image_size(file)
        name = file.relative_to(folder).as_posix()
        document["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        labels = _label_file(file)
        if not labels.is_file():
            unlabelled.append(name)
            continue
        for line, row in enumerate(labels.read_text(encoding="utf-8").splitlines(), 1):
            if not row.strip():
                continue
            record = _record(f"{labels}: line {line}", row.split(), names, width, height)
            if min(record["bbox"][2:]) <= 0:
                left_out.append(f"{labels.name} line {line}")
                continue
            document["annotations"].append(record | {"id": len(document["annotations"]) + 1, "image_id": number})
    if len(unlabelled) == len(files):
        raise ValueError(f"{data_yaml}: {split}: none of {len(files)} images has a label file: expected for example "
                         f"{_label_file(files[0])}")  # fmt: skip
    dataset = from_document(document, data_yaml, folder)
    notes = [f"{len(unlabelled)} images without a label file taken as images without objects"] if unlabelled else []
    if left_out:
        notes.append(f"{len(left_out)} boxes without width or height left out: {', '.join(left_out)}")
    return replace(dataset, notes=dataset.notes + tuple(notes))


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): expected a YOLO data.yaml") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{path}: {line}not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: {str(config)[:80]!r}: expected fields names, train, val")
    return config


def _class_names(path: Path, config: dict) -> dict[int, str]:
    names = config.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(c) is int and c >= 0 for c in names):
        raise ValueError(f"{path}: names = {str(names)[:80]}: expected a list of class names, or numbers with names")
    for number, name in names.items():
        if not isinstance(name, str):  # YAML reads an unquoted no, on or 1 as something else than text
            raise ValueError(f"{path}: names: {number} = {name!r}: expected text (put it in quotes)")
    if config.get("nc", len(names)) != len(names):
        raise ValueError(f"{path}: nc = {config['nc']!r}: expected {len(names)}, the number of names")
    return names


def _split_images(path: Path, config: dict, split: str) -> list[Path]:
    if not config.get(split):
        known = [k for k in ("train", "val", "test") if config.get(k)]
        raise ValueError(f"{path}: split = {split!r}: expected one of {known}")
    places = config[split] if isinstance(config[split], list) else [config[split]]
    base = path.parent / str(config.get("path") or ".")
    files = {file for place in places for file in _images_at(path, split, base, str(place))}
    if not files:
        raise ValueError(f"{path}: {split} = {config[split]!r}: no image there: expected files {', '.join(SUFFIXES)}")
    return sorted(files)


def _images_at(path: Path, split: str, base: Path, place: str) -> list[Path]:
    """Images of one entry. "../train/images" is also looked for below data.yaml: a widespread export writes it so."""
    candidates = [base / place, path.parent / place, path.parent / place.removeprefix("../")]
    found = next((c for c in candidates if c.exists()), None)
    if found is None:
        raise ValueError(f"{path}: {split} = {place!r}: no such folder or file: looked at {candidates[0]}")
    if found.is_dir():
        return [Path(os.path.abspath(p)) for p in found.rglob("*") if p.suffix.lower() in SUFFIXES]
    listed = [line.strip() for line in found.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Path(os.path.abspath(found.parent / line)) for line in listed]


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _record(where: str, row: list[str], names: dict[int, str], width: int, height: int) -> dict[str, Any]:
    try:
        numbers = [float(text) for text in row]
    except ValueError:
        raise ValueError(f"{where}: {' '.join(row)[:80]!r}: expected numbers only") from None
    label, values = numbers[0], numbers[1:]
    if label not in names:
        raise ValueError(f"{where}: class = {row[0]}: expected one of {min(names)} to {max(names)}, as names lists")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        expected = "4 (a box) or an even number of 6 or more (a polygon)"
        raise ValueError(f"{where}: {len(values)} numbers after the class: expected {expected}")
    outside = [text for text, value in zip(row[1:], values) if not -_SLACK <= value <= 1 + _SLACK]  # NaN is outside
    if outside:
        raise ValueError(f"{where}: coordinate = {outside[0]}: expected a fraction of the image, 0 to 1")
    record: dict[str, Any] = {"category_id": int(label), "iscrowd": 0}
    if len(values) == 4:
        cx, cy, w, h = values
        box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
        return record | {"bbox": box, "area": box[2] * box[3]}
    polygon = [v * (height if k % 2 else width) for k, v in enumerate(values)]
    xs, ys = polygon[0::2], polygon[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return record | {"bbox": box, "segmentation": [polygon], "area": area(np.array(polygon).reshape(-1, 2))}
