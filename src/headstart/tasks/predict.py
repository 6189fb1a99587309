"""From a checkpoint alone: the model, evaluation on any data set, predictions on any images."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.data.buckets import Resize
from headstart.data.dataset import Dataset, left_right
from headstart.data.eval_images import show
from headstart.data.images import SUFFIXES, load_image
from headstart.data.keypoints import require_keypoints, sigmas_of
from headstart.data.rle import paste_rle
from headstart.metrics.coco import Evaluation
from headstart.metrics.coco import evaluate as evaluate_predictions
from headstart.metrics.predictions import Predictions
from headstart.metrics.voc import with_voc
from headstart.model.build import build, input_spec
from headstart.model.detector import Detector
from headstart.ops import processes as distributed
from headstart.recipe.load import settle, stored_recipe
from headstart.recipe.recipe import EVALUATION_FIELDS, TRAINING_FIELDS, Recipe
from headstart.tasks.detection import eval_images, keypoints_of, look_at, predict_all, tta_of
from headstart.tasks.predict_pixels import TrainedSegmenter, segmenter_of
from headstart.weights import checkpoint


@dataclass(frozen=True)
class Trained:
    """A trained detector (an ordinary nn.Module in eval mode), its recipe, and the categories it knows."""

    model: Detector
    recipe: Recipe
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    step: int
    skeleton: tuple[tuple[int, int], ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


# What may be said of a trained detector anew: how it is looked at and judged, and on what.
FREE_FIELDS = (*EVALUATION_FIELDS, "data.num_workers", "data.cache", "device", "train.precision")


def load_trained(path: str | Path, overrides: dict[str, Any] | None = None) -> Trained | TrainedSegmenter:
    """The detector or segmentation model of a checkpoint file or of a run directory (its newest checkpoint).

    overrides {dotted field: value} change how it evaluates and predicts, nothing else.
    """
    for field in overrides or {}:
        if not field.startswith(FREE_FIELDS) or field in TRAINING_FIELDS:
            raise ValueError(
                f"override {field}: a trained detector stays what it is, expected one of evaluate.…, input.test_…, "
                "device or train.precision"
            )
    path = checkpoint.newest(path)
    state = checkpoint.load(path)
    if state["recipe"].get("task") == "segmentation":
        return segmenter_of(state, path, overrides or {})
    if state["recipe"].get("task") != "detection":
        raise ValueError(f"{path}: was made by a {state['recipe'].get('task')} recipe, expected a detection checkpoint")
    recipe, _ = settle(stored_recipe(state["recipe"], str(path), overrides))
    classes = state["classes"]
    names = tuple(classes.get("keypoints", ()))
    model = build(recipe, len(classes["names"]), len(names), left_right(names))
    model.load_state_dict(state["model"] | state.get("statistics", {}))
    model.to(distributed.device(recipe.device)).eval()
    if recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    skeleton = tuple(tuple(pair) for pair in classes.get("skeleton", ()))
    return Trained(model, recipe, tuple(classes["ids"]), tuple(classes["names"]), state["step"], skeleton)


def evaluate(trained: Trained | TrainedSegmenter, data: Dataset) -> tuple[Evaluation, Predictions]:
    """COCO metrics (and VOC's) of a trained detector on a data set with the same categories, and its predictions.

    ValueError for a segmentation model, which `load_trained` may give too: that is for `evaluate_labels`.
    """
    trained = _detector(trained)
    if tuple(data.category_ids.tolist()) != trained.category_ids:
        raise ValueError(
            f"{data.path}: has categories {data.category_ids.tolist()[:10]}, "
            f"the checkpoint was trained on {list(trained.category_ids)[:10]}"
        )
    part = trained.recipe.evaluate
    if "keypoints" in trained.model.kinds:
        require_keypoints(data)
        sigmas_of(part.keypoint_sigmas, data)
    predictions = predict_all(
        trained.model,
        eval_images(trained.recipe, data),
        trained.device,
        bf16=trained.recipe.train.bf16,
        tta=tta_of(trained.recipe),
    )
    limits = {"max_detections": part.detections, "sigmas": part.keypoint_sigmas}
    result = evaluate_predictions(data, predictions, kinds=trained.model.kinds, **limits)
    return with_voc(result, data, predictions) if part.voc else result, predictions


def _detector(trained: Trained | TrainedSegmenter) -> Trained:
    if isinstance(trained, TrainedSegmenter):
        raise ValueError(
            "this is a segmentation model, expected a detector: predict_labels and evaluate_labels take the former"
        )
    return trained


@dataclass(frozen=True)
class ImagePrediction:
    """Detections on one image: boxes [n,4] XYXY pixels, scores [n], class names and ids, COCO RLE masks or None.

    keypoints [n,K,3] (x, y, score) or None, as COCO counts pixels; skeleton: pairs of them that a drawing joins.
    """

    path: Path
    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: tuple[dict[str, Any], ...] | None
    keypoints: np.ndarray | None = None
    skeleton: tuple[tuple[int, int], ...] = ()


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Image files among the given files and folders (not below them), sorted within a folder.

    ValueError for what is not there.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(item for item in path.iterdir() if item.suffix.lower() in SUFFIXES)
            if not found:
                raise ValueError(f"{path}: holds no images ({', '.join(SUFFIXES)})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{path}: no such image or folder")
    return files


@torch.no_grad()
def predict(
    trained: Trained | TrainedSegmenter, image: str | Path | np.ndarray, *, score_threshold: float = 0.0
) -> ImagePrediction:
    """Detections on one image (a file, or uint8 [H,W,3] RGB), best first, in its own pixels and its run's precision.

    ValueError for a segmentation model, which `load_trained` may give too: that is for `predict_labels`.
    """
    trained = _detector(trained)
    pixels = image if isinstance(image, np.ndarray) else load_image(image)
    height, width = pixels.shape[:2]
    own, convention = trained.recipe.input, input_spec(trained.recipe)

    def look(resize: Resize | None = None, *, flip: bool = False) -> tuple[Tensor, Tensor]:
        resize = resize or Resize(own.test_short, own.test_long)
        return show([pixels], resize, convention, trained.device, flip=flip)

    with torch.autocast(trained.device.type, dtype=torch.bfloat16, enabled=trained.recipe.train.bf16):
        found, sizes = look_at(trained.model, look, tta_of(trained.recipe))
    size = sizes[0].tolist()
    keep = found.valid[0] & (found.scores[0] >= score_threshold)
    scale = np.array([width / size[1], height / size[0]] * 2)
    boxes = found.boxes[0, keep].cpu().double().numpy() * scale
    labels = found.labels[0, keep].tolist()
    masks = (
        None
        if found.masks is None
        else tuple(paste_rle(found.masks[0, keep].float().cpu().numpy(), boxes, height, width))
    )
    return ImagePrediction(
        path=Path("array") if isinstance(image, np.ndarray) else Path(image),
        boxes=boxes,
        scores=found.scores[0, keep].cpu().double().numpy(),
        labels=tuple(trained.class_names[label] for label in labels),
        category_ids=tuple(trained.category_ids[label] for label in labels),
        masks=masks,
        keypoints=None if found.heat_maps is None else keypoints_of(found, 0, keep, scale),
        skeleton=trained.skeleton,
    )
