"""PASCAL VOC XML -> Dataset."""

import difflib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headstart.data.dataset import Dataset
from headstart.data.images import SUFFIXES, image_size, is_of_macos
from headstart.data.read.coco import from_document
from headstart.data.read.coco_records import show
from headstart.data.read.files import MOST_TEXT, SPLITS, find_pictures, pixel, read_head, read_text, split_of, walk
from headstart.files import read_regular

_ANNOTATIONS = ("annotations", "annotation", "xml", "xmls")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    name: str
    corners: tuple[float, float, float, float]  # as written
    difficult: int


def read_voc(
    root: str | Path,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    image_dir: str | Path | None = None,
) -> Dataset:
    """A VOC folder: XML files in Annotations/ (in any case), else anywhere below it, and their pictures.

    Pictures are found by name below image_dir, by default below root (`find_pictures`). split: a list of
    ImageSets/Main, else the files in folders that name it (train, val or valid, test); without split, all.
    VOC's corners are 1-based pixels, both inclusive; they become continuous XYXY as x1 - 1, y1 - 1, x2, y2. A box
    with xmax <= xmin or ymax <= ymin as written is an annotation error and left out; notes name file and object.
    Difficult objects are kept and marked. Classes are sorted names of all objects of all files (so that splits
    agree), or class_names in the given order; category ids are 1..C. Image and annotation ids count through the whole
    folder, the same in every split. Size is the XML's, else the image's. Part boxes and segmentation images are not
    read; tags are compared without their namespaces. ValueError naming the XML file, object, field and value for
    anything else, and where several pictures have an XML file's name.
    """
    root = Path(root)
    files, notes = _xml_files(root)
    if not files:
        raise ValueError(f"{root}: no Annotations/*.xml: expected a VOC folder with Annotations/ and JPEGImages/")
    chosen = _split_files(root, split, files)
    trees = [_parse(file) for file in files]
    objects = [_objects(file, tree) for file, tree in zip(files, trees)]
    names = _class_names(root, objects, class_names)
    written = [(tree.findtext("filename") or "").strip() for tree in trees]
    folder, pictures = find_pictures(root, list(zip(files, written)), Path(image_dir) if image_dir else None)

    document: dict = {"images": [], "annotations": []}
    document["categories"] = [{"id": c + 1, "name": name} for c, name in enumerate(names)]
    left_out, from_zero, own = [], [], 0
    for number, (file, tree, found_objects, name) in enumerate(zip(files, trees, objects, pictures), 1):
        if file in chosen:
            size = _size(file, tree, folder / name)
            document["images"].append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
            for position, found in enumerate(found_objects, 1):
                x1, y1, x2, y2 = found.corners
                where = f"{file.name} object {position}"
                if x2 <= x1 or y2 <= y1:
                    left_out.append(f"{where} ({found.name}, {[x1, y1, x2, y2]})")
                    continue
                if min(x1, y1) < 1:
                    from_zero.append(where)
                if found.name not in names:
                    expected = f"expected one of {names}{_near(found.name, names)}"
                    raise ValueError(f"{file}: object {position}: name = {show(found.name)}: {expected}")
                width, height = x2 - x1 + 1, y2 - y1 + 1
                box = {"bbox": [x1 - 1, y1 - 1, width, height], "area": width * height, "iscrowd": 0}
                ids = {"id": own + position, "image_id": number, "category_id": names.index(found.name) + 1}
                document["annotations"].append(ids | box | {"difficult": found.difficult})
        own += len(found_objects)
    dataset = from_document(document, root, folder)
    if left_out:
        notes += (f"{len(left_out)} boxes without width or height left out: {', '.join(left_out)}",)
    if from_zero:
        listed = ", ".join(from_zero)
        notes += (f"{len(from_zero)} boxes with a corner below VOC's first pixel 1 kept as written: {listed}",)
    return replace(dataset, notes=dataset.notes + notes)


def is_voc(file: Path) -> bool:
    """True if the root of an XML file is VOC's, by its first bytes."""
    return re.search(rb"<\s*(\w+:)?annotation[\s>/]", read_head(file).replace(b"\0", b"")) is not None


def find_sets(root: Path) -> dict[str, Path]:
    """The lists in ImageSets/Main (in any case) by name: train, val and test first, CVAT's Validation as val."""
    folder = _child(_child(_home(root), "imagesets") or root / "ImageSets", "main")
    lists = sorted(folder.glob("[!.]*.txt")) if folder else []
    usual = {SPLITS.get(path.stem.lower(), path.stem): path for path in lists}
    found = usual if len(usual) == len(lists) else {path.stem: path for path in lists}
    order = [name for name in ("train", "val", "trainval", "test") if name in found]
    return {name: found[name] for name in (*order, *found)}


def _home(root: Path) -> Path:
    """The folder with Annotations/ or ImageSets/: root, or below it while a folder holds one folder alone."""
    while root.is_dir() and not _child(root, *_ANNOTATIONS, "imagesets"):
        inside = [
            path for path in root.iterdir() if path.is_dir() and not path.is_symlink() and path.name[:1] not in "._"
        ]
        if len(inside) != 1:
            break
        root = inside[0]
    return root


def _child(folder: Path, *names: str) -> Path | None:
    """The first folder in a folder whose name in lower case is one of `names`."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((path for path in inside if path.name.lower() in names and path.is_dir()), None)


def _xml_files(root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The annotation files of a folder, sorted, and a note on other XML files beside them."""
    usual = _child(_home(root), *_ANNOTATIONS)
    below = {*usual.iterdir(), *walk(usual)} if usual else ()  # a folder called *.xml too, which reading refuses
    inside = sorted(path for path in below if path.suffix.lower() == ".xml" and not is_of_macos(path.name))
    if inside:
        return inside, ()
    files = sorted(path for path in walk(root) if path.suffix.lower() == ".xml")
    kept = [file for file in files if is_voc(file)]
    others = [file.relative_to(root).as_posix() for file in files if file not in set(kept)]
    note = f"{len(others)} XML files left out that hold no VOC annotation: {', '.join(others[:3])}"
    return kept, (note,) if others else ()


def _split_files(root: Path, split: str | None, files: list[Path]) -> set[Path]:
    if split is None:
        return set(files)
    known = find_sets(root)
    listed = known.get(split) or known.get(SPLITS.get(split.lower(), split))
    if listed is None:
        by_folder = {split_of(file.relative_to(root).parent): None for file in files}
        wanted = SPLITS.get(split, split)
        if not known and wanted in by_folder:
            return {file for file in files if split_of(file.relative_to(root).parent) == wanted}
        names = sorted(known or (name for name in by_folder if name))
        raise ValueError(f"{root / 'ImageSets/Main'}: split = {split!r}: expected one of {names}{_near(split, names)}")
    by_name: dict[str, list[Path]] = {}  # names with and without folders
    for file in files:
        parts = file.relative_to(root).with_suffix("").parts
        for start in range(len(parts)):
            by_name.setdefault("/".join(parts[start:]), []).append(file)
    chosen: set[Path] = set()
    for number, line in enumerate(read_text(listed, "a name of an image a line").splitlines(), 1):
        if not line.strip():
            continue
        found = next((by_name[name] for name in _listed_names(line) if name in by_name), [])
        if len(found) != 1:
            name = line.strip()
            expected = f"expected a file Annotations/{name[:80]}.xml{_near(name, list(by_name))}"
            if found:
                expected = f"fits {found[0]} and {found[1]}: expected its folder too"
            raise ValueError(f"{listed}: line {number}: image {show(name)}: {expected}")
        chosen.add(found[0])
    if not chosen:
        raise ValueError(f"{listed}: no image: expected one name a line")
    return chosen


def _listed_names(line: str) -> list[str]:
    """Readings of a line of a list: with spaces, in quotes, before a class file's second column, without a suffix."""
    names = [name.strip(' "') for name in (line.strip(), line.strip().rpartition(" ")[0], line.split()[0])]
    return [name.rpartition(".")[0] for name in names if name.lower().endswith(SUFFIXES)] + names


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" (nearest: {near[0]!r})" if near else ""


def _parse(file: Path) -> ElementTree.Element:
    """The root of an XML file, its tags without namespaces."""
    try:
        root = ElementTree.fromstring(read_regular(file, most=MOST_TEXT))
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ValueError(f"{file}: line {line}, column {column + 1}: not valid XML ({error.msg})") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}): expected VOC's XML") from None
    except (LookupError, ValueError) as error:  # an encoding that expat does not know, or no regular file
        reason = str(error).removeprefix(f"{file}: ")
        raise ValueError(f"{file}: not readable as XML: {reason}") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != "annotation":
        raise ValueError(f"{file}: {show(root.tag)}: expected the element 'annotation' of VOC")
    return root


def _objects(file: Path, tree: ElementTree.Element) -> list[_Object]:
    found = []
    for position, element in enumerate(tree.findall("object")):
        where = f"{file}: object {position + 1}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{where}: field 'name' is missing: expected the name of a class")
        difficult = (element.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise ValueError(f"{where}: difficult = {show(difficult)}: expected 0 or 1")
        corners = tuple(_corner(where, element, field) for field in _CORNERS)
        found.append(_Object(name, corners, int(difficult)))
    return found


def _corner(where: str, element: ElementTree.Element, field: str) -> float:
    text = element.findtext(f"bndbox/{field}")
    if text is None:
        raise ValueError(f"{where}: field 'bndbox/{field}' is missing: expected a pixel coordinate")
    return pixel(where, field, text)


def _class_names(root: Path, objects: list[list[_Object]], given: Sequence[str] | None) -> list[str]:
    names = list(given) if given is not None else sorted({o.name for found in objects for o in found})
    if not names:
        raise ValueError(f"{root}: no object in any of {len(objects)} files: expected some, or class_names")
    return names


def _size(file: Path, tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    texts = [(tree.findtext(f"size/{field}") or "0").strip() for field in ("height", "width")]
    if not all(text.isdecimal() and len(text) <= 9 for text in texts):
        raise ValueError(f"{file}: size = {show(texts)}: expected height and width in whole pixels")
    height, width = map(int, texts)
    return (height, width) if height and width else image_size(image)
