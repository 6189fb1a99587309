"""Keypoints from the file to the batch: who takes part, pixel centres, and what a mirror swaps."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.batch import InputSpec
from headstart.data.augment.rules import Augmentation
from headstart.data.read.coco import read
from headstart.data.stream import Reading
from headstart.data.targets import mirror_note, require_keypoints, sigmas_of, with_keypoints
from headstart.data.train_stream import TrainStream

NAMES = ["nose", "left_eye", "right_eye"]
PLAIN = InputSpec((0.0,) * 3, (1.0,) * 3, "rgb")


def people(folder, *, names=NAMES, num=1, **category):
    """A data set of `num` images, the first with one person whose three points are bright pixels, the others empty."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    for value, (x, y) in zip((100, 150, 250), ((30, 20), (40, 16), (20, 18))):
        pixels[y, x] = value
    for index in range(num):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(num)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [10, 10, 40, 20], "area": 800, "iscrowd": 0,
             "keypoints": [30, 20, 2, 40, 16, 1, 20, 18, 2]},
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": names, **category}],
    }  # fmt: skip
    (folder / "people.json").write_text(json.dumps(content))
    return read(folder / "people.json", folder)


def test_points_stay_on_their_pixels_and_a_mirror_swaps_left_and_right(tmp_path):
    """In every view the point named left_eye lies on the pixel that a viewer of that view would call so."""
    data = people(tmp_path)
    assert data.left_right == ((1, 2),)
    seen = set()
    reading = Reading(1, 0, cache=True, num_workers=0)
    stream = TrainStream(data, Augmentation((64,), 64, 0.5), PLAIN, reading, mask_frame=0, max_objects=None)
    for batch in stream.batches(0, 12):
        points = batch.gt_keypoints[0, 0]
        values = [batch.images[0, 0, int(y), int(x)].item() for x, y, _ in points.tolist()]
        assert torch.equal(points[:, :2] % 1, torch.full((3, 2), 0.5))
        mirrored = points[1, 0] < points[2, 0]  # in the file, left_eye is further to the right
        mirrored = bool(batch.images[0, 0, 20, 33] == 100)
        assert values == ([100, 250, 150] if mirrored else [100, 150, 250])
        assert points[:, 2].tolist() == ([2, 2, 1] if mirrored else [2, 1, 2])
        assert points[1, 0] > points[2, 0]  # whichever way: a person who faces us has the left eye on our right
        seen.add(mirrored)
    assert seen == {True, False}


def test_mirrored_twice_is_the_identity_for_boxes_and_points_together(tmp_path):
    from headstart.data.views import View, move_boxes, move_keypoints

    view = View((64, 64), True)
    points, boxes = np.random.rand(4, 3, 3) * 64, np.sort(np.random.rand(4, 2, 2) * 64, axis=1).reshape(4, 4)
    again = move_keypoints(move_keypoints(points, (64, 64), view, ((1, 2),)), (64, 64), view, ((1, 2),))
    np.testing.assert_allclose(again, points)
    np.testing.assert_allclose(move_boxes(move_boxes(boxes, (64, 64), view), (64, 64), view), boxes)


def test_images_without_a_labelled_keypoint_are_left_out_and_counted(tmp_path):
    data = people(tmp_path, num=3)
    kept = with_keypoints(data)
    assert kept.image_ids.tolist() == [0] and kept.num_annotations == 1
    assert kept.notes == (
        f"{tmp_path}/people.json: 2 of 3 images show no object with a labelled keypoint and take no part in training",
    )
    whole = people(tmp_path)
    assert with_keypoints(whole) is whole


def test_what_a_keypoint_head_cannot_use_is_refused(tmp_path):
    nameless = people(tmp_path, names=[])
    assert "with keypoints, which no category names" in nameless.notes[0]
    with pytest.raises(ValueError, match=r"people\.json: category 1 \('person'\) has no field 'keypoints'"):
        require_keypoints(nameless)
    data = people(tmp_path)
    data.keypoints[..., 2] = 0
    with pytest.raises(ValueError, match=r"no annotation has a field 'keypoints' with a labelled point"):
        with_keypoints(data)


def test_sigmas_are_one_a_keypoint(tmp_path):
    data = people(tmp_path)
    assert sigmas_of((0.1, 0.2, 0.3), data) == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match=r"keypoint_sigmas: null, COCO's for its 17, but .* has 3 keypoints"):
        sigmas_of(None, data)
    with pytest.raises(ValueError, match=r"2 numbers, but .* expected 3 numbers"):
        sigmas_of((0.1, 0.2), data)


def test_names_without_left_and_right_are_said(tmp_path):
    assert mirror_note(people(tmp_path)) == []
    assert "every point keeps its name" in mirror_note(people(tmp_path, names=["a", "b", "c"]))[0]


def test_the_skeleton_is_read_written_and_no_part_of_the_fingerprint(tmp_path):
    from headstart.data.dataset import fingerprint
    from headstart.data.read.coco import write

    plain, joined = people(tmp_path), people(tmp_path, skeleton=[[1, 2], [3, 1]])
    assert plain.skeleton == () and joined.skeleton == ((0, 1), (2, 0))
    assert fingerprint(plain) == fingerprint(joined)
    write(joined, tmp_path / "again.json")
    assert read(tmp_path / "again.json", tmp_path).skeleton == joined.skeleton
    for wrong in ([[0, 1]], [[1, 4]], "nose-eye", [[1, 2, 3]]):
        data = people(tmp_path, skeleton=wrong)
        assert data.skeleton == () and "expected pairs of numbers of keypoints, 1 to 3" in data.notes[-1]
