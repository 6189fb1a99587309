"""Label maps of a question: found beside their pictures, their classes named, and described by COCO files."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.images import SUFFIXES, image_size, open_image
from headstart.data.label_maps import MODES
from headstart.data.read import Source, coco
from headstart.data.read.files import read_text, split_of, walk
from headstart.data.read.layout import DEPTH

WORDS = re.compile("label|mask|annot|segmentationclass|^gt")  # in names of folders of label maps
NAMES = ("classes.txt", "labels.txt", "class_names.txt")  # a class a line; the number of the line, from 0, is its value
IGNORED = 255  # as in PASCAL VOC and Cityscapes: borders, and what nobody labelled
MASK = {0: "background", 255: "foreground"}  # of maps with these two values alone


@dataclass(frozen=True)
class Pixels:
    """Pictures of one split with their label maps: the data set has one object for each class in a picture.

    left_out: pictures without a label map.
    """

    dataset: Dataset
    labels: Path
    left_out: int


def find_maps(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of pictures and of their label maps by split ("all": undivided); empty where there are none.

    Label maps are 8-bit PNGs with the names of pictures, below a folder whose name fits WORDS.
    """
    folders: dict[Path, dict[str, Path]] = {}
    for file in sorted(walk(root, depth=DEPTH)) if root.is_dir() else ():
        if file.suffix.lower() in SUFFIXES:
            folders.setdefault(file.parent, {}).setdefault(file.stem, file)
    found: dict[str, tuple[Path, Path]] = {}
    for labels, maps in folders.items():
        if not _is_named(labels.relative_to(root)) or any(file.suffix != ".png" for file in maps.values()):
            continue
        part = split_of(labels.relative_to(root))
        fits = [
            (split_of(folder.relative_to(root)) == part, len(maps.keys() & pictures.keys()), folder)
            for folder, pictures in folders.items()
            if not _is_named(folder.relative_to(root))
        ]
        _, shared, folder = max(fits, default=(False, 0, root), key=lambda fit: fit[:2])
        if 2 * shared < len(maps) or not _is_map(next(iter(maps.values()))):
            continue
        if (part or "all") in found:
            both = f"{found[part or 'all'][1]} and {labels}"
            raise ValueError(f"{root}: two folders of label maps, {both}: expected --labels FOLDER")
        found[part or "all"] = (folder, labels)
    return found


def open_pixels(places: Sequence[tuple[Source, Path]], root: Path) -> tuple[list[Pixels], tuple[int, ...]]:
    """Splits from their (COCO file or folder of pictures, folder of label maps), and the values that are ignored.

    Classes are those of the COCO file, else MASK where the values are its own. Otherwise they are those of a file of
    NAMES in `root`, or the values of all maps. ValueError for pictures without maps, and maps that cannot be read.
    """
    described = [None if os.path.isdir(s.path) else coco.read(s.path, s.image_dir) for s, _ in places]
    values = [_values_of(source.path, labels, data) for (source, labels), data in zip(places, described)]
    present = sorted({value for own, _ in values for found in own.values() for value in found})
    if first := next((data for data in described if data is not None), None):
        classes = dict(zip(first.category_ids.tolist(), first.class_names))
    elif present == sorted(MASK):
        classes = MASK
    else:
        classes = _named_classes(root) or {value: f"class {value}" for value in present if value != IGNORED}
    ignored = () if IGNORED in classes else (IGNORED,)
    return [
        Pixels(_dataset(source.path if data is None else data.image_dir, own, classes), labels, left_out)
        for (source, labels), data, (own, left_out) in zip(places, described, values)
    ], ignored


def write_split(pixels: Pixels, indices: np.ndarray, file: Path) -> Source:
    """Write the pictures of these indices as a COCO file of images and categories; returns its place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    coco.write(pixels.dataset.take(indices), file)
    return Source(file, pixels.dataset.image_dir)


def _is_named(place: Path) -> bool:
    return any(WORDS.search(part.lower()) for part in place.parts)


def _is_map(file: Path) -> bool:
    try:
        with open_image(file) as image:
            return image.mode in MODES
    except ValueError:
        return False


def _named_classes(root: Path) -> dict[int, str]:
    for name in NAMES:
        if (root / name).is_file():
            lines = read_text(root / name, "a class a line").splitlines()
            return {value: line.strip() for value, line in enumerate(lines) if line.strip()}
    return {}


def _values_of(images: Path, labels: Path, data: Dataset | None) -> tuple[dict[str, list[int]], int]:
    """{file name of a picture: values of its map}, for the pictures that have one, and the number of the others."""
    if data is not None:
        names = list(data.file_names)
    else:
        files = sorted(file for file in walk(images, depth=DEPTH) if file.suffix.lower() in SUFFIXES)
        names = [file.relative_to(images).as_posix() for file in files]
    found: dict[str, list[int]] = {}
    for name in names:
        file = (labels / name).with_suffix(".png")
        if not os.path.isfile(file):
            continue
        with open_image(file) as image:
            mode, values = image.mode, np.unique(np.asarray(image))
        if mode not in MODES:
            raise ValueError(f"{file}: a label map of mode {mode}, expected 8-bit grey or palette")
        found[name] = values.tolist()
    if not found:
        raise ValueError(f"{labels}: no PNG has the name of a picture in {images}: expected one for each")
    return found, len(names) - len(found)


def _dataset(folder: Path, values: dict[str, list[int]], classes: dict[int, str]) -> Dataset:
    """A data set with a box as large as the picture for each class in it, used to divide pictures evenly."""
    records: list[dict] = []
    boxes: list[dict] = []
    for number, (name, own) in enumerate(values.items(), 1):
        height, width = image_size(folder / name)
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        for value in [value for value in own if value in classes]:
            box = {"bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": value, **box})
    categories = [{"id": value, "name": name} for value, name in classes.items()]
    return coco.from_document({"images": records, "annotations": boxes, "categories": categories}, folder, folder)
