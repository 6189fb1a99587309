"""Large-scale jitter and copy-paste: what a window shows is where the pixels are, and a function of the slot alone."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.batch import InputSpec
from headstart.data.augment.rules import Augmentation, Jitter, draw_window
from headstart.data.masks import FrameTable
from headstart.data.paste import Objects, alpha_of, choose, visible_objects
from headstart.data.read.coco import read
from headstart.data.stream import Reading
from headstart.data.train_stream import TrainStream
from headstart.data.views import View, move_boxes, move_boxes_back, stack_images
from headstart.ops.polygons import inside as cells_inside

CROP = 64
PLAIN = InputSpec((0.0,) * 3, (1.0,) * 3, "rgb")
AUGMENTATION = Augmentation((CROP,), CROP, 0.5, Jitter(0.3, 2.0, CROP))
SHAPES = {  # name: image size (height, width), polygons
    "a": ((60, 80), [[5, 5, 40, 10, 20, 50], [50, 20, 75, 20, 75, 55, 60, 40]]),
    "b": ((90, 50), [[10, 10, 45, 30, 12, 80]]),
    "c": ((64, 64), [[8, 8, 30, 8, 30, 30, 8, 30], [34, 34, 60, 40, 50, 62], [2, 50, 20, 40, 25, 60]]),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three images of noise with six polygons, each with three keypoints."""
    folder, content = tmp_path_factory.mktemp("drawn"), {"images": [], "annotations": []}
    generator = np.random.default_rng(0)
    for number, (name, (size, polygons)) in enumerate(SHAPES.items()):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{name}.png")
        content["images"].append({"id": number, "file_name": f"{name}.png", "height": size[0], "width": size[1]})
        for polygon in polygons:
            x, y = np.array(polygon).reshape(-1, 2).T.tolist()
            box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
            entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": box,
                "area": 1,
            }
            points = [v for place in zip(x[:3], y[:3], (2, 1, 2)) for v in place]
            entry |= {"segmentation": [polygon], "iscrowd": 0, "keypoints": points, "num_keypoints": 3}
            content["annotations"].append(entry)
    content["categories"] = [{"id": 1, "name": "thing", "keypoints": ["one", "left_two", "right_two"]}]
    (folder / "all.json").write_text(json.dumps(content))
    return read(folder / "all.json", folder)


def stream(dataset, *, copy_paste=False, **changes):
    reading = replace(Reading(2, 7, cache=True, num_workers=0), **changes)
    return TrainStream(
        dataset, replace(AUGMENTATION, copy_paste=copy_paste), PLAIN, reading, mask_frame=56, max_objects=None
    )


def equal(a, b):
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


@pytest.mark.parametrize("copy_paste", [False, True])
def test_batches_are_a_function_of_seed_step_and_slot(drawn, copy_paste):
    expected = list(stream(drawn, copy_paste=copy_paste).batches(0, 8))
    assert all(map(equal, expected, stream(drawn, copy_paste=copy_paste, num_workers=3, cache=False).batches(0, 8)))
    assert all(map(equal, expected[5:], stream(drawn, copy_paste=copy_paste).batches(5, 8)))
    shares = [stream(drawn, copy_paste=copy_paste, rank=rank, num_ranks=2).batches(0, 8) for rank in range(2)]
    for whole, first, second in zip(expected, *shares):
        for field in fields(whole):
            joined = torch.cat([getattr(first, field.name), getattr(second, field.name)])
            assert torch.equal(joined, getattr(whole, field.name)), field.name
    assert not any(map(equal, expected, stream(drawn, copy_paste=copy_paste, seed=8).batches(0, 8)))
    slots = 8 if copy_paste else 4  # twice the fullest image's three objects, and once, rounded up
    for batch in expected:
        assert batch.images.shape == (2, 3, CROP, CROP) and batch.gt_masks.shape == (2, slots, 56, 56)


def test_the_window_is_cut_out_of_the_resized_image(drawn):
    own, seen = stream(drawn, batch=1), set()
    for step, batch in enumerate(own.batches(0, 24)):
        index = int(batch.image_ids[0])
        view = own.raw(step).views[0]
        whole = stack_images([drawn.load_image(index)], [View(view.whole, False)], view.whole, PLAIN, "cpu")
        (top, left), (height, width) = view.corner, view.size
        window = whole[..., top : top + height, left : left + width]
        assert torch.equal(batch.images[..., :height, :width], window.flip(3) if view.flip else window)
        assert not batch.images[..., height:, :].any() and not batch.images[..., width:].any()
        assert batch.sizes[0].tolist() == [height, width] and max(height, width) <= CROP
        ratio = max(view.whole) / CROP
        assert 0.29 < ratio < 2.01
        seen |= {("flip", view.flip), ("cut", view.whole != view.size)}
    assert len(seen) == 4


def in_original(polygon, size, view):
    """A polygon [points, 2] of an image, in pixels of a view: forwards, point by point."""
    points = np.asarray(polygon, float).reshape(-1, 2)
    points = points * [view.whole[1] / size[1], view.whole[0] / size[0]] - view.corner[::-1]
    return np.stack([view.size[1] - points[:, 0], points[:, 1]], 1) if view.flip else points


FINE = 512  # cells along the crop: an eighth of a pixel


def fine(polygon, size, view):
    """What a window shows of a polygon, bool [FINE, FINE] over the crop: rasterised forwards, in pixels of the view."""
    cells = cells_inside([in_original(polygon, size, view)], np.array([0, 0, CROP, CROP]), FINE, FINE)
    rows, columns = (np.arange(FINE) < limit * FINE / CROP for limit in view.size)
    return cells & rows[:, None] & columns


def test_boxes_and_masks_are_what_the_window_shows(drawn):
    own, cut = stream(drawn, batch=1), 0
    for step, batch in enumerate(own.batches(0, 60)):
        name, view = "abc"[int(batch.image_ids[0])], own.raw(step).views[0]
        size, polygons = SHAPES[name]
        shown = [cells for polygon in polygons if (cells := fine(polygon, size, view)).sum() > 40]
        found = batch.gt_valid[0].sum()
        assert len(shown) <= found <= len(polygons)
        boxes, frames = batch.gt_boxes[0, :found].double().numpy(), batch.gt_masks[0, :found].numpy()
        for cells in shown:
            y, x = (np.flatnonzero(cells.any(axis)) / FINE * CROP for axis in (1, 0))
            tight = np.array([x[0], y[0], x[-1] + CROP / FINE, y[-1] + CROP / FINE])
            match = np.abs(boxes - tight).max(1).argmin()
            extent = boxes[match, 2:] - boxes[match, :2]
            assert np.abs(boxes[match] - tight).max() <= max(extent) / 56 + CROP / FINE
            centres = (np.arange(56)[:, None] + 0.5) / 56 * extent + boxes[match, :2]
            columns, rows = np.minimum(centres * FINE / CROP, FINE - 1).astype(int).T
            assert (cells[np.ix_(rows, columns)] == frames[match]).mean() > 0.95
        cut += view.whole != view.size
        assert not batch.gt_valid[0, found:].any() and not batch.gt_masks[0, found:].any()
    assert cut > 20


def test_keypoints_outside_the_window_are_not_labelled(drawn):
    own, inside, outside = stream(drawn, batch=1), 0, 0
    for step, batch in enumerate(own.batches(0, 30)):
        view = own.raw(step).views[0]
        size, polygons = SHAPES["abc"[int(batch.image_ids[0])]]
        expected = set()
        for polygon in polygons:
            moved = in_original(np.asarray(polygon, float) + 0.5, size, view)[:3]  # centres of COCO's pixels
            order = [0, 2, 1] if view.flip else [0, 1, 2]
            for place, visibility in zip(moved[order], np.array((2, 1, 2))[order]):
                if 0 <= place[0] < view.size[1] and 0 <= place[1] < view.size[0]:
                    expected.add((*place.round(2).tolist(), int(visibility)))
                else:
                    outside += 1
        points = batch.gt_keypoints[0].flatten(0, 1).double().numpy()
        found = {(*point[:2].round(2).tolist(), int(point[2])) for point in points if point[2]}
        assert all(min(abs(f[0] - e[0]) + abs(f[1] - e[1]) + abs(f[2] - e[2]) for e in expected) < 0.03 for f in found)
        assert not points[points[:, 2] == 0].any()
        inside += len(found)
    assert inside > 20 and outside > 20


def test_moving_back_is_the_inverse():
    generator = np.random.default_rng(2)
    for _ in range(20):
        view = draw_window(70, 90, AUGMENTATION.jitter, 0.5, generator)
        boxes = generator.random((4, 4)) * 60
        np.testing.assert_allclose(move_boxes_back(move_boxes(boxes, (70, 90), view), (70, 90), view), boxes, atol=1e-9)


def test_pasted_objects_hide_what_is_below_them(drawn):
    """Pixels are the other image's where its objects are, and the first image's elsewhere; no mask lies on another."""
    bare, pasted = stream(drawn, batch=1), stream(drawn, batch=1, copy_paste=True)
    num_pasted = []
    for step, (before, after) in enumerate(zip(bare.batches(0, 30), pasted.batches(0, 30))):
        index, view, chosen = pasted._chosen_paste(step)
        num_pasted.append(len(chosen))
        if not len(chosen):
            assert torch.equal(after.images, before.images) and torch.equal(after.gt_boxes[:, :4], before.gt_boxes)
            continue
        objects = visible_objects(pasted.targets.dataset, pasted.targets.frames, chosen, view)
        alpha = torch.from_numpy(alpha_of(objects, (CROP, CROP)))
        other = stack_images([drawn.load_image(index)], [view], (CROP, CROP), PLAIN, "cpu")
        assert torch.equal(after.images, torch.where(alpha, other, before.images))
        own = int(after.gt_valid[0].sum()) - len(objects.indices)
        assert 0 <= own <= int(before.gt_valid[0].sum())
        np.testing.assert_allclose(after.gt_boxes[0, own : own + len(objects.indices)], objects.boxes, rtol=1e-6)
        for place in range(own):
            box, frame = after.gt_boxes[0, place].double().numpy(), after.gt_masks[0, place].numpy()
            covered = alpha_of(Objects(np.zeros(1), box[None], frame[None], None), (CROP, CROP)) & alpha.numpy()
            assert covered.sum() <= 0.5 * (box[2:] - box[:2]).sum()  # half a pixel along a border at most
    assert set(num_pasted) >= {0, 1, 2}


def square(tmp_path, side=100):
    """A data set of one full square object in an image of 1024 pixels, and the table of its mask."""
    polygon = [200, 300, 200 + side, 300, 200 + side, 300 + side, 200, 300 + side]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [200, 300, side, side], "area": 1, "iscrowd": 0}
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 1024, "width": 1024}]}
    content |= {"annotations": [entry | {"segmentation": [polygon]}], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = read(tmp_path / "a.json", tmp_path)
    return data, FrameTable(data, 100)


@pytest.mark.parametrize(
    ("strip", "kept"),
    [(0, False), (2, False), (3, False), (4, True), (50, True), (95, True), (100, True)],
    ids=lambda value: str(value),
)
def test_an_object_nearly_hidden_is_left_out(tmp_path, strip, kept):
    """Of 100 x 100 pixels a strip stays: more than 300 of them, or sides within 10 pixels of where they were."""
    data, table = square(tmp_path)
    view = View((1024, 1024), False, (1024, 1024))
    cover = np.zeros((1024, 1024), bool)
    cover[:, 200 + strip : 600] = True
    found = visible_objects(data, table, np.array([0]), view, cover)
    assert len(found.indices) == int(kept)
    if kept:
        assert found.boxes.tolist() == [[200, 300, 200 + strip, 400]] and found.frames.all()


def test_a_box_that_touches_the_window_by_a_hair_is_left_out(tmp_path):
    data, table = square(tmp_path)
    for width, expected in ((200, 0), (201, 1)):
        view = View((1024, width), False, (1024, 1024))
        assert len(visible_objects(data, table, np.array([0]), view).indices) == expected


def test_every_number_of_objects_is_as_likely_and_every_object_too():
    generator = np.random.default_rng(0)
    parts = [choose(np.arange(10, 14), generator) for _ in range(2000)]
    sizes = np.bincount([len(part) for part in parts], minlength=5) / len(parts)
    np.testing.assert_allclose(sizes, 0.2, atol=0.03)
    np.testing.assert_allclose(np.bincount(np.concatenate(parts), minlength=14)[10:] / len(parts), 0.5, atol=0.04)
    assert len(choose(np.zeros(0, int), generator)) == 0
