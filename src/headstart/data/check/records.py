"""A second look at a COCO file that the reader refuses or repairs: every problem with its record, and what is sound.

The rules are the reader's own (`coco_fields`, `coco_segments`). Each is applied to many records at once, and where it
refuses them, to either half, down to single records: k bad ones among n cost about k log n calls.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.check.problems import ERROR, NOTE, Problem, some
from headstart.data.dataset import Dataset
from headstart.data.images import MAX_PIXELS
from headstart.data.read import coco, coco_fields, coco_json
from headstart.data.read.coco_segments import Segments

LEFT_OUT, NEW_ID = "left out", "given a new id"
Record = tuple[int, dict]  # position in the file's list, and the record
Rule = Callable[[list[dict]], object]  # raises ValueError if any of the records is wrong


@dataclass(frozen=True)
class _Table:
    """The records of one kind ("image", "annotation", "category") of one file, and what is wrong with which."""

    path: str
    split: str
    kind: str
    records: list[Record]
    found: list[tuple[int, Problem]] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)  # positions left out
    renamed: set[int] = field(default_factory=set)  # positions that need a new id

    def add(self, position: int, record: Any, code: str, value: Any, message: str, remedy: str = LEFT_OUT) -> None:
        where = f"{self.path}: {coco_fields.place(self.kind, position, record)}"
        self.found.append((position, Problem(ERROR, code, self.split, where, coco_fields.show(value), message, remedy)))
        (self.bad if remedy == LEFT_OUT else self.renamed).add(position)

    def refuse(
        self, code: str, name: str, rule: Rule, records: list[Record] | None = None, remedy: str = LEFT_OUT
    ) -> None:
        """Add a problem with the field `name` for each record that the rule refuses; by default all are looked at."""
        for position, record, text in _refused(self.records if records is None else records, rule):
            own = f"{self.path}: {coco_fields.place(self.kind, 0, record)}: "
            self.add(position, record, code, record.get(name), text.removeprefix(own), remedy)

    def refuse_repeated(self, name: str, code: str, remedy: str = LEFT_OUT) -> None:
        """Add a problem for each record whose `name` an earlier one has."""
        seen: dict[Any, int] = {}
        for position, record in self.records:
            value = record.get(name)
            if isinstance(value, int | str) and seen.setdefault(value, position) != position:
                first = f"{coco_fields.PLURAL[self.kind]}[{seen[value]}]"
                message = f"{name} = {coco_fields.show(value)}: given before, in {first}: expected once"
                self.add(position, record, code, value, message, remedy)

    def sound(self) -> list[Record]:
        return [(position, record) for position, record in self.records if position not in self.bad]

    def problems(self) -> list[Problem]:
        """In the file's order."""
        return [problem for _, problem in sorted(self.found, key=lambda pair: pair[0])]


def _refused(records: list[Record], rule: Rule) -> list[tuple[int, dict, str]]:
    if not records:
        return []
    try:
        rule([record for _, record in records])
        return []
    except ValueError as error:
        if len(records) == 1:
            return [(*records[0], str(error))]
    middle = len(records) // 2
    return _refused(records[:middle], rule) + _refused(records[middle:], rule)


def _table(path: str, split: str, kind: str, records: list) -> _Table:
    table = _Table(path, split, kind, [(n, record) for n, record in enumerate(records) if isinstance(record, dict)])
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            table.add(position, record, "record", record, f"{coco_fields.show(record)}: expected a JSON object")
    return table


def load(path: str | Path, image_dir: str | Path | None, split: str) -> tuple[Dataset | None, list[Problem]]:
    """The sound part of a COCO file, None if nothing can be used, and its structural problems.

    A record with any problem is not in the data set, nor are annotations of such an image or category; annotations that
    share an id get fresh ones. A file with which the reader has no trouble is not looked at twice.
    """
    try:
        dataset = coco.read(path, image_dir)
        if not dataset.notes:
            return dataset, []
    except ValueError as error:
        try:
            document = coco_json.check_document(path, json.loads(Path(path).read_bytes()))
        except (OSError, ValueError, RecursionError):  # no JSON, or not these lists: the reader has said it already
            return None, [Problem(ERROR, "file", split, str(path), "", str(error).removeprefix(f"{path}: "))]
    else:
        document = json.loads(Path(path).read_bytes())
    return _sound_part(str(path), image_dir, split, document)


def _sound_part(
    path: str, image_dir: str | Path | None, split: str, document: dict
) -> tuple[Dataset | None, list[Problem]]:
    categories = _categories(_table(path, split, "category", document["categories"]))
    images = _images(_table(path, split, "image", document["images"]))
    annotations = _table(path, split, "annotation", document["annotations"])
    clean = {name: [record for _, record in table.sound()] for name, table in
             (("categories", categories), ("images", images))}  # fmt: skip
    problems = categories.problems() + images.problems()
    for name, records in clean.items():
        if not records:
            message = f"{name}: no sound record among {len(document[name])}: expected at least one"
            return None, [*problems, Problem(ERROR, "nothing-left", split, path, "0", message)]
    _check_annotations(annotations, images, categories)
    clean["annotations"], orphans = _assignable(annotations, clean)
    problems += annotations.problems()
    if orphans:
        message = f"{len(orphans)} annotations of images or categories that are left out: {some(orphans)}"
        problems.append(Problem(NOTE, "orphans", split, path, str(len(orphans)), message, LEFT_OUT))
    return coco.from_document(clean, path, image_dir), problems


def _categories(table: _Table) -> _Table:
    table.refuse("category-id", "id", partial(_integers, table, "id", "an integer"))
    table.refuse("category-name", "name", lambda records: coco_fields.texts(table.path, "category", records, "name"))
    table.refuse_repeated("id", "duplicate-id")
    table.refuse_repeated("name", "duplicate-name")
    table.refuse(
        "keypoint-names", "keypoints", lambda records: [coco_fields.keypoint_names(table.path, [r]) for r in records]
    )
    named = next((record for _, record in table.sound() if record.get("keypoints")), None)
    if named:  # all that name keypoints must name the same ones as the first
        rule = lambda records: [coco_fields.keypoint_names(table.path, [named, r]) for r in records]  # noqa: E731
        table.refuse("keypoint-names", "keypoints", rule, table.sound())
    return table


def _images(table: _Table) -> _Table:
    table.refuse("image-id", "id", partial(_integers, table, "id", "an integer"))
    table.refuse_repeated("id", "duplicate-id")
    table.refuse("file-name", "file_name", partial(_file_names, table.path))
    for side in ("height", "width"):
        expected = "an integer number of pixels, 1 to 1000000"
        table.refuse("size-field", side, partial(_integers, table, side, expected, least=1, most=10**6))
    for position, record in table.sound():
        pixels = record["height"] * record["width"]
        if pixels > MAX_PIXELS:
            message = f"height x width = {pixels} pixels: expected at most {MAX_PIXELS}"
            table.add(position, record, "size-field", pixels, message)
    return table


def _file_names(path: str, records: list[dict]) -> None:
    coco_fields.check_file_names(path, records, coco_fields.texts(path, "image", records, "file_name"))


def _integers(table: _Table, name: str, expected: str, records: list[dict], **limits: int) -> np.ndarray:
    return coco_fields.integers(table.path, table.kind, records, name, expected, **limits)


def _check_annotations(table: _Table, images: _Table, categories: _Table) -> None:
    path = table.path
    table.refuse("annotation-id", "id", partial(_integers, table, "id", "an integer"), remedy=NEW_ID)
    table.refuse_repeated("id", "duplicate-id", NEW_ID)
    for name, code, known in (("image_id", "unknown-image", images), ("category_id", "unknown-category", categories)):
        ids = np.array([r["id"] for _, r in known.records if _is_id(r.get("id"))], np.int64)
        of = coco_fields.PLURAL[known.kind]
        table.refuse(code, name, lambda rs, name=name, ids=ids, of=of: coco_fields.positions(path, rs, name, ids, of))
    table.refuse("box-field", "bbox", partial(coco_fields.boxes, path))
    for name in ("iscrowd", "difficult"):
        table.refuse("flag", name, lambda records, name=name: coco_fields.flags(path, records, name))
    table.refuse("area", "area", lambda records: coco_fields.floats(path, records, "area"))
    names = coco_fields.keypoint_names(path, [record for _, record in categories.sound()])
    # The rules for keypoints and segmentations take them out of the records, hence copies.
    table.refuse(
        "keypoints", "keypoints", lambda rs: coco_fields.keypoints(path, [{"id": 0, **r} for r in rs], names, [])
    )
    sizes = {record["id"]: (record["height"], record["width"]) for _, record in images.sound()}
    seen = [pair for pair in table.records if _is_id(pair[1].get("image_id")) and pair[1]["image_id"] in sizes]
    table.refuse("segmentation", "segmentation", partial(_segments, path, sizes), seen)
    malformed = {position for position, problem in table.found if problem.code == "box-field"}
    boxes = [pair for pair in table.records if pair[0] not in malformed]
    table.refuse("box-degenerate", "bbox", partial(_degenerate, path), boxes)


def _degenerate(path: str, records: list[dict]) -> None:
    for position, record in enumerate(records):
        if not (np.isfinite(record["bbox"]).all() and min(record["bbox"][2:]) > 0):
            where = coco_fields.place("annotation", position, record)
            raise coco_fields.wrong(path, where, "bbox", record["bbox"], "a positive, finite width and height")


def _is_id(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _segments(path: str, sizes: dict[int, tuple[int, int]], records: list[dict]) -> None:
    segments = Segments(path)
    segments.add([dict(record) for record in records])
    heights, widths = np.array([sizes[record["image_id"]] for record in records]).reshape(-1, 2).T
    segments.arrays(np.arange(len(records)), records, heights, widths)


def _assignable(table: _Table, clean: dict[str, list[dict]]) -> tuple[list[dict], list[str]]:
    """The sound annotations whose image and category are sound too, with unique ids, and names of the other ones."""
    images, categories = ({record["id"] for record in clean[name]} for name in ("images", "categories"))
    kept, orphans = [], []
    fresh = 1 + max((r["id"] for _, r in table.records if _is_id(r.get("id"))), default=0)
    for position, record in table.sound():
        if record["image_id"] not in images or record["category_id"] not in categories:
            orphans.append(coco_fields.place("annotation", position, record))
            continue
        if position in table.renamed:
            record, fresh = {**record, "id": fresh}, fresh + 1
        kept.append(record)
    return kept, orphans
