"""AP from match records against the evaluator itself, on data sets whose images are really repeated."""

import json
from dataclasses import replace

import numpy as np
import pytest

from headstart.data.read import coco
from headstart.metrics.coco import evaluate
from headstart.metrics.predictions import Predictions, empty
from headstart.metrics.records import RECALLS, Records, _recalls_reached, ap_from_records, bootstrap_ap
from random_case import random_case

NAMES = ("AP", "AP50", "AP75")


def evaluated(tmp_path, document, results, kinds=("box", "mask")):
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return evaluate(coco.read(tmp_path / "truth.json"), Predictions.from_json(tmp_path / "results.json"), kinds=kinds)


def repeat_images(document, results, weights):
    """The same data with image i standing weights[i] times, copies with neighbouring ids, so in the same order."""
    copies = {image["id"]: weight for image, weight in zip(document["images"], weights)}
    repeated = {"images": [], "annotations": [], "categories": document["categories"]}
    for image in document["images"]:
        for copy in range(copies[image["id"]]):
            own = {"id": image["id"] * 100 + copy, "file_name": f"{copy}-{image['file_name']}"}
            repeated["images"].append({**image, **own})
    for annotation in document["annotations"]:
        for copy in range(copies[annotation["image_id"]]):
            repeated["annotations"].append({**annotation, "image_id": annotation["image_id"] * 100 + copy})
    for index, annotation in enumerate(repeated["annotations"]):
        annotation["id"] = index + 1
    found = [
        {**result, "image_id": result["image_id"] * 100 + copy}
        for result in results
        for copy in range(copies[result["image_id"]])
    ]
    return repeated, found


def distinct_scores_within_images(results, seed):
    """Scores that differ within an image and class, and often agree between images."""
    generator, taken = np.random.default_rng(seed), {}
    for result in results:
        used = taken.setdefault((result["image_id"], result["category_id"]), set())
        score = generator.choice([value for value in range(1, 60) if value not in used])
        used.add(score)
        result["score"] = float(score) / 64


@pytest.mark.parametrize("seed", range(6))
def test_weights_equal_repeated_images(tmp_path, seed):
    document, results = random_case(seed, num_images=9, crowd=0.2, max_objects=9)
    distinct_scores_within_images(results, seed)
    if seed % 2:
        for annotation in document["annotations"][::4]:
            annotation["difficult"] = 1
    ours = evaluated(tmp_path, document, results)
    generator = np.random.default_rng(seed)
    for _ in range(5):
        weights = generator.integers(0, 4, len(document["images"]))
        expected = evaluated(tmp_path, *repeat_images(document, results, weights))
        for kind in ("box", "mask"):
            found = ap_from_records(ours.records[kind], weights)
            values = [expected.metrics[kind][name] for name in NAMES]
            np.testing.assert_allclose([found[name] for name in NAMES], values, rtol=0, atol=1e-12)
            assert values[1] > 0


def test_weights_of_one_equal_the_evaluation_and_any_factor_changes_little(tmp_path):
    document, results = random_case(10)
    ours = evaluated(tmp_path, document, results)
    for kind in ("box", "mask"):
        expected = {name: ours.metrics[kind][name] for name in NAMES}
        assert ap_from_records(ours.records[kind]) == expected
        ones = np.ones(len(document["images"]), np.int32)
        assert ap_from_records(ours.records[kind], ones) == expected
        none = ap_from_records(ours.records[kind], ones * 0)
        assert np.isnan(list(none.values())).all()


def test_no_detections_and_no_ground_truth(tmp_path):
    document, results = random_case(11)
    nothing = evaluated(tmp_path, document, []).records["box"]
    assert ap_from_records(nothing) == dict.fromkeys(NAMES, 0.0)
    document["annotations"] = []
    assert np.isnan(ap_from_records(evaluated(tmp_path, document, results).records["box"])["AP"])
    dataset = coco.read(tmp_path / "truth.json").take([])
    assert np.isnan(ap_from_records(evaluate(dataset, empty()).records["box"])["AP"])


def test_recalls_are_reached_as_floats_compare():
    """0.07 of 100 objects takes 8 true positives where 7 / 100 < 0.07 as floats: pycocotools' searchsorted decides."""
    num_gt = np.arange(0, 700)
    table, first = _recalls_reached(num_gt)
    for total, begin in zip(num_gt.tolist(), first.tolist()):
        spots = np.searchsorted(np.arange(1, total + 1) / max(total, 1), RECALLS)
        expected = [0, *np.cumsum(np.bincount(spots, minlength=total + 1)[:total])]
        np.testing.assert_array_equal(table[begin : begin + total + 1], expected)


def test_save_and_load(tmp_path):
    document, results = random_case(12)
    for suffix, records in (("", evaluated(tmp_path, document, results).records["mask"]), (".npz", None)):
        records = records or evaluated(tmp_path, document, []).records["box"]
        records.save(tmp_path / f"records{suffix}")
        loaded = Records.load(tmp_path / f"records{suffix}")
        for name, value in vars(records).items():
            np.testing.assert_array_equal(getattr(loaded, name), value)
            assert getattr(loaded, name).dtype == value.dtype
    (tmp_path / "torn").write_bytes((tmp_path / "records").read_bytes()[:300])
    with pytest.raises(ValueError, match="torn: holds no match records") as caught:
        Records.load(tmp_path / "torn")
    assert "\n" not in str(caught.value)


def test_bootstrap_is_paired_and_equals_weights_drawn_by_hand(tmp_path):
    document, results = random_case(13, num_images=12)
    good = evaluated(tmp_path, document, results).records["box"]
    worse = evaluated(tmp_path, document, results[::2]).records["box"]
    values = bootstrap_ap([good, worse, good], num_resamples=20, generator=np.random.default_rng(5))
    assert values.shape == (20, 3, 3)
    np.testing.assert_array_equal(values[:, 0], values[:, 2])
    generator = np.random.default_rng(5)
    for row in values:
        weights = np.bincount(generator.integers(0, 12, 12), minlength=12)
        for run, records in enumerate((good, worse)):
            assert row[run].tolist() == list(ap_from_records(records, weights).values())
    assert len(np.unique(values[:, 0, 0])) == 20
    other = replace(good, image_ids=good.image_ids + 1)
    with pytest.raises(ValueError, match="records 1 were made on other image_ids than records 0"):
        bootstrap_ap([good, other], num_resamples=1, generator=generator)
