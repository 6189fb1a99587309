"""Frames equal a brute-force point-in-polygon and, where both are exact, pycocotools."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from headstart.data import masks, rle
from headstart.data.dataset import NO_SEGMENT
from headstart.data.read import coco
from headstart.metrics.overlaps import annotation_rles
from headstart.ops.polygons import inside as cells_inside

RNG = np.random.default_rng(1)


def inside(point, polygon):
    """Even-odd rule, one point, one polygon, in plain Python."""
    x, y = point
    odd = False
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, 0)):
        if (y1 <= y) != (y2 <= y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            odd = not odd
    return odd


def brute_force(polygons, box, size):
    step = (box[2:] - box[:2]) / size
    return np.array(
        [
            [any(inside(box[:2] + (c + 0.5, r + 0.5) * step, p) for p in polygons) for c in range(size)]
            for r in range(size)
        ]
    )


@pytest.mark.parametrize("num_points", [3, 4, 9, 40])
@pytest.mark.parametrize("num_polygons", [1, 3])
def test_rasterise_equals_brute_force(num_points, num_polygons):
    polygons = [RNG.uniform(10, 90, (num_points, 2)) for _ in range(num_polygons)]  # self-intersecting: even-odd
    points = np.concatenate(polygons)
    tight = np.concatenate((points.min(0), points.max(0)))
    for box in (tight, tight + (-5.5, -3, 7, 0.25), tight + (10, 10, -12, -11)):  # tight, larger, cutting
        np.testing.assert_array_equal(cells_inside(polygons, box, 16, 16), brute_force(polygons, box, 16))


def test_vertices_and_edges_on_cell_centres_follow_the_half_open_rule():
    square = np.array([[2.5, 2.5], [5.5, 2.5], [5.5, 5.5], [2.5, 5.5]])
    expected = np.zeros((8, 8), bool)
    expected[2:5, 2:5] = True  # left and top edges inside, right and bottom edges not
    np.testing.assert_array_equal(cells_inside([square], np.array([0.0, 0, 8, 8]), 8, 8), expected)
    diamond = np.array([[4.5, 0.5], [8.5, 4.5], [4.5, 8.5], [0.5, 4.5]])
    np.testing.assert_array_equal(
        cells_inside([diamond], np.array([0.0, 0, 10, 10]), 10, 10),
        brute_force([diamond], np.array([0.0, 0, 10, 10]), 10),
    )


def test_overlapping_polygons_unite_and_adjacent_ones_leave_no_gap():
    left, right = ([[x, 0], [x + 5, 0], [x + 5, 8], [x, 8]] for x in (0, 3))
    both = cells_inside([np.array(left, float), np.array(right, float)], np.array([0.0, 0, 8, 8]), 8, 8)
    assert both.all()
    halves = [np.array([[0, 0], [4.5, 0], [4.5, 8], [0, 8]]), np.array([[4.5, 0], [8, 0], [8, 8], [4.5, 8]])]
    assert cells_inside(halves, np.array([0.0, 0, 8, 8]), 8, 8).all()


def test_no_polygons_and_polygons_outside_the_box_are_empty():
    box = np.array([0.0, 0, 8, 8])
    assert not cells_inside([], box, 8, 8).any()
    assert not cells_inside([np.array([[20.0, 20], [30, 20], [30, 30]])], box, 8, 8).any()
    assert cells_inside([np.array([[-1e5, -1e5], [1e5, -1e5], [1e5, 1e5], [-1e5, 1e5]])], box, 8, 8).all()


def staircase(size, steps):
    """A polygon of whole-pixel steps inside size x size that touches all four sides."""
    xs = np.sort(RNG.choice(np.arange(1, size), steps, replace=False))
    ys = np.sort(RNG.choice(np.arange(1, size), steps, replace=False))[::-1]
    points = [(0, 0), (size, 0)]
    points += [(size, ys[0])]
    for x, y, following in zip(xs[::-1], ys, [*ys[1:], None]):
        points.append((x, y))
        points.append((x, following if following is not None else size))
    return np.array([*points[:-1], (xs[0], size), (0, size)], float)


@pytest.mark.parametrize("size", [8, 28, 56])
def test_at_whole_pixels_rasterise_equals_pycocotools(size):
    offset = np.array([3.0, 5.0])
    for steps in (1, 3, 5):
        polygon = staircase(size, steps) + offset
        compressed = coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist()], size + 9, size + 7))
        decoded = coco_mask.decode(compressed)[5 : 5 + size, 3 : 3 + size].astype(bool)
        box = np.concatenate((offset, offset + size))
        assert 0 < decoded.sum() < size * size
        np.testing.assert_array_equal(cells_inside([polygon], box, size, size), decoded)


def test_on_any_polygon_pycocotools_differs_only_at_the_edge():
    angles = np.sort(RNG.uniform(0, 2 * np.pi, 30))
    polygon = 32 + np.stack((np.cos(angles), np.sin(angles)), 1) * RNG.uniform(12, 31, 30)[:, None]
    ours = cells_inside([polygon], np.array([0.0, 0, 64, 64]), 64, 64)
    theirs = coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], 64, 64))[:, :, 0].astype(bool)
    start, along = polygon, np.roll(polygon, -1, 0) - polygon
    for row, column in np.argwhere(ours != theirs):
        to = np.array([column + 0.5, row + 0.5]) - start
        fraction = np.clip((to * along).sum(1) / (along**2).sum(1), 0, 1)[:, None]
        assert np.hypot(*(to - fraction * along).T).min() < 1
    assert (ours != theirs).mean() < 0.02 and ours.any()


def make_dataset(num=60):
    """Polygons, RLE and bare boxes in turn, on images of 40 x 50, boxes partly outside."""
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in (7, 3)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [],
    }
    for n in range(num):
        x, y = RNG.uniform(-5, 30, 2).tolist()
        w, h = RNG.uniform(4, 30, 2).tolist()
        record = {"id": n, "image_id": (7, 3)[n % 2], "category_id": 1, "bbox": [x, y, w, h], "area": 1.0, "iscrowd": 0}
        if n % 3 == 0:
            points = (np.array([x, y]) + RNG.random((6, 2)) * (w, h)).ravel().tolist()
            record["segmentation"] = [points]
        elif n % 3 == 1:
            mask = np.asfortranarray(RNG.random((40, 50)) < 0.5, dtype=np.uint8)
            record["segmentation"] = {"size": [40, 50], "counts": coco_mask.encode(mask)["counts"].decode()}
        document["annotations"].append(record)
    return coco.from_document(document, "made.json", ".")


def test_frames_are_packed_to_bits_and_unpacked_as_they_were(monkeypatch):
    dataset = make_dataset(5)
    for size in (4, 28, 56, 112):
        frames = RNG.random((5, size, size)) < 0.5
        table = masks.FrameTable(dataset, size)
        monkeypatch.setattr(table, "over", lambda n, box, frames=frames: frames[n])
        found = table.frames(np.arange(5))
        assert table.packed.shape == (5, size * size // 8) and found.dtype == bool
        np.testing.assert_array_equal(found, frames)


def test_frame_table_of_polygons_rle_and_boxes():
    dataset = make_dataset()
    found = masks.FrameTable(dataset, 12).frames(np.arange(60))
    for n in range(60):
        box = dataset.boxes[n]
        if dataset.segment_kind[n] == coco.POLYGONS:
            expected = brute_force(dataset.polygons(n), box, 12)
        elif dataset.segment_kind[n] == coco.RLE:
            decoded = coco_mask.decode(dataset.rles[n])
            expected = np.zeros((12, 12), bool)
            for r in range(12):
                for c in range(12):
                    column, row = np.floor(box[:2] + (np.array([c, r]) + 0.5) / 12 * (box[2:] - box[:2])).astype(int)
                    if 0 <= row < 40 and 0 <= column < 50:
                        expected[r, c] = decoded[row, column]
        else:
            expected = np.ones((12, 12), bool)
        np.testing.assert_array_equal(found[n], expected)
    assert set(dataset.segment_kind) == {0, 1, 2}


def test_frame_table_is_filled_on_demand_and_takes_repeats_and_nothing():
    table = masks.FrameTable(make_dataset(), 8)
    assert not table.packed.any()
    twice = table.frames([4, 0, 4])
    assert twice.shape == (3, 8, 8)
    np.testing.assert_array_equal(twice[0], twice[2])
    assert set(np.flatnonzero(table.packed.any(1))) <= {0, 4}
    assert table.frames([]).shape == (0, 8, 8)


def test_threads_share_one_table():
    dataset = make_dataset()
    expected = masks.FrameTable(dataset, 28).frames(np.arange(60))
    table, wrong = masks.FrameTable(dataset, 28), []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            chosen = rng.integers(0, 60, 7)
            if not np.array_equal(table.frames(chosen), expected[chosen]):
                wrong.append(chosen)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    np.testing.assert_array_equal(table.frames(np.arange(60)), expected)


@pytest.mark.parametrize("size", [0, 3, 30])
def test_frame_size_must_fill_bytes(size):
    with pytest.raises(ValueError, match=f"size = {size}: expected a multiple of 4"):
        masks.FrameTable(make_dataset(3), size)


def test_annotation_mask_equals_pycocotools():
    dataset = make_dataset(12)
    for n in range(12):
        found = masks.annotation_mask(dataset, n)
        assert found.shape == (40, 50) and found.dtype == bool
        if dataset.segment_kind[n] == coco.POLYGONS:
            flat = [polygon.ravel().tolist() for polygon in dataset.polygons(n)]
            expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, 40, 50)))
        elif dataset.segment_kind[n] == coco.RLE:
            expected = coco_mask.decode(dataset.rles[n])
        else:
            x1, y1, x2, y2 = dataset.boxes[n]
            expected = coco_mask.decode(coco_mask.frPyObjects(np.array([[x1, y1, x2 - x1, y2 - y1]]), 40, 50))[:, :, 0]
        np.testing.assert_array_equal(found, expected)


def test_an_annotation_without_segmentation_has_the_same_pixels_everywhere():
    """pycocotools fills a box as a polygon; evaluation and label maps use the same pixels (not those by centres)."""
    dataset = make_dataset(60)
    dataset = replace(dataset, boxes=np.round(2 * dataset.boxes) / 2)  # edges through pixel centres, where rules differ
    boxes = np.flatnonzero(dataset.segment_kind == NO_SEGMENT)
    differing = 0
    for n, evaluated in zip(boxes, annotation_rles(dataset, boxes)):
        x1, y1, x2, y2 = dataset.boxes[n]
        assert masks.annotation_rle(dataset, n) == evaluated
        assert evaluated == coco_mask.frPyObjects(np.array([[x1, y1, x2 - x1, y2 - y1]]), 40, 50)[0]
        rows, columns = np.arange(40)[:, None] + 0.5, np.arange(50)[None] + 0.5
        by_centres = (rows >= y1) & (rows < y2) & (columns >= x1) & (columns < x2)
        differing += (coco_mask.decode(evaluated) != by_centres).any()
    assert len(boxes) == 20 and differing > 5  # the two rules are not the same


def test_runs_equal_the_decoded_mask():
    for density in (0.0, 0.01, 0.5, 1.0):
        for shape in ((1, 1), (7, 3), (200, 300)):
            mask = np.asfortranarray(RNG.random(shape) < density, dtype=np.uint8)
            found = rle.runs(coco_mask.encode(mask)["counts"])
            values = np.repeat(np.arange(found.size) % 2, found)
            np.testing.assert_array_equal(values, mask.ravel(order="F"))
