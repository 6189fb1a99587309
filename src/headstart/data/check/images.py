"""Checks of image files: missing, unreadable, of another size, rotated by EXIF, or duplicates."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from headstart.data.check import ERROR, NOTE, WARNING, Problem, some
from headstart.data.check.records import LEFT_OUT
from headstart.data.dataset import Dataset
from headstart.data.images import load_image, orientation_of
from headstart.hardware import usable_cores

Names = tuple[dict[str, str], dict[str, str]]


@dataclass(frozen=True)
class ImageCheck:
    """One image file: its problem, if any; SHA-1 of its decoded pixels; whether EXIF rotates or mirrors it."""

    problem: Problem | None
    digest: bytes | None
    turned: bool


def examine(dataset: Dataset, split: str) -> list[ImageCheck]:
    """Decode every image file, in threads; one result an image, in order.

    Pixels, not bytes, are hashed: that finds copies of a file and copies saved again without loss alike.
    """
    names = cache(_names)  # a folder is listed once a call, however many files are missing
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(lambda i: _examine(dataset, split, i, names), range(dataset.num_images)))


def _examine(dataset: Dataset, split: str, i: int, names: Callable[[Path], Names]) -> ImageCheck:
    path = dataset.image_path(i)
    where = f"{dataset.path}: image {dataset.image_ids[i]}"
    if not os.path.exists(path):
        message = f"file_name = {dataset.file_names[i]!r}: no such file in {dataset.image_dir}{_nearest(path, names)}"
        problem = Problem(ERROR, "image-missing", split, where, dataset.file_names[i], message, LEFT_OUT)
        return ImageCheck(problem, None, False)
    try:
        pixels = load_image(path)
    except ValueError as error:
        problem = Problem(ERROR, "image-unreadable", split, where, dataset.file_names[i], str(error), LEFT_OUT)
        return ImageCheck(problem, None, False)
    orientation = orientation_of(path)
    digest = hashlib.sha1(repr(pixels.shape).encode() + b"\0", usedforsecurity=False)
    digest.update(pixels)
    height, width = dataset.size(i)
    problem = None
    if pixels.shape[:2] != (height, width):
        message = (
            f"{path}: is {pixels.shape[0]} x {pixels.shape[1]}, the annotation file says {height} x {width} (h x w)"
        )
        if pixels.shape[:2] == (width, height) and orientation >= 5:
            message += f": annotated as stored, without the turn that its EXIF orientation {orientation} asks for"
        value = f"{pixels.shape[0]} x {pixels.shape[1]}"
        problem = Problem(ERROR, "image-size", split, where, value, message, LEFT_OUT)
    return ImageCheck(problem, digest.digest(), orientation != 1)


def _names(folder: Path) -> Names:
    """The files of a folder by name and by stem, both in lower case."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return {name.lower(): name for name in names}, {Path(name).stem.lower(): name for name in names}


def _nearest(path: Path, names: Callable[[Path], Names]) -> str:
    """The end of a message that names a file which differs only in case or suffix."""
    by_name, by_stem = names(path.parent)
    found = by_name.get(path.name.lower()) or by_stem.get(path.stem.lower())
    return f" (nearest name there: {found!r})" if found else ""


def problems(dataset: Dataset, split: str, examined: list[ImageCheck]) -> Iterator[Problem]:
    """Problems of single files, duplicates within the split, and images that EXIF rotates."""
    found = [one.problem for one in examined if one.problem]
    missing = [problem for problem in found if problem.code == "image-missing"]
    if len(missing) == len(examined) > 1:
        message = f"none of the {len(examined)} images is in {dataset.image_dir} (first: {dataset.file_names[0]!r})"
        message += "; another folder is given by --images, in recipes by data.train_images and data.val_images"
        found = [Problem(ERROR, "image-missing", split, dataset.path, str(dataset.image_dir), message, LEFT_OUT)]
    yield from found
    for same in _by_digest(examined).values():
        if len(same) > 1:
            names = [dataset.file_names[i] for i in same]
            where = f"{dataset.path}: image {dataset.image_ids[same[0]]}"
            message = f"the same picture is there {len(same)} times: {some(names)}"
            yield Problem(WARNING, "image-twice", split, where, str(len(same)), message)
    turned = [dataset.file_names[i] for i, one in enumerate(examined) if one.turned]
    if turned:
        message = f"{len(turned)} images are turned by their EXIF orientation, boxes must be of the upright picture: "
        yield Problem(NOTE, "image-turned", split, dataset.path, str(len(turned)), message + some(turned))


def _by_digest(examined: list[ImageCheck]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, one in enumerate(examined):
        if one.digest is not None:
            groups[one.digest].append(i)
    return groups


def overlaps(datasets: Mapping[str, Dataset], examined: Mapping[str, list[ImageCheck]]) -> Iterator[Problem]:
    """Images of a later split that an earlier split holds too."""
    before: dict[bytes, tuple[str, str]] = {}
    for split, dataset in datasets.items():
        groups = _by_digest(examined[split])
        for digest, same in groups.items():
            if digest in before:
                other, name = before[digest]
                message = f"{dataset.file_names[same[0]]}: the same picture as {name} of split {other!r}"
                where = f"{dataset.path}: image {dataset.image_ids[same[0]]}"
                yield Problem(ERROR, "split-overlap", split, where, dataset.file_names[same[0]], message)
        for digest, same in groups.items():
            before.setdefault(digest, (split, dataset.file_names[same[0]]))
