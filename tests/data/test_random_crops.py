"""CornerNet's random crop and colours: what a view shows, a function of the slot alone, against the released rules."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_jitter import CROP, PLAIN, SHAPES, drawn, equal, fine  # noqa: F401 -- drawn is a fixture

from headstart.data.augment.colour import DEVIATIONS, DIRECTIONS, GREY, Colour, ColourJitter, recolour
from headstart.data.augment.rules import Augmentation, Crop, draw_crop
from headstart.data.order import slot_generator
from headstart.data.stream import Reading
from headstart.data.train_stream import TrainStream
from headstart.data.views import View, stack_images

SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
RULE = Crop(CROP, SCALES, 16)
COLOURS = ColourJitter(0.4, 0.4, 0.4, 0.1)
AUGMENTATION = Augmentation((CROP,), CROP, 0.5, crop=RULE)


def stream(dataset, *, colour=COLOURS, **changes):
    reading = replace(Reading(2, 7, cache=True, num_workers=0), **changes)
    return TrainStream(dataset, replace(AUGMENTATION, colour=colour), PLAIN, reading, mask_frame=56, max_objects=None)


def test_batches_are_a_function_of_seed_step_and_slot(drawn):  # noqa: F811
    """Whatever the workers, the first step and the processes."""
    expected = list(stream(drawn).batches(0, 8))
    assert all(map(equal, expected, stream(drawn, num_workers=3, cache=False).batches(0, 8)))
    assert all(map(equal, expected[5:], stream(drawn).batches(5, 8)))
    shares = [stream(drawn, rank=rank, num_ranks=2).batches(0, 8) for rank in range(2)]
    for whole, first, second in zip(expected, *shares):
        for field in fields(whole):
            joined = torch.cat([getattr(first, field.name), getattr(second, field.name)])
            assert torch.equal(joined, getattr(whole, field.name)), field.name
    assert not any(map(equal, expected, stream(drawn, seed=8).batches(0, 8)))


def test_colours_change_pixels_alone(drawn):  # noqa: F811
    for with_colours, plain in zip(stream(drawn).batches(0, 6), stream(drawn, colour=None).batches(0, 6)):
        assert not torch.equal(with_colours.images, plain.images)
        assert equal(replace(with_colours, images=plain.images), plain)
        assert torch.equal(with_colours.images == 0, plain.images == 0) or (plain.images == 0).any()


def released_border(border, side):
    """The released code's rule, with its loop over divisors."""
    divisor = 1
    while side - border // divisor <= border // divisor:
        divisor *= 2
    return border // divisor


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (100, 40), (33, 700), (1, 1)])
def test_the_view_is_the_part_of_the_image_in_a_random_square(size):
    rule, seen = Crop(512, SCALES, 128), set()
    for slot in range(200):
        view = draw_crop(*size, rule, 0.5, slot_generator(0, 3, slot))
        place, *centre, coin = slot_generator(0, 3, slot).random(4)
        scale = SCALES[int(place * len(SCALES))]
        assert view.flip == (coin < 0.5) and view.whole == tuple(max(round(side / scale), 1) for side in size)
        for axis, side in enumerate(size):
            border = released_border(128, side)
            middle = border + centre[axis] * (side - 2 * border)
            low, high = max(middle - scale * 256, 0), min(middle + scale * 256, side)
            assert view.corner[axis] * scale == pytest.approx(low, abs=scale)
            assert (view.corner[axis] + view.size[axis]) * scale == pytest.approx(high, abs=scale)
            assert 1 <= view.size[axis] <= 512 and view.corner[axis] + view.size[axis] <= view.whole[axis]
        seen.add((scale, view.flip))
    assert len(seen) == 16


def test_pixels_and_boxes_are_those_of_the_view(drawn):  # noqa: F811
    own, cut = stream(drawn, colour=None, batch=1), 0
    for step, batch in enumerate(own.batches(0, 30)):
        index, view = int(batch.image_ids[0]), own.raw(step).views[0]
        whole = stack_images([drawn.load_image(index)], [View(view.whole, False)], view.whole, PLAIN, "cpu")
        (top, left), (height, width) = view.corner, view.size
        window = whole[..., top : top + height, left : left + width]
        assert torch.equal(batch.images[..., :height, :width], window.flip(3) if view.flip else window)
        size, polygons = SHAPES["abc"[index]]
        shown = [cells for polygon in polygons if (cells := fine(polygon, size, view)).sum() > 40]
        assert int(batch.gt_valid[0].sum()) >= len(shown)
        cut += view.size != view.whole
        for cells in shown:
            rows, columns = (np.flatnonzero(cells.any(axis=axis)) / 8 for axis in (1, 0))
            tight = torch.tensor([columns[0], rows[0], columns[-1], rows[-1]])
            assert float((batch.gt_boxes[0] - tight).abs().amax(dim=1).min()) < 1.5
    assert cut > 10


def released_colours(image, factors, alpha):
    """Color jitter and lighting of the released code on an RGB image in 0..1, in its order of work."""
    grey = (image * GREY).sum(axis=2)
    for name, factor in factors:
        if name == "brightness":
            image = image * factor
        elif name == "saturation":
            image = image * factor + grey[:, :, None] * (1 - factor)
        else:
            image = image * factor + grey.mean() * (1 - factor)
    return image + np.dot(np.array(DIRECTIONS), np.array(DEVIATIONS) * alpha)


def test_colours_are_those_of_the_released_code():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.float64)
    orders = set()
    for slot in range(60):
        drawn_ = COLOURS.draw(slot_generator(1, 5, slot))
        generator = slot_generator(1, 5, slot)
        generator.uniform(-1, 1, 3), generator.permutation(3)
        wanted = released_colours(image / 255, drawn_.factors, generator.normal(0.0, 1.0, 3) * 0.1) * 255
        np.testing.assert_allclose(recolour(torch.from_numpy(image), drawn_), wanted, rtol=1e-12, atol=1e-10)
        assert all(0.6 <= factor <= 1.4 for _, factor in drawn_.factors)
        orders.add(tuple(name for name, _ in drawn_.factors))
    assert len(orders) == 6
    np.testing.assert_allclose(np.array(DIRECTIONS).T @ DIRECTIONS, np.eye(3), atol=1e-6)


def test_no_colours_change_nothing():
    pixels = torch.rand(5, 4, 3, dtype=torch.float64) * 255
    same = ColourJitter(0.0, 0.0, 0.0, 0.0).draw(slot_generator(0, 5, 0))
    assert torch.equal(recolour(pixels, same), pixels)
    doubled = recolour(pixels, Colour((("brightness", 2.0),), (1.0, 2.0, 3.0)))
    torch.testing.assert_close(doubled, 2 * pixels + torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
