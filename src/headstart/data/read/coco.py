"""COCO JSON files read into and written from a Dataset."""

import gc
from pathlib import Path

import numpy as np
import orjson

from headstart.data.dataset import Dataset, left_right
from headstart.data.read import coco_fields, coco_json
from headstart.data.read.coco_segments import POLYGONS, RLE, Segments
from headstart.files import write_whole


def read(path: str | Path, image_dir: str | Path | None = None, *, keep_difficult: bool = True) -> Dataset:
    """A COCO JSON file, checked.

    Category ids may have gaps, any order, and start at 0. Images without annotations stay, as negatives. Missing
    iscrowd counts as 0, missing area is the segmentation's, else the box's; annotations without a positive, finite
    width and height are left out, and difficult ones unless keep_difficult: all this is in notes. Without image_dir the
    images are looked for beside the file, in images/, and where COCO has them (annotations/instances_NAME.json ->
    NAME/). ValueError, one line naming file, record, field, value and expectation, for anything else that is wrong.
    """
    path = Path(path)
    collecting = gc.isenabled()
    gc.disable()  # millions of fresh lists and no cycles: collecting would only walk them again and again
    try:
        document, segments = coco_json.load(path)
        return _assemble(document, segments, path, image_dir, keep_difficult)
    finally:
        if collecting:
            gc.enable()


def from_document(
    document: dict, path: str | Path, image_dir: str | Path | None = None, *, keep_difficult: bool = True
) -> Dataset:
    """A parsed COCO document (lists images, annotations, categories) as read; the document is used up on the way."""
    coco_json.check_document(path, document)
    return _assemble(document, coco_json.take_segments(path, document), path, image_dir, keep_difficult)


def _assemble(
    document: dict, segments: Segments, path: str | Path, image_dir: str | Path | None, keep_difficult: bool
) -> Dataset:
    images, categories, records = (document.pop(k) for k in ("images", "categories", "annotations"))
    notes: list[str] = []
    columns = coco_json.image_columns(path, images)
    columns |= coco_json.category_columns(path, categories)
    names = columns["keypoint_names"]
    columns |= coco_json.annotation_columns(path, records, segments, columns, notes, keep_difficult)
    if image_dir is None:
        image_dir = _find_image_dir(Path(path), columns["file_names"][0])
    columns["left_right"] = left_right(names)
    columns["skeleton"] = coco_fields.skeleton(categories, len(names), notes)
    return Dataset(path=str(path), image_dir=Path(image_dir), notes=tuple(notes), **columns)


def _find_image_dir(path: Path, file_name: str) -> Path:
    split = path.stem.rpartition("_")[2]
    folders = [path.parent, path.parent / path.stem, path.parent / split]  # beside it, and as `data shapes` writes
    folders += [path.parent / "images", path.parent.parent / split, path.parent.parent / "images"]  # and as COCO does
    return next((folder for folder in folders if (folder / file_name).is_file()), path.parent)


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
    image_ids = np.repeat(dataset.image_ids, np.diff(dataset.first)).tolist()
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
