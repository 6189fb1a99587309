"""Predictions: round trips through files, joining, and one clear line for a broken file."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from headstart.metrics import predictions as module
from headstart.metrics.predictions import Predictions, concat, empty


def some_predictions(count=7, *, masks=True, keypoints=True, seed=0):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 50, (count, 2))
    rles = [coco_mask.encode(np.asfortranarray(generator.random((9, 8)) < 0.5, np.uint8)) for _ in range(count)]
    return Predictions(
        image_ids=generator.integers(0, 2**40, count),
        category_ids=generator.integers(1, 91, count),
        boxes=np.concatenate([corners, corners + generator.uniform(0, 30, (count, 2))], axis=1),
        scores=generator.random(count),
        masks=tuple(rles) if masks else None,
        keypoints=generator.random((count, 5, 3)).astype(np.float32) if keypoints else None,
    )


def assert_equal(ours, expected, *, box_error=0.0):
    np.testing.assert_array_equal(ours.image_ids, expected.image_ids)
    np.testing.assert_array_equal(ours.category_ids, expected.category_ids)
    np.testing.assert_array_equal(ours.scores, expected.scores)
    np.testing.assert_allclose(ours.boxes, expected.boxes, rtol=0, atol=box_error)
    np.testing.assert_array_equal(ours.keypoints, expected.keypoints)
    assert ours.masks == expected.masks


@pytest.mark.parametrize("masks", [True, False])
def test_round_trip(tmp_path, masks):
    expected = some_predictions(masks=masks, keypoints=not masks)
    expected.to_json(tmp_path / "results.json")
    assert_equal(Predictions.from_json(tmp_path / "results.json"), expected, box_error=1e-13)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert "\n" not in (tmp_path / "results.json").read_text()


@pytest.mark.parametrize("nothing", [empty(), some_predictions(0)])  # the latter with heads for masks and keypoints
def test_round_trip_of_nothing(tmp_path, nothing):
    nothing.to_json(tmp_path / "results.json")
    assert (tmp_path / "results.json").read_text() == "[]"
    assert len(Predictions.from_json(tmp_path / "results.json")) == 0


def test_box_comes_from_the_mask_where_it_is_missing_and_lists_of_counts_are_read(tmp_path):
    mask = np.zeros((6, 7), np.uint8)
    mask[2:5, 1:3] = 1
    entry = {"image_id": 3, "category_id": 1, "score": 1, "segmentation": {"size": [6, 7], "counts": [8, 3, 3, 3, 25]}}
    (tmp_path / "results.json").write_text(json.dumps([entry]))
    ours = Predictions.from_json(tmp_path / "results.json")
    np.testing.assert_array_equal(ours.boxes, [[1, 2, 3, 5]])
    np.testing.assert_array_equal(coco_mask.decode(ours.masks[0]), mask)


def test_concat_equals_the_whole():
    parts = [some_predictions(3, seed=1), some_predictions(0), some_predictions(4, seed=2)]
    whole = concat(parts)
    assert_equal(concat([whole]), whole)
    assert len(whole) == 7 and whole.masks == parts[0].masks + parts[2].masks
    np.testing.assert_array_equal(whole.boxes[3:], parts[2].boxes)
    np.testing.assert_array_equal(whole.keypoints[:3], parts[0].keypoints)
    assert len(concat([])) == 0
    assert concat([empty(masks=True), empty(masks=True)]).masks == ()
    assert concat([empty(), some_predictions(2)]).masks is not None  # nothing says nothing about masks
    with pytest.raises(ValueError, match="only some of the 2 parts hold masks"):
        concat([some_predictions(1), some_predictions(1, masks=False)])


GOOD = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 5], "score": 0.5}
MASK = {"size": [5, 4], "counts": "06?"}
BROKEN = [
    ("{", "is not JSON"),
    ({}, "holds an object, expected a list of results"),
    ([GOOD, 3], "entry 1 is a number, expected an object"),
    ([{**GOOD, "image_id": "1"}], "entry 0: 'image_id' is '1', expected a whole number"),
    ([{**GOOD, "image_id": True}], "entry 0: 'image_id' is True, expected a whole number"),
    ([GOOD, {"image_id": 1}], "entry 1 has no 'bbox'"),
    ([{**GOOD, "bbox": [1, 2, 3]}], r"entry 0: 'bbox' is \[1, 2, 3\], expected four finite numbers"),
    ([{**GOOD, "bbox": [1, 2, -3, 4]}], "width and height of at least 0"),
    ([{**GOOD, "bbox": None}], "entry 0: 'bbox' is None, expected four finite numbers"),
    ([{**GOOD, "score": "high"}], "entry 0: 'score' is 'high', expected a finite number"),
    ('[{"image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 5], "score": NaN}]', "is not JSON"),
    ([{**GOOD, "segmentation": [[1, 2, 3]]}], "entry 0: 'segmentation' is .*, expected an RLE object"),
    ([{**GOOD, "segmentation": {"size": [5], "counts": "0"}}], "expected an RLE object"),
    ([{**GOOD, "segmentation": {"size": [5, 4], "counts": [3, 4]}}], "expected RLE whose runs add up to 5 . 4 = 20"),
    ([{**GOOD, "segmentation": {"size": [5, 4], "counts": "06"}}], "expected RLE whose runs add up to 5 . 4 = 20"),
    ([{**GOOD, "segmentation": {"size": [5, 4], "counts": "\x01é"}}], "expected counts that are whole"),
    ([{**GOOD, "segmentation": {"size": [5, 4]}}], "expected RLE with counts"),
    ([GOOD, {**GOOD, "segmentation": MASK}], "entry 0 has no 'segmentation'"),
    ([{**GOOD, "keypoints": [1, 2]}], "expected finite numbers x, y, score for each keypoint"),
    (
        [{**GOOD, "keypoints": [1] * 6}, {**GOOD, "keypoints": [1] * 9}],
        "entry 1: 'keypoints' holds 3 points, expected",
    ),
]


@pytest.mark.parametrize("content, message", BROKEN)
def test_broken_file_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        Predictions.from_json(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    empty().to_json(path)

    def fail(rows):
        raise MemoryError

    monkeypatch.setattr(module.orjson, "dumps", fail)
    with pytest.raises(MemoryError):
        some_predictions().to_json(path)
    assert path.read_text() == "[]"
