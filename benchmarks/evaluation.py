"""Time our evaluation against pycocotools on synthetic data of COCO's size, in one process, and what is built on it.

    python benchmarks/evaluation.py [--images 5000] [--detections 40] [--resamples 100] [--json FILE]

Both sides start from what a training run has in memory, annotations as read and detections with compressed masks, and
end with the metrics of boxes and masks. The ratio that counts is ours, first call, over evaluate, accumulate and
summarize of pycocotools; its preparation (createIndex, loadRes) is timed apart and left out, which favours it.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from record import keep
from torchvision.models.detection.roi_heads import paste_masks_in_image

from headstart.data import rle
from headstart.data.dataset import Dataset
from headstart.data.read import coco
from headstart.metrics.coco import evaluate
from headstart.metrics.errors import error_types
from headstart.metrics.predictions import Predictions
from headstart.metrics.records import bootstrap_ap

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
HEIGHT, WIDTH, NUM_CLASSES = 480, 640, 80


def make_document(num_images: int, num_objects: float, generator: np.random.Generator) -> dict:
    """Images with a few classes each, few of them common, objects of COCO's sizes with polygons of 20 to 40 points."""
    frequency = 1 / np.arange(1, NUM_CLASSES + 1)
    frequency /= frequency.sum()
    annotations = []
    for image in range(num_images):
        present = generator.choice(NUM_CLASSES, generator.integers(1, 6), replace=False, p=frequency)
        for _ in range(generator.poisson(num_objects)):
            side = np.exp(generator.normal(4.1, 1.0))  # median 60 pixels
            w, h = np.minimum(np.maximum(side * np.exp(generator.normal(0, 0.35, 2)), 3), [WIDTH * 0.95, HEIGHT * 0.95])
            x, y = generator.uniform(0, 1, 2) * [WIDTH - w, HEIGHT - h]
            outline = blob(generator, int(generator.integers(20, 41))) * [w, h] + [x, y]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(generator.choice(present)) + 1,
                    "bbox": [round(float(value), 2) for value in (x, y, w, h)],
                    "area": float(w * h * 0.6),
                    "iscrowd": 0,
                    "segmentation": [np.round(outline, 2).ravel().tolist()],
                }
            )
    return {
        "images": [
            {"id": image + 1, "file_name": f"{image + 1}.jpg", "height": HEIGHT, "width": WIDTH}
            for image in range(num_images)
        ],
        "categories": [{"id": label + 1, "name": f"class {label + 1}"} for label in range(NUM_CLASSES)],
        "annotations": annotations,
    }


def blob(generator: np.random.Generator, num_points: int) -> np.ndarray:
    """A wobbly outline in the unit square, [num_points, 2]."""
    angle = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    radius = (
        1
        + 0.2 * np.sin(angle * generator.integers(2, 6) + generator.uniform(0, 6))
        + generator.normal(0, 0.03, num_points)
    )
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
    points -= points.min(axis=0)
    return points / points.max(axis=0)


def make_predictions(dataset: Dataset, per_image: int, generator: np.random.Generator) -> Predictions:
    """As a half-trained detector has them: some boxes near each object, most of its class, with blobs for masks."""
    shapes = np.stack([disc(generator) for _ in range(200)])
    parts = []
    for image in range(dataset.num_images):
        inside = slice(dataset.first[image], dataset.first[image + 1])
        boxes, labels = dataset.boxes[inside], dataset.labels[inside]
        chosen = generator.integers(0, max(len(boxes), 1), per_image if len(boxes) else 0)
        sides = np.tile(boxes[chosen, 2:] - boxes[chosen, :2], 2)
        quality = generator.exponential(0.15, len(chosen))[:, None]
        found = boxes[chosen] + generator.normal(0, 1, (len(chosen), 4)) * quality * sides
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 2)
        found = np.clip(found, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        label = np.where(
            generator.random(len(chosen)) < 0.8, labels[chosen], generator.integers(0, NUM_CLASSES, len(chosen))
        )
        masks = rle.paste_rle(shapes[generator.integers(0, len(shapes), len(chosen))], found, HEIGHT, WIDTH)
        score = np.clip(np.exp(-4 * quality[:, 0]) * generator.uniform(0.3, 1, len(chosen)), 0.05, 1)
        ids = np.full(len(chosen), dataset.image_ids[image])
        parts.append((ids, dataset.category_ids[label], found, score, masks))
    columns = [np.concatenate(column) for column in list(zip(*parts))[:4]]
    return Predictions(*columns, tuple(mask for part in parts for mask in part[4]))


def disc(generator: np.random.Generator) -> np.ndarray:
    """Scores of a wobbly disc on 28 x 28 cells."""
    y, x = (np.mgrid[:28, :28] - 13.5) / 14
    radius = 0.9 + 0.15 * np.sin(np.arctan2(y, x) * generator.integers(2, 6) + generator.uniform(0, 6))
    return (1 / (1 + np.exp(10 * (np.hypot(x, y) - radius)))).astype(np.float32)


def run_pycocotools(document: dict, predictions: Predictions) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Metrics and seconds, loadRes apart."""
    metrics, seconds = {}, {"load": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        begin = time.perf_counter()
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        seconds["load"] += time.perf_counter() - begin
        for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
            begin = time.perf_counter()
            found = truth.loadRes(results(predictions, kind))
            middle = time.perf_counter()
            evaluator = COCOeval(truth, found, iou_type)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            seconds[kind] = time.perf_counter() - middle
            seconds["load"] += middle - begin
            metrics[kind] = dict(zip(NAMES, evaluator.stats.tolist()))
    return metrics, seconds


def results(predictions: Predictions, kind: str) -> list[dict]:
    """COCO results, the boxes or the masks."""
    extents = np.concatenate([predictions.boxes[:, :2], predictions.boxes[:, 2:] - predictions.boxes[:, :2]], axis=1)
    values = extents.tolist() if kind == "box" else predictions.masks
    name = "bbox" if kind == "box" else "segmentation"
    columns = (predictions.image_ids.tolist(), predictions.category_ids.tolist(), predictions.scores.tolist())
    return [{"image_id": i, "category_id": c, "score": s, name: v} for i, c, s, v in zip(*columns, values)]


def clock(function, repeats: int = 1) -> tuple[float, object]:
    """Median seconds and the last result."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), result


def make_data(num_images: int, num_objects: float, per_image: int) -> tuple[dict, Dataset, Predictions]:
    generator = np.random.default_rng(0)
    document = make_document(num_images, num_objects, generator)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "truth.json")
        path.write_text(json.dumps(document), encoding="utf-8")
        dataset = coco.read(path)
    return document, dataset, make_predictions(dataset, per_image, generator)


def compare_paste(repeats: int) -> dict[str, float]:
    """Milliseconds for 100 masks of one image: ours, and torchvision's paste with pycocotools' encode."""
    generator = np.random.default_rng(1)
    scores = np.stack([disc(generator) for _ in range(100)])
    sides = np.minimum(np.exp(generator.normal(4.1, 1.0, (100, 2))), [WIDTH, HEIGHT])
    corners = generator.uniform(0, 1, (100, 2)) * ([WIDTH, HEIGHT] - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    tensors = torch.from_numpy(scores)[:, None], torch.from_numpy(boxes).float()

    def theirs():
        masks = paste_masks_in_image(*tensors, (HEIGHT, WIDTH))[:, 0] >= 0.5
        return [coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]

    ours, _ = clock(lambda: rle.paste_rle(scores, boxes, HEIGHT, WIDTH), repeats)
    return {"ours": 1000 * ours, "torchvision": 1000 * clock(theirs, repeats)[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument(
        "--objects", type=float, default=7.3, help="mean number of objects an image (COCO val2017: 7.3)"
    )
    parser.add_argument("--detections", type=int, default=40, help="detections an image with objects")
    parser.add_argument("--resamples", type=int, default=100, help="bootstrap resamples of two runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    document, dataset, predictions = make_data(options.images, options.objects, options.detections)
    first, evaluation = clock(lambda: evaluate(dataset, predictions))
    reference, theirs = run_pycocotools(document, predictions)
    again, _ = clock(lambda: evaluate(dataset, predictions), 3)
    box, _ = clock(lambda: evaluate(dataset, predictions, kinds=("box",)), 3)
    errors = {kind: clock(lambda kind=kind: error_types(dataset, predictions, kind))[0] for kind in ("box", "mask")}
    runs = [evaluation.records["box"], evaluation.records["mask"]]
    generator = np.random.default_rng(0)
    boot, _ = clock(lambda: bootstrap_ap(runs, num_resamples=options.resamples, generator=generator))
    figures = {
        "images": dataset.num_images, "annotations": dataset.num_annotations, "detections": len(predictions),
        "largest difference": max(
            abs(evaluation.metrics[kind][name] - reference[kind][name]) for kind in reference for name in NAMES
        ),
        "pycocotools box s": theirs["box"], "pycocotools mask s": theirs["mask"], "pycocotools load s": theirs["load"],
        "ours box s": box, "ours box+mask, first call s": first, "ours box+mask, later calls s": again,
        "ratio box": box / theirs["box"], "ratio box+mask": first / (theirs["box"] + theirs["mask"]),
        "error types box s": errors["box"], "error types mask s": errors["mask"],
        "bootstrap of 2 runs, 1000 resamples s": boot / options.resamples * 1000,
    }  # fmt: skip
    figures |= {f"paste 100 masks, {name} ms": value for name, value in compare_paste(5).items()}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, value in figures.items():
        print(f"{name:<40} {value:.4g}" if isinstance(value, float) else f"{name:<40} {value}")
    keep(options.json, figures)


if __name__ == "__main__":
    main()
