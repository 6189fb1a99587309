"""Flips, quarter turns, mosaic, hue and one's own transform: functions of the slot, and boxes where the pixels are."""

import colorsys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_jitter import CROP, FINE, PLAIN, SHAPES, drawn, equal  # noqa: F401 -- drawn is a fixture

from headstart.data.augment.colour import Colour, ColourJitter, recolour
from headstart.data.augment.own import Transform
from headstart.data.augment.rules import Augmentation, Jitter, draw_quadrants
from headstart.data.order import slot_generator
from headstart.data.stream import Reading
from headstart.data.train_stream import TrainStream
from headstart.data.views import View, move_boxes, move_boxes_back, move_frames, move_keypoints, stack_images
from headstart.ops.polygons import inside as cells_inside

NOISE = Transform("tests:noise", lambda image, generator: image ^ generator.integers(0, 32, image.shape, np.uint8))
JITTER = Jitter(0.3, 2.0, CROP)
TURNED = Augmentation((CROP,), CROP, 0.5, JITTER, flip_vertical=0.5, quarter_turns=True)
ALL = replace(TURNED, copy_paste=True, colour=ColourJitter(0.4, 0.4, 0.4, 0.1, 0.2), mosaic=0.5, transform=NOISE)
CASES = {
    "whole": replace(TURNED, jitter=None, shorts=(48, CROP)),
    "turned": TURNED,
    "mosaic": replace(TURNED, mosaic=1.0),
    "all": ALL,
}


def stream(dataset, augmentation, **changes):
    reading = replace(Reading(2, 7, cache=True, num_workers=0), **changes)
    return TrainStream(dataset, augmentation, PLAIN, reading, mask_frame=56, max_objects=None)


@pytest.mark.parametrize("case", CASES)
def test_batches_are_a_function_of_seed_step_and_slot(drawn, case):  # noqa: F811
    """Whatever the workers, the first step and the processes."""
    augmentation = CASES[case]
    expected = list(stream(drawn, augmentation).batches(0, 8))
    assert all(map(equal, expected, stream(drawn, augmentation, num_workers=3, cache=False).batches(0, 8)))
    assert all(map(equal, expected[5:], stream(drawn, augmentation).batches(5, 8)))
    shares = [stream(drawn, augmentation, rank=rank, num_ranks=2).batches(0, 8) for rank in range(2)]
    for whole, first, second in zip(expected, *shares):
        for field in fields(whole):
            joined = torch.cat([getattr(first, field.name), getattr(second, field.name)])
            assert torch.equal(joined, getattr(whole, field.name)), field.name
    assert not any(map(equal, expected, stream(drawn, augmentation, seed=8).batches(0, 8)))


@pytest.mark.parametrize("case", CASES)
def test_a_run_counts_what_its_batches_show(drawn, case):  # noqa: F811
    own = stream(drawn, CASES[case])
    for step, batch in enumerate(own.batches(0, 10)):
        instances, pixels = own.counts(step)
        assert pixels == int(batch.sizes.prod(dim=1).sum()) and instances >= int(batch.gt_valid.sum())
        beyond = [image[:, height:].abs().sum() + image[:, :, width:].abs().sum()
                  for image, (height, width) in zip(batch.images, batch.sizes.tolist())]  # fmt: skip
        assert not any(beyond)


VIEWS = [
    View(size[::-1] if turn % 2 else size, flip, (40, 56), corner, turn, place)
    for flip in (False, True)
    for turn in range(4)
    for size, corner, place in (((40, 56), (0, 0), (0, 0)), ((17, 31), (9, 14), (20, 6)))
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: f"{view.flip}-{view.turn}-{view.place}")
def test_points_boxes_and_masks_are_where_the_pixels_are(view):
    """Every pixel of the window, and boxes of whole pixels: compared with the pixels themselves."""
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    canvas = stack_images([image], [view], (80, 80), PLAIN, "cpu")[0].permute(1, 2, 0).numpy()
    (top, left), (height, width) = view.corner, view.window
    rows, columns = (each.ravel() for each in np.mgrid[top : top + height, left : left + width])
    points = np.stack([columns + 0.5, rows + 0.5, np.full(len(rows), 2.0)], axis=1)[None]
    moved = move_keypoints(points, (40, 56), view, ())[0]
    x, y = moved[:, 0].astype(int), moved[:, 1].astype(int)
    np.testing.assert_array_equal(canvas[y, x], image[rows, columns])
    assert len(set(zip(x, y))) == len(x) and (canvas.sum(2) > 0).sum() <= len(x)
    assert (x.min(), y.min()) == view.place[::-1] and (x.max() + 1, y.max() + 1) == view.end[::-1]
    boxes = np.array([[left + 2, top + 3, left + 13, top + 14], [left, top, left + 9, top + 9]], float)
    shown = move_boxes(boxes, (40, 56), view)
    for (x1, y1, x2, y2), (a, b, c, d) in zip(boxes.astype(int), shown.astype(int)):
        cells = np.moveaxis(move_frames(np.moveaxis(image[y1:y2, x1:x2], 2, 0), view), 0, 2)
        np.testing.assert_array_equal(canvas[b:d, a:c], cells)
    np.testing.assert_allclose(move_boxes_back(shown, (40, 56), view), boxes, atol=1e-9)


def test_four_quarter_turns_and_two_flips_are_the_identity():
    """And a vertical flip is a mirror and two quarters."""
    image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    box = np.array([[2.0, 3.0, 17.0, 11.0]])

    def shown(pixels, view):
        return stack_images([pixels], [view], view.size, PLAIN, "cpu")[0].permute(1, 2, 0).numpy().astype(np.uint8)

    pixels, boxes, size = image, box, (24, 36)
    for _ in range(4):
        view = View(size[::-1], False, turn=1)
        pixels, boxes, size = shown(pixels, view), move_boxes(boxes, size, view), size[::-1]
    np.testing.assert_array_equal(pixels, image)
    assert boxes.tolist() == box.tolist()
    vertical = replace(TURNED, flip=0.0, flip_vertical=1.0, quarter_turns=False, jitter=None, shorts=(24,), long=36)
    view = vertical.view(24, 36, slot_generator(0, 3, 0))
    np.testing.assert_array_equal(shown(image, view), image[::-1])
    np.testing.assert_array_equal(shown(shown(image, view), view), image)
    assert move_boxes(box, (24, 36), view).tolist() == [[2.0, 24 - 11.0, 17.0, 24 - 3.0]]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", range(4))
def test_left_and_right_change_places_where_the_image_is_mirrored(flip, turn):
    points = np.array([[[10.0, 4.0, 2], [12.0, 5.0, 1]]])
    found = move_keypoints(points, (20, 20), View((20, 20), flip, turn=turn), ((0, 1),))
    assert found[0, :, 2].tolist() == ([1, 2] if flip else [2, 1])


def test_flips_and_turns_are_as_likely_as_asked():
    rule = replace(TURNED, flip=0.5, flip_vertical=0.25)
    views = [rule.view(30, 50, slot_generator(0, 3, slot)) for slot in range(1000)]
    np.testing.assert_allclose(np.bincount([view.turn for view in views]) / len(views), 0.25, atol=0.06)
    flipped = [replace(rule, quarter_turns=False).view(30, 50, slot_generator(0, 3, slot)) for slot in range(1000)]
    kinds = np.array([(view.flip, view.turn) for view in flipped])
    assert np.mean(kinds[:, 1] == 2) == pytest.approx(0.25, abs=0.05)
    assert np.mean((kinds[:, 0] == 0) & (kinds[:, 1] == 0)) == pytest.approx(0.375, abs=0.05)
    plain = replace(TURNED, flip_vertical=0.0, quarter_turns=False).view(30, 50, slot_generator(0, 3, 5))
    assert (plain.turn, plain.place) == (0, (0, 0))


def forwards(points, size, view):
    """Points [n,2] of an image, in pixels of the padded image: by `move_keypoints`, which the pixels confirm above."""
    return move_keypoints(np.append(points, np.ones((len(points), 1)), axis=1)[None], size, view, ())[0, :, :2]


@pytest.mark.parametrize("case", ["turned", "mosaic"])
def test_boxes_masks_and_keypoints_are_what_the_windows_show(drawn, case):  # noqa: F811
    """Tight boxes and masks against polygons rasterised in the padded image, keypoints against their places."""
    own, found_all, tiles = stream(drawn, CASES[case], batch=1), 0, 0
    for step, batch in enumerate(own.batches(0, 25)):
        parts = own._parts(step, int(own.stream.step(step)[0][0]))
        tiles += len(parts)
        found = int(batch.gt_valid[0].sum())
        boxes, frames = batch.gt_boxes[0, :found].double().numpy(), batch.gt_masks[0, :found].numpy()
        labelled = batch.gt_keypoints[0, :found].flatten(0, 1).numpy()
        labelled, expected, shown = labelled[labelled[:, 2] > 0], [], 0
        for index, view in parts:
            size, polygons = SHAPES["abc"[index]]
            (top, left), (bottom, right) = view.place, view.end
            for polygon in polygons:
                corners = forwards(np.asarray(polygon, float).reshape(-1, 2), size, view)
                cells = cells_inside([corners], np.array([0, 0, CROP, CROP]), FINE, FINE)
                window = np.zeros_like(cells)
                window[top * FINE // CROP : bottom * FINE // CROP, left * FINE // CROP : right * FINE // CROP] = True
                cells = cells & window
                points = forwards(np.asarray(polygon, float).reshape(-1, 2)[:3] + 0.5, size, view)
                inside = ((points >= (left, top)) & (points < (right, bottom))).all(1)
                expected += points[inside].tolist() if cells.any() else []
                if cells.sum() <= 40:
                    continue
                shown += 1
                y, x = (np.flatnonzero(cells.any(axis)) / FINE * CROP for axis in (1, 0))
                tight = np.array([x[0], y[0], x[-1] + CROP / FINE, y[-1] + CROP / FINE])
                match = np.abs(boxes - tight).max(1).argmin()
                extent = boxes[match, 2:] - boxes[match, :2]
                low, high = np.clip(np.array([corners.min(0), corners.max(0)]), (left, top), (right, bottom))
                cell = (high - low).max() / 56  # of the frame over the cut box, in which the tight box is found
                assert np.abs(boxes[match] - tight).max() <= cell + CROP / FINE
                centres = (np.arange(56)[:, None] + 0.5) / 56 * extent + boxes[match, :2]
                columns, rows = np.minimum(centres * FINE / CROP, FINE - 1).astype(int).T
                assert (cells[np.ix_(rows, columns)] == frames[match]).mean() > 0.95
        assert shown <= found <= sum(len(SHAPES["abc"[index]][1]) for index, _ in parts)
        assert all(min(np.abs(np.array(place) - point[:2]).max() for place in expected) < 0.01 for point in labelled)
        found_all += len(labelled)
    assert found_all > 20 and tiles == (100 if case == "mosaic" else 25)


def test_the_four_parts_of_a_mosaic_meet_at_one_point_and_do_not_overlap(drawn):  # noqa: F811
    own, inner = stream(drawn, CASES["mosaic"], batch=1), set()
    for slot in range(60):
        quadrants = draw_quadrants(CROP, slot_generator(1, slot))
        assert len({quadrant.centre for quadrant in quadrants}) == 1
        assert sum(quadrant.room[0] * quadrant.room[1] for quadrant in quadrants) == CROP**2
        assert all(CROP // 4 <= side <= 3 * CROP // 4 for side in quadrants[0].centre)
        cover = np.zeros((CROP, CROP), int)
        for _, view in own._parts(slot, 0):
            (top, left), (bottom, right) = view.place, view.end
            cover[top:bottom, left:right] += 1
            inner.add((view.flip, view.turn))
        assert cover.max() == 1
    assert len(inner) == 8
    assert own._parts(3, 0) != own._parts(4, 0)


def test_crowds_stay_ignored_in_every_window(drawn):  # noqa: F811
    """In a data set whose second image is all crowd, of another label: flags and labels stay together."""
    crowd = drawn.image_of == 1
    marked = replace(
        drawn, crowd=crowd, labels=crowd.astype(np.int32), category_ids=np.array([1, 2]), class_names=("a", "b")
    )
    seen = set()
    for batch in stream(marked, CASES["all"]).batches(0, 20):
        assert torch.equal(batch.gt_crowd, (batch.gt_labels == 1) & batch.gt_valid)
        seen |= set(batch.gt_crowd[batch.gt_valid].tolist())
    assert seen == {True, False}


def test_padded_images_are_squares_where_they_may_be_turned(drawn):  # noqa: F811
    plain = replace(CASES["whole"], quarter_turns=False, long=300)
    turned = replace(plain, quarter_turns=True)
    groups = turned.groups(drawn, smallest=1)
    assert set(plain.groups(drawn, smallest=1)) == {(64, 64), (64, 192), (192, 64)}
    assert sorted(groups) == [(64, 64), (192, 192)]
    assert sorted(index for members in groups.values() for index in members.tolist()) == [0, 1, 2]


def test_hue_is_that_of_the_colour_circle():
    """Against Python's own HSV; grey keeps its colour, and a whole turn all of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.float64)
    pixels[0] = pixels[0, :, :1]
    for turn in (0.05, -0.3, 0.5):
        found = recolour(torch.from_numpy(pixels), Colour((), (0.0, 0.0, 0.0), turn)).numpy()
        for place in np.ndindex(9, 7):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixels[place] / 255)
            wanted = np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255
            np.testing.assert_allclose(found[place], wanted, atol=1e-9)
    whole = recolour(torch.from_numpy(pixels), Colour((), (0.0, 0.0, 0.0), 1.0)).numpy()
    np.testing.assert_allclose(whole, pixels, atol=1e-9)
    jitter = ColourJitter(0.0, 0.0, 0.0, 0.0, 0.1)
    turns = [jitter.draw(slot_generator(0, 5, slot)).hue for slot in range(100)]
    assert -0.1 <= min(turns) < -0.08 and 0.08 < max(turns) <= 0.1
    with_hue, without = (replace(ALL.colour, hue=hue).draw(slot_generator(0, 5, 3)) for hue in (0.2, 0.0))
    assert replace(with_hue, hue=0.0) == without


def test_pasted_objects_have_the_colours_of_the_image_they_are_pasted_on(drawn):  # noqa: F811
    bright = replace(ALL, mosaic=0.0, transform=None, colour=ColourJitter(0.5, 0.0, 0.0, 0.0))
    coloured, plain = (stream(drawn, replace(bright, colour=c)) for c in (bright.colour, None))
    for step, (one, other) in enumerate(zip(coloured.batches(0, 6), plain.batches(0, 6))):
        for slot, colour in enumerate(coloured.raw(step).colours):
            factor = dict(colour.factors)["brightness"]
            torch.testing.assert_close(one.images[slot], other.images[slot] * factor)


def test_ones_own_transform_sees_every_part_with_its_own_numbers(drawn):  # noqa: F811
    seen = []

    def note(image, generator):
        seen.append((image.shape, int(generator.integers(2**31))))
        image[:] = 9
        return image

    own = stream(drawn, replace(ALL, mosaic=1.0, transform=Transform("tests:note", note)), batch=1)
    first = own.raw(4)
    again, numbers = list(seen), [number for _, number in seen]
    assert len(again) == 4 + sum(paste is not None for paste in first.pastes) and len(set(numbers)) == len(numbers)
    seen.clear()
    own.raw(4)
    assert seen == again
    assert all((image == 9).all() for image in first.images) and not (own.stream.images(0) == 9).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda image, _: image[:-1], r"returned uint8 \[59, 80, 3\], expected an array uint8 \[60, 80, 3\]"),
        (lambda image, _: image.astype(np.float64), r"returned float64 \[60, 80, 3\], expected an array uint8"),
        (lambda image, _: None, r"returned NoneType, expected an array"),
        (lambda image, _: {"image": image}["pixels"], r"KeyError: 'pixels'"),
    ],
)
def test_what_a_transform_may_not_do(drawn, function, message):  # noqa: F811
    own = stream(drawn, replace(TURNED, transform=Transform("mine:change", function)), batch=3)
    with pytest.raises(ValueError, match=rf"^input\.transform: mine:change on .*a\.png: {message}") as error:
        own._image(0, 0, 0)
    assert "\n" not in str(error.value)
