"""Text files of data sets and walks through their folders, both bounded; errors name file and line."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from headstart.data.images import SUFFIXES
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
    """Everything below a folder but folders, in no order; links to folders are not followed.

    depth: levels of folders that are entered, root included; None for all. ValueError naming the root after more
    entries than a data set has. Folders that cannot be listed are errors too.
    """
    folders, images, others = [(str(root), 1)], 0, 0
    while folders:
        folder, level = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
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
