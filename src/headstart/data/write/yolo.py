"""YOLO folders: data.yaml, images/SPLIT and labels/SPLIT."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from headstart.data.dataset import POLYGONS, Dataset
from headstart.data.read.yolo import label_file
from headstart.data.write import Splits, copy_picture, new_folder, same_classes, shortest
from headstart.files import write_whole

DECIMALS = 6  # at least, as other tools write


def write_yolo(splits: Splits, out: Path) -> list[str]:
    """Write data.yaml, pictures and labels into a new folder; notes on what YOLO has no form for.

    An object of one polygon is that polygon, any other its box; crowds and difficult objects are left out. Numbers have
    the fewest decimals, six or more, that are read back as the same boxes and polygons, bit for bit where there are.
    ValueError for splits but train, val and test, unequal classes, two pictures with one label file, and missing ones.
    """
    names = same_classes(splits)
    for name in splits:
        if name not in ("train", "val", "test"):
            raise ValueError(f"split = {name!r}: YOLO has train, val and test; expected one of them with --split")
    targets = {name: [out / "images" / name / file for file in data.file_names] for name, data in splits.items()}
    owners: dict[Path, Path] = {}
    for target in (target for own in targets.values() for target in own):
        labels = label_file(target)
        if owners.setdefault(labels, target) is not target:
            raise ValueError(
                f"{target.name} and {owners[labels].name}: would share {labels.name}; expected other names"
            )
    new_folder(out)
    for name, data in splits.items():
        for image, target in enumerate(targets[name]):
            copy_picture(data, image, target)
            labels = label_file(target)
            labels.parent.mkdir(parents=True, exist_ok=True)
            write_whole(labels, "".join(f"{row}\n" for row in _rows(data, image)))
    config = {"path": ".", **{name: f"images/{name}" for name in splits}, "names": dict(enumerate(names))}
    write_whole(out / "data.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return [note for name, data in splits.items() for note in _notes(name, data)]


def _rows(data: Dataset, image: int) -> Iterator[str]:
    height, width = int(data.heights[image]), int(data.widths[image])
    for n in range(data.first[image], data.first[image + 1]):
        if data.crowd[n] or data.difficult[n]:
            continue
        polygons = data.polygons(n)
        numbers = _polygon(polygons[0], width, height) if len(polygons) == 1 else _box(data.boxes[n], width, height)
        yield " ".join((str(data.labels[n]), *numbers))


def _polygon(points: np.ndarray, width: int, height: int) -> list[str]:
    """Fractions of the image, x and y in turn, that the reader makes the same pixels of."""
    sides, texts = np.tile((width, height), len(points)), []
    for texts in shortest(points.ravel() / sides, DECIMALS):
        if (np.array(texts, np.float64) * sides == points.ravel()).all():
            break
    return texts


def _box(box: np.ndarray, width: int, height: int) -> list[str]:
    """Centre and size as fractions of the image, that the reader makes the same corners of."""
    x1, y1, x2, y2 = box.tolist()
    texts: list[str] = []
    sizes = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    for texts in shortest(sizes, DECIMALS):
        cx, cy, w, h = map(float, texts)
        left, top = (cx - w / 2) * width, (cy - h / 2) * height
        if (left, top, left + w * width, top + h * height) == (x1, y1, x2, y2):
            break
    return texts


def _notes(name: str, data: Dataset) -> Iterator[str]:
    ignored = int((data.crowd | data.difficult).sum())
    if ignored:
        yield f"{name}: {ignored} crowds or difficult objects left out"
    several = int((np.diff(data.polygon_first) > 1).sum()) + len(data.rles)
    if several:
        yield f"{name}: {several} masks of several polygons or runs became boxes"
    one = (data.segment_kind == POLYGONS) & (np.diff(data.polygon_first) == 1)
    if one.any():
        yield f"{name}: the boxes of {int(one.sum())} polygons are the tightest around them"
    if data.keypoints is not None:
        yield f"{name}: keypoints left out"
