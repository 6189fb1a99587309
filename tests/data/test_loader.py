"""The stream: the content of (step, slot) depends on the seed alone; ground truth is where the pixels are."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.batch import InputSpec
from headstart.data.augment.rules import Augmentation
from headstart.data.dataset import Dataset
from headstart.data.order import Resize
from headstart.data.read.coco import read
from headstart.data.stream import EvalImages, Reading, decode, prefetch
from headstart.data.targets import Targets
from headstart.data.train_stream import TrainStream
from tiny import SIDE

CONVENTION = InputSpec((100.0, 110.0, 120.0), (50.0, 51.0, 52.0), "rgb")
AUGMENTATION = Augmentation((48, SIDE), 96, 0.5)


@pytest.fixture(scope="module")
def scenes(data_root) -> Dataset:
    return read(data_root / "scenes/train.json", data_root / "scenes/train")


@pytest.fixture(scope="module")
def mixed(scenes, tmp_path_factory) -> Dataset:
    """The scenes with two of them stretched to other shapes, so that there are several buckets."""
    folder = tmp_path_factory.mktemp("mixed")
    heights, widths = scenes.heights.copy(), scenes.widths.copy()
    for index, size in enumerate([(90, 40), (40, 90)] * 3):
        image = Image.fromarray(scenes.load_image(index)).resize(size[::-1])
        image.save(folder / scenes.file_names[index])
        heights[index], widths[index] = size
    return replace(scenes, image_dir=folder, heights=heights, widths=widths)


def stream(dataset, **changes):
    reading = replace(Reading(2, 7, cache=False, num_workers=0), **changes)
    return TrainStream(dataset, AUGMENTATION, CONVENTION, reading, mask_frame=16, max_objects=None)


def equal(a, b):
    """Whether two batches are the same in every bit."""
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


@pytest.fixture(scope="module")
def expected(mixed):
    return list(stream(mixed).batches(0, 9))


@pytest.mark.parametrize("change", [{"num_workers": 1}, {"num_workers": 5, "cache": True}, {"cache": True}])
def test_workers_and_cache_change_nothing(mixed, expected, change):
    assert all(map(equal, expected, stream(mixed, **change).batches(0, 9)))


def test_a_step_is_the_same_wherever_the_stream_begins_and_ends(mixed, expected):
    assert all(map(equal, expected[5:7], stream(mixed).batches(5, 7)))
    assert all(map(equal, expected[8:9], stream(mixed).batches(8, 500)))
    assert list(stream(mixed).batches(4, 4)) == []


def test_processes_share_the_slots_of_the_whole_batch(mixed, expected):
    shares = [list(stream(mixed, rank=rank, num_ranks=2).batches(0, 9)) for rank in range(2)]
    for whole, first, second in zip(expected, *shares):
        for field in fields(whole):
            joined = torch.cat([getattr(first, field.name), getattr(second, field.name)])
            assert torch.equal(joined, getattr(whole, field.name)), field.name
    whole = stream(mixed)
    assert [stream(mixed, rank=1, num_ranks=2).counts(step) for step in range(9)] == [
        whole.counts(step) for step in range(9)
    ]


def test_another_seed_is_another_stream(mixed, expected):
    assert not any(map(equal, expected, stream(mixed, seed=8).batches(0, 9)))


def test_slots_count_on_and_every_image_comes_once_an_epoch(scenes):
    batches = list(stream(scenes, batch=2).batches(0, 9))
    assert torch.cat([batch.slots for batch in batches]).tolist() == list(range(18))
    ids = torch.cat([batch.image_ids for batch in batches]).reshape(3, 6)
    assert [sorted(epoch) for epoch in ids.tolist()] == [scenes.image_ids.tolist()] * 3


def test_counts_are_those_of_the_batches(mixed, expected):
    for step, batch in enumerate(expected):
        assert stream(mixed).counts(step) == (int(batch.gt_valid.sum()), int(batch.sizes.prod(dim=1).sum()))


def test_shapes_depend_on_the_bucket_only(mixed, expected):
    shapes = {}
    for batch in expected:
        rest = [tuple(getattr(batch, f.name).shape) for f in fields(batch)]
        assert shapes.setdefault(batch.images.shape, rest) == rest
    assert len(shapes) == 2
    assert {shape[2:] for shape in shapes} == {(64, 96), (96, 64)}


def test_boxes_and_masks_lie_on_the_object(tmp_path):
    """One bright rectangle with its annotation: in every view the box borders the bright pixels, the frame is full."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 16:56] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    data = Dataset_of(tmp_path, polygon=[16, 10, 56, 10, 56, 30, 16, 30])
    plain = InputSpec((0.0,) * 3, (1.0,) * 3, "rgb")
    seen = set()
    reading = Reading(1, 0, cache=True, num_workers=0)
    options = {"mask_frame": 8, "max_objects": None}
    for batch in TrainStream(data, Augmentation((64, 128), 128, 0.5), plain, reading, **options).batches(0, 12):
        rows, columns = torch.where(batch.images[0, 0] > 127.5)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert batch.gt_boxes[0, 0].tolist() == [float(value) for value in found]
        assert batch.gt_masks[0, 0].all() and not batch.gt_masks[0, 1:].any()
        assert batch.gt_valid[0].tolist() == [True, False, False, False]
        seen.add((tuple(batch.sizes[0].tolist()), batch.gt_boxes[0, 0, 0].item()))
    assert len(seen) == 4  # two sizes, mirrored and not


def Dataset_of(folder, *, polygon, **annotation):
    """A data set of the one image a.png of 64 x 64 with one object."""
    import json

    box = [16, 10, 40, 20]
    entry = {
        "id": 1,
        "image_id": 5,
        "category_id": 3,
        "bbox": box,
        "segmentation": [polygon],
        "area": 800,
        "iscrowd": 0,
    }
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": 64, "width": 64}],
        "annotations": [entry | annotation],
        "categories": [{"id": 3, "name": "thing"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return read(folder / "a.json", folder)


def test_frames_are_mirrored_with_the_image(tmp_path):
    """A triangle whose right angle is at the left: mirrored, it is at the right."""
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    data = Dataset_of(tmp_path, polygon=[16, 10, 16, 30, 56, 30])
    targets = stream(data, batch=1).targets
    frame = torch.from_numpy(targets.frames.frames(np.array([0]))[0])
    assert frame[:, 0].sum() > frame[:, -1].sum()
    seen = set()
    for batch in stream(data, batch=1).batches(0, 10):
        flip = batch.gt_boxes[0, 0, 0] < batch.images.shape[3] - batch.gt_boxes[0, 0, 2]
        mirrored = bool(batch.sizes[0, 1] - batch.gt_boxes[0, 0, 2] > batch.gt_boxes[0, 0, 0])
        assert torch.equal(batch.gt_masks[0, 0], frame.flip(1) if mirrored else frame)
        seen.add(mirrored)
        assert flip is not None
    assert seen == {True, False}


def test_boxes_are_cut_to_the_image_and_those_outside_are_counted(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    data = Dataset_of(tmp_path, polygon=[50, 50, 90, 50, 90, 90], bbox=[50, 50, 40, 40])
    targets = Targets(data, mask_frame=8, max_objects=None)
    assert targets.dataset.boxes.tolist() == [[50, 50, 64, 64]]
    assert data.boxes.tolist() == [[50, 50, 90, 90]]
    assert targets.notes() == []
    outside = Targets(replace(data, boxes=data.boxes + 40), mask_frame=8, max_objects=None)
    assert [len(chosen) for chosen in outside.chosen] == [0]
    assert outside.left_out == 1 and "1 boxes lie outside" in outside.notes()[0]


def test_a_cap_on_objects_is_counted(scenes):
    counts = np.diff(scenes.first)
    targets = Targets(scenes, mask_frame=0, max_objects=2)
    assert targets.capped == np.maximum(counts - 2, 0).sum() > 0
    assert [len(chosen) for chosen in targets.chosen] == np.minimum(counts, 2).tolist()
    assert targets.num_slots == 4 and f"{targets.capped} objects" in targets.notes()[0]


def test_an_image_of_another_size_than_annotated_is_named(scenes):
    wrong = replace(scenes, heights=scenes.heights + 1)
    with pytest.raises(ValueError, match=r"000000\.jpg: image 1 is 64 x 64 pixels, the annotations say 64 x 65"):
        decode(wrong, 0, channels=3)


def test_batches_that_do_not_divide_and_sets_without_images_are_refused(scenes):
    with pytest.raises(ValueError, match=r"train\.batch: 2 images do not divide among 3 processes"):
        stream(scenes, rank=0, num_ranks=3)
    with pytest.raises(ValueError, match="no images to train on"):
        stream(scenes.take(np.zeros(0, np.int64)))


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_prefetching_keeps_the_order_and_hands_on_errors(num_workers):
    assert list(prefetch(lambda item: item * item, range(30), num_workers)) == [item * item for item in range(30)]

    def fail_at(item):
        if item == 6:
            raise ValueError("image 6")
        return item

    found = []
    with pytest.raises(ValueError, match="image 6"):
        for item in prefetch(fail_at, range(30), num_workers):
            found.append(item)
    assert found == list(range(6))


@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (4, 1), (4, 2), (64, 3)])
def test_evaluation_shows_each_image_once_unaugmented(mixed, batch, parts):
    images = EvalImages(mixed, Resize(64, 96), CONVENTION, batch=batch, cache=False, num_workers=2)
    seen = []
    for part in range(parts):
        for indices, shown, sizes in images.batches(part=part, parts=parts):
            assert len(indices) == len(shown) == len(sizes) <= batch
            for index, size in zip(indices.tolist(), sizes.tolist()):
                assert tuple(size) == Resize(64, 96).size(int(mixed.heights[index]), int(mixed.widths[index]))
            seen.extend(indices.tolist())
    assert sorted(seen) == list(range(mixed.num_images))
