"""PASCAL VOC's AP against a plain walk through the detections with exact fractions."""

import json
from fractions import Fraction

import numpy as np
import pytest

from headstart.data.read import coco
from headstart.metrics.coco import evaluate
from headstart.metrics.predictions import Predictions, empty
from headstart.metrics.voc import evaluate_voc, with_voc
from random_case import random_case


def plain_iou(a, truth):
    b = truth["bbox"]
    w = max(min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]), 0)
    return w * h / (a[2] * a[3] + (0 if truth["iscrowd"] else b[2] * b[3] - w * h))


def plain_ap(document, results, category, threshold, eleven_points):
    """The rule as the development kit states it: one class, one detection after the other."""
    truths, taken = {}, set()
    for annotation in document["annotations"]:
        if annotation["category_id"] == category:
            truths.setdefault(annotation["image_id"], []).append(annotation)
    num_gt = sum(not (t.get("difficult") or t["iscrowd"]) for image in truths.values() for t in image)
    if not num_gt:
        return np.nan
    found = [result for result in results if result["category_id"] == category]
    found = sorted(sorted(found, key=lambda result: result["image_id"]), key=lambda result: -result["score"])
    tp = fp = 0
    curve = []
    for result in found:
        best, most = None, -1
        for truth in truths.get(result["image_id"], []):
            overlap = plain_iou(result["bbox"], truth)
            if overlap > most:
                best, most = truth, overlap
        if most >= threshold:
            if best.get("difficult") or best["iscrowd"]:
                continue
            tp, fp = (tp, fp + 1) if best["id"] in taken else (tp + 1, fp)
            taken.add(best["id"])
        else:
            fp += 1
        curve.append((Fraction(tp, num_gt), Fraction(tp, tp + fp)))
    if eleven_points:
        recalls = [Fraction(k, 10) for k in range(11)]
        return float(sum(max([p for r, p in curve if r >= recall], default=0) for recall in recalls) / 11)
    total, before = Fraction(0), Fraction(0)
    for index, (recall, _) in enumerate(curve):
        total += (recall - before) * max(p for _, p in curve[index:])
        before = recall
    return float(total)


def read(tmp_path, document, results):
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return coco.read(tmp_path / "truth.json"), Predictions.from_json(tmp_path / "results.json")


@pytest.mark.parametrize("eleven_points", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_plain_walk(tmp_path, seed, eleven_points):
    document, results = random_case(seed, num_images=12, max_objects=9, repeats=4, crowd=0.4 * (seed % 2))
    for annotation in document["annotations"][:: 3 + seed]:
        annotation["difficult"] = 1
    dataset, predictions = read(tmp_path, document, results)
    ours = evaluate_voc(dataset, predictions, threshold=(0.5, 0.3)[seed % 2], eleven_points=eleven_points)
    expected = [plain_ap(document, results, c, (0.5, 0.3)[seed % 2], eleven_points) for c in (3, 5, 90)]
    np.testing.assert_allclose(list(ours.per_class.values()), expected, rtol=0, atol=1e-12)
    assert list(ours.per_class) == ["class 3", "class 5", "class 90"]
    assert ours.mean == pytest.approx(np.nanmean(expected), abs=1e-12) and ours.mean > 0.05


def test_a_taken_object_is_not_passed_over_for_the_next(tmp_path):
    """Unlike COCO's matching: the second detection prefers the taken object and is wrong, although another is free."""
    document, _ = random_case(0, num_images=1, category_ids=(1,))
    image = document["images"][0]["id"]
    truth = {"image_id": image, "category_id": 1, "iscrowd": 0, "area": 100}
    document["annotations"] = [{**truth, "id": 1, "bbox": [0, 0, 10, 10]}, {**truth, "id": 2, "bbox": [0, 3, 10, 10]}]
    found = {"image_id": image, "category_id": 1}
    results = [{**found, "bbox": [0, 0, 10, 10], "score": 0.9}, {**found, "bbox": [0, 1, 10, 10], "score": 0.8}]
    dataset, predictions = read(tmp_path, document, results)
    assert evaluate_voc(dataset, predictions).mean == 0.5
    assert evaluate_voc(dataset, predictions, eleven_points=True).mean == pytest.approx(6 / 11)


@pytest.mark.parametrize("difficult_first", [True, False])
def test_among_equal_overlaps_the_first_object_decides(tmp_path, difficult_first):
    document, _ = random_case(0, num_images=1, category_ids=(1,))
    image = document["images"][0]["id"]
    truth = {"image_id": image, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [0, 0, 10, 10]}
    document["annotations"] = [
        {**truth, "id": 1, "difficult": int(difficult_first)},
        {**truth, "id": 2, "difficult": int(not difficult_first)},
    ]
    results = [{"image_id": image, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}]
    assert evaluate_voc(*read(tmp_path, document, results)).mean == (0 if difficult_first else 1)


def test_recalls_on_the_grid_are_reached(tmp_path):
    """3 of 10 objects reach a recall of 0.3, which as a sum of floats they would not."""
    document, _ = random_case(0, num_images=1, category_ids=(1,))
    image = document["images"][0]["id"]
    boxes = [[20 * k, 0, 10, 10] for k in range(10)]
    truth = {"image_id": image, "category_id": 1, "iscrowd": 0, "area": 100}
    document["annotations"] = [{**truth, "id": k + 1, "bbox": box} for k, box in enumerate(boxes)]
    results = [{"image_id": image, "category_id": 1, "bbox": box, "score": 0.5} for box in boxes[:3]]
    dataset, predictions = read(tmp_path, document, results)
    assert evaluate_voc(dataset, predictions, eleven_points=True).mean == pytest.approx(4 / 11)
    assert evaluate_voc(dataset, predictions).mean == pytest.approx(0.3)


def test_nothing_found_and_nothing_there(tmp_path):
    document, results = random_case(1)
    dataset, predictions = read(tmp_path, document, results)
    assert evaluate_voc(dataset, empty()).mean == 0
    document["annotations"] = []
    dataset, predictions = read(tmp_path, document, results)
    assert np.isnan(evaluate_voc(dataset, predictions).mean)
    assert np.isnan(evaluate_voc(dataset, empty(), eleven_points=True).mean)


def test_beside_the_metrics_of_coco(tmp_path):
    document, results = random_case(2, num_images=6)
    dataset, predictions = read(tmp_path, document, results)
    plain = evaluate(dataset, predictions, kinds=("box",))
    both = with_voc(plain, dataset, predictions)
    assert both.metrics["box"] == plain.metrics["box"] and list(both.metrics) == ["box", "voc"]
    area, eleven = evaluate_voc(dataset, predictions), evaluate_voc(dataset, predictions, eleven_points=True)
    assert both.metrics["voc"] == {"AP": area.mean, "AP07": eleven.mean}
    assert {name: row["AP07"] for name, row in both.per_class["voc"].items()} == pytest.approx(
        eleven.per_class, nan_ok=True
    )
