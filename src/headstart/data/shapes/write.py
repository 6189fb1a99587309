"""The embedded data on disk: scenes as COCO JSON with image files, and image folders for pre-training.

The bytes depend on seed, split, size and number of pictures alone, not on the number of processes; the pictures of a
small set are the first ones of a larger set.
"""

import io
import json
import multiprocessing
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from headstart.data.shapes.scenes import (
    BACKGROUND,
    CLASSIFICATION_NAMES,
    KEYPOINT_CLASS,
    KEYPOINTS,
    SKELETON,
    USUAL,
    Image8,
    Layout,
    label_map,
    scene,
    single,
)
from headstart.files import named, write_whole

VERSION = 1  # of the drawing; raised by a change of what a seed gives, so that old data are not taken for new
JPEG_QUALITY = 92
CHUNK = 50  # pictures handed to a process at a time

Progress = Callable[[], None]


@dataclass(frozen=True)
class Split:
    """Size, seed and layout of one split; `progress` is called for each picture. ValueError for values too small."""

    name: str
    num_images: int
    seed: int
    size: int  # side in pixels
    processes: int = 2
    progress: Progress | None = None
    layout: Layout = USUAL  # of scenes

    def __post_init__(self) -> None:
        for field, least in (("num_images", 1), ("seed", 0), ("size", 32)):
            if (value := getattr(self, field)) < least:
                raise ValueError(f"{field}: {value} is too small, expected at least {least}")

    def info(self, purpose: str, classes: tuple[str, ...]) -> dict[str, Any]:
        """Origin of the split, without dates or paths, so that its bytes depend on the arguments alone."""
        usual, own = ({"objects": each.objects, "smallest": each.smallest} for each in (USUAL, self.layout))
        return {
            "description": f"headstart shapes: procedural {purpose} pictures",
            "generator": "headstart.data.shapes.write", "version": VERSION, "split": self.name, "seed": self.seed,
            "size": self.size, "num_images": self.num_images, "classes": list(classes),
        } | ({} if own == usual else own)  # fmt: skip


def write_detection(out: str | Path, split: Split, *, keypoints: bool = False) -> Path:
    """Write scenes as OUT/<split>.json (COCO) and OUT/<split>/000000.jpg ...; returns the path of the JSON.

    With `keypoints` one class has five of them; nothing else changes. The JSON is written last: where it exists, made
    with the same arguments, nothing is written again. ValueError where OUT holds other files under these names.
    """
    classes = split.layout.categories
    info = split.info("detection", tuple(classes.values())) | ({"keypoints": KEYPOINT_CLASS} if keypoints else {})
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in classes.items()]
    if keypoints:
        named = {"keypoints": list(KEYPOINTS), "skeleton": [list(pair) for pair in SKELETON]}
        categories = [c | named if c["name"] == KEYPOINT_CLASS else c for c in categories]
    marker = Path(out) / f"{split.name}.json"
    draw = partial(_scene, seed=split.seed, split=split.name, size=split.size, keypoints=keypoints, layout=split.layout)
    _write(marker.with_suffix(""), marker, info, split, "{:06d}.jpg", draw, partial(_coco_json, info, categories))
    return marker


def write_labels(out: str | Path, split: Split) -> Path:
    """Write the label maps of `write_detection`'s scenes, OUT/<split>_labels/000000.png ...; returns the JSON beside.

    Values are category ids, BACKGROUND elsewhere. OUT/<split>_labels.json lists images and categories (the background
    among them) without annotations, and has the role of `write_detection`'s, with the same errors.
    """
    classes = {BACKGROUND: "background"} | split.layout.categories
    info = split.info("segmentation", tuple(classes.values()))
    categories = [{"id": i, "name": name} for i, name in classes.items()]
    marker = Path(out) / f"{split.name}_labels.json"
    draw = partial(_label_map, seed=split.seed, split=split.name, size=split.size, layout=split.layout)
    _write(marker.with_suffix(""), marker, info, split, "{:06d}.png", draw, partial(_coco_json, info, categories))
    return marker


def write_classification(out: str | Path, split: Split, *, num_classes: int = 12) -> Path:
    """Write single-object pictures, OUT/<split>/<class>/000000.jpg ...; returns OUT/<split>.

    Classes share no form with the detection set and take turns, so their counts differ by one at most.
    OUT/<split>.txt names the origin and has the role of `write_detection`'s JSON, with the same errors.
    """
    if not 2 <= num_classes <= len(CLASSIFICATION_NAMES):
        raise ValueError(f"num_classes: {num_classes}, expected 2 to {len(CLASSIFICATION_NAMES)}")
    info = split.info("classification", CLASSIFICATION_NAMES[:num_classes])
    folder = Path(out) / split.name
    # A .txt, because a .json beside the folders would make them look like a COCO data set.
    marker = folder.with_name(f"{split.name}.txt")
    draw = partial(_single, seed=split.seed, split=split.name, size=split.size, num_classes=num_classes)
    text = json.dumps(info, indent=1) + "\n"
    _write(folder, marker, info, split, "{1}/{0:06d}.jpg", draw, lambda found: text)
    return folder


def generate(
    out: str | Path, num_images: int, num_val: int, seed: int, size: int = 96, *, keypoints: bool = False,
    semantic: bool = False, layout: Layout = USUAL, processes: int = 2, progress: Progress | None = None,
) -> tuple[Path, ...]:  # fmt: skip
    """Write the detection set, OUT/train.json and OUT/val.json with their folders; returns all JSON paths.

    With `semantic` label maps too: OUT/train_labels.json and OUT/val_labels.json with theirs.
    """
    parts = (("train", num_images), ("val", num_val))
    splits = [Split(*part, seed, size, processes, progress, layout) for part in parts]
    paths = [write_detection(out, split, keypoints=keypoints) for split in splits]
    return (*paths, *(write_labels(out, split) for split in splits if semantic))


def generate_classes(
    out: str | Path, num_images: int, num_val: int, seed: int, size: int = 64, *, num_classes: int = 12,
    processes: int = 2, progress: Progress | None = None,
) -> tuple[Path, ...]:  # fmt: skip
    """Write the pre-training set, image folders OUT/train and OUT/val; returns both paths."""
    splits = [Split(*part, seed, size, processes, progress) for part in (("train", num_images), ("val", num_val))]
    return tuple(write_classification(out, split, num_classes=num_classes) for split in splits)


def _scene(index: int, *, seed: int, split: str, size: int, layout: Layout, keypoints: bool) -> tuple[bytes, list]:
    image, annotations = scene(index, seed=seed, split=split, size=size, keypoints=keypoints, layout=layout)
    return _jpeg(image), annotations


def _label_map(index: int, *, seed: int, split: str, size: int, layout: Layout) -> tuple[bytes, list[dict]]:
    image = Image.fromarray(label_map(index, seed=seed, split=split, size=size, layout=layout)).convert("P")
    colours = [hsv_to_rgb(n * 0.618 % 1, 0.75, 0.95) for n in range(255)]
    image.putpalette([0, 0, 0, *(round(255 * value) for colour in colours for value in colour)])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue(), []


def _single(index: int, *, seed: int, split: str, size: int, num_classes: int) -> tuple[bytes, list[dict]]:
    image, _ = single(index, seed=seed, split=split, size=size, num_classes=num_classes)
    return _jpeg(image), []


def _jpeg(image: Image8) -> bytes:
    stream = io.BytesIO()
    # Full colour resolution, because small objects cover few pixels.
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _coco_json(info: dict, categories: list[dict], found: list[list[dict]]) -> str:
    """COCO JSON of scenes whose annotations without ids are given, one list a scene."""
    names = [f"{index:06d}.jpg" for index in range(len(found))]
    images = [{"id": i, "file_name": n, "height": info["size"], "width": info["size"]} for i, n in enumerate(names, 1)]
    flat = [(i, annotation) for i, per_image in enumerate(found, 1) for annotation in per_image]
    annotations = [{"id": n, "image_id": i, **annotation} for n, (i, annotation) in enumerate(flat, 1)]
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content, separators=(",", ":")) + "\n"


def _write(
    folder: Path, marker: Path, info: dict, split: Split, name: str,
    draw: Callable[[int], tuple[bytes, list[dict]]], text: Callable[[list[list[dict]]], str],
) -> None:  # fmt: skip
    """Write one split: each picture's bytes, then the file that marks it as finished.

    name: format of a picture's file below `folder`, of its index and the class whose turn it is. draw: bytes and
    annotations of a picture. text: content of `marker`, from the annotations of all pictures.
    """
    classes = info["classes"]
    files = [folder / name.format(index, classes[index % len(classes)]) for index in range(split.num_images)]
    if _finished(marker, info, files, split.progress):
        return
    _claim(folder, files)
    found = []
    drawn = _each(draw, split.num_images, split.processes, split.progress)
    for (content, annotations), file in zip(drawn, files):  # in this order: the generator runs to its end
        if _is_missing(file, content):
            with named(file):
                file.write_bytes(content)
        found.append(annotations)
    content = text(found).encode()
    if _is_missing(marker, content):
        write_whole(marker, content)


def _is_missing(file: Path, content: bytes) -> bool:
    """True for a file still to be written: absent, or cut off; ValueError where it holds anything else."""
    if not file.exists():
        return True
    with named(file):
        there = file.read_bytes()
    if not content.startswith(there):
        raise ValueError(f"{file}: holds something else than what belongs there; expected a new or empty folder")
    return len(there) < len(content)


def _each(function: Callable, num: int, processes: int, progress: Progress | None) -> Iterator:
    """The results of function(0) ... function(num - 1), in order, computed by this number of processes.

    On Linux processes are forked, which starts at once and needs no `__main__` guard; they use only NumPy and Pillow.
    """
    if processes == 1 or num <= CHUNK:
        for index in range(num):
            yield function(index)
            if progress:
                progress()
        return
    can_fork = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    # The parent handles an interrupt: it ends the pool, and the workers print nothing.
    with context.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        for result in pool.imap(function, range(num), chunksize=CHUNK):
            yield result
            if progress:
                progress()


def _finished(marker: Path, info: dict, files: list[Path], progress: Progress | None) -> bool:
    """True if this split exists already, as a whole; ValueError where `marker` is another set's."""
    if not marker.exists():
        return False
    try:
        with named(marker):
            found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    found = found.get("info", found) if isinstance(found, dict) else {}
    if found != info:
        raise ValueError(f"{marker}: holds another data set than the one asked for; expected a new or empty folder")
    if not all(file.is_file() for file in files):
        return False
    for _ in files if progress else ():
        progress()
    return True


def _claim(root: Path, files: list[Path]) -> None:
    """Make the folders of the files below `root`; ValueError if one holds other files, which stay as they are."""
    expected: dict[Path, set[str]] = defaultdict(set)
    for file in files:
        while file != root:
            expected[file.parent].add(file.name)
            file = file.parent
    for folder, names in expected.items():
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in names)
        if foreign:
            listed = ", ".join(foreign[:3])
            raise ValueError(f"{folder}: holds {len(foreign)} other files ({listed}); expected a new or empty folder")
