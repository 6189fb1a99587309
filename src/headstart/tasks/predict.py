"""Use of a trained model from its checkpoint alone; for a detector evaluation on any data set and predictions."""

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from headstart.data import rle
from headstart.data.dataset import Dataset
from headstart.data.images import SUFFIXES, load_image, without_copies
from headstart.data.order import Resize
from headstart.data.read import annotation_files, open_dataset
from headstart.data.stream import make_batch
from headstart.data.targets import require_keypoints, sigmas_of
from headstart.files import json_text, refuse_overwrite, write_whole
from headstart.metrics.coco import Evaluation
from headstart.metrics.predictions import Predictions
from headstart.model.build import input_spec
from headstart.ops import processes as distributed
from headstart.recipe.recipe import EVALUATION_FIELDS, TRAINING_FIELDS
from headstart.tasks import TASKS
from headstart.tasks.detection import (
    measure,
    predict_all,
    predict_batch,
    to_original,
    training_data,
    tta_of,
    validation_data,
)
from headstart.tasks.draw import Shape, draw_shapes
from headstart.tasks.task import Trained, eval_images
from headstart.tasks.trained import trained_model
from headstart.typed_json import typed
from headstart.verdict.numbers import counted
from headstart.weights import checkpoint

# Fields of a trained model that may be changed: evaluation, data loading, device and precision.
FREE_FIELDS = (*EVALUATION_FIELDS, "data.num_workers", "data.cache", "device", "train.precision")


def load_trained(path: str | Path, overrides: dict[str, Any] | None = None, *, weights: str = "live") -> Trained:
    """The detector or segmentation model of a checkpoint file or of a run directory (its newest checkpoint).

    overrides {dotted field: value} change evaluation and prediction only; ValueError for any other field, for a
    checkpoint of another task, and for one whose classes and weights do not fit, or are not finite. weights: "live", or
    "ema" for the averages that a run with `train.ema` keeps.
    """
    for field in overrides or {}:
        if not field.startswith(FREE_FIELDS) or field in TRAINING_FIELDS:
            raise ValueError(
                f"override {field}: a trained detector stays what it is, expected one of evaluate.…, input.test_…, "
                "device or train.precision"
            )
    path = checkpoint.newest(path)
    state = choose_weights(checkpoint.load(path), path, weights)
    stored = state.get("recipe")
    made_by = stored.get("task") if isinstance(stored, dict) else None
    if made_by in tuple(TASKS) and TASKS[made_by].trained is None:
        raise ValueError(f"{path}: was made by a {made_by} recipe, expected a detection checkpoint")
    model, recipe, classes = trained_model(state, path, overrides)
    model.to(distributed.device(recipe.device)).eval()
    step = typed(state.get("step"), int, f"{path}: step")
    return Trained(model, recipe, tuple(classes.ids), tuple(classes.names), step, tuple(classes.skeleton))


def choose_weights(state: dict[str, Any], path: Path, weights: str) -> dict[str, Any]:
    """A checkpoint's content with its live or averaged ("ema") weights as the model's.

    ValueError for averages that it does not hold, and for another name.
    """
    if weights == "live":
        return state
    if weights != "ema":
        raise ValueError(f"weights: {weights!r}, expected live or ema")
    if "average" not in state:
        raise ValueError(f"{path}: weights: 'ema', but it holds no averaged weights (train.ema); expected live")
    average = state["average"]
    return state | {"model": state["model"] | average["weights"], "statistics": average["statistics"]}


_INSTEAD = "predict_labels and evaluate_labels take a segmentation model"


def evaluate(trained: Trained, data: Dataset) -> tuple[Evaluation, Predictions]:
    """COCO metrics (and VOC's) of a trained detector on a data set with the same categories, and its predictions.

    ValueError for other categories, and for a segmentation model: use `evaluate_labels` for that.
    """
    trained.require("detection", _INSTEAD)
    trained.require_classes(data.path, data.category_ids.tolist(), data.class_names)
    part, model = trained.recipe.evaluate, trained.model
    if "keypoints" in model.kinds:
        require_keypoints(data)
        sigmas_of(part.keypoint_sigmas, data)
    bf16, tta = trained.recipe.train.bf16, tta_of(trained.recipe)
    predictions = predict_all(model, eval_images(trained.recipe, data), trained.device, bf16=bf16, tta=tta)
    return measure(model, data, predictions, voc=part.voc, sigmas=part.keypoint_sigmas), predictions


@dataclass(frozen=True)
class ImagePrediction:
    """Detections on one image: boxes [n,4] XYXY pixels, scores [n], class names and ids, COCO RLE masks or None.

    keypoints [n,K,3] (x, y, score) or None, as COCO counts pixels; skeleton: pairs of keypoints that a drawing joins.
    """

    path: Path
    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: tuple[dict[str, Any], ...] | None
    keypoints: np.ndarray | None = None
    skeleton: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        best = [f"{label} {score:.2f}" for label, score in zip(self.labels[:3], self.scores)]
        return f"ImagePrediction({str(self.path)!r}: {', '.join([counted(len(self.boxes), 'detection'), *best])})"


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Image files among the given files, folders (not below them) and patterns, sorted within each.

    A pattern has *, ? or [], which the shell left as they are; ** is any folders. ValueError for a missing path, and
    for a folder or a pattern without images.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
            continue
        if path.is_dir():
            places, refusal = path.iterdir(), "holds no images"
        elif glob.has_magic(str(path)):
            places = map(Path, glob.iglob(str(path), recursive=True))
            refusal = "no file fits this pattern, expected images"
        else:
            raise ValueError(f"{path}: no such image or folder")
        found = without_copies(sorted(item for item in places if item.suffix.lower() in SUFFIXES))
        if not found:
            raise ValueError(f"{path}: {refusal} ({', '.join(SUFFIXES)})")
        files += found
    return files


@torch.no_grad()
def predict(trained: Trained, image: str | Path | np.ndarray, *, score_threshold: float = 0.0) -> ImagePrediction:
    """Detections on one image (see `Trained.pixels`), best first, in its own pixels and its run's precision.

    ValueError for an unreadable image, and for a segmentation model: use `predict_labels` for that.
    """
    trained.require("detection", _INSTEAD)
    pixels = trained.pixels(image)
    own, spec = trained.recipe.input, input_spec(trained.recipe)

    def view(resize: Resize | None = None, *, flip: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        resize = resize or Resize(own.test_short, own.test_long)
        return make_batch([pixels], resize, spec, trained.device, flip=flip)

    with torch.autocast(trained.device.type, dtype=torch.bfloat16, enabled=trained.recipe.train.bf16):
        detections, sizes = predict_batch(trained.model, view, tta_of(trained.recipe))
    ids = np.array(trained.category_ids, np.int64)
    found = to_original(detections, sizes, 0, pixels.shape[:2], 0, ids, score_threshold=score_threshold)
    names = dict(zip(trained.category_ids, trained.class_names))
    return ImagePrediction(
        path=Path("array") if isinstance(image, np.ndarray) else Path(image),
        boxes=found.boxes,
        scores=found.scores,
        labels=tuple(names[number] for number in found.category_ids.tolist()),
        category_ids=tuple(found.category_ids.tolist()),
        masks=found.masks,
        keypoints=found.keypoints,
        skeleton=trained.skeleton,
    )


def draw_prediction(image: str | Path | np.ndarray, found: ImagePrediction, *, scale: int = 1) -> Image.Image:
    """Picture of an image (a file, or an array [H,W,C]) with its detections; `scale` enlarges small images."""
    pixels = image if isinstance(image, np.ndarray) else load_image(image)
    shapes = [
        Shape(
            box=found.boxes[n],
            label=f"{label} {found.scores[n]:.2f}",
            category=found.category_ids[n],
            mask=None if found.masks is None else rle.decode(rle.checked(found.masks[n], *pixels.shape[:2])),
            keypoints=None if found.keypoints is None else found.keypoints[n],
        )
        for n, label in enumerate(found.labels)
    ]
    text_size = max(10, scale * min(pixels.shape[:2]) // 40)
    return draw_shapes(pixels, shapes, scale=scale, text_size=text_size, skeleton=found.skeleton)


def evaluate_files(
    trained: Trained,
    data: str | None,
    images: Path | None,
    split: str | None,
    labels: Path | None,
    save: Path | None,
    *,
    force: bool = False,
) -> Evaluation:
    """`headstart eval` of a detector: on its validation images (data None), its training images ("train"), or a file.

    save: new file for the predictions as COCO JSON; `force` replaces one that is no input. ValueError for `labels`,
    which a detector has no use for.
    """
    if labels is not None:
        raise ValueError("--labels: the checkpoint is a detector, which has no use for label maps; expected none")
    chosen = {None: validation_data, "train": training_data}.get(data)
    if chosen and (images is not None or split is not None):
        raise ValueError("--images, --split: given without --data FILE; expected the data set that they belong to")
    dataset = chosen(trained.recipe) if chosen else open_dataset(data, images, split)
    if save is not None:
        own = trained.recipe.data
        files = annotation_files(own.val if data is None else own.train if data == "train" else data)
        read = map(dataset.image_path, range(dataset.num_images))
        refuse_overwrite([(save, Path(dataset.path))], inputs=[*files, *read], force=force)
    result, predictions = evaluate(trained, dataset)
    if save is not None:
        predictions.to_json(save)
    return result


def predict_files(
    trained: Trained, files: list[Path], out: Path, *, score: float, advance: Callable[[], None]
) -> dict[str, int]:
    """`headstart predict` of a detector: a picture of each image and predictions.json in `out`; returns the counts."""
    results: list[dict[str, Any]] = []
    for number, path in enumerate(files, start=1):
        pixels = trained.pixels(path)
        found = predict(trained, pixels, score_threshold=score)
        draw_prediction(pixels, found, scale=max(1, 384 // max(pixels.shape[:2]))).save(out / f"{path.stem}.png")
        rows = Predictions(
            image_ids=np.full(len(found.boxes), number, np.int64),
            category_ids=np.array(found.category_ids, np.int64),
            boxes=found.boxes,
            scores=found.scores,
            masks=found.masks,
            keypoints=found.keypoints,
        ).rows()
        results += [{"image_id": number, "file_name": str(path), **row} for row in rows]
        advance()
    write_whole(out / "predictions.json", json_text(results))
    return {"images": len(files), "detections": len(results)}
