"""Predictions of both arms beside the annotations, on the images where the two differ most, drawn as small pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.read import open_dataset
from headstart.metrics.predictions import Predictions
from headstart.metrics.records import Records
from headstart.report.drawing import Shape, draw, shapes_of_annotations, shapes_of_predictions
from headstart.study.folder import Run, StudyFolder

MIN_SCORE = 0.5  # what a user of a detector would look at; AP ranks the others too
PER_SIDE = 4  # images for each arm's lead
MOST_BYTES = 1_800_000  # of all pictures; with plotly's 4.8 MB this keeps a report well below 8 MB


@dataclass(frozen=True)
class Panel:
    """One picture: title (an arm, or "annotated"), data URI, size in pixels, and the same in words."""

    title: str
    picture: str
    size: tuple[int, int]
    words: str


@dataclass(frozen=True)
class Sample:
    """One image: whose lead it shows, its file and id, F1 of baseline and candidate, and three panels."""

    leader: str
    file_name: str
    image_id: int
    f1: tuple[float, float]
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Samples:
    """The gallery; `note` says what is shown, or why nothing is."""

    note: str
    images: tuple[Sample, ...] = ()


def make_samples(folder: StudyFolder) -> Samples:
    """The images on which the two arms of the question differ most, in both directions, at the headline cell.

    They are chosen by F1 (detections with a score of at least 0.5, averaged over COCO's IoU thresholds), the same
    number for either side, so they show extremes and not an average. Unfinished runs or absent images give a note.
    """
    found = _runs(folder)
    if found is None:
        return Samples("Pictures appear when the longest schedule of both arms is finished.")
    try:
        dataset = _validation_data(folder, found[0])
        predictions = [Predictions.from_json(_file(run, "predictions", "json")) for run in found]
        f1 = np.stack([_f1(_file(run, "records-box", "npz"), dataset) for run in found])
        return _gallery(folder, found, dataset, predictions, f1)
    except (ValueError, OSError) as error:
        return Samples(f"Pictures cannot be drawn: {error}")


def _runs(folder: StudyFolder) -> tuple[Run, Run] | None:
    """The finished tails of baseline and candidate, for the longest common schedule and the first seed."""
    if folder.headline_cell is None:
        return None
    cells = [folder.cells_at(arm, *folder.headline_cell) for arm in (folder.baseline, folder.candidate)]
    runs = tuple(folder.tail(own[folder.seeds[0]]) for own in cells)
    return runs if all(run.end for run in runs) else None


def _file(run: Run, name: str, ending: str) -> Path:
    return run.directory / f"{name}-{run.segment.stop}.{ending}"


def _validation_data(folder: StudyFolder, run: Run) -> Dataset:
    """The data set that a run was judged on; relative paths hold where the study was run, which may be further up."""
    recipe = run.fact("recipe.yaml")
    if recipe is None or "val" not in recipe.get("data", {}):
        raise ValueError(f"{run.directory}: no recipe.yaml that names validation data")
    data = recipe["data"]
    roots = [Path.cwd(), *folder.path.resolve().parents]
    root = next((root for root in roots if (root / data["val"]).exists()), roots[0])
    images = data.get("val_images")
    return open_dataset(root / data["val"], None if images is None else root / images, data.get("val_split"))


def _f1(path: Path, dataset: Dataset) -> np.ndarray:
    """F1 of each image of the data set, float [I]; 1 where there is neither an annotation nor a detection."""
    records = Records.load(path)
    shown = records.score >= MIN_SCORE
    num_images, num_levels = len(records.image_ids), records.matched.shape[1]
    hits, found = np.zeros((2, num_images))
    counted = ~records.ignored[shown]
    np.add.at(hits, records.image[shown], (records.matched[shown] & counted).sum(1))
    np.add.at(found, records.image[shown], counted.sum(1))
    wanted = num_levels * np.bincount(records.gt_image, records.gt_count, num_images)
    f1 = np.divide(2 * hits, found + wanted, out=np.ones(num_images), where=found + wanted > 0)
    place = {int(image_id): i for i, image_id in enumerate(records.image_ids)}
    unknown = [int(i) for i in dataset.image_ids if int(i) not in place]
    if unknown:
        raise ValueError(f"{path}: has no image {unknown[0]}, which the validation data have")
    return f1[[place[int(image_id)] for image_id in dataset.image_ids]]


def _gallery(
    folder: StudyFolder, runs: tuple[Run, Run], dataset: Dataset, predictions: list[Predictions], f1: np.ndarray
) -> Samples:
    lead = f1[1] - f1[0]
    order = np.argsort(lead, kind="stable")
    sides = (
        (folder.baseline, [i for i in order if lead[i] < 0]),
        (folder.candidate, [i for i in order[::-1] if lead[i] > 0]),
    )
    made, size = [], 0
    for arm, indices in sides:
        for i in indices[:PER_SIDE]:
            sample = _sample(folder, dataset, predictions, int(i), arm, f1)
            size += sum(len(panel.picture) for panel in sample.panels)
            if size <= MOST_BYTES:
                made.append(sample)
    end = f"at the end of {runs[0].segment.schedule} (seed {runs[0].segment.seed})"
    if not made:
        return Samples(f"The arms find the same on every image {end}.")
    note = (
        f"The images on which the arms differ most {end}, chosen for either side alike: extremes, not an average. "
        f"Detections with a score of at least {MIN_SCORE:g}; a solid outline found an annotated object of its class "
        "(IoU 0.5 or more), a dashed one found none."
    )
    return Samples(note, tuple(made))


def _sample(
    folder: StudyFolder, dataset: Dataset, predictions: list[Predictions], i: int, leader: str, f1: np.ndarray
) -> Sample:
    pixels = dataset.load_image(i)
    annotated = shapes_of_annotations(dataset, i)
    panels = [("annotated", annotated)]
    for arm, found in zip((folder.baseline, folder.candidate), predictions):
        panels.append((arm, shapes_of_predictions(dataset, i, found, annotated, min_score=MIN_SCORE)))
    made = tuple(_panel(title, pixels, shapes) for title, shapes in panels)
    return Sample(leader, dataset.file_names[i], int(dataset.image_ids[i]), (float(f1[0, i]), float(f1[1, i])), made)


def _panel(title: str, pixels: np.ndarray, shapes: list[Shape]) -> Panel:
    picture = draw(pixels, shapes)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, subsampling=0)
    words = ", ".join(shape.label + ("" if shape.right else " (wrong)") for shape in shapes) or "nothing"
    return Panel(
        title,
        "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
        picture.size,
        f"{title}: {words}",
    )
