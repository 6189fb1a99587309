"""Predictions of both arms beside the annotations, on the images where the two differ most, as small pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.data import rle
from headstart.data.dataset import Dataset
from headstart.data.masks import annotation_mask
from headstart.data.read import Source, open_dataset
from headstart.metrics.overlaps import Overlap, measure
from headstart.metrics.predictions import Predictions
from headstart.metrics.records import Records
from headstart.report.facts import Facts
from headstart.report.findings import Findings
from headstart.report.page import Section
from headstart.study.results import Run, StudyFolder
from headstart.tasks.draw import Shape, draw_shapes

MIN_SCORE = 0.5  # the detections that a user would see; AP ranks the others too
MIN_OVERLAP = 0.5  # IoU with an annotation of its class that makes a detection right
PER_SIDE = 4  # images for each arm's lead
MOST_BYTES = 800_000  # of all pictures: with plotly's 2.0 MB a report stays below 3 MB
SIDE = 460  # pixels of the longer side of a picture: two for each on the page, so that text stays sharp
TEXT_SIZE = 17
MOST_SHAPES = 40  # a picture: more cannot be read
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Panel:
    """One picture: title (an arm, or "annotated"), data URI, size in pixels, and its shapes in words."""

    title: str
    picture: str
    size: tuple[int, int]
    words: str


@dataclass(frozen=True)
class ImagePanels:
    """One image: the arm that leads on it, its file and id, F1 of baseline and candidate, and three panels."""

    leader: str
    file_name: str
    image_id: int
    f1: tuple[float, float]
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Gallery:
    """All images; `note` says what is shown, or why nothing is."""

    note: str
    images: tuple[ImagePanels, ...] = ()


def pictures(facts: Facts, findings: Findings) -> Section:
    """Predictions of both arms on the images where they differ most."""
    return Section("pictures", "Pictures", context={"gallery": make_gallery(facts.folder)})


def make_gallery(folder: StudyFolder) -> Gallery:
    """The images on which the two arms of the question differ most, in both directions, at the headline cell.

    They are chosen by F1 of detections with a score of at least 0.5, averaged over COCO's IoU thresholds. Each arm
    leads on at most PER_SIDE of them: extremes, not an average. Unfinished runs or absent images give a note.
    """
    found = _runs(folder)
    if found is None:
        return Gallery("Pictures appear when the longest schedule of both arms is finished.")
    try:
        dataset = _validation_data(folder, found[0])
        predictions = [Predictions.from_json(_file(run, "predictions", "json")) for run in found]
        f1 = np.stack([_f1(_file(run, "records-box", "npz"), dataset) for run in found])
        return _gallery(folder, found, dataset, predictions, f1)
    except (ValueError, OSError) as error:
        return Gallery(f"Pictures cannot be drawn: {error}")


def _runs(folder: StudyFolder) -> tuple[Run, Run] | None:
    """The finished tails of baseline and candidate, for the longest common schedule and the first seed."""
    if folder.headline_cell is None:
        return None
    first = [folder.ends(arm, *folder.headline_cell)[0] for arm in (folder.baseline, folder.candidate)]
    return tuple(first) if all(run and run.end for run in first) else None


def _file(run: Run, name: str, ending: str) -> Path:
    return run.directory / f"{name}-{run.segment.stop}.{ending}"


def _validation_data(folder: StudyFolder, run: Run) -> Dataset:
    """The validation data of a run; relative paths are tried from the working directory, then from parent folders."""
    recipe = run.recipe
    if recipe is None or recipe.task != "detection":
        raise ValueError(f"{run.directory}: no recipe.yaml of a detector, which names the validation data")
    data = recipe.data
    roots = [Path.cwd(), *folder.path.resolve().parents]
    root = next((root for root in roots if Source.parse(root / data.val).path.exists()), roots[0])
    images = data.val_images
    return open_dataset(root / data.val, None if images is None else root / images, data.val_split)


def _f1(path: Path, dataset: Dataset) -> np.ndarray:
    """F1 of each image of the data set, float [I]; 1 where there is neither an annotation nor a detection."""
    records = Records.load(path)
    shown = records.score >= MIN_SCORE
    num_images, num_levels = len(records.image_ids), records.matched.shape[1]
    true_positives, num_predicted = np.zeros((2, num_images))
    counted = ~records.ignored[shown]
    np.add.at(true_positives, records.image[shown], (records.matched[shown] & counted).sum(1))
    np.add.at(num_predicted, records.image[shown], counted.sum(1))
    total = num_predicted + num_levels * np.bincount(records.gt_image, records.gt_count, num_images)
    f1 = np.divide(2 * true_positives, total, out=np.ones(num_images), where=total > 0)
    place = {int(image_id): i for i, image_id in enumerate(records.image_ids)}
    unknown = [int(i) for i in dataset.image_ids if int(i) not in place]
    if unknown:
        raise ValueError(f"{path}: has no image {unknown[0]}, expected all images of the validation data")
    return f1[[place[int(image_id)] for image_id in dataset.image_ids]]


def _gallery(
    folder: StudyFolder, runs: tuple[Run, Run], dataset: Dataset, predictions: list[Predictions], f1: np.ndarray
) -> Gallery:
    lead = f1[1] - f1[0]
    order = np.argsort(lead, kind="stable")
    sides = (
        (folder.baseline, [i for i in order if lead[i] < 0]),
        (folder.candidate, [i for i in order[::-1] if lead[i] > 0]),
    )
    overlaps = [measure(dataset, found, "box", least=MIN_OVERLAP).overlap for found in predictions]
    chosen = [(rank, leader, i) for leader, indices in sides for rank, i in enumerate(indices[:PER_SIDE])]
    made, size = [], 0
    for _, leader, i in sorted(chosen, key=lambda own: own[0]):  # in turn: MOST_BYTES must not leave out one side
        annotated = [n for n in range(dataset.first[i], dataset.first[i + 1]) if not dataset.crowd[n]]
        panels = [("annotated", _annotated_shapes(dataset, annotated))]
        for arm, found, overlap in zip((folder.baseline, folder.candidate), predictions, overlaps):
            panels.append((arm, _predicted_shapes(dataset, i, found, overlap, annotated)))
        pixels = dataset.load_image(i)
        drawn = tuple(_panel(title, pixels, shapes) for title, shapes in panels)
        size += sum(len(panel.picture) for panel in drawn)
        if size <= MOST_BYTES:
            own = float(f1[0, i]), float(f1[1, i])
            made.append(ImagePanels(leader, dataset.file_names[i], int(dataset.image_ids[i]), own, drawn))
    end = f"at the end of {folder.headline_cell[0]} (seed {runs[0].segment.seed})"
    if not made:
        level = f"their detections with a score of at least {MIN_SCORE:g} have the same F1"
        return Gallery(f"No image tells the arms apart {end}: {level}.")
    note = (
        f"The images on which the arms differ most {end}, in both directions: extremes, not an average. "
        f"Detections with a score of at least {MIN_SCORE:g}; solid outline: matches an annotation of its class "
        "(IoU of at least 0.5), dashed: matches none."
    )
    return Gallery(note, tuple(made))


def _annotated_shapes(dataset: Dataset, annotated: list[int]) -> list[Shape]:
    """The annotated objects of these annotation indices."""
    return [
        Shape(
            box=dataset.boxes[n],
            label=_short(dataset.class_names[dataset.labels[n]]),
            category=int(dataset.labels[n]),
            mask=annotation_mask(dataset, n) if dataset.segment_kind[n] else None,  # 0: no segmentation
        )
        for n in annotated
    ]


def _predicted_shapes(
    dataset: Dataset, i: int, found: Predictions, overlap: Overlap, annotated: list[int]
) -> list[Shape]:
    """The detections of image index i, best first; dashed without an annotation of its class."""
    chosen = np.flatnonzero((found.image_ids == dataset.image_ids[i]) & (found.scores >= MIN_SCORE))
    chosen = chosen[np.argsort(-found.scores[chosen], kind="stable")][:MOST_SHAPES]
    labels = np.searchsorted(dataset.category_ids, found.category_ids[chosen])
    pairs = np.repeat(chosen, len(annotated)), np.tile(np.array(annotated, np.int64), len(chosen))
    overlaps = overlap(*pairs).reshape(len(chosen), len(annotated))
    overlaps[labels[:, None] != dataset.labels[annotated]] = 0
    shapes = []
    for k, label, own in zip(chosen, labels, overlaps):
        right = own.max(initial=0) >= MIN_OVERLAP
        if right:
            overlaps[:, own.argmax()] = 0  # an annotation is taken once
        name = f"{_short(dataset.class_names[label])} {found.scores[k]:.2f}"
        mask = None if found.masks is None else rle.decode(found.masks[k])
        shapes.append(Shape(found.boxes[k], name, int(label), mask, dashed=not right))
    return shapes


def _panel(title: str, pixels: np.ndarray, shapes: list[Shape]) -> Panel:
    picture = draw_shapes(pixels, shapes, scale=SIDE / max(pixels.shape[:2]), text_size=TEXT_SIZE)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    words = ", ".join(shape.label + (" (wrong)" if shape.dashed else "") for shape in shapes) or "nothing"
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Panel(title, uri, picture.size, f"{title}: {words}")


def _short(name: str) -> str:
    text = "".join(c if c.isprintable() else " " for c in name)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
