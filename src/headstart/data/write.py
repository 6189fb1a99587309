"""Data sets written as folders of YOLO or PASCAL VOC, with copies of their pictures; COCO JSON is in `read.coco`."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from headstart.data.dataset import NO_SEGMENT, POLYGONS, Dataset
from headstart.data.read import Source, find_layout, open_dataset, splits_of
from headstart.data.read.files import SPLITS
from headstart.data.read.yolo import SLACK, label_file
from headstart.files import write_whole

DECIMALS = 6  # of YOLO's fractions, at least, as other tools write
_NOT_XML = re.compile("[\x00-\x1f\ufffe\uffff]")  # XML 1.0 has no form for these
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


def _new_folder(out: Path, splits: Splits) -> Path:
    """A new or empty folder to write into; ValueError for a file, a folder with content, and a missing picture."""
    for data in splits.values():
        for source in map(data.image_path, range(data.num_images)):
            if not source.is_file():
                raise ValueError(f"{source}: no such picture; expected the images of {data.path} (--images)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists already; expected the name of a new folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _copy_picture(data: Dataset, image: int, target: Path) -> None:
    """Copy the picture of image index `image` to a new file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data.image_path(image), target)


def _shortest(values: Iterable[float], least: int, is_same: Callable[..., bool]) -> list[str]:
    """Texts of numbers with the fewest decimals, `least` or more, of which is_same(*numbers) is true, else with all."""
    numbers, texts = list(values), []
    for digits in range(least, 18):
        texts = [f"{number:.{digits}f}" for number in numbers]
        if is_same(*map(float, texts)):
            break
    return texts


def write_voc(splits: Splits, out: Path) -> list[str]:
    """Write annotations, pictures and lists of the splits into a new folder; notes on what VOC has no form for.

    Corners have the fewest decimals that read back as the same box bit for bit, or 17 where none do. Crowds become
    difficult objects. Names of pictures are those of their files; where these clash, with their folders and split.
    ValueError for names that XML cannot hold, pictures whose names clash all the same, and missing ones.
    """
    for name in (name for data in splits.values() for name in data.class_names):
        if _NOT_XML.search(name) or name != name.strip():
            raise ValueError(f"class {name!r}: VOC's XML cannot hold this name; see `data rename`")
    pictures = _flat(splits)
    _new_folder(out, splits)
    for name, data in splits.items():
        for image, flat in enumerate(pictures[name]):
            _copy_picture(data, image, out / "JPEGImages" / flat)
            target = out / "Annotations" / f"{PurePosixPath(flat).stem}.xml"
            target.parent.mkdir(exist_ok=True)
            write_whole(target, _xml(data, image, flat))
        lists = out / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        write_whole(lists / f"{name}.txt", "".join(f"{PurePosixPath(flat).stem}\n" for flat in pictures[name]))
    used = {data.class_names[label] for data in splits.values() for label in set(data.labels.tolist())}
    unused = dict.fromkeys(name for data in splits.values() for name in data.class_names if name not in used)
    notes = [note for name, data in splits.items() for note in _voc_notes(name, data)]
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
    """VOC's corners, counted from 1 and inclusive, from which the reader restores the same box."""
    x1, y1, x2, y2 = box.tolist()

    def is_same(left: float, top: float, right: float, bottom: float) -> bool:
        return (left - 1, top - 1, left - 1 + (right - left + 1), top - 1 + (bottom - top + 1)) == (x1, y1, x2, y2)

    texts = _shortest((x1 + 1, y1 + 1, x2, y2), 0, is_same)
    return [text.rstrip("0").rstrip(".") if "." in text else text for text in texts]


def _voc_notes(name: str, data: Dataset) -> Iterator[str]:
    if masks := int((data.segment_kind != NO_SEGMENT).sum()):
        yield f"{name}: {masks} masks left out"
    if crowds := int(data.crowd.sum()):
        yield f"{name}: {crowds} crowds became difficult objects"
    if thin := int((data.boxes[:, 2:] <= data.boxes[:, :2] + 1).any(axis=1).sum()):  # as `read_voc` has it
        yield f"{name}: {thin} boxes of at most a pixel in width or height, which readers of VOC leave out"
    if data.keypoints is not None:
        yield f"{name}: keypoints left out"


def write_yolo(splits: Splits, out: Path) -> list[str]:
    """Write data.yaml, pictures and labels into a new folder; notes on what YOLO has no form for.

    An object of one polygon is that polygon, any other its box; crowds and difficult objects are left out. What reaches
    out of its image by more than readers take is cut. Numbers have the fewest decimals, six or more, that read back as
    the same boxes and polygons bit for bit, or 17 where none do.
    ValueError for splits but train, val and test, unequal classes, two pictures with one label file, and missing ones.
    """
    (first, one), *others = splits.items()
    for name, other in others:
        if other.class_names != one.class_names:
            odd = sorted(set(other.class_names) ^ set(one.class_names)) or list(other.class_names)
            raise ValueError(f"{other.path}: classes of {name} and {first} differ in {odd[:5]}; see `data rename`")
    for name in splits:
        if name not in ("train", "val", "test"):
            raise ValueError(f"split = {name!r}: YOLO has train, val and test; expected one of them with --split")
    targets = {name: [out / "images" / name / file for file in data.file_names] for name, data in splits.items()}
    owners: dict[Path, Path] = {}
    for target in chain.from_iterable(targets.values()):
        labels = label_file(target)
        if owners.setdefault(labels, target) is not target:
            raise ValueError(
                f"{target.name} and {owners[labels].name}: would share {labels.name}; expected other names"
            )
    _new_folder(out, splits)
    for name, data in splits.items():
        for image, target in enumerate(targets[name]):
            _copy_picture(data, image, target)
            labels = label_file(target)
            labels.parent.mkdir(parents=True, exist_ok=True)
            write_whole(labels, "".join(f"{row}\n" for row in _rows(data, image)))
    config = {"path": ".", **{name: f"images/{name}" for name in splits}, "names": dict(enumerate(one.class_names))}
    write_whole(out / "data.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return [note for name, data in splits.items() for note in _yolo_notes(name, data)]


def _cut(data: Dataset, n: int) -> tuple[np.ndarray, bool]:
    """The one polygon [points, 2] of annotation n, else its box [4]; cut, and True, where `read_yolo` refuses it."""
    height, width = data.size(data.image_of[n])
    sides, polygons, box = np.array([width, height], float), data.polygons(n), data.boxes[n]
    if len(polygons) == 1:
        refused = _is_refused(polygons[0] / sides)
        return np.where(refused, np.clip(polygons[0], 0, sides), polygons[0]), bool(refused.any())
    refused = _is_refused(np.array([box[:2] + box[2:], 2 * (box[2:] - box[:2])]) / 2 / sides)
    return np.clip(box, 0, [width, height] * 2) if refused.any() else box, bool(refused.any())


def _is_refused(fractions: np.ndarray) -> np.ndarray:
    return (fractions < -SLACK) | (fractions > 1 + SLACK)


def _rows(data: Dataset, image: int) -> Iterator[str]:
    height, width = data.size(image)
    for n in range(data.first[image], data.first[image + 1]):
        if data.crowd[n] or data.difficult[n]:
            continue
        shape, _ = _cut(data, n)
        numbers = _polygon(shape, width, height) if shape.ndim == 2 else _box(shape, width, height)
        yield " ".join((str(data.labels[n]), *numbers))


def _polygon(points: np.ndarray, width: int, height: int) -> list[str]:
    """Fractions of the image, x and y in turn, from which the reader restores the same pixels."""
    sides, pixels = np.tile((width, height), len(points)), points.ravel()
    return _shortest(pixels / sides, DECIMALS, lambda *found: bool((np.array(found) * sides == pixels).all()))


def _box(box: np.ndarray, width: int, height: int) -> list[str]:
    """Centre and size as fractions of the image, from which the reader restores the same corners."""
    x1, y1, x2, y2 = box.tolist()

    def is_same(cx: float, cy: float, w: float, h: float) -> bool:
        left, top = (cx - w / 2) * width, (cy - h / 2) * height
        return (left, top, left + w * width, top + h * height) == (x1, y1, x2, y2)

    sizes = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return _shortest(sizes, DECIMALS, is_same)


def _yolo_notes(name: str, data: Dataset) -> Iterator[str]:
    ignored = int((data.crowd | data.difficult).sum())
    if ignored:
        yield f"{name}: {ignored} crowds or difficult objects left out"
    if num_cut := sum(_cut(data, n)[1] for n in np.flatnonzero(~data.crowd & ~data.difficult)):
        yield f"{name}: {num_cut} objects that reach out of their image cut"
    several = int((np.diff(data.polygon_first) > 1).sum()) + len(data.rles)
    if several:
        yield f"{name}: {several} masks of several polygons or runs became boxes"
    one = (data.segment_kind == POLYGONS) & (np.diff(data.polygon_first) == 1)
    if one.any():
        yield f"{name}: the boxes of {int(one.sum())} polygons are the tightest around them"
    if data.keypoints is not None:
        yield f"{name}: keypoints left out"
