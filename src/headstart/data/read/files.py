"""Files of data sets: bounded reading of texts and folders, with errors that name file and line; and pictures."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PureWindowsPath

from headstart.data.images import SUFFIXES, is_of_macos, without_copies
from headstart.data.read.coco_records import show
from headstart.files import open_regular, read_regular

# Labels, VOC's XML, and lists of images: room for a million lines of 64 bytes, or 3,000 polygons of 1,000 points.
MOST_TEXT = 64 * 2**20
# Files and folders below a folder of images: ImageNet-21k has 14 million images.
MOST_ENTRIES = 20_000_000
# Others than images that a walk may meet, and besides for each image: label files lie beside images, and a copy or two;
# a whole disk has far more files of other kinds.
MOST_OTHERS, OTHERS_PER_IMAGE = 200_000, 10
HEAD = 2**16  # bytes that tell formats apart: COCO's lists of licences, which come first, take 1 KB

# Words of folder and file names that name a split, and the split; exports of Roboflow say valid.
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip


def split_of(place: Path) -> str | None:
    """The split that the first folder or file name of a path names: "instances_val2017.json" -> "val"."""
    for part in place.parts:
        for word in re.split("[^a-z]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return None


def read_text(path: Path, expected: str, *, most: int = MOST_TEXT) -> str:
    """UTF-8 text of a regular file, without a byte order mark.

    FileNotFoundError as `open`. ValueError naming the file for anything else that cannot be read, with the line of a
    byte that is not UTF-8; `expected` ends the message.
    """
    try:
        raw = read_regular(path, most=most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): expected {expected}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        line = raw.count(b"\n", 0, bad.start) + 1
        raise ValueError(f"{path}: line {line}: byte {raw[bad.start]:#x} is not UTF-8: expected {expected}") from None


def read_head(path: Path) -> bytes:
    """The first HEAD bytes of a regular file; none of anything else. ValueError for a file that cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(HEAD)
    except (FileNotFoundError, ValueError):
        return b""
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): expected a readable file") from None


def walk(root: Path, *, depth: int | None = None) -> Iterator[Path]:
    """Everything below a folder but folders and macOS' own files, in no order; links to folders are not followed.

    depth: levels of folders that are entered, root included; None for all. ValueError naming the root after more
    entries than a data set has. Folders that cannot be listed are errors too.
    """
    folders, images, others = [(str(root), 1)], 0, 0
    while folders:
        folder, level = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_of_macos(entry.name):
                        continue
                    is_image = entry.name.lower().endswith(SUFFIXES)
                    images, others = images + is_image, others + (not is_image)
                    if others > MOST_OTHERS + OTHERS_PER_IMAGE * images or images + others > MOST_ENTRIES:
                        raise ValueError(
                            f"{root}: {images + others:,} files and folders with only {images:,} images, not read "
                            "further: expected the folder of a data set"
                        )
                    if not entry.is_dir(follow_symlinks=False):
                        if not (entry.is_symlink() and entry.is_dir()):
                            yield Path(entry.path)
                    elif depth is None or level < depth:
                        folders.append((entry.path, level + 1))
        except OSError as error:
            raise ValueError(f"{folder}: cannot be listed ({error.strerror}): expected a folder of images") from None


def pixel(where: str, field: str, text: str) -> float:
    """A coordinate as text; ValueError for anything but a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {field} = {show(text.strip())}: expected a pixel coordinate")
    return value


def find_pictures(
    root: Path, annotations: Sequence[tuple[Path, str]], image_dir: Path | None
) -> tuple[Path, list[str]]:
    """The folder that holds all pictures, and the picture of each annotation file relative to it.

    annotations: files of a picture each, with the picture's name as it is written there.
    A picture has the stem of its annotation file, else the name written there; of several, that beside the file, then
    one of the very name (and not a mask), then that whose path begins and ends most like the file's, then that of the
    folder that fits most files. Without one, the name as written. ValueError where several of one folder fit.
    """
    pictures = without_copies(p for p in walk(image_dir or root) if p.suffix.lower() in SUFFIXES)
    by_stem: dict[str, dict[Path, list[str]]] = {}
    for picture in sorted(pictures):
        by_stem.setdefault(picture.stem, {}).setdefault(picture.parent, []).append(picture.name)
    fits = [by_stem.get(file.stem) or by_stem.get(_base(written).stem, {}) for file, written in annotations]
    counts = Counter(folder for folders in fits for folder in folders)
    ranks = {folder: rank for rank, (folder, _) in enumerate(sorted(counts.items(), key=lambda x: (-x[1], x[0])))}
    found = [
        _choose(file, written, folders, ranks) if folders else None
        for (file, written), folders in zip(annotations, fits)
    ]
    folders = Counter(picture.parent for picture in found if picture)
    usual = min(folders, key=lambda one: (-folders[one], one), default=image_dir or root / "JPEGImages")
    base = Path(os.path.commonpath(folders)) if folders else usual
    missing = "" if usual == base else f"{usual.relative_to(base).as_posix()}/"
    return base, [
        picture.relative_to(base).as_posix() if picture else missing + (written or f"{file.stem}.jpg")
        for picture, (file, written) in zip(found, annotations)
    ]


def _base(written: str) -> PureWindowsPath:
    """The name in a path as Windows or POSIX writes it."""
    return PureWindowsPath(PureWindowsPath(written).name)


def shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Parts that two paths share at their beginning; of reversed ones, at their end."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


def _in_common(one: Path, other: Path) -> int:
    """Folders that two paths share at their beginning and at their end: two of a/x/images and a/x/labels."""
    return shared(one.parts, other.parts) + shared(one.parts[::-1], other.parts[::-1])


def _choose(file: Path, written: str, folders: dict[Path, list[str]], ranks: dict[Path, int]) -> Path:
    name = _base(written).name
    folder = min(
        folders,
        key=lambda one: (
            one != file.parent,
            name not in folders[one],
            -_in_common(one, file.parent),
            ranks[one],
        ),
    )
    names = folders[folder]
    if len(names) > 1 and name not in names:
        raise ValueError(f"{file}: fits the pictures {' and '.join(names)}: expected one, or its name in 'filename'")
    return folder / (name if name in names else names[0])
