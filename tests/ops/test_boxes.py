"""Box geometry against torchvision and its own inverse."""

import math

import pytest
import torch
import torchvision

from headstart.ops import boxes as ops

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(*shape, seed=0, scale=100.0, smallest=0.5):
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(*shape, 2, generator=generator) - 0.2) * scale
    size = smallest + torch.rand(*shape, 2, generator=generator) * scale
    return torch.cat([corner, corner + size], dim=-1)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_inverts_encode(weights):
    wanted, anchors = random_boxes(2, 300, seed=1), random_boxes(2, 300, seed=2, smallest=4)
    torch.testing.assert_close(
        ops.decode(ops.encode(wanted, anchors, weights), anchors, weights), wanted, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("weights", WEIGHTS)
def test_coder_equals_torchvision(weights):
    coder = torchvision.models.detection._utils.BoxCoder(weights)
    boxes, anchors = random_boxes(300, seed=1), random_boxes(300, seed=2)
    torch.testing.assert_close(ops.encode(boxes, anchors, weights), coder.encode_single(boxes, anchors))
    # Deltas large enough that the cap on exp() is met.
    deltas = torch.randn(300, 4, generator=torch.Generator().manual_seed(3)) * 20
    assert (deltas[:, 2:] / weights[2] > ops.MAX_LOG_SCALE).any()
    torch.testing.assert_close(ops.decode(deltas, anchors, weights), coder.decode_single(deltas, anchors))


def test_zero_deltas_leave_the_anchor():
    anchors = random_boxes(50)
    torch.testing.assert_close(ops.decode(torch.zeros(50, 4), anchors, (1.0,) * 4), anchors)


def test_a_wild_delta_is_capped_at_the_stated_factor():
    box = ops.decode(torch.tensor([[0.0, 0, 1e4, 1e4]]), torch.tensor([[0.0, 0, 16, 16]]), (1.0,) * 4)
    assert (box[0, 2] - box[0, 0]).item() == pytest.approx(1000, rel=1e-5)
    assert pytest.approx(math.log(62.5)) == ops.MAX_LOG_SCALE


def test_empty_boxes_encode_to_finite_numbers():
    empty = torch.zeros(1, 4)
    assert ops.encode(empty, empty, (10.0, 10.0, 5.0, 5.0)).isfinite().all()
    assert ops.encode(random_boxes(1), empty, (10.0, 10.0, 5.0, 5.0)).isfinite().all()


def test_iou_equals_torchvision_per_image():
    a, b = random_boxes(3, 70, seed=1), random_boxes(3, 40, seed=2)
    wanted = torch.stack([torchvision.ops.box_iou(x, y) for x, y in zip(a, b)])
    assert (wanted > 0.3).any() and (wanted == 0).any()
    torch.testing.assert_close(ops.iou(a, b), wanted)
    torch.testing.assert_close(ops.iou(a[0], b), torch.stack([torchvision.ops.box_iou(a[0], y) for y in b]))


def test_iou_of_empty_and_inverted_boxes_is_zero():
    odd = torch.tensor([[5.0, 5, 5, 5], [5.0, 5, 2, 9], [0.0, 0, 0, 10]])
    assert torch.equal(ops.iou(odd, odd), torch.zeros(3, 3))
    assert torch.equal(ops.area(odd), torch.zeros(3))
    assert ops.iou(odd[:0], odd).shape == (0, 3)


def test_intersection_equals_clipped_area():
    a, b = random_boxes(60, seed=1), random_boxes(1, seed=2)
    cut = torch.cat([torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])], dim=1)
    torch.testing.assert_close(ops.intersection(a, b)[:, 0], ops.area(cut))


def test_clip_equals_torchvision_with_each_images_own_size():
    boxes = random_boxes(2, 80) * 2 - 50
    sizes = torch.tensor([[60, 90], [100, 30]])
    wanted = torch.stack([torchvision.ops.clip_boxes_to_image(b, tuple(s)) for b, s in zip(boxes, sizes.tolist())])
    assert torch.equal(ops.clip(boxes, sizes), wanted)
