"""Layouts of data sets: the format of a folder by the content of its files, and its splits; no stray file decides."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from headstart.data.images import SUFFIXES
from headstart.data.read.csv_boxes import is_boxes, why_not_boxes
from headstart.data.read.data_yaml import why_not_yolo
from headstart.data.read.files import SPLITS, read_head, split_of, walk
from headstart.data.read.labelme import is_labelme
from headstart.data.read.voc import find_sets, is_voc

# Folders that hold the pictures of annotated sets: never the name of a class.
HOLDERS = ("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data", "annotations", "labels")
DEPTH = 4  # levels of folders that are searched: ROOT/PROJECT/train/images is the deepest that exports have
MOST_LOOKED = 200  # files of one kind that are opened: one a picture, and the rest of a folder is of that kind
HALF = 0.5  # share of the pictures that files of one a picture describe, unless no other format is there
_KEYS = re.compile(r'"(?P<key>(?:[^"\\]|\\.)*)"\s*(?P<value>:\s*(?P<list>(?=\[))?)?|[{}\[\]]')
EXPECTED = (
    "expected a COCO .json file, a VOC folder (.xml files), YOLO's data.yaml or classes.txt, labelme's .json files, "
    "a .csv file of boxes, or one folder of images a class (two or more)"
)


@dataclass(frozen=True)
class DataLayout:
    """The format of a data set, the files that hold its annotations, and the names of its splits (none: undivided).

    kind: "coco", "voc", "yolo", "labelme", "csv", "folders" or "split" (a split file). Files of "folders" are the
    folders that hold class folders.
    """

    kind: str
    root: Path
    files: tuple[Path, ...]
    splits: tuple[str, ...] = ()


def find_layout(path: str | Path) -> DataLayout:
    """The layout of a file or folder.

    Several files of one format are one layout. Where formats are mixed, the first of VOC, YOLO, COCO, labelme, CSV
    decides whose files describe half of the pictures. ValueError says what was looked for and found.
    """
    path = Path(path)
    if os.path.isfile(path):  # False too for a name that no file can have
        return _of_file(path)
    if not os.path.isdir(path):
        raise ValueError(f"{path}: no such file or folder: {EXPECTED}")
    files = sorted(walk(path, depth=DEPTH))
    by_suffix: dict[str, list[Path]] = {}
    for file in files:
        by_suffix.setdefault(file.suffix.lower(), []).append(file)
    pictures = [file for suffix in SUFFIXES for file in by_suffix.get(suffix, ())]
    found, reasons = _annotated(path, by_suffix, pictures)
    if found is not None:
        return found
    if not reasons and (classes := _class_folders(path, pictures)):
        return classes
    reasons |= {table: why_not_boxes(table) for table in by_suffix.get(".csv", ())[:1]}
    raise ValueError(f"{path}: no known format: {EXPECTED}; found {_summary(by_suffix, reasons)}")


def _of_file(path: Path) -> DataLayout:
    suffix = path.suffix.lower()
    if suffix == ".json":
        head = top_keys(path)
        kind = "split" if "headstart_split" in head else "labelme" if is_labelme(head) else "coco"
        return DataLayout(kind, path, (path,), ("train", "val") if kind == "split" else ())
    if suffix in (".yaml", ".yml") or path.name in ("classes.txt", "obj.names"):
        return DataLayout("yolo", path, (path,))
    if suffix == ".csv":
        return DataLayout("csv", path, (path,))
    raise ValueError(f"{path}: no known format: {EXPECTED}")


def _annotated(
    root: Path, files: dict[str, list[Path]], pictures: Sequence[Path]
) -> tuple[DataLayout | None, dict[Path, str]]:
    """The layout of files with annotations, if there is one; and for files that look like it, why they are not."""
    reasons: dict[Path, str] = {}

    def covers(layout: DataLayout, inside: Collection[str] | None = None) -> bool:
        """True if files describe half of the pictures, or half of those in some of the root's folders."""
        stems = {p.stem for p in pictures if inside is None or p.relative_to(root).parts[0] in inside}
        one_each = layout.kind in ("voc", "labelme")
        return not one_each or len({file.stem for file in layout.files} & stems) >= HALF * len(stems)

    xml = _of_kind(files.get(".xml", ()), is_voc)
    for file in sorted(set(files.get(".xml", ())) - set(xml))[:MOST_LOOKED]:
        if b"<annotations" in read_head(file):
            reasons[file] = "CVAT's own XML: export as COCO 1.0 or PASCAL VOC 1.1 instead"
    yaml = _shallow(root, [*files.get(".yaml", ()), *files.get(".yml", ())])
    data_yaml = []
    for file in yaml:
        why = why_not_yolo(file)
        if why is None:
            data_yaml.append(file)
        elif file.stem in ("data", "dataset"):
            reasons[file] = why
    lists = [file for file in files.get(".txt", ()) if file.name == "classes.txt"] or files.get(".names", [])
    stems = {picture.stem for picture in pictures}
    labelled = (
        any(file.stem in stems or "labels" in file.relative_to(root).parts for file in files.get(".txt", ()))
        or not pictures
    )
    lists = _shallow(root, lists) if labelled and not data_yaml else []  # label maps may have classes.txt too
    keys = {file: top_keys(file) for file in files.get(".json", [])[:MOST_LOOKED]}
    labelme = [file for file, own in keys.items() if is_labelme(own)]
    listed = [file for file, own in keys.items() if own.get("images") or own.get("annotations")]
    coco = _shallow(root, [file for file in listed if file not in labelme])
    coco = [file for file in coco if file.stem.startswith("instances_")] or coco
    labelme += files.get(".json", [])[MOST_LOOKED:] if labelme else []
    table = _shallow(root, _of_kind(files.get(".csv", ()), is_boxes))
    candidates = [
        DataLayout("voc", root, tuple(xml), tuple(find_sets(root)) or _by_folder(root, xml)),
        DataLayout("yolo", root, tuple(data_yaml or lists), _names(root, lists) if len(lists) > 1 else ()),
        DataLayout("coco", root, tuple(coco), _names(root, coco)),
        DataLayout("labelme", root, tuple(labelme), _by_folder(root, labelme)),
        DataLayout("csv", root, tuple(table), _by_folder(root, table, stems=True)),
    ]
    there = [layout for layout in candidates if layout.files]
    folders = {layout.kind: {file.relative_to(root).parts[0] for file in layout.files} for layout in there}
    for one, other in combinations(there, 2):
        apart = folders[one.kind] | folders[other.kind] if not folders[one.kind] & folders[other.kind] else set()
        inside = all((root / name).is_dir() for name in apart) and all(
            covers(each, folders[each.kind]) for each in (one, other)
        )
        if apart and inside:
            named = ", ".join(sorted(apart))
            raise ValueError(f"{root}: holds several data sets: expected the folder of one (among {named})")
    return next(iter([layout for layout in there if covers(layout)] or there), None), reasons


def _of_kind(files: Sequence[Path], test: Callable[[Path], bool]) -> list[Path]:
    """Files of a suffix that pass a test of their content, which is done for the first of them."""
    looked = [file for file in files[:MOST_LOOKED] if test(file)]
    return [*looked, *files[MOST_LOOKED:]] if looked else []


def _shallow(root: Path, files: Sequence[Path]) -> list[Path]:
    """Those of the files that lie highest, and not in hidden folders."""
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(root).parts[:-1])]
    least = min((len(file.parts) for file in shown), default=0)
    return [file for file in shown if len(file.parts) == least]


def _by_folder(root: Path, files: Sequence[Path], *, stems: bool = False) -> tuple[str, ...]:
    """The splits that the folders of files name (or with `stems` their names too), if there are several."""
    named = {split_of(file.relative_to(root) if stems else file.relative_to(root).parent) for file in files}
    return tuple(split for split in dict.fromkeys(SPLITS.values()) if split in named) if len(named) > 1 else ()


def _names(root: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """Names of files that are a split each: their splits, else different stems, else none; one may be undivided."""
    if len(files) == 1 and not split_of(files[0].relative_to(root)):
        return ()
    names = [split_of(file.relative_to(root)) or file.stem for file in files]
    stems = [file.stem for file in files]
    return tuple(next((each for each in (names, stems) if len(set(each)) == len(files)), ()))


def _class_folders(root: Path, pictures: Sequence[Path]) -> DataLayout | None:
    """The layout of image folders: classes, or splits of classes; none for a single class: nothing to tell apart."""
    folders = [picture.relative_to(root).parts[:-1] for picture in pictures]
    top = {parts[0] for parts in folders if parts}
    if top and all(split_of(Path(name)) for name in top):
        roots = sorted(root / name for name in {parts[0] for parts in folders if len(parts) > 1})
        names = [split_of(Path(folder.name)) for folder in roots]
        if len({parts[1] for parts in folders if len(parts) > 1}) > 1 and len(set(names)) == len(names):
            return DataLayout("folders", root, tuple(roots), tuple(str(name) for name in names))
        return None
    classes = {name for name in top if name.lower() not in HOLDERS}
    return DataLayout("folders", root, (root,)) if len(classes) > 1 else None


def top_keys(path: Path) -> dict[str, bool]:
    """Keys of the object that a JSON file's first 64 KiB open, and whether their values are lists; else none."""
    text, depth = read_head(path).decode(errors="replace"), 0
    found: dict[str, bool] = {}
    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        return found
    for match in _KEYS.finditer(text):
        if match["key"] is None:
            depth += 1 if match[0] in "{[" else -1
        elif match["value"] and depth == 1:
            found[match["key"]] = match["list"] is not None
    return found


def _summary(by_suffix: dict[str, list[Path]], reasons: dict[Path, str]) -> str:
    counts = Counter({suffix or "without suffix": len(files) for suffix, files in by_suffix.items()})
    counted = ", ".join(f"{number:,} {suffix}" for suffix, number in counts.most_common(5)) or "no file"
    why = "".join(f"; {file.name}: {reason}" for file, reason in list(reasons.items())[:3])
    return f"files: {counted}{why}"
