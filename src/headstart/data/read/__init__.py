"""Data sets of any format: one split of them by its place, reading, and split files.

A split file has the images of each split of a data set of any format, by name; it is written once and kept.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import Struct

from headstart.data.dataset import Dataset
from headstart.data.images import SUFFIXES, image_size, without_copies
from headstart.data.read.coco import from_document, read
from headstart.data.read.csv_boxes import read_csv
from headstart.data.read.data_yaml import yolo_splits
from headstart.data.read.files import SPLITS, split_of, walk
from headstart.data.read.labelme import read_labelme
from headstart.data.read.layout import EXPECTED, DataLayout, find_layout
from headstart.data.read.voc import read_voc
from headstart.data.read.yolo import read_yolo
from headstart.files import json_text, write_whole
from headstart.typed_json import read_json


@dataclass(frozen=True)
class Source:
    """Location of one split: a file or folder, its image folder where that is elsewhere, and the split's name."""

    path: Path
    image_dir: Path | None = None
    split: str | None = None

    @classmethod
    def parse(cls, path: str | Path, image_dir: str | Path | None = None, split: str | None = None) -> "Source":
        """Location given as PATH or, where there is no such file, as PATH:SPLIT."""
        given, folder = str(path), None if image_dir is None else Path(image_dir)
        if split is None and not os.path.exists(given) and ":" in given:
            head, _, tail = given.rpartition(":")
            if os.path.exists(head):
                return cls(Path(head), folder, tail)
        return cls(Path(path), folder, split)


def detect_format(path: str | Path) -> str:
    """One of "coco", "voc", "yolo", "labelme", "csv", "folders" (one folder of images a class), "split" (a split file).

    `find_layout` says how formats are told apart. ValueError if none fits.
    """
    return find_layout(path).kind


def splits_of(layout: DataLayout) -> dict[str, Source]:
    """The splits of a data set by name; an undivided one is "all"."""
    if layout.kind == "coco" or (layout.kind == "yolo" and layout.splits):
        if not layout.splits:
            return {"all": Source(_the_only(layout.root, layout, None))}
        return {name: Source(file) for name, file in zip(layout.splits, layout.files)}
    if layout.kind == "split":
        names = tuple(read_split_file(layout.root)[0].splits)
    elif layout.kind == "yolo":
        names = yolo_splits(_the_only(layout.root, layout, None))
    else:
        names = layout.splits
    return {name: Source(layout.root, None, name) for name in names} or {"all": Source(layout.root)}


def open_dataset(path: str | Path, image_dir: str | Path | None = None, split: str | None = None) -> Dataset:
    """Read a data set of any format that detect_format knows; path may be PATH:SPLIT.

    image_dir: where the pictures are, for COCO, VOC, labelme and CSV. split: a name of `splits_of`, also as folders
    spell it (valid); for VOC any list in ImageSets/Main; for a folder of COCO files a part of the file's name. Without
    split: YOLO's train, all of VOC, labelme and CSV. ValueError as the readers, for a setting without effect, and where
    several files fit.
    """
    place = Source.parse(path, image_dir, split)
    path, image_dir, split = place.path, place.image_dir, place.split
    layout = find_layout(path)
    if image_dir is not None and layout.kind in ("yolo", "folders", "split"):
        expected = "expected only with COCO JSON, VOC, labelme or CSV"
        raise ValueError(f"{path}: image_dir = {str(image_dir)!r}: {expected}, not with {layout.kind}")
    if layout.kind == "voc":
        return read_voc(path, split, image_dir=image_dir)
    if layout.kind == "yolo":
        if layout.splits:  # a list of class names in the folder of each
            return read_yolo(_the_only(path, layout, split))
        return read_yolo(_the_only(path, layout, None), split or "train")
    if layout.kind in ("labelme", "csv"):
        reader = read_labelme if layout.kind == "labelme" else read_csv
        root = path if path.is_dir() else path.parent
        return reader(root, layout.files, _chosen_files(layout, split), image_dir)
    if layout.kind == "folders":
        return read_folders(_class_root(layout, split))
    if layout.kind == "split":
        content, data, images = read_split_file(path)
        if detect_format(data) == "split":
            raise ValueError(f"{path}: data = {content.data!r}: is a split file too: expected a data set")
        return take_split(open_dataset(data, images, content.part), path, content, split)
    if os.path.isfile(path):
        if split is not None:
            raise ValueError(f"{path}: split = {split!r}: expected none, this file is one split; or give its folder")
        return read(path, image_dir)
    return read(_the_only(path, layout, split), image_dir)


def open_whole(path: str | Path, image_dir: str | Path | None = None, split: str | None = None) -> Dataset:
    """`open_dataset` for what is written or counted; ValueError also for several YOLO splits, none named."""
    place = Source.parse(path, image_dir, split)
    layout = find_layout(place.path)
    if layout.kind == "yolo" and place.split is None and len(names := list(splits_of(layout))) > 1:
        raise ValueError(f"{place.path}: split = None: expected one of {names} (as {place.path}:{names[0]})")
    return open_dataset(place.path, place.image_dir, place.split)


def open_annotated(path: str | Path, image_dir: str | Path | None = None, split: str | None = None) -> Dataset:
    """`open_dataset` for detection; ValueError for image folders, whose only boxes would be whole images."""
    place = Source.parse(path, image_dir, split)
    data = place.path
    kind = detect_format(data)
    if kind == "split":
        data = read_split_file(data)[1]
        kind = detect_format(data)
    if kind == "folders":
        raise ValueError(f"{data}: one folder of images a class, without boxes: {EXPECTED.rpartition(', or')[0]}")
    return open_dataset(place.path, place.image_dir, place.split)


def annotation_files(path: str | Path) -> list[Path]:
    """The files that a data set (also PATH:SPLIT) is read from beside its images; of a split file also its data's."""
    layout = find_layout(Source.parse(path).path)
    own = [layout.root, *layout.files]
    return [*own, *annotation_files(read_split_file(layout.root)[1])] if layout.kind == "split" else own


def open_folders(path: str | Path) -> Dataset:
    """Image folders of a class each for classification: FOLDER, FOLDER:SPLIT or SPLITFILE:SPLIT."""
    place = Source.parse(path)
    return open_dataset(place.path, None, place.split) if place.split else read_folders(place.path)


def _class_root(layout: DataLayout, split: str | None) -> Path:
    if split is None and not layout.splits:
        return layout.root
    wanted = SPLITS.get(split or "", split)
    fitting = [root for root in layout.files if wanted in (root.name, split_of(Path(root.name)))]
    if len(fitting) == 1:
        return fitting[0]
    names = [root.name for root in layout.files if root != layout.root]
    raise ValueError(f"{layout.root}: split = {split!r}: expected one of {names}")


def _chosen_files(layout: DataLayout, split: str | None) -> tuple[Path, ...]:
    """Annotation files of a split by their folders' and own names; all without a split."""
    if split is None:
        return layout.files
    wanted, root = SPLITS.get(split, split), layout.root if layout.root.is_dir() else layout.root.parent
    chosen = [f for f in layout.files if wanted in layout.splits and split_of(f.relative_to(root)) == wanted]
    if not chosen:
        raise ValueError(f"{layout.root}: split = {split!r}: expected one of {list(layout.splits)}")
    return tuple(chosen)


def _the_only(folder: Path, layout: DataLayout, split: str | None) -> Path:
    files = layout.files
    fitting = [file for file, name in zip(files, layout.splits) if SPLITS.get(split or "", split) == name]
    fitting = fitting or [file for file in files if split is None or split in file.stem]
    if len(fitting) == 1:
        return fitting[0]
    named = [file.relative_to(folder).as_posix() for file in files]
    choice = f"split = {split!r}" if split else "no split"
    raise ValueError(f"{folder}: {choice} fits {len(fitting)} files: expected one of {named}")


def read_folders(root: str | Path) -> Dataset:
    """One folder of images a class (deeper folders belong to it): each image is one object, its box the whole image.

    Classes are the folder names, sorted; category ids 1..C; images in the order of their paths. Files that are no
    images by their suffix, and images outside any class folder, are counted in notes. ValueError naming the file for an
    unreadable image, and if there is no image in any class folder.
    """
    root = Path(root)
    images, num_others = folder_images(root)
    classes = sorted({p.relative_to(root).parts[0] for p in images})
    document: dict = {"images": [], "annotations": []}
    document["categories"] = [{"id": c + 1, "name": name} for c, name in enumerate(classes)]
    for number, file in enumerate(images, 1):
        height, width = image_size(file)
        inside = file.relative_to(root)
        category = classes.index(inside.parts[0]) + 1
        image = {"id": number, "file_name": inside.as_posix(), "height": height, "width": width}
        whole = {"bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0}
        document["images"].append(image)
        document["annotations"].append({"id": number, "image_id": number, "category_id": category, **whole})
    dataset = from_document(document, root, root)
    notes = (f"{num_others} files left out: no image suffix ({', '.join(SUFFIXES)}) or not in a class folder",)
    return replace(dataset, notes=notes) if num_others else dataset


def folder_images(root: Path) -> tuple[list[Path], int]:
    """The images in class folders below `root`, sorted, none of them opened; and how many other files there are."""
    files = sorted(walk(root)) if os.path.isdir(root) else []
    images = without_copies(p for p in files if p.suffix.lower() in SUFFIXES and p.parent != root)
    if not images:
        raise ValueError(f"{root}: no images in class folders: expected for example {root}/CLASS/IMAGE.jpg")
    return images, len(files) - len(images)


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
    """The images of a split, in the data set's order; ValueError for an unknown split or image, and one given twice."""
    if split not in content.splits:
        raise ValueError(f"{path}: split = {split!r}: expected one of {list(content.splits)} (as {path}:train)")
    place = {name: i for i, name in enumerate(dataset.file_names)}
    unknown = [name for name in content.splits[split] if name not in place]
    if unknown:
        raise ValueError(f"{path}: splits.{split}: {unknown[0]!r}: no such image in {dataset.path}")
    if twice := [name for name, count in Counter(content.splits[split]).items() if count > 1]:
        raise ValueError(f"{path}: splits.{split}: {twice[0]!r} is given twice, expected each image once")
    return dataset.take(sorted(place[name] for name in content.splits[split]))
