"""The embedded data on disk: scenes as COCO JSON with image files, and image folders for pre-training.

The bytes depend on seed, split, size and number of pictures alone, not on the number of processes; the pictures of a
small set are the first ones of a larger set.
"""

import io
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from colorsys import hsv_to_rgb
from functools import partial
from pathlib import Path

from PIL import Image

from headstart.data.shapes.scenes import (
    BACKGROUND,
    CATEGORY_IDS,
    CLASSIFICATION_NAMES,
    KEYPOINT_CLASS,
    KEYPOINTS,
    NAMES,
    SKELETON,
    Image8,
    label_map,
    scene,
    single,
)
from headstart.files import write_whole

VERSION = 1  # of the drawing; a change of what a seed gives raises it, so that old data are not taken for new
JPEG_QUALITY = 92
CHUNK = 50  # pictures handed to a process at a time

Progress = Callable[[], None]


def _write_image(path: Path, image: Image8) -> None:
    stream = io.BytesIO()  # one write a file; full colour resolution, because small objects live in few pixels
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    path.write_bytes(stream.getvalue())


def _save_scene(index: int, *, folder: Path, seed: int, split: str, size: int, keypoints: bool) -> list[dict]:
    image, annotations = scene(index, seed=seed, split=split, size=size, keypoints=keypoints)
    _write_image(folder / f"{index:06d}.jpg", image)
    return annotations


def _save_labels(index: int, *, folder: Path, seed: int, split: str, size: int) -> None:
    image = Image.fromarray(label_map(index, seed=seed, split=split, size=size)).convert("P")
    colours = [hsv_to_rgb(n * 0.618 % 1, 0.75, 0.95) for n in range(255)]
    image.putpalette([0, 0, 0, *(round(255 * value) for colour in colours for value in colour)])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    (folder / f"{index:06d}.png").write_bytes(stream.getvalue())


def _single_path(folder: Path, index: int, num_classes: int) -> Path:
    return folder / CLASSIFICATION_NAMES[index % num_classes] / f"{index:06d}.jpg"


def _save_single(index: int, *, folder: Path, seed: int, split: str, size: int, num_classes: int) -> None:
    image, _ = single(index, seed=seed, split=split, size=size, num_classes=num_classes)
    _write_image(_single_path(folder, index, num_classes), image)


def _each(function: Callable, num: int, processes: int, progress: Progress | None) -> Iterator:
    """The results of function(0) ... function(num - 1), in order, over so many processes.

    On Linux processes are forked, which starts at once and needs no `__main__` guard; they touch only NumPy and Pillow.
    """
    if processes == 1 or num <= CHUNK:
        for index in range(num):
            yield function(index)
            if progress:
                progress()
        return
    can_fork = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    # An interrupt is the parent's business: it ends the pool, and the workers print nothing.
    with context.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        for result in pool.imap(function, range(num), chunksize=CHUNK):
            yield result
            if progress:
                progress()


def _info(purpose: str, *, seed: int, split: str, size: int, num_images: int, classes: tuple[str, ...]) -> dict:
    """How a split was made, without dates or paths, so that its bytes depend on the arguments alone."""
    return {
        "description": f"headstart shapes: procedural {purpose} pictures", "generator": "headstart.data.shapes.write",
        "version": VERSION, "split": split, "seed": seed, "size": size, "num_images": num_images,
        "classes": list(classes),
    }  # fmt: skip


def _check(num_images: int, seed: int, size: int) -> None:
    for name, value, least in (("num_images", num_images, 1), ("seed", seed, 0), ("size", size, 32)):
        if value < least:
            raise ValueError(f"{name}: {value} is too small, expected at least {least}")


def _finished(marker: Path, info: dict, files: list[Path], progress: Progress | None) -> bool:
    """Whether this very split is there already, all of it; ValueError where `marker` is some other set's."""
    if not marker.exists():
        return False
    try:
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


def _claim(folder: Path, names: set[str]) -> None:
    """Make a folder for the files `names`; whatever else lies in it is not ours to mix with or to delete."""
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in names)
    if foreign:
        listed = ", ".join(foreign[:3])
        raise ValueError(f"{folder}: holds {len(foreign)} other files ({listed}); expected a new or empty folder")


def write_detection(
    out_dir: str | Path, *, num_images: int, seed: int, size: int = 96, split: str = "train", processes: int = 2,
    keypoints: bool = False, progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write one split of scenes as OUT/<split>.json (COCO) and OUT/<split>/000000.jpg ..., and return the JSON's path.

    The JSON is written last: where it is there, and made with the same arguments, nothing is done again. With
    `keypoints` one class has five of them; nothing else changes. `progress` is called
    for each picture. Raises ValueError on bad arguments, or where OUT holds other files under these names.
    """
    _check(num_images, seed, size)
    marker, folder = Path(out_dir) / f"{split}.json", Path(out_dir) / split
    names = [f"{index:06d}.jpg" for index in range(num_images)]
    info = _info("detection", seed=seed, split=split, size=size, num_images=num_images, classes=NAMES)
    if keypoints:
        info["keypoints"] = KEYPOINT_CLASS
    if _finished(marker, info, [folder / name for name in names], progress):
        return marker
    _claim(folder, set(names))
    save = partial(_save_scene, folder=folder, seed=seed, split=split, size=size, keypoints=keypoints)
    found = list(_each(save, num_images, processes, progress))
    images = [{"id": i, "file_name": name, "height": size, "width": size} for i, name in enumerate(names, 1)]
    flat = [(i, annotation) for i, per_image in enumerate(found, 1) for annotation in per_image]
    annotations = [{"id": n, "image_id": i, **annotation} for n, (i, annotation) in enumerate(flat, 1)]
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in zip(CATEGORY_IDS, NAMES)]
    for category in categories if keypoints else ():
        if category["name"] == KEYPOINT_CLASS:
            category |= {"keypoints": list(KEYPOINTS), "skeleton": [list(pair) for pair in SKELETON]}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    write_whole(marker, json.dumps(content, separators=(",", ":")) + "\n")
    return marker


def write_labels(
    out_dir: str | Path, *, num_images: int, seed: int, size: int = 96, split: str = "train", processes: int = 2,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write the label maps of `write_detection`'s scenes, OUT/<split>_labels/000000.png ...; returns the JSON beside.

    Values are category ids, BACKGROUND elsewhere. The JSON, OUT/<split>_labels.json, lists images and categories (the
    background among them) without annotations, and takes the part of `write_detection`'s, with the same errors.
    """
    _check(num_images, seed, size)
    folder = Path(out_dir) / f"{split}_labels"
    marker = folder.with_name(f"{split}_labels.json")
    names = [f"{index:06d}.png" for index in range(num_images)]
    classes = ("background", *NAMES)
    info = _info("segmentation", seed=seed, split=split, size=size, num_images=num_images, classes=classes)
    if _finished(marker, info, [folder / name for name in names], progress):
        return marker
    _claim(folder, set(names))
    save = partial(_save_labels, folder=folder, seed=seed, split=split, size=size)
    for _ in _each(save, num_images, processes, progress):
        pass
    images = [
        {"id": i, "file_name": name.replace(".png", ".jpg"), "height": size, "width": size}
        for i, name in enumerate(names, 1)
    ]
    categories = [{"id": i, "name": name} for i, name in zip((BACKGROUND, *CATEGORY_IDS), classes)]
    content = {"info": info, "licenses": [], "images": images, "annotations": [], "categories": categories}
    write_whole(marker, json.dumps(content, separators=(",", ":")) + "\n")
    return marker


def write_classification(
    out_dir: str | Path, *, num_images: int, seed: int, size: int = 64, num_classes: int = 12, split: str = "train",
    processes: int = 2, progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write one split of single-object pictures, OUT/<split>/<class>/000000.jpg ...; returns OUT/<split>.

    Classes share no form with the detection set and take turns, so their counts differ by one at most.
    OUT/<split>.txt says how it was made and takes the part of `write_detection`'s JSON, with the same errors.
    """
    _check(num_images, seed, size)
    if not 2 <= num_classes <= len(CLASSIFICATION_NAMES):
        raise ValueError(f"num_classes: {num_classes}, expected 2 to {len(CLASSIFICATION_NAMES)}")
    folder, classes = Path(out_dir) / split, CLASSIFICATION_NAMES[:num_classes]
    # A .txt, because a .json beside the folders would make them look like a COCO data set.
    marker = folder.with_name(f"{split}.txt")
    info = _info("classification", seed=seed, split=split, size=size, num_images=num_images, classes=classes)
    files = [_single_path(folder, index, num_classes) for index in range(num_images)]
    if _finished(marker, info, files, progress):
        return folder
    _claim(folder, set(classes))
    for label, name in enumerate(classes):
        _claim(folder / name, {f"{index:06d}.jpg" for index in range(label, num_images, num_classes)})
    save = partial(_save_single, folder=folder, seed=seed, split=split, size=size, num_classes=num_classes)
    for _ in _each(save, num_images, processes, progress):
        pass
    write_whole(marker, json.dumps(info, indent=1) + "\n")
    return folder


def generate(
    out: str | Path, num_images: int, num_val: int, seed: int, size: int = 96, *, keypoints: bool = False,
    semantic: bool = False, processes: int = 2, progress: Progress | None = None,
) -> tuple[Path, ...]:  # fmt: skip
    """Write the detection set, OUT/train.json and OUT/val.json with their folders; returns all JSON paths.

    With `semantic` label maps too: OUT/train_labels.json and OUT/val_labels.json with theirs.
    """
    options = {"seed": seed, "size": size, "processes": processes, "progress": progress}
    splits = {"train": num_images, "val": num_val}
    paths = [write_detection(out, num_images=n, split=s, keypoints=keypoints, **options) for s, n in splits.items()]
    if semantic:
        paths += [write_labels(out, num_images=n, split=s, **options) for s, n in splits.items()]
    return tuple(paths)


def generate_classes(
    out: str | Path, num_images: int, num_val: int, seed: int, size: int = 64, *, num_classes: int = 12,
    processes: int = 2, progress: Progress | None = None,
) -> tuple[Path, Path]:  # fmt: skip
    """Write the pre-training set, image folders OUT/train and OUT/val; returns both paths."""
    write = partial(write_classification, out, seed=seed, size=size, num_classes=num_classes, processes=processes,
                    progress=progress)  # fmt: skip
    return write(num_images=num_images, split="train"), write(num_images=num_val, split="val")
