"""PASCAL VOC folders: Annotations, JPEGImages and ImageSets/Main."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from headstart.data.dataset import NO_SEGMENT, Dataset
from headstart.data.write import Splits, copy_picture, new_folder, shortest
from headstart.files import write_whole

_NOT_XML = re.compile("[\x00-\x1f\ufffe\uffff]")  # XML 1.0 has no form for these


def write_voc(splits: Splits, out: Path) -> list[str]:
    """Write annotations, pictures and lists of the splits into a new folder; notes on what VOC has no form for.

    Corners have the fewest decimals that are read back as the same box, bit for bit where there are. Crowds become
    difficult objects. Names of pictures are those of their files; where these clash, with their folders and split.
    ValueError for names that XML cannot hold, pictures whose names clash all the same, and missing ones.
    """
    for name in (name for data in splits.values() for name in data.class_names):
        if _NOT_XML.search(name) or name != name.strip():
            raise ValueError(f"class {name!r}: VOC's XML cannot hold this name; see `data rename`")
    pictures = _flat(splits)
    new_folder(out)
    for name, data in splits.items():
        for image, flat in enumerate(pictures[name]):
            copy_picture(data, image, out / "JPEGImages" / flat)
            target = out / "Annotations" / f"{PurePosixPath(flat).stem}.xml"
            target.parent.mkdir(exist_ok=True)
            write_whole(target, _xml(data, image, flat))
        lists = out / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        write_whole(lists / f"{name}.txt", "".join(f"{PurePosixPath(flat).stem}\n" for flat in pictures[name]))
    used = {data.class_names[label] for data in splits.values() for label in set(data.labels.tolist())}
    unused = dict.fromkeys(name for data in splits.values() for name in data.class_names if name not in used)
    notes = [note for name, data in splits.items() for note in _notes(name, data)]
    return notes + ([f"classes without an object, which VOC does not list: {', '.join(unused)}"] if unused else [])


def _flat(splits: Splits) -> dict[str, list[str]]:
    """Names of pictures without folders: as they are; if these clash, with their folders and the split in them."""
    names = {split: [PurePosixPath(file) for file in data.file_names] for split, data in splits.items()}
    for flat in (
        {split: [file.name for file in own] for split, own in names.items()},
        {split: ["_".join((split, *file.parts)) for file in own] for split, own in names.items()},
    ):
        stems = [PurePosixPath(name).stem.casefold() for own in flat.values() for name in own]
        if len(set(stems)) == len(stems):
            return flat
    twice = next(stem for stem in stems if stems.count(stem) > 1)
    raise ValueError(f"{twice}: is the name of several pictures, and VOC has one XML file a name; expected other names")


def _xml(data: Dataset, image: int, name: str) -> str:
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name)
    size = ElementTree.SubElement(root, "size")
    _add(size, "width", str(data.widths[image]))
    _add(size, "height", str(data.heights[image]))
    for n in range(data.first[image], data.first[image + 1]):
        item = ElementTree.SubElement(root, "object")
        _add(item, "name", data.class_names[data.labels[n]])
        _add(item, "difficult", str(int(data.difficult[n] or data.crowd[n])))
        corners = ElementTree.SubElement(item, "bndbox")
        for tag, text in zip(("xmin", "ymin", "xmax", "ymax"), _corners(data.boxes[n])):
            _add(corners, tag, text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def _corners(box: np.ndarray) -> list[str]:
    """VOC's corners, that count from 1 and are inclusive, that the reader makes the same box of."""
    x1, y1, x2, y2 = box.tolist()
    texts: list[str] = []
    for texts in shortest((x1 + 1, y1 + 1, x2, y2), 0):
        left, top, right, bottom = map(float, texts)
        found = (left - 1, top - 1, left - 1 + (right - left + 1), top - 1 + (bottom - top + 1))
        if found == (x1, y1, x2, y2):
            break
    return [text.rstrip("0").rstrip(".") if "." in text else text for text in texts]


def _notes(name: str, data: Dataset) -> Iterator[str]:
    if masks := int((data.segment_kind != NO_SEGMENT).sum()):
        yield f"{name}: {masks} masks left out"
    if crowds := int(data.crowd.sum()):
        yield f"{name}: {crowds} crowds became difficult objects"
    if data.keypoints is not None:
        yield f"{name}: keypoints left out"
