"""Checks of a data set before training: problems by file, record and value; counts; a clean copy."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headstart.data.check import ERROR, Problem, Report
from headstart.data.check import annotations as annotation_check
from headstart.data.check import images as image_check
from headstart.data.check import records as scan
from headstart.data.dataset import LARGE, SMALL, Dataset
from headstart.data.label_maps import PixelLabels
from headstart.data.read import Source, coco, detect_format, find_layout, open_dataset, splits_of
from headstart.data.read.files import SPLITS

MAX_OBJECTS = 100  # detections an image in COCO's metric


def sources(paths: Sequence[str | Path], image_dirs: Sequence[str | Path] | None = None) -> dict[str, Source]:
    """Splits by name from PATH or PATH:SPLIT; without SPLIT each of COCO, YOLO, class folders and split files.

    Names are SPLIT, or those of the layout's splits, else file stems, made unique by a number. `image_dirs` belong to
    `paths` in order. ValueError for more image folders than paths, a path that is not there, and a SPLIT that fits no
    file.
    """
    folders = [Path(folder) for folder in image_dirs or ()]
    if len(folders) > len(paths):
        raise ValueError(f"images: {len(folders)} folders for {len(paths)} data sets: expected at most one each")
    found: dict[str, Source] = {}
    for position, given in enumerate(paths):
        folder = folders[position] if position < len(folders) else None
        for name, source in _named_sources(str(given), folder):
            number = 2
            unique = name
            while unique in found:
                unique, number = f"{name}-{number}", number + 1
            found[unique] = source
    return found


def _named_sources(given: str, folder: Path | None) -> list[tuple[str, Source]]:
    place = Source.parse(given, folder)
    layout = find_layout(place.path)
    if layout.kind in ("yolo", "folders", "split") and place.split is None and len(each := splits_of(layout)) > 1:
        return list(each.items())  # of the other formats a reader takes all splits together
    if layout.kind != "coco" or os.path.isfile(place.path):
        return [(place.split or place.path.stem, place)]
    files = list(zip(layout.splits or [file.stem for file in layout.files], layout.files))
    fitting = [(name, file) for name, file in files if place.split is None or place.split in file.stem]
    fitting = fitting or [(name, file) for name, file in files if name == SPLITS.get(place.split or "")]
    if not fitting:
        known = [file.stem for file in layout.files]
        raise ValueError(f"{place.path}: split = {place.split!r} fits no file: expected one of {known}")
    return [(name, Source(file, folder)) for name, file in fitting]


def read_usable(source: Source | Dataset | str | Path, split: str) -> tuple[Dataset | None, list[Problem]]:
    """The usable part of a split, None if there is none, and the problems of the rest."""
    if isinstance(source, Dataset):
        return source, []
    if not isinstance(source, Source):
        source = Source(Path(source))
    is_json = source.path.suffix.lower() == ".json" and source.split is None
    if is_json and (not os.path.isfile(source.path) or detect_format(source.path) == "coco"):
        return scan.load(source.path, source.image_dir, split)
    try:
        return open_dataset(source.path, source.image_dir, source.split), []
    except ValueError as error:
        text = str(error).removeprefix(f"{source.path}: ")
        return None, [Problem(ERROR, "file", split, str(source.path), "", text)]


def check(
    datasets: Mapping[str, Source | Dataset | str | Path],
    *,
    max_objects: int = MAX_OBJECTS,
    labels: Mapping[str, Path] | None = None,
    ignore: Sequence[int] = (),
) -> Report:
    """Every problem of the splits, by name, each by itself and against the earlier ones; decodes every image.

    Every wrong record of a COCO file is named; of VOC and YOLO the first structural error. `labels`: folders of label
    maps, by split; their values in `ignore` stand for unknown pixels. Never raises for bad data.
    """
    found: list[Problem] = []
    sound: dict[str, Dataset] = {}
    examined: dict[str, list[image_check.ImageCheck]] = {}
    for split, source in datasets.items():
        dataset, problems = read_usable(source, split)
        found += problems
        if dataset is None:
            continue
        sound[split], examined[split] = dataset, image_check.examine(dataset, split)
        own = annotation_check.problems(dataset, split, max_objects=max_objects)
        # With label maps, annotations are not needed.
        found += [entry for entry in own if entry.code != "no-annotations" or split not in (labels or {})]
        found += image_check.problems(dataset, split, examined[split])
        if split in (labels or {}):
            found += _label_problems(dataset, split, labels[split], ignore)
    if len(sound) > 1:
        found += annotation_check.class_differences(sound)
        found += image_check.overlaps(sound, examined)
    return Report(tuple(found))


def _label_problems(dataset: Dataset, split: str, folder: Path, ignore: Sequence[int]) -> list[Problem]:
    try:
        found = PixelLabels(dataset, folder, ignore=ignore).problems()
    except ValueError as error:  # category ids that do not fit into 8 bits
        return [Problem(ERROR, "labels", split, str(folder), "", str(error))]
    return [Problem(ERROR, "labels", split, str(path), "", text) for path, text in found]


def stats(dataset: Dataset) -> dict[str, int | str | dict[str, int | float]]:
    """Counts by name: images, instances (without crowds), pixels, sizes by COCO's areas, objects an image, classes."""
    single = ~dataset.crowd
    areas = dataset.areas[single]
    per_image = np.bincount(dataset.image_of[single], minlength=dataset.num_images)
    per_class = np.bincount(dataset.labels[single], minlength=dataset.num_classes)
    small, large = int((areas < SMALL).sum()), int((areas >= LARGE).sum())
    return {
        "images": dataset.num_images,
        "images without objects": int((np.diff(dataset.first) == 0).sum()),
        "instances": int(single.sum()),
        "crowds": int(dataset.crowd.sum()),
        "difficult": int(dataset.difficult.sum()),
        "pixels": int((dataset.heights.astype(np.int64) * dataset.widths).sum()),
        "classes": dataset.num_classes,
        "image width": f"{dataset.widths.min()} to {dataset.widths.max()}",
        "image height": f"{dataset.heights.min()} to {dataset.heights.max()}",
        "objects per image": {"mean": round(float(per_image.mean()), 2), "max": int(per_image.max())},
        "instances by size": {"small": small, "medium": len(areas) - small - large, "large": large},
        "instances by class": {name: int(n) for name, n in zip(dataset.class_names, per_class)},
    }


def fix(path: str | Path, out_path: str | Path, *, image_dir: str | Path | None = None) -> list[str]:
    """Write a clean COCO copy of one data set, and return one line for each record left out or changed.

    Left out: records with structural errors, images that are missing, unreadable or of another size, boxes outside
    their image. Clipped: boxes that reach out of it. Images and the original file stay unchanged.
    ValueError if `out_path` exists, if `path` holds several splits, or if nothing sound is left.
    """
    out = Path(out_path)
    if out.exists():
        raise ValueError(f"{out}: exists already: expected the name of a new file for the clean copy")
    found = sources([path], [image_dir] if image_dir else None)
    if len(found) > 1:
        raise ValueError(f"{path}: holds {len(found)} splits ({', '.join(found)}): expected one of them")
    split, source = next(iter(found.items()))
    dataset, problems = read_usable(source, split)
    if dataset is None:
        raise ValueError(f"{problems[-1].where}: {problems[-1].message}")
    problems += annotation_check.problems(dataset, split, max_objects=MAX_OBJECTS)
    examined = image_check.examine(dataset, split)
    problems += [one.problem for one in examined if one.problem]
    kept = [i for i, one in enumerate(examined) if one.problem is None]
    if not kept:
        raise ValueError(f"{dataset.path}: none of its {len(examined)} images in {dataset.image_dir} is usable")
    whole = dataset.num_annotations
    dataset = dataset.take(kept)
    orphans = whole - dataset.num_annotations
    out_of_image = annotation_check.reach(dataset) > annotation_check.REACH
    boxes = np.where(out_of_image[:, None], dataset.clipped(dataset.boxes), dataset.boxes)
    dataset = replace(dataset, boxes=boxes).take(annotations=~annotation_check.outside(dataset))
    coco.write(dataset, out)
    lines = [f"{problem.remedy}: {problem.where}: {problem.message}" for problem in problems if problem.remedy]
    if orphans:
        lines.append(f"left out: {orphans} annotations of images that are left out")
    counts = f"{dataset.num_images} images, {dataset.num_annotations} objects, {dataset.num_classes} classes"
    return [*lines, f"{out}: {counts} (images stay in {dataset.image_dir})"]
