"""The detection task: model, training stream and evaluation of a recipe on a COCO-like data set."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.batch import Detections, Inputs
from headstart.data.dataset import Dataset
from headstart.data.digests import data_content
from headstart.data.order import Resize
from headstart.data.read import open_annotated
from headstart.data.rle import paste_rle
from headstart.data.stream import EvalImages
from headstart.data.targets import PIXEL_CENTRE, mirror_note, require_keypoints, sigmas_of, with_keypoints
from headstart.files import json_text, write_whole
from headstart.metrics.coco import Evaluation
from headstart.metrics.coco import evaluate as evaluate_predictions
from headstart.metrics.errors import error_types
from headstart.metrics.predictions import Predictions, concat, empty
from headstart.metrics.tta import Tta, TtaView
from headstart.metrics.tta import predict as predict_views
from headstart.metrics.voc import with_voc
from headstart.model.detector import Detector
from headstart.model.region_heads import peaks
from headstart.ops import processes as distributed
from headstart.ops.memory import FreedMemory
from headstart.recipe.recipe import Recipe
from headstart.tasks.detection_images import kept_maps, train_stream, with_transform
from headstart.tasks.task import (
    EvalResult,
    StepFlops,
    Task,
    check_same_classes,
    eval_images,
    make_model,
    require_images,
    take_fraction,
)


def training_data(recipe: Recipe) -> Dataset:
    """Training images of a recipe: its fraction of all images, or of those that a keypoint head can use."""
    return take_fraction(recipe, _all_training_data(recipe))


def _all_training_data(recipe: Recipe) -> Dataset:
    data = open_annotated(recipe.data.train, recipe.data.train_images, recipe.data.train_split)
    return with_keypoints(data) if recipe.model.keypoint.enabled else data


def validation_data(recipe: Recipe) -> Dataset:
    """Validation images of a recipe."""
    return open_annotated(recipe.data.val, recipe.data.val_images, recipe.data.val_split)


def num_training_images(recipe: Recipe) -> int:
    """Images that a recipe trains on."""
    return training_data(recipe).num_images


def data_fingerprint(recipe: Recipe, *, rehash: bool = False) -> str:
    """Digest of the content of training and validation data."""
    seen = with_transform(recipe, data_content(training_data(recipe), rehash=rehash))
    return seen.plus(data_content(validation_data(recipe), rehash=rehash)).digest


def make_task(recipe: Recipe) -> Task:
    """The recipe's detector and data, ready for the loop."""
    if recipe.model.mask.enabled == "auto":
        raise ValueError("model.mask.enabled: auto, expected true or false: settle(recipe) says which it is")
    whole, held_out = _all_training_data(recipe), validation_data(recipe)
    data = take_fraction(recipe, whole)
    ours, theirs = (dict(zip(each.category_ids.tolist(), each.class_names)) for each in (data, held_out))
    check_same_classes(data.path, ours, held_out.path, theirs)
    require_images(data, held_out)
    for each, other in ((data, ", or auto"), (held_out, "")) if recipe.model.mask.enabled else ():
        if each.num_annotations and not each.segment_kind.any():
            raise ValueError(
                f"{each.path}: no object has a segmentation, which model.mask.enabled needs; "
                f"expected model.mask.enabled=false{other}"
            )
    keypoints = _keypoint_classes(recipe, data, held_out) if recipe.model.keypoint.enabled else {}
    model = make_model(recipe, data.num_classes, len(data.keypoint_names), data.left_right)
    keep = partial(kept_maps, recipe, model.backbone)
    stream = train_stream(recipe, data, keep(data, training=True))
    images = eval_images(recipe, held_out, keep(held_out, training=False))
    num = min(recipe.evaluate.train_images, data.num_images)
    seen = eval_images(recipe, take_fraction(recipe, whole, num)) if num else None
    plain = partial(evaluate, model, bf16=recipe.train.bf16, sigmas=recipe.evaluate.keypoint_sigmas)
    full = partial(plain, tta=tta_of(recipe), voc=recipe.evaluate.voc)
    mirrors = recipe.input.flip or recipe.input.flip_vertical
    notes = [*data.notes, *stream.targets.notes(), *(mirror_note(data) if keypoints and mirrors else ())]
    if num < recipe.evaluate.train_images:
        notes.append(f"evaluate.train_images: {recipe.evaluate.train_images} asked for, all {num} there are evaluated")
    sizes = f"{data.num_classes} {len(data.keypoint_names)} {stream.targets.num_slots}"
    key = f"{recipe.model.model_dump_json()} {sizes} {recipe.start.freeze}"
    return Task(
        model=model,
        batches=stream.batches,
        counts=stream.counts,
        flops=StepFlops(model, key),
        evaluate=partial(full, images),
        classes={"ids": data.category_ids.tolist(), "names": list(data.class_names), **keypoints},
        num_images=data.num_images,
        num_eval_images=held_out.num_images,
        contents=(with_transform(recipe, data_content(data)), data_content(held_out)),
        image_ids=data.image_ids.tolist(),
        notes=notes,
        evaluate_train=None if seen is None else partial(plain, seen),
        num_eval_train_images=num,
        evaluate_first=lambda device, most: full(images.first(most), device),
    )


def _keypoint_classes(recipe: Recipe, train: Dataset, val: Dataset) -> dict[str, list]:
    """Keypoint names and skeleton for a checkpoint; ValueError unless both splits and the recipe's sigmas agree."""
    require_keypoints(val)
    if train.keypoint_names != val.keypoint_names:
        raise ValueError(
            f"{val.path}: has the keypoints {list(val.keypoint_names)}, in {train.path} they are "
            f"{list(train.keypoint_names)}; expected the same in both"
        )
    sigmas_of(recipe.evaluate.keypoint_sigmas, val)
    return {"keypoints": list(train.keypoint_names), "skeleton": [list(pair) for pair in train.skeleton]}


def tta_of(recipe: Recipe) -> Tta | None:
    """Test-time augmentation of a recipe; None if it is off."""
    part = recipe.evaluate.tta
    resizes = tuple(Resize(short, part.long) for short in part.shorts)
    return Tta(resizes, part.flip, part.vote_threshold) if part.enabled else None


@torch.no_grad()
def predict_all(
    model: Detector, images: EvalImages, device: torch.device, *, bf16: bool = False, tta: Tta | None = None
) -> Predictions:
    """Predictions on every image of a data set, in its own pixels and category ids; shared among processes."""
    was_training, data, parts, freed = model.training, images.dataset, [], FreedMemory()
    model.eval()
    freed.give_back()  # by training
    for raw in images.decoded(part=distributed.rank(), parts=distributed.num_processes()):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            found, sizes = predict_batch(model, partial(images.make_batch, raw, device), tta)
        for slot, index in enumerate(raw.indices.tolist()):
            size = data.size(index)
            parts.append(to_original(found, sizes, slot, size, int(data.image_ids[index]), data.category_ids))
        freed.bound()
    model.train(was_training)
    gathered = [part for share in distributed.gather(parts) for part in share]
    return concat(gathered or [empty(masks="mask" in model.kinds, num_keypoints=len(model.keypoint_mirror))])


def predict_batch(
    model: Detector, make_batch: Callable[..., tuple[Inputs, Tensor]], tta: Tta | None
) -> tuple[Detections, Tensor]:
    """Detections of a batch, and the sizes [B,2] of the images in whose pixels they are.

    make_batch(resize, flip=...) gives images and sizes; without arguments at the recipe's evaluation size.
    """
    if tta is None:
        images, sizes = make_batch()
        return model.predict(images, sizes), sizes
    views = [TtaView(partial(make_batch, resize, flip=flip), flip) for resize, flip in tta.views()]
    return predict_views(model, views, vote_threshold=tta.vote_threshold)


def to_original(
    found: Detections,
    sizes: Tensor,
    slot: int,
    original: tuple[int, int],
    image_id: int,
    category_ids: np.ndarray,
    *,
    score_threshold: float | None = None,
) -> Predictions:
    """Detections of one image of a batch as Predictions in pixels of the original (height, width), best first.

    category_ids [C] are those of the labels. Keypoints [n,K,3] are (x, y, score) as COCO counts pixels.
    """
    keep = found.valid[slot]
    if score_threshold is not None:
        keep = keep & (found.scores[slot] >= score_threshold)
    height, width = original
    scale = np.array([width / float(sizes[slot, 1]), height / float(sizes[slot, 0])] * 2)
    boxes = found.boxes[slot, keep].cpu().double().numpy() * scale
    masks, keypoints = None, None
    if found.masks is not None:
        masks = tuple(paste_rle(found.masks[slot, keep].float().cpu().numpy(), boxes, height, width))
    if found.heat_maps is not None:
        keypoints = peaks(found.heat_maps[slot, keep], found.boxes[slot, keep]).cpu().numpy()
        keypoints[..., :2] = keypoints[..., :2] * scale[:2] - PIXEL_CENTRE
    return Predictions(
        image_ids=np.full(len(boxes), image_id, dtype=np.int64),
        category_ids=category_ids[found.labels[slot, keep].cpu().numpy()].astype(np.int64),
        boxes=boxes,
        scores=found.scores[slot, keep].cpu().double().numpy(),
        masks=masks,
        keypoints=keypoints,
    )


def measure(
    model: Detector, data: Dataset, predictions: Predictions, *, voc: bool, sigmas: tuple[float, ...] | None
) -> Evaluation:
    """COCO metrics of the model's kinds of predictions, and VOC's if `voc`; no mask's on objects with boxes only."""
    limits = {"max_detections": max(model.limits.num, 1), "sigmas": sigmas}
    boxes_only = data.num_annotations > 0 and not data.segment_kind.any()
    kinds = [kind for kind in model.kinds if kind != "mask" or not boxes_only]
    result = evaluate_predictions(data, predictions, kinds=kinds, **limits)
    return with_voc(result, data, predictions) if voc else result


def evaluate(
    model: Detector,
    images: EvalImages,
    device: torch.device,
    *,
    bf16: bool,
    tta: Tta | None = None,
    voc: bool = False,
    sigmas: tuple[float, ...] | None = None,
) -> EvalResult:
    """COCO metrics (and VOC's) of the model on a data set; `save` writes predictions, match records and error types."""
    predictions = predict_all(model, images, device, bf16=bf16, tta=tta)
    result = measure(model, images.dataset, predictions, voc=voc, sigmas=sigmas)

    def save(directory: Path, step: int) -> None:
        predictions.to_json(directory / f"predictions-{step}.json")
        for kind, records in result.records.items():
            records.save(directory / f"records-{kind}-{step}.npz")
        errors: dict[str, Any] = {
            kind: error_types(images.dataset, predictions, kind, max_detections=max(model.limits.num, 1)).to_json()
            for kind in model.kinds
            if kind in ("box", "mask")
        }
        write_whole(directory / f"errors-{step}.json", json_text(errors, indent=1))

    return EvalResult(result.metrics, result.per_class, save)
