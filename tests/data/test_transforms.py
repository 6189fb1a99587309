"""Views of images and what is on them: a mirror twice is nothing, boxes move with pixels, padding is zero."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import normalize

from headstart.batch import InputSpec
from headstart.data.augment.rules import draw_view
from headstart.data.order import slot_generator
from headstart.data.train_stream import crop_images
from headstart.data.views import View, move_boxes, move_keypoints, stack_images

PLAIN = InputSpec((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "rgb")
IMAGENET = InputSpec((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "rgb")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 31, 3), dtype=np.uint8)


def random_boxes(num, height, width):
    low = RNG.random((num, 2)) * [width, height]
    return np.concatenate([low, low + RNG.random((num, 2)) * ([width, height] - low)], axis=1)


def test_flip_twice_is_the_identity_for_image_boxes_masks_and_keypoints():
    flip, size = View((20, 31), True), (20, 31)
    once = stack_images([IMAGE], [flip], (32, 32), PLAIN, "cpu")[0, :, :20, :31]
    twice = stack_images([once.permute(1, 2, 0).numpy().astype(np.uint8)], [flip], (32, 32), PLAIN, "cpu")
    assert torch.equal(twice[0, :, :20, :31], torch.from_numpy(IMAGE).permute(2, 0, 1).float())
    boxes = random_boxes(9, *size)
    np.testing.assert_allclose(move_boxes(move_boxes(boxes, size, flip), size, flip), boxes, atol=1e-12)
    points = RNG.random((4, 5, 3)) * 20
    pairs = ((1, 2), (3, 4))
    mirrored = move_keypoints(points, size, flip, pairs)
    np.testing.assert_allclose(move_keypoints(mirrored, size, flip, pairs), points, atol=1e-12)
    np.testing.assert_allclose(mirrored[:, 1], points[:, 2] * [-1, 1, 1] + [31, 0, 0], atol=1e-12)
    np.testing.assert_allclose(mirrored[:, 0], points[:, 0] * [-1, 1, 1] + [31, 0, 0], atol=1e-12)


def test_moving_keypoints_leaves_the_originals_alone():
    points = RNG.random((2, 3, 3)).astype(np.float32)
    before = points.copy()
    move_keypoints(points, (20, 31), View((40, 62), True), ((0, 1),))
    np.testing.assert_array_equal(points, before)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_move_with_the_pixels(flip):
    """A bright rectangle at whole pixels, doubled in size: its box is exactly where the bright pixels are."""
    image = np.zeros((20, 30, 3), np.uint8)
    image[4:9, 6:17] = 255
    view = View((40, 60), flip)
    shown = stack_images([image], [view], (64, 64), PLAIN, "cpu")[0, 0]
    left, top, right, bottom = move_boxes(np.array([[6.0, 4.0, 17.0, 9.0]]), (20, 30), view)[0]
    rows, columns = torch.where(shown > 127.5)
    found = (columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1)
    assert found == (left, top, right, bottom)


def test_boxes_scale_each_axis_by_what_was_really_done_to_it():
    boxes = random_boxes(5, 33, 100)
    moved = move_boxes(boxes, (33, 100), View((32, 96), False))
    np.testing.assert_allclose(moved, boxes * [0.96, 32 / 33, 0.96, 32 / 33])
    np.testing.assert_allclose(move_boxes(moved, (32, 96), View((33, 100), False)), boxes)


def test_no_boxes_stay_no_boxes():
    assert move_boxes(np.zeros((0, 4)), (20, 31), View((40, 62), True)).shape == (0, 4)


def test_normalisation_equals_torchvisions():
    shown = stack_images([IMAGE], [View((20, 31), False)], (32, 32), IMAGENET, "cpu")[0, :, :20, :31]
    expected = normalize(torch.from_numpy(IMAGE).permute(2, 0, 1).float(), IMAGENET.mean, IMAGENET.std)
    torch.testing.assert_close(shown, expected, atol=1e-6, rtol=1e-6)


def test_bgr_reverses_the_channels_before_normalisation():
    swapped = InputSpec((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bgr")
    shown = stack_images([IMAGE], [View((20, 31), False)], (32, 32), swapped, "cpu")[0, :, :20, :31]
    pixels = torch.from_numpy(IMAGE[:, :, ::-1].copy()).permute(2, 0, 1).float()
    torch.testing.assert_close(shown, normalize(pixels, swapped.mean, swapped.std))


def test_resizing_is_antialiased_and_bilinear_and_padding_is_zero():
    views = [View((10, 15), False), View((32, 40), True)]
    batch = stack_images([IMAGE, IMAGE], views, (32, 64), IMAGENET, "cpu")
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float()
    for slot, (view, shown) in enumerate(zip(views, batch)):
        small = F.interpolate(pixels, view.size, mode="bilinear", antialias=True)[0]
        expected = normalize(small.flip(2) if view.flip else small, IMAGENET.mean, IMAGENET.std)
        torch.testing.assert_close(shown[:, : view.size[0], : view.size[1]], expected, atol=1e-5, rtol=1e-5)
        padded = shown.clone()
        padded[:, : view.size[0], : view.size[1]] = 0
        assert not padded.any(), slot


def test_what_a_batch_holds_beside_an_image_changes_nothing_in_it():
    views = [View((20, 31), False), View((9, 12), True)]
    both = stack_images([IMAGE, IMAGE], views, (32, 32), IMAGENET, "cpu")
    alone = stack_images([IMAGE], views[1:], (32, 32), IMAGENET, "cpu")
    assert torch.equal(both[1], alone[0])


def test_views_are_drawn_from_all_choices_at_their_rates():
    views = [draw_view(50, 80, (32, 48), 200, 0.25, slot_generator(0, 3, slot)) for slot in range(2000)]
    assert {view.size for view in views} == {(32, 51), (48, 77)}
    assert abs(np.mean([view.flip for view in views]) - 0.25) < 0.04
    assert abs(np.mean([view.size[0] == 32 for view in views]) - 0.5) < 0.05
    assert not any(draw_view(50, 80, (32,), 200, 0.0, slot_generator(0, 3, s)).flip for s in range(50))
    assert all(draw_view(50, 80, (32,), 200, 1.0, slot_generator(0, 3, s)).flip for s in range(50))


def test_crops_equal_cutting_and_resizing_by_hand():
    crop = (3, 5, 12, 20, True)
    shown = crop_images([IMAGE], [crop], 16, IMAGENET, "cpu")[0]
    cut = torch.from_numpy(IMAGE[3:15, 5:25].copy()).permute(2, 0, 1)[None].float()
    small = F.interpolate(cut, (16, 16), mode="bilinear", antialias=True)[0].flip(2)
    torch.testing.assert_close(shown, normalize(small, IMAGENET.mean, IMAGENET.std), atol=1e-5, rtol=1e-5)
