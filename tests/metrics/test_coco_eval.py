"""The evaluator against pycocotools."""

import contextlib
import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from headstart.data.read import coco
from headstart.metrics import matching
from headstart.metrics.coco import evaluate
from headstart.metrics.predictions import Predictions, empty
from random_case import add_keypoints, random_case

IOU_TYPES = {"box": "bbox", "mask": "segm", "keypoints": "keypoints"}


class DifficultEval(COCOeval):
    """pycocotools with `difficult` annotations ignored; it overwrites the field `ignore` by `iscrowd` otherwise."""

    def _prepare(self):
        super()._prepare()
        for annotations in self._gts.values():
            for annotation in annotations:
                annotation["ignore"] = annotation["ignore"] or annotation.get("difficult", 0)


def reference(document, results, kind, *, max_detections=100, sigmas=None):
    """(stats, precision [T, R, C, A, M], recall [T, C, A, M]) of pycocotools, printing nothing."""
    fields = {"box": ("bbox",), "mask": ("segmentation",), "keypoints": ("keypoints",)}[kind]
    kept = ("image_id", "category_id", "score", *fields)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        found = truth.loadRes([{key: result[key] for key in kept} for result in results]) if results else COCO()
        evaluator = DifficultEval(truth, found, IOU_TYPES[kind])
        if max_detections != 100:
            evaluator.params.maxDets = [1, 10, 100, max_detections]
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        if max_detections == 100:
            evaluator.summarize()
    return evaluator.stats, evaluator.eval["precision"], evaluator.eval["recall"]


def read(tmp_path, document, results):
    """Data set and predictions by way of files, as a user's come in."""
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return coco.read(tmp_path / "truth.json"), Predictions.from_json(tmp_path / "results.json")


def mean(values):
    return values[values > -1].mean() if (values > -1).any() else np.nan


def assert_equals_reference(tmp_path, document, results, kinds=("box", "mask"), **options):
    ours = evaluate(*read(tmp_path, document, results), kinds=kinds, **options)
    for kind in kinds:
        stats, precision, _ = reference(document, results, kind, **options)
        stats = np.where(stats == -1, np.nan, stats)
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
        if kind == "keypoints":
            names = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
        assert set(ours.metrics[kind]) == set(names)
        np.testing.assert_allclose(
            [ours.metrics[kind][name] for name in names], stats[: len(names)], rtol=0, atol=1e-12
        )
        classes = ours.per_class[kind]
        categories = sorted(document["categories"], key=lambda category: category["id"])
        assert list(classes) == [category["name"] for category in categories]
        for label, category in enumerate(categories):
            own = precision[:, :, label, 0, -1]
            expected = [mean(own), mean(own[:1]), mean(own[5:6])]
            found = [classes[category["name"]][name] for name in ("AP", "AP50", "AP75")]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    return ours


@pytest.mark.parametrize("seed", range(12))
def test_random_cases(tmp_path, seed):
    document, results = random_case(seed, score_step=(0, 0.1, 0.5)[seed % 3], crowd=(0, 0.2, 0.6)[seed // 3 % 3])
    ours = assert_equals_reference(tmp_path, document, results)
    assert 0 < ours.metrics["box"]["AP"] < 1 and 0 < ours.metrics["mask"]["AP50"] < 1


def test_more_detections_than_take_part(tmp_path):
    document, results = random_case(
        20, num_images=3, category_ids=(1,), max_objects=9, max_extra=300, repeats=20, size=(60, 80)
    )
    counts = np.unique([result["image_id"] for result in results], return_counts=True)[1]
    assert counts.max() > 200
    ours = assert_equals_reference(tmp_path, document, results)
    limited = evaluate(*read(tmp_path, document, results), kinds=("box",), max_detections=7).metrics["box"]
    assert limited["AR10"] == limited["AR100"] < ours.metrics["box"]["AR100"]


def test_other_limits(tmp_path):
    limit = 120
    document, results = random_case(
        21, num_images=3, category_ids=(1,), max_objects=9, max_extra=300, repeats=9, size=(60, 80)
    )
    ours = evaluate(*read(tmp_path, document, results), max_detections=limit).metrics
    for kind in ("box", "mask"):
        _, precision, recall = reference(document, results, kind, max_detections=limit)
        expected = [mean(precision[..., 0, 3]), mean(precision[0, ..., 0, 3]), mean(precision[..., 1, 3])]
        expected += [mean(recall[..., 0, at]) for at in range(4)]
        names = ("AP", "AP50", "APs", "AR1", "AR10", "AR100", f"AR{limit}")
        np.testing.assert_allclose([ours[kind][name] for name in names], expected, rtol=0, atol=1e-12)


def test_no_detections(tmp_path):
    document, _ = random_case(22)
    ours = evaluate(coco.read(write(tmp_path, document)), empty())
    for kind in ("box", "mask"):
        assert {value for value in ours.metrics[kind].values() if not np.isnan(value)} == {0.0}
        assert len(ours.records[kind].image) == 0 and ours.records[kind].gt_count.sum() > 0
    assert_equals_reference(tmp_path, document, random_case(22)[1][:1])  # and a single one


def test_no_ground_truth(tmp_path):
    document, results = random_case(23)
    document["annotations"] = []
    ours = assert_equals_reference(tmp_path, document, results)
    assert np.isnan(list(ours.metrics["box"].values())).all()
    assert np.isnan(list(ours.per_class["mask"]["class 3"].values())).all()


def test_nothing_at_all(tmp_path):
    document, _ = random_case(24)
    document["annotations"] = []
    ours = evaluate(coco.read(write(tmp_path, document)), empty())
    assert np.isnan(list(ours.metrics["mask"].values())).all()


def test_only_crowds(tmp_path):
    document, results = random_case(25, crowd=1.1)
    ours = assert_equals_reference(tmp_path, document, results)
    assert np.isnan(ours.metrics["box"]["AP"])
    assert ours.records["box"].matched.any() and not (ours.records["box"].matched & ~ours.records["box"].ignored).any()


def test_difficult_is_ignored_and_taken_once(tmp_path):
    document, results = random_case(26, repeats=4)
    for annotation in document["annotations"][::3]:
        annotation["difficult"] = 1
    ours = assert_equals_reference(tmp_path, document, results)
    for annotation in document["annotations"]:
        annotation.pop("difficult", None)
    without = assert_equals_reference(tmp_path, document, results)
    assert ours.metrics["box"]["AP"] != without.metrics["box"]["AP"]


@pytest.mark.parametrize("crowd", [0, 0.5])
def test_many_equal_overlaps_and_scores(tmp_path, crowd):
    """Annotations and detections on the same few places: which one is taken is decided by order alone."""
    document, results = random_case(27, num_images=5, max_objects=9, max_extra=9, crowd=crowd, score_step=0.5)
    boxes = [[10, 10, 20, 20], [10, 10, 40, 20], [10, 10, 20, 40], [10, 15, 20, 20]]
    for index, item in enumerate([*document["annotations"], *results]):
        item["bbox"] = boxes[index % 4]
    ours = assert_equals_reference(tmp_path, document, results, kinds=("box",))
    assert ours.metrics["box"]["AP"] > 0.05


def test_blocks_of_pairs_equal_all_at_once(tmp_path, monkeypatch):
    document, results = random_case(28, num_images=9, max_objects=9)
    dataset, predictions = read(tmp_path, document, results)
    at_once = evaluate(dataset, predictions)
    monkeypatch.setattr(matching, "MAX_PAIRS", 5)
    np.testing.assert_equal(evaluate(dataset, predictions).metrics, at_once.metrics)


def test_annotation_without_segmentation_is_its_box(tmp_path):
    document, results = random_case(29, crowd=0)
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    expected = assert_equals_reference(tmp_path, document, results)
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    np.testing.assert_equal(evaluate(*read(tmp_path, document, results)).metrics, expected.metrics)


@pytest.mark.parametrize("seed", range(4))
def test_keypoints(tmp_path, seed):
    document, results = random_case(30 + seed, score_step=(0, 0.1)[seed % 2], max_extra=30)
    num_keypoints = (17, 5)[seed // 2]
    add_keypoints(document, results, num_keypoints, seed)
    sigmas = None if num_keypoints == 17 else [0.05, 0.1, 0.02, 0.08, 0.05]
    kinds = ("keypoints",)
    if sigmas is None:
        ours = assert_equals_reference(tmp_path, document, results, kinds)
    else:
        ours = evaluate(*read(tmp_path, document, results), kinds=kinds, sigmas=sigmas)
        stats, _, _ = reference(document, results, "keypoints", sigmas=sigmas)
        np.testing.assert_allclose(
            list(ours.metrics["keypoints"].values()), np.where(stats < 0, np.nan, stats), atol=1e-12
        )
    assert ours.metrics["keypoints"]["AP"] > 0.01
    assert ours.metrics["keypoints"]["APm"] != ours.metrics["keypoints"]["APl"]


def write(tmp_path, document):
    (tmp_path / "truth.json").write_text(json.dumps(document))
    return tmp_path / "truth.json"


def test_what_does_not_fit_is_named(tmp_path):
    document, results = random_case(40)
    dataset, predictions = read(tmp_path, document, results)
    foreign, small = predictions.category_ids * 0 + 4, tuple({**mask, "size": [3, 4]} for mask in predictions.masks)
    broken = [
        (
            {"image_ids": predictions.image_ids + 1},
            {},
            r"detection 0 has image id \d+, expected one of the 8 of .*truth",
        ),
        ({"category_ids": foreign}, {}, "category id 4, expected one of the 3 .* nearest is 3"),
        ({"scores": predictions.scores * np.nan}, {}, "detection 0 has box .* and score nan, expected finite"),
        ({"masks": None}, {}, "hold no masks, expected some for the kind 'mask'"),
        ({"masks": small}, {}, r"detection 0 has a mask of size \[3, 4\], expected \[150, 200\], that of image id"),
        ({}, {"kinds": ("segm",)}, "kind is 'segm', expected one of box, mask, keypoints"),
        ({}, {"kinds": ("keypoints",)}, "holds no keypoints"),
        ({}, {"max_detections": 0}, "max_detections is 0"),
    ]
    for changes, options, message in broken:
        with pytest.raises(ValueError, match=message) as caught:
            evaluate(dataset, replace(predictions, **changes), **options)
        assert "\n" not in str(caught.value)
    add_keypoints(document, results, 3, 0)
    dataset, pointed = read(tmp_path, document, results)
    for found, message in (
        (predictions, "hold 0 keypoints, expected 3"),
        (pointed, "no sigmas given for the 3 keypoints"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(dataset, found, kinds=("keypoints",))
