"""Data sets of any format: detection of the format, and reading."""

import os
from dataclasses import replace
from pathlib import Path

from headstart.data.dataset import Dataset
from headstart.data.images import SUFFIXES, image_size, without_copies
from headstart.data.read.coco import from_document, read
from headstart.data.read.text import walk
from headstart.data.read.voc import read_voc
from headstart.data.read.yolo import read_yolo

__all__ = ["detect_format", "open_annotated", "open_dataset", "read_folders", "read_voc", "read_yolo"]


def detect_format(path: str | Path) -> str:
    """One of "coco", "voc", "yolo", "folders" (one folder of images a class), from the names of files alone.

    A .json file or a folder with such files (or annotations/*.json) is COCO; Annotations/*.xml is VOC; a .yaml file or
    a folder with one is YOLO; class folders may lie one level down, under their split. ValueError if none fits.
    """
    path = Path(path)
    if os.path.isfile(path) and path.suffix.lower() in (".json", ".yaml", ".yml"):
        return "coco" if path.suffix.lower() == ".json" else "yolo"
    if os.path.isdir(path):
        if any((path / "Annotations").glob("*.xml")):
            return "voc"
        if _yaml_files(path):
            return "yolo"
        if _json_files(path):
            return "coco"
        if any(p.suffix.lower() in SUFFIXES and p.parent != path for p in walk(path, depth=3)):
            return "folders"
    raise ValueError(
        f"{path}: {'no known format' if os.path.exists(path) else 'no such file or folder'}: expected a COCO .json "
        "file, a VOC folder (Annotations/*.xml), a YOLO data.yaml, or one folder of images a class"
    )


def open_dataset(path: str | Path, image_dir: str | Path | None = None, split: str | None = None) -> Dataset:
    """Read a data set of any format that detect_format knows.

    image_dir: only with COCO. split: the name in ImageSets/Main (VOC; default all), the field of data.yaml (YOLO;
    default train), the part of the file name of a folder with several COCO files, or the folder that holds the class
    folders. ValueError as the readers, for a setting without effect, and where several files fit.
    """
    path = Path(path)
    kind = detect_format(path)
    if image_dir is not None and kind != "coco":
        raise ValueError(f"{path}: image_dir = {str(image_dir)!r}: expected only with COCO JSON, not with {kind}")
    if kind == "voc":
        return read_voc(path, split)
    if kind == "yolo":
        return read_yolo(path if os.path.isfile(path) else _the_only(path, _yaml_files(path), None), split or "train")
    if kind == "folders":
        return read_folders(path / split if split else path)
    if os.path.isfile(path):
        if split is not None:
            raise ValueError(f"{path}: split = {split!r}: expected none, this file is one split; or give its folder")
        return read(path, image_dir)
    return read(_the_only(path, _json_files(path), split), image_dir)


def open_annotated(path: str | Path, image_dir: str | Path | None = None, split: str | None = None) -> Dataset:
    """`open_dataset` for detection; ValueError for image folders, whose only boxes would be whole images."""
    if detect_format(path) == "folders":
        raise ValueError(
            f"{path}: one folder of images a class, without boxes: expected a COCO .json file, a VOC folder "
            "(Annotations/*.xml) or a YOLO data.yaml for detection"
        )
    return open_dataset(path, image_dir, split)


def _json_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.json"), *(folder / "annotations").glob("*.json")])


def _yaml_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])


def _the_only(folder: Path, files: list[Path], split: str | None) -> Path:
    fitting = [file for file in files if split is None or split in file.stem]
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
