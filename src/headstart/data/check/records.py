"""A COCO file that the reader refuses or repairs: every problem with its record, and the sound part.

The rules are the reader's own (`coco_records`), applied to each record by itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.check import ERROR, NOTE, Problem, some
from headstart.data.dataset import Dataset
from headstart.data.read import coco, coco_records
from headstart.data.read.coco_columns import empty_copies
from headstart.data.read.coco_records import Fault, Known

LEFT_OUT, NEW_ID = "left out", "given a new id"
_SIZE = dict.fromkeys(("height", "width", "height, width"), "size-field")
# The problem's code for each field of a record; parts of a segmentation have the code of the whole.
_CODES: dict[str, dict[str, str]] = {
    "category": {"id": "category-id", "name": "category-name", "keypoints": "keypoint-names"},
    "image": {"id": "image-id", "file_name": "file-name", **_SIZE},
    "annotation": {
        "id": "annotation-id", "image_id": "unknown-image", "category_id": "unknown-category", "bbox": "box-field",
        "iscrowd": "flag", "difficult": "flag", "area": "area", "keypoints": "keypoints",
        "segmentation": "segmentation",
    },
}  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """The records of one kind ("image", "annotation", "category") of one file, and what is wrong with which."""

    path: str
    split: str
    kind: str
    records: list
    problems: list[Problem] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)  # positions left out
    renamed: set[int] = field(default_factory=set)  # positions that need a new id

    def add(self, position: int, code: str, value: Any, message: str, remedy: str = LEFT_OUT) -> None:
        where = f"{self.path}: {coco_records.place(self.kind, position, self.records[position])}"
        shown = coco_records.show(value)
        self.problems.append(Problem(ERROR, code, self.split, where, shown, message, remedy))
        (self.bad if remedy == LEFT_OUT else self.renamed).add(position)

    def refuse(self, position: int, faults: list[Fault], remedies: Mapping[str, str]) -> None:
        """Add each fault of a record; remedies: by field, where it is not to be left out."""
        record = self.records[position]
        for fault in faults:
            code = _CODES[self.kind][fault.field.partition("[")[0]]
            value = None if fault.value is coco_records.MISSING else fault.value
            self.add(position, code, value, fault.text(record), remedies.get(fault.field, LEFT_OUT))

    def refuse_repeated(self, position: int, name: str, seen: dict[Any, int], remedy: str = LEFT_OUT) -> None:
        """Add a problem if an earlier record has the same `name`; `seen` holds their positions."""
        value = self.records[position].get(name)
        if isinstance(value, int | str) and (first := seen.setdefault(value, position)) != position:
            shown, before = coco_records.show(value), f"{coco_records.PLURAL[self.kind]}[{first}]"
            message = f"{name} = {shown}: given before, in {before}: expected once"
            self.add(position, f"duplicate-{name}", value, message, remedy)

    def objects(self) -> Iterator[tuple[int, dict]]:
        """(position, record) of each that is a JSON object; the others are added as problems."""
        for position, record in enumerate(self.records):
            if isinstance(record, dict):
                yield position, record
            else:
                self.add(position, "record", record, f"{coco_records.show(record)}: expected a JSON object")

    def ids(self) -> set[int]:
        """Ids of all records that have one, sound or not."""
        found = (record.get("id") for record in self.records if isinstance(record, dict))
        return {own for own in found if coco_records.fits(own, coco_records.Id)}

    def sound(self) -> list[dict]:
        return [record for position, record in enumerate(self.records) if position not in self.bad]


def load(path: str | Path, image_dir: str | Path | None, split: str) -> tuple[Dataset | None, list[Problem]]:
    """The sound part of a COCO file, None if nothing can be used, and its structural problems.

    A record with any problem is not in the data set, nor are annotations of such an image or category; annotations that
    share an id get fresh ones. A file that the reader takes without a note is not examined further.
    """
    try:
        dataset = coco.read(path, image_dir)
        if not dataset.notes:
            return dataset, []
    except ValueError:
        pass
    try:
        document = coco.parse(path)
    except ValueError as error:
        return None, [Problem(ERROR, "file", split, str(path), "", str(error).removeprefix(f"{path}: "))]
    path = str(path)
    categories, images, annotations = (
        _Table(path, split, kind, document[coco_records.PLURAL[kind]]) for kind in ("category", "image", "annotation")
    )
    used = {record["category_id"] for record in annotations.records if _has_id(record, "category_id")}
    _check_categories(categories, used)
    ids: dict[Any, int] = {}
    names: dict[Any, int] = {}
    for position, record in images.objects():
        images.refuse(position, coco_records.image_faults(record), {})
        images.refuse_repeated(position, "id", ids)
        images.refuse_repeated(position, "file_name", names)
    problems = [*categories.problems, *images.problems]
    for table in (categories, images):
        if not table.sound():
            name = coco_records.PLURAL[table.kind]
            message = f"{name}: no sound record among {len(table.records)}: expected at least one"
            return None, [*problems, Problem(ERROR, "nothing-left", split, path, "0", message)]
    _check_annotations(annotations, images, categories)
    problems += annotations.problems
    clean = {"categories": categories.sound(), "images": images.sound()}
    clean["annotations"], orphans = _assignable(annotations, clean)
    if orphans:
        message = f"{len(orphans)} annotations of images or categories that are left out: {some(orphans)}"
        problems.append(Problem(NOTE, "orphans", split, path, str(len(orphans)), message, LEFT_OUT))
    return coco.from_document(clean, path, image_dir), problems


def _has_id(record: Any, name: str) -> bool:
    return isinstance(record, dict) and type(record.get(name)) is int


def _check_categories(table: _Table, used: set[int]) -> None:
    ids, names, keypoints = {}, {}, []
    records = [record if _has_id(record, "id") else {} for record in table.records]
    empty = empty_copies([r.get("name") for r in records], [r.get("id") for r in records], used)
    for position, record in table.objects():
        table.refuse(position, coco_records.category_faults(record, keypoints), {})
        table.refuse_repeated(position, "id", ids)
        if position not in empty:  # the reader leaves these out
            table.refuse_repeated(position, "name", names)
        if position not in table.bad:
            keypoints = keypoints or record.get("keypoints") or []


def _check_annotations(table: _Table, images: _Table, categories: _Table) -> None:
    """References may go to records that are left out: such annotations are orphans, not wrong."""
    sizes = {record["id"]: (record["height"], record["width"]) for record in images.sound()}
    names = next((record["keypoints"] for record in categories.sound() if record.get("keypoints")), [])
    known, ids = Known(images.ids(), categories.ids(), sizes, len(names)), {}
    for position, record in table.objects():
        faults = coco_records.annotation_faults(record, known)
        table.refuse(position, faults, {"id": NEW_ID})
        table.refuse_repeated(position, "id", ids, NEW_ID)
        box = record.get("bbox")
        if "bbox" not in {fault.field for fault in faults} and not (np.isfinite(box).all() and min(box[2:]) > 0):
            fault = Fault("bbox", box, "a positive, finite width and height")
            table.add(position, "box-degenerate", box, fault.text(record))


def _assignable(table: _Table, clean: dict[str, list[dict]]) -> tuple[list[dict], list[str]]:
    """Sound annotations whose image and category are sound too, with unique ids; and names of the other ones."""
    images, categories = ({record["id"] for record in clean[name]} for name in ("images", "categories"))
    kept, orphans = [], []
    taken = table.ids()
    numbers = chain(range(1 + max(taken, default=0), 2**63), count(1))  # the second where the first has none
    fresh = (number for number in numbers if number not in taken)
    for position, record in enumerate(table.records):
        if position in table.bad:
            continue
        if record["image_id"] not in images or record["category_id"] not in categories:
            orphans.append(coco_records.place("annotation", position, record))
            continue
        if position in table.renamed:
            record = {**record, "id": next(fresh)}
        kept.append(record)
    return kept, orphans
