"""The detection task: the model, stream and judgement of a recipe on a COCO-like data set."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from headstart.batch import Batch, Detections
from headstart.data.buckets import Resize
from headstart.data.dataset import Dataset, data_digest, nested_fraction
from headstart.data.eval_images import EvalImages
from headstart.data.keypoints import PIXEL_CENTRE, mirror_note, require_keypoints, sigmas_of, with_keypoints
from headstart.data.read import open_dataset
from headstart.data.rle import paste_rle
from headstart.data.stream import Augmentation, TrainStream
from headstart.data.views import Jitter
from headstart.files import json_text, write_whole
from headstart.metrics.coco import evaluate
from headstart.metrics.errors import error_types
from headstart.metrics.predictions import Predictions, concat, empty
from headstart.metrics.tta import Tta, TtaView
from headstart.metrics.tta import predict as predict_views
from headstart.metrics.voc import with_voc
from headstart.model.build import build, input_spec
from headstart.model.detector import Detector
from headstart.model.keypoint_head import peaks
from headstart.ops import processes as distributed
from headstart.ops.processes import num_processes
from headstart.recipe.recipe import Recipe
from headstart.tasks.task import Judgement, StepFlops, Task, forward_losses


def augmentation_of(recipe: Recipe) -> Augmentation:
    """What training does to its images."""
    own, part = recipe.input, recipe.input.jitter
    jitter = Jitter(part.low, part.high, part.crop) if part.enabled else None
    return Augmentation(own.short, own.long, own.flip, jitter, own.copy_paste)


def training_data(recipe: Recipe) -> Dataset:
    """The training images of a recipe: its fraction of the whole set, or of the images that a keypoint head can use."""
    return _fraction(recipe, _all_training_data(recipe))


def _all_training_data(recipe: Recipe) -> Dataset:
    data = open_dataset(recipe.data.train, recipe.data.train_images, recipe.data.train_split)
    return with_keypoints(data) if recipe.model.keypoint.enabled else data


def _fraction(recipe: Recipe, data: Dataset, most: int | None = None) -> Dataset:
    """The recipe's fraction of a data set, or the first `most` images of it, which all larger fractions have too."""
    if recipe.data.fraction == 1.0 and most is None:
        return data
    chosen = nested_fraction(data.num_images, recipe.data.fraction, recipe.data.fraction_seed)
    return data.take(np.sort(chosen[:most]))


def validation_data(recipe: Recipe) -> Dataset:
    """The validation images of a recipe."""
    return open_dataset(recipe.data.val, recipe.data.val_images, recipe.data.val_split)


def num_training_images(recipe: Recipe) -> int:
    """Images that a recipe trains on."""
    return training_data(recipe).num_images


def data_fingerprint(recipe: Recipe) -> str:
    """The content of what a recipe trains and is judged on."""
    return data_digest(training_data(recipe)) + data_digest(validation_data(recipe))


def detection_task(recipe: Recipe) -> Task:
    """Everything the loop needs to train and judge this recipe's detector."""
    whole, held_out = _all_training_data(recipe), validation_data(recipe)
    data = _fraction(recipe, whole)
    check_same_classes(data, held_out)
    if recipe.model.mask.enabled and data.num_annotations and not data.segment_kind.any():
        raise ValueError(
            f"{data.path}: no object has a segmentation, which model.mask.enabled needs; "
            "expected model.mask.enabled=false"
        )
    keypoints = _keypoint_classes(recipe, data, held_out) if recipe.model.keypoint.enabled else {}
    stream = TrainStream(
        data,
        augmentation_of(recipe),
        input_spec(recipe),
        batch=recipe.train.batch,
        seed=recipe.seed,
        mask_frame=recipe.data.mask_frame if recipe.model.mask.enabled else 0,
        max_objects=recipe.data.max_objects,
        cache=recipe.data.cache,
        num_workers=recipe.data.num_workers,
        rank=distributed.rank(),
        num_ranks=num_processes(),
    )
    model = build(recipe, data.num_classes, len(data.keypoint_names), data.left_right)
    if recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    images = eval_images(recipe, held_out)
    num = min(recipe.evaluate.train_images, data.num_images)
    seen = eval_images(recipe, _fraction(recipe, whole, num)) if num else None
    plain = partial(judge, model, bf16=recipe.train.bf16, sigmas=recipe.evaluate.keypoint_sigmas)
    full = partial(plain, tta=tta_of(recipe), voc=recipe.evaluate.voc)
    notes = [*data.notes, *stream.targets.notes()]
    if keypoints and recipe.input.flip:
        notes += mirror_note(data)
    if num < recipe.evaluate.train_images:
        notes.append(f"evaluate.train_images is {recipe.evaluate.train_images}: all {num} training images are judged")
    return Task(
        model=model,
        losses=forward_losses,
        batches=stream.batches,
        counts=stream.counts,
        flops=StepFlops(
            model,
            forward_losses,
            f"{recipe.model.model_dump_json()} {data.num_classes} {stream.targets.num_slots} {recipe.start.freeze}",
        ),
        evaluate=partial(full, images),
        describe=_describe,
        classes={"ids": data.category_ids.tolist(), "names": list(data.class_names), **keypoints},
        num_images=data.num_images,
        num_eval_images=held_out.num_images,
        fingerprint=data_digest(data) + data_digest(held_out),
        image_ids=data.image_ids.tolist(),
        notes=notes,
        evaluate_train=None if seen is None else partial(plain, seen),
        num_eval_train_images=num,
        evaluate_first=lambda device, most: full(images.first(most), device),
    )


def _keypoint_classes(recipe: Recipe, train: Dataset, val: Dataset) -> dict[str, list]:
    """What a checkpoint keeps of the keypoints; ValueError unless both splits have the same and sigmas fit them."""
    require_keypoints(val)
    if train.keypoint_names != val.keypoint_names:
        raise ValueError(
            f"{val.path}: has the keypoints {list(val.keypoint_names)}, in {train.path} they are "
            f"{list(train.keypoint_names)}; expected the same in both"
        )
    sigmas_of(recipe.evaluate.keypoint_sigmas, val)
    return {"keypoints": list(train.keypoint_names), "skeleton": [list(pair) for pair in train.skeleton]}


def check_same_classes(train: Dataset, val: Dataset) -> None:
    """Both splits must have the same categories; ValueError names the first that differ."""
    if train.category_ids.tolist() != val.category_ids.tolist() or train.class_names != val.class_names:
        ours, theirs = (
            dict(zip(train.category_ids.tolist(), train.class_names)),
            dict(zip(val.category_ids.tolist(), val.class_names)),
        )
        odd = next(key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key))
        raise ValueError(
            f"{val.path}: category {odd} is {theirs.get(odd)!r}, in {train.path} it is {ours.get(odd)!r}; "
            "expected the same categories in both"
        )


def eval_images(recipe: Recipe, data: Dataset) -> EvalImages:
    """A data set's images as this recipe's detector sees them in evaluation."""
    resize = Resize(recipe.input.test_short, recipe.input.test_long)
    return EvalImages(
        data,
        resize,
        input_spec(recipe),
        batch=recipe.evaluate.batch,
        cache=recipe.data.cache,
        num_workers=recipe.data.num_workers,
    )


def tta_of(recipe: Recipe) -> Tta | None:
    """The test-time augmentation of a recipe; None where it is off."""
    part = recipe.evaluate.tta
    resizes = tuple(Resize(short, part.long) for short in part.shorts)
    return Tta(resizes, part.flip, part.vote_threshold) if part.enabled else None


def _describe(batch: Batch) -> str:
    return f"images {', '.join(str(i) for i in batch.image_ids.tolist())}"


@torch.no_grad()
def predict_all(
    model: Detector, images: EvalImages, device: torch.device, *, bf16: bool = False, tta: Tta | None = None
) -> Predictions:
    """Predictions on every image of a data set, in its own image pixels and category ids; shared among processes."""
    was_training = model.training
    model.eval()
    parts = []
    for raw in images.decoded(part=distributed.rank(), parts=num_processes()):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            found, sizes = look_at(model, partial(images.show, raw, device), tta)
        parts.extend(to_original(found, sizes, raw.indices, images.dataset))
    model.train(was_training)
    gathered = [part for share in distributed.gather(parts) for part in share]
    if gathered:
        return concat(gathered)
    return empty(masks="mask" in model.kinds, num_keypoints=len(model.keypoint_mirror))


def look_at(
    model: Detector, show: Callable[..., tuple[torch.Tensor, torch.Tensor]], tta: Tta | None
) -> tuple[Detections, torch.Tensor]:
    """Detections of a batch, and the sizes [B,2] in whose pixels they are.

    show(resize, flip=...) gives images and sizes; without arguments as the recipe's evaluation sees them.
    """
    if tta is None:
        images, sizes = show()
        return model.predict(images, sizes), sizes
    views = [TtaView(partial(show, resize, flip=flip), flip) for resize, flip in tta.views()]
    return predict_views(model, views, vote_threshold=tta.vote_threshold)


def to_original(found: Detections, sizes: torch.Tensor, indices: np.ndarray, data: Dataset) -> Iterator[Predictions]:
    """Detections of a batch as Predictions of each image, in the pixels and ids of the data set."""
    for slot, index in enumerate(indices.tolist()):
        valid = found.valid[slot]
        height, width = int(data.heights[index]), int(data.widths[index])
        scale = np.array([width / float(sizes[slot, 1]), height / float(sizes[slot, 0])] * 2)
        boxes = found.boxes[slot, valid].cpu().double().numpy() * scale
        masks = (
            None
            if found.masks is None
            else tuple(paste_rle(found.masks[slot, valid].float().cpu().numpy(), boxes, height, width))
        )
        labels = found.labels[slot, valid].cpu().numpy()
        yield Predictions(
            image_ids=np.full(len(boxes), data.image_ids[index], dtype=np.int64),
            category_ids=data.category_ids[labels].astype(np.int64),
            boxes=boxes,
            scores=found.scores[slot, valid].cpu().double().numpy(),
            masks=masks,
            keypoints=None if found.heat_maps is None else keypoints_of(found, slot, valid, scale),
        )


def keypoints_of(found: Detections, slot: int, chosen: torch.Tensor, scale: np.ndarray) -> np.ndarray:
    """Keypoints [n,K,3] (x, y, score) of the detections `chosen` [D] of one image, as COCO counts pixels.

    scale: (x, y) pixels of the original image a pixel of the network's image; more entries are ignored.
    """
    places = peaks(found.heat_maps[slot, chosen], found.boxes[slot, chosen]).cpu().numpy()
    places[..., :2] = places[..., :2] * scale[:2] - PIXEL_CENTRE
    return places


def judge(
    model: Detector,
    images: EvalImages,
    device: torch.device,
    *,
    bf16: bool,
    tta: Tta | None = None,
    voc: bool = False,
    sigmas: tuple[float, ...] | None = None,
) -> Judgement:
    """COCO metrics (and VOC's) of the model on a data set; `save` keeps predictions, match records and error types."""
    predictions = predict_all(model, images, device, bf16=bf16, tta=tta)
    kinds, limit = model.kinds, max(model.limits.num, 1)
    result = evaluate(images.dataset, predictions, kinds=kinds, max_detections=limit, sigmas=sigmas)

    if voc:
        result = with_voc(result, images.dataset, predictions)

    def save(directory: Path, step: int) -> None:
        predictions.to_json(directory / f"predictions-{step}.json")
        for kind, records in result.records.items():
            records.save(directory / f"records-{kind}-{step}.npz")
        errors = {
            kind: error_types(images.dataset, predictions, kind, max_detections=limit).to_json()
            for kind in kinds
            if kind in ("box", "mask")
        }
        write_whole(directory / f"errors-{step}.json", json_text(errors, indent=1))

    return Judgement(result.metrics, result.per_class, save)
