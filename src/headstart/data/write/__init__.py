"""Data sets written as folders of YOLO or PASCAL VOC, with copies of their pictures; COCO JSON is in `read.coco`."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from headstart.data.dataset import Dataset
from headstart.data.read import Source, find_layout, open_dataset, splits_of
from headstart.data.read.text import SPLITS

Splits = Mapping[str, Dataset]


def open_splits(path: str, image_dir: Path | None, split: str | None) -> dict[str, Dataset]:
    """All splits of a data set by name, or the one that is named; an undivided set is "train"."""
    place = Source.parse(path, image_dir, split)
    if place.split is not None:
        return {SPLITS.get(place.split, place.split): open_dataset(place.path, place.image_dir, place.split)}
    known = splits_of(find_layout(place.path))
    return {
        "train" if name == "all" else name: open_dataset(one.path, image_dir or one.image_dir, one.split)
        for name, one in known.items()
    }


def new_folder(out: Path) -> Path:
    """A folder to write into; ValueError for one that holds anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists already; expected the name of a new folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def same_classes(splits: Splits) -> tuple[str, ...]:
    """The class names of all splits; ValueError where they differ."""
    (first, data), *others = splits.items()
    for name, other in others:
        if other.class_names != data.class_names:
            odd = sorted(set(other.class_names) ^ set(data.class_names)) or list(other.class_names)
            raise ValueError(f"{other.path}: classes of {name} and {first} differ in {odd[:5]}; see `data rename`")
    return data.class_names


def copy_picture(data: Dataset, image: int, target: Path) -> None:
    """Copy the picture of image index `image` to a new file; ValueError where it is not there."""
    source = data.image_path(image)
    if not source.is_file():
        raise ValueError(f"{source}: no such picture; expected the images of {data.path} (--images)")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def shortest(values: Iterable[float], least: int) -> Iterable[list[str]]:
    """Texts of numbers with `least` decimals, then one more each, up to all that a float has."""
    numbers = list(values)
    for digits in range(least, 18):
        yield [f"{number:.{digits}f}" for number in numbers]
