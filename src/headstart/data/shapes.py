"""The embedded data: procedural scenes on disk, as COCO JSON with image files, and image folders for pre-training.

Classes are told apart by form alone: colours, textures, rotation, proportions and size are drawn independently of them.
Every picture is a pure function of (seed, set, split, index, size), so that the bytes on disk depend neither on the
number of processes nor on how many pictures are made.
"""

import io
import json
import multiprocessing
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from headstart.data import forms, textures

NAMES = tuple(forms.DETECTION_FORMS)
CATEGORY_IDS = (1, 2, 4, 7, 8, 11, 16, 21)  # with gaps, as COCO's own: a reader that takes ids for labels shows at once
CLASSIFICATION_NAMES = tuple(forms.CLASSIFICATION_FORMS)

MAX_OBJECTS = 6
NEGATIVE_SHARE = 0.08  # scenes without any object
SCALE = (0.10, 0.60)  # longer side of an object over the side of a scene
CLASSIFICATION_SCALE = (0.20, 0.90)  # 13 to 58 px at 64 px: the sizes in pixels that the 96-px scenes have
MIN_VISIBLE = 0.25  # of an object's own area; a layout that would hide more is drawn again
MIN_PIXELS = 12
NUM_TRIES = 20
JPEG_QUALITY = 92
CHUNK = 50  # pictures handed to a process at a time

Image8 = NDArray[np.uint8]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Placed:
    """One object of a scene: its label, outline [V, 2] in pixels, and raster with its upper left pixel."""

    label: int
    polygon: forms.Points
    top: int
    left: int
    inside: NDArray[np.bool_]


def _generator(seed: int, purpose: str, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}/{split}".encode()), index])


def _stamp(owner: NDArray[np.int64], item: Placed, value: int) -> NDArray[np.int64]:
    result = owner.copy()
    mask = forms.centres(item.inside)
    result[item.top : item.top + mask.shape[0], item.left : item.left + mask.shape[1]][mask] = value
    return result


def _try_object(rng: np.random.Generator, size: int) -> Placed:
    label = int(rng.integers(len(NAMES)))
    extent = size * np.exp(rng.uniform(*np.log(SCALE)))
    polygon = forms.place(forms.DETECTION_FORMS[NAMES[label]], rng, extent, tuple(rng.uniform(0, size, 2)))
    return Placed(label, polygon, *forms.rasterise(polygon, size))


def _lay_out(rng: np.random.Generator, size: int) -> tuple[list[Placed], NDArray[np.int64]]:
    """Objects from back to front, and the owner of each pixel: int64 [size, size], 0 background, n the n-th object.

    An object that would leave itself or an earlier one less than MIN_VISIBLE is drawn again, NUM_TRIES times, then
    left out: every object that can be seen is annotated.
    """
    owner = np.zeros((size, size), dtype=np.int64)
    placed: list[Placed] = []
    needed = [0.0]
    wanted = 0 if rng.random() < NEGATIVE_SHARE else int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(wanted):
        for _ in range(NUM_TRIES):
            item = _try_object(rng, size)
            trial = _stamp(owner, item, len(placed) + 1)
            least = [*needed, max(MIN_VISIBLE * forms.area(item.polygon), MIN_PIXELS)]
            if (np.bincount(trial.ravel(), minlength=len(least)) >= least).all():
                owner, needed = trial, least
                placed.append(item)
                break
    return placed, owner


def _paint(rng: np.random.Generator, canvas: NDArray[np.float64], item: Placed) -> None:
    """Lay a textured object over the canvas [3, S, S], in place, in a colour unlike what it covers.

    Planes come first because NumPy's inner loop over three interleaved channels costs three times as much.
    """
    alpha = forms.coverage(item.inside)
    height, width = alpha.shape
    under = canvas[:, item.top : item.top + height, item.left : item.left + width]
    covered = under[:, alpha > 0]
    order = covered.sum(axis=0)
    below = np.stack([covered[:, order.argmin()], covered[:, order.argmax()], covered.mean(axis=1)])
    base = textures.contrasting(rng, below)
    under += alpha * (textures.textured(rng, height, width, base, rng.uniform(0.0, 0.45)) - under)


def _render(rng: np.random.Generator, size: int, placed: list[Placed]) -> Image8:
    canvas = textures.textured(rng, size, size, textures.colours(rng, 1)[0], rng.uniform(0.0, 0.6))
    for item in placed:
        _paint(rng, canvas, item)
    canvas += rng.standard_normal((size, size)) * rng.uniform(0.0, 5.0)  # grain, in grey levels
    return np.ascontiguousarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def scene(index: int, *, seed: int, split: str, size: int) -> tuple[Image8, list[dict]]:
    """One scene: the picture uint8 [size, size, 3] and its COCO annotations, without `id` and `image_id`.

    Box and area are those of the visible pixels. An object in full view is given as a polygon; one that is partly
    covered or cut by the border as compressed RLE of what can be seen. About 8 % of scenes have no objects.
    """
    rng = _generator(seed, "detection", split, index)
    placed, owner = _lay_out(rng, size)
    image = _render(rng, size, placed)
    return image, [_annotate(item, owner == number) for number, item in enumerate(placed, 1)]


def _annotate(item: Placed, visible: NDArray[np.bool_]) -> dict:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    area = int(visible.sum())
    within = item.polygon.min() >= 0 and item.polygon.max() <= len(visible)
    if within and area == forms.centres(item.inside).sum():
        segmentation = [item.polygon.ravel().tolist()]
    else:
        rle = coco_mask.encode(np.asfortranarray(visible, dtype=np.uint8))
        segmentation = {"size": list(visible.shape), "counts": rle["counts"].decode("ascii")}
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {
        "category_id": CATEGORY_IDS[item.label], "bbox": [float(value) for value in box], "area": float(area),
        "iscrowd": 0, "segmentation": segmentation,
    }  # fmt: skip


def single(index: int, *, seed: int, split: str, size: int, num_classes: int) -> tuple[Image8, int]:
    """One classification picture, uint8 [size, size, 3], and its label `index % num_classes`.

    One object, wholly in view; in half of the pictures off the centre as far as its size allows.
    """
    rng = _generator(seed, "classification", split, index)
    label = index % num_classes
    extent = size * np.exp(rng.uniform(*np.log(CLASSIFICATION_SCALE)))
    room = (size - extent) / 2 * (1.0 if rng.random() < 0.5 else 0.25)
    centre = tuple(size / 2 + rng.uniform(-room, room, 2))
    polygon = forms.place(forms.CLASSIFICATION_FORMS[CLASSIFICATION_NAMES[label]], rng, extent, centre)
    item = Placed(label, polygon, *forms.rasterise(polygon, size))
    return _render(rng, size, [item]), label


def _write_image(path: Path, image: Image8) -> None:
    stream = io.BytesIO()  # one write a file; full colour resolution, because small objects live in few pixels
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    path.write_bytes(stream.getvalue())


def _save_scene(index: int, *, folder: Path, seed: int, split: str, size: int) -> list[dict]:
    image, annotations = scene(index, seed=seed, split=split, size=size)
    _write_image(folder / f"{index:06d}.jpg", image)
    return annotations


def _save_single(index: int, *, folder: Path, seed: int, split: str, size: int, num_classes: int) -> None:
    image, label = single(index, seed=seed, split=split, size=size, num_classes=num_classes)
    _write_image(folder / CLASSIFICATION_NAMES[label] / f"{index:06d}.jpg", image)


def _each(function: Callable, num: int, processes: int, progress: Progress | None) -> Iterator:
    """The results of function(0) ... function(num - 1), in order, over so many processes.

    On Linux processes are forked, which starts at once and needs no `__main__` guard; they touch only NumPy and Pillow.
    """
    if processes == 1 or num <= CHUNK:
        for index in range(num):
            yield function(index)
            if progress:
                progress(1)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(processes) as pool:
        for result in pool.imap(function, range(num), chunksize=CHUNK):
            yield result
            if progress:
                progress(1)


def _info(purpose: str, *, seed: int, split: str, size: int, num_images: int) -> dict:
    """How a split was made, without dates or paths, so that its bytes depend on the arguments alone."""
    return {"description": f"headstart shapes: procedural {purpose} pictures", "generator": "headstart.data.shapes",
            "split": split, "seed": seed, "size": size, "num_images": num_images, "licence": "CC0-1.0"}  # fmt: skip


def _check(num_images: int, seed: int, size: int) -> None:
    for name, value, least in (("num_images", num_images, 1), ("seed", seed, 0), ("size", size, 32)):
        if value < least:
            raise ValueError(f"{name}: {value} is too small, expected at least {least}")


def _claim(folder: Path, names: set[str]) -> None:
    """Make a folder for the files `names`; whatever else lies in it is not ours to mix with or to delete."""
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in names)
    if foreign:
        raise ValueError(
            f"{folder}: holds {len(foreign)} other files or folders ({foreign[0]}, ...); expected a new or empty folder"
        )


def _write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: the file that marks a finished set is never half there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_detection(
    out_dir: str | Path, *, num_images: int, seed: int, size: int = 96, split: str = "train", processes: int = 2,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write one split of scenes as OUT/<split>.json (COCO) and OUT/<split>/000000.jpg ..., and return the JSON's path.

    The JSON is written last, so it is there only when the pictures are. `progress` is called with 1 after each picture.
    Raises ValueError on bad arguments, or where OUT holds other files under these names.
    """
    _check(num_images, seed, size)
    out, folder = Path(out_dir), Path(out_dir) / split
    names = [f"{index:06d}.jpg" for index in range(num_images)]
    _claim(folder, set(names))
    save = partial(_save_scene, folder=folder, seed=seed, split=split, size=size)
    found = list(_each(save, num_images, processes, progress))
    images = [{"id": i, "file_name": name, "height": size, "width": size} for i, name in enumerate(names, 1)]
    flat = [(i, annotation) for i, per_image in enumerate(found, 1) for annotation in per_image]
    annotations = [{"id": n, "image_id": i, **annotation} for n, (i, annotation) in enumerate(flat, 1)]
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in zip(CATEGORY_IDS, NAMES)]
    info = _info("detection", seed=seed, split=split, size=size, num_images=num_images)
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    _write_text(out / f"{split}.json", json.dumps(content, separators=(",", ":")) + "\n")
    return out / f"{split}.json"


def write_classification(
    out_dir: str | Path, *, num_images: int, seed: int, size: int = 64, num_classes: int = 12, split: str = "train",
    processes: int = 2, progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write one split of single-object pictures, OUT/<split>/<class>/000000.jpg ...; returns OUT/<split>.

    Classes share no form with the detection set and take turns, so their counts differ by one at most.
    OUT/<split>.json says how it was made and is written last. Raises ValueError as `write_detection` does.
    """
    _check(num_images, seed, size)
    if not 2 <= num_classes <= len(CLASSIFICATION_NAMES):
        raise ValueError(f"num_classes: {num_classes}, expected 2 to {len(CLASSIFICATION_NAMES)}")
    folder = Path(out_dir) / split
    classes = CLASSIFICATION_NAMES[:num_classes]
    _claim(folder, set(classes))
    for label, name in enumerate(classes):
        _claim(folder / name, {f"{index:06d}.jpg" for index in range(label, num_images, num_classes)})
    save = partial(_save_single, folder=folder, seed=seed, split=split, size=size, num_classes=num_classes)
    for _ in _each(save, num_images, processes, progress):
        pass
    info = _info("classification", seed=seed, split=split, size=size, num_images=num_images)
    _write_text(folder.with_suffix(".json"), json.dumps({**info, "classes": classes}, indent=1) + "\n")
    return folder


def generate(
    out: str | Path, num_images: int, num_val: int, seed: int, size: int = 96, *, processes: int = 2,
    progress: Progress | None = None,
) -> tuple[Path, Path]:  # fmt: skip
    """Write the detection set, OUT/train.json and OUT/val.json with their folders; returns both paths."""
    write = partial(write_detection, out, seed=seed, size=size, processes=processes, progress=progress)
    return write(num_images=num_images, split="train"), write(num_images=num_val, split="val")


def generate_classes(
    out: str | Path, num_images: int, num_val: int, seed: int, size: int = 64, *, num_classes: int = 12,
    processes: int = 2, progress: Progress | None = None,
) -> tuple[Path, Path]:  # fmt: skip
    """Write the pre-training set, image folders OUT/train and OUT/val; returns both paths."""
    write = partial(write_classification, out, seed=seed, size=size, num_classes=num_classes, processes=processes,
                    progress=progress)  # fmt: skip
    return write(num_images=num_images, split="train"), write(num_images=num_val, split="val")
