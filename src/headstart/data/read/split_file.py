"""Split files: the images of each split of a data set of any format, by name; written once and kept."""

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from headstart.data.dataset import Dataset
from headstart.files import json_text, write_whole
from headstart.typed_json import read_json


class SplitFile(Struct, forbid_unknown_fields=True, kw_only=True):
    """The content of a split file.

    data and images: the data set and its image folder as `open_dataset` takes them, relative to the file's folder.
    part: its split that was divided, if any. splits: file names of images. seed, share and groups made it; groups is
    the pattern of file names that stay together.
    """

    headstart_split: int = 1
    data: str
    images: str | None = None
    part: str | None = None
    seed: int
    share: float
    groups: str | None = None
    splits: dict[str, list[str]]


def read_split_file(path: Path) -> tuple[SplitFile, Path, Path | None]:
    """A split file, its data set and image folder; ValueError naming file and field for what is wrong."""
    content = read_json(path, SplitFile)
    if content.headstart_split != 1:
        raise ValueError(f"{path}: headstart_split = {content.headstart_split}: expected 1")
    images = None if content.images is None else path.parent / content.images
    return content, path.parent / content.data, images


def write_split_file(
    path: Path, data: Path, images: Path | None, part: str | None, splits: Mapping[str, list[str]],
    *, seed: int, share: float, groups: str | None,
) -> None:  # fmt: skip
    """Write a split file; its data set and images are named relative to its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def relative(place: Path) -> str:
        return Path(os.path.relpath(place, path.parent)).as_posix()

    content = SplitFile(
        data=relative(data), images=None if images is None else relative(images), part=part, seed=seed, share=share,
        groups=groups, splits=dict(splits),
    )  # fmt: skip
    write_whole(path, json_text({name: getattr(content, name) for name in content.__struct_fields__}))


def take_split(dataset: Dataset, path: Path, content: SplitFile, split: str | None) -> Dataset:
    """The images of a split, in the data set's order; ValueError for an unknown split or image."""
    if split not in content.splits:
        raise ValueError(f"{path}: split = {split!r}: expected one of {list(content.splits)} (as {path}:train)")
    place = {name: i for i, name in enumerate(dataset.file_names)}
    unknown = [name for name in content.splits[split] if name not in place]
    if unknown:
        raise ValueError(f"{path}: splits.{split}: {unknown[0]!r}: no such image in {dataset.path}")
    return dataset.take(sorted(place[name] for name in content.splits[split]))
