"""COCO JSON files read into and written from a Dataset."""

import difflib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic

import msgspec
import numpy as np
import orjson
from msgspec import Raw, Struct

import headstart.data.read.coco_columns as coco_columns
import headstart.data.read.coco_records as coco_records
from headstart.data.dataset import POLYGONS, RLE, Dataset
from headstart.data.read.coco_columns import Faulty
from headstart.data.read.coco_keys import finite, may_repeat, refuse_repeated, whole
from headstart.data.read.coco_records import PLURAL, Segmentation
from headstart.files import read_regular, write_whole
from headstart.hardware import memory
from headstart.typed_json import collector_paused


class _Content(Struct, Generic[Segmentation]):
    """A whole file; all else in it is skipped."""

    images: list[coco_records.ImageRecord]
    annotations: list[coco_records.AnnotationRecord[Segmentation]]
    categories: list[coco_records.CategoryRecord]


_TRIED = 20  # pictures that are looked for to find their folder
_MOST = 2**35  # bytes of a file where the memory, into which it must fit, is unknown: train2017 has half a GiB
# A file's segmentations stay text until they become numbers of one flat array: COCO's 40 million coordinates would
# otherwise take 1.5 GiB as Python's.
_decoded = msgspec.json.Decoder(_Content[Raw]).decode
_decoded_segmentation = msgspec.json.Decoder(coco_records.Polygons).decode
_converted_segmentation = partial(msgspec.convert, type=coco_records.Polygons)


def read(path: str | Path, image_dir: str | Path | None = None) -> Dataset:
    """A COCO JSON file, checked.

    Category ids may have gaps, any order, and start at 0. Images without annotations stay, as negatives. Missing
    iscrowd counts as 0, missing area is the segmentation's, else the box's; annotations without a positive, finite
    width and height are left out, and so are categories without annotations whose name another has: all this is in
    notes. Without image_dir the images are looked for beside the file, in images/, and where COCO has them
    (annotations/instances_NAME.json -> NAME/). ValueError, one line naming file, record, field, value and expectation,
    for anything else that is wrong.
    """
    path = Path(path)
    raw = _bytes(path)
    with collector_paused():
        try:
            if raw.isascii() or raw.decode():  # msgspec skips fields unread, and with them wrong UTF-8
                content = _decoded(raw)
                if may_repeat(raw, (content.images, content.annotations, content.categories)):
                    refuse_repeated(path, raw)
                return _assemble(content, _decoded_segmentation, path, image_dir)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, json.JSONDecodeError, Faulty):
            pass  # parsed whole, a record can be named; and NaN, which JSON does not have, is understood
        found = from_document(_parse(path, raw), path, image_dir)
        refuse_repeated(path, raw)
        return found


def from_document(document: dict, path: str | Path, image_dir: str | Path | None = None) -> Dataset:
    """A parsed COCO document (lists images, annotations, categories) as read."""
    check_document(path, document)
    try:
        content = msgspec.convert(document, _Content[Any])
        return _assemble(content, _converted_segmentation, path, image_dir)
    except UnicodeEncodeError:
        raise ValueError(f"{path}: the name of a field holds half a surrogate pair, expected text") from None
    except (msgspec.ValidationError, RecursionError, Faulty) as error:
        raise coco_records.refusal(path, document) or ValueError(f"{path}: {error}") from None


def parse(path: str | Path) -> dict:
    """The document of a COCO JSON file; ValueError unless it is an object with the three lists."""
    return check_document(path, _parse(Path(path), _bytes(Path(path))))


def check_document(path: Any, document: Any) -> dict:
    """The document; ValueError unless it is an object with the three lists."""
    if not isinstance(document, dict):
        shown = coco_records.show(document)
        raise ValueError(f"{path}: {shown}: expected a JSON object with images, annotations and categories")
    for field in PLURAL.values():
        records = document.get(field, coco_records.MISSING)
        if not isinstance(records, list):
            raise ValueError(f"{path}: file: {coco_records.Fault(field, records, 'a list').text(document)}")
    return document


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, most=memory() or _MOST).removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1)
        raise ValueError(f"{path}: no such annotation file{coco_records.did_you_mean(near)}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): expected a COCO JSON file") from error


def _parse(path: Path, raw: bytes) -> Any:
    """Parsed JSON; ValueError naming file and line. NaN and Infinity, which some tools write, are understood."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        try:
            text = raw.decode()
        except UnicodeDecodeError as bad:
            line = raw.count(b"\n", 0, bad.start) + 1
            raise ValueError(f"{path}: line {line}: byte {raw[bad.start]:#x} is not UTF-8 text") from None
        wrong: json.JSONDecodeError = error
        if "NaN" in text or "Infinity" in text:
            try:
                return json.loads(text, parse_int=whole, parse_float=finite)
            except json.JSONDecodeError as other:
                wrong = other
            except (ValueError, RecursionError) as other:
                raise ValueError(f"{path}: not valid JSON ({other})") from None
        reason = wrong.msg.split(": line ")[0]
        where = f"line {wrong.lineno}, column {wrong.colno}"
        raise ValueError(f"{path}: {where}: not valid JSON ({reason})") from None


def _assemble(
    content: _Content, parsed: Callable[[Any], list | dict | None], path: str | Path, image_dir: str | Path | None
) -> Dataset:
    notes: list[str] = []
    categories, used = content.categories, {record.category_id for record in content.annotations}
    empty = coco_columns.empty_copies([r.name for r in categories], [r.id for r in categories], used)
    for n in sorted(empty):
        own = f"category {categories[n].id} ({coco_records.show(categories[n].name)})"
        notes.append(f"{own} taken for another of its name: no annotation has it")
    categories = [record for n, record in enumerate(categories) if n not in empty]
    columns = coco_columns.images(path, content.images) | coco_columns.categories(path, categories, notes)
    columns |= coco_columns.annotations(path, content.annotations, parsed, columns, notes)
    if image_dir is None:
        image_dir = _find_image_dir(Path(path), columns["file_names"])
    return Dataset(path=str(path), image_dir=Path(image_dir), notes=tuple(notes), **columns)


def _find_image_dir(path: Path, file_names: Sequence[str]) -> Path:
    split = path.stem.rpartition("_")[2]
    folders = [path.parent, path.parent / path.stem, path.parent / split]  # beside it, and as `data shapes` writes
    above = path.parent.parent
    folders += [path.parent / "images", above / split, above / "images"]  # as COCO does
    folders += [above / "images" / split, path.parent / "images" / split, path.parent / "images" / path.stem]  # CVAT
    tried = file_names[:: max(1, len(file_names) // _TRIED)]  # some may be missing
    return next((one for name in tried for one in folders if os.path.isfile(one / name)), path.parent)


def write(dataset: Dataset, path: str | Path) -> None:
    """COCO JSON from which read gives the same data set again (bit for bit; notes and places apart).

    Whole or not at all. Polygons and compressed RLE as they are.
    """
    path = Path(path)
    document = {
        "images": [
            {"id": i, "file_name": name, "height": h, "width": w}
            for i, name, h, w in zip(
                dataset.image_ids.tolist(), dataset.file_names, dataset.heights.tolist(), dataset.widths.tolist()
            )
        ],
        "annotations": _annotation_records(dataset),
        "categories": dataset.categories(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def _annotation_records(dataset: Dataset) -> list[dict]:
    image_ids = dataset.image_ids[dataset.image_of].tolist()
    categories = dataset.category_ids[dataset.labels].tolist()
    bboxes = _exact_xywh(dataset.boxes).tolist()
    records = []
    for n, own in enumerate(dataset.annotation_ids.tolist()):
        record = {
            "id": own, "image_id": image_ids[n], "category_id": categories[n], "bbox": bboxes[n],
            "area": float(dataset.areas[n]), "iscrowd": int(dataset.crowd[n]),
        }  # fmt: skip
        if dataset.difficult[n]:
            record["difficult"] = 1
        if dataset.segment_kind[n] == POLYGONS:
            record["segmentation"] = [polygon.ravel() for polygon in dataset.polygons(n)]
        elif dataset.segment_kind[n] == RLE:
            mask = dataset.rles[n]
            record["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        if dataset.keypoints is not None:
            record["keypoints"] = dataset.keypoints[n].ravel().tolist()
            record["num_keypoints"] = int((dataset.keypoints[n, :, 2] > 0).sum())
        records.append(record)
    return records


def _exact_xywh(boxes: np.ndarray) -> np.ndarray:
    """Widths and heights w [N] such that x1 + w gives x2 again in float64, with the fewest decimals that do."""
    low, high = boxes[:, :2], boxes[:, 2:]
    sides = high - low
    sides += high - (low + sides)  # a rounding tie
    for decimals in range(6, -1, -1):
        rounded = np.round(sides, decimals)
        sides = np.where(low + rounded == high, rounded, sides)
    return np.concatenate((low, sides), 1)
