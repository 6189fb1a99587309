"""RoIAlign, forward and backward, against torchvision's."""

from collections import OrderedDict

import pytest
import torch
import torchvision

from headstart.ops.roi_align import WeightedGather, assign_levels, roi_align

STRIDES = [4.0, 8.0, 16.0, 32.0]
SIDE = 128


def pyramid(*, channels=6, batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shape = [(batch, channels, int(SIDE // stride), int(SIDE // stride) + 1) for stride in STRIDES]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shape]


def regions(num=60):
    """Boxes [R,4] and images [R]: ordinary ones, and the odd cases."""
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(num, 2, generator=generator) * SIDE
    boxes = torch.cat([low, low + torch.exp(torch.rand(num, 2, generator=generator) * 4.5)], dim=1)
    odd = torch.tensor(
        [
            [0.0, 0, SIDE, SIDE],  # the whole image
            [-40.0, -30, 20, 25],  # over the upper left corner
            [100.0, 90, 300, 250],  # over the lower right
            [-90.0, -90, -50, -60],  # outside altogether
            [400.0, 10, 500, 60],
            [50.0, 50, 50, 50],  # a point
            [10.0, 70, 60, 70],  # a line
            [0.0, 0, 1e-3, 1e-3],
            [-4.0, -4, 140, 140],  # samples in the cell-wide rim where the border is repeated
        ]
    )
    boxes = torch.cat([boxes, odd])
    return boxes, torch.arange(len(boxes)) % 2


def rois(boxes, image):
    return torch.cat([image.unsqueeze(1).to(boxes.dtype), boxes], dim=1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("size", [7, 14, 1])
def test_one_level_equals_torchvision_forward_and_backward(aligned, size):
    feature = pyramid()[1]
    boxes, image = regions()
    level = torch.zeros(len(boxes), dtype=torch.long)
    found = roi_align([feature], boxes, image, level, strides=[8.0], size=size, aligned=aligned)
    wanted = torchvision.ops.roi_align(feature, rois(boxes, image), size, 1 / 8, sampling_ratio=2, aligned=aligned)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)
    above = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad(out, feature, above)[0] for out in (found, wanted)]
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [7, 14])
def test_many_levels_equal_torchvisions_pooler(size):
    features = pyramid()
    boxes, image = regions()
    order = torch.argsort(image, stable=True)  # torchvision takes one list of boxes an image
    boxes, image = boxes[order], image[order]
    pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2, canonical_scale=32)
    shapes = [(SIDE, SIDE)] * 2
    named = OrderedDict((str(index), feature[..., : feature.shape[2]]) for index, feature in enumerate(features))
    wanted = pooler(named, [boxes[image == 0], boxes[image == 1]], shapes)
    level = assign_levels(boxes, min_level=2, max_level=5, canonical_size=32) - 2
    assert level.unique().tolist() == [0, 1, 2, 3], "every level must be met"
    found = roi_align(list(named.values()), boxes, image, level, strides=STRIDES, size=size, aligned=False)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)
    above = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    for ours, theirs in zip(torch.autograd.grad(found, features, above), torch.autograd.grad(wanted, features, above)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_levels_equal_torchvisions_mapper():
    boxes, _ = regions(500)
    mapper = torchvision.ops.poolers.initLevelMapper(2, 5)
    assert torch.equal(assign_levels(boxes, min_level=2, max_level=5) - 2, mapper([boxes]))
    exact = torch.tensor([[0.0, 0, 112, 112], [0.0, 0, 224, 224], [0.0, 0, 448, 448], [3.0, 3, 3, 3]])
    assert assign_levels(exact, min_level=2, max_level=5).tolist() == [3, 4, 5, 2]


def test_no_region_gives_nothing_and_a_zero_gradient():
    features = pyramid()
    empty = torch.zeros(0, dtype=torch.long)
    out = roi_align(features, torch.zeros(0, 4), empty, empty, strides=STRIDES, size=7, aligned=True)
    assert out.shape == (0, 6, 7, 7)
    for gradient, feature in zip(torch.autograd.grad(out.sum(), features), features):
        assert torch.equal(gradient, torch.zeros_like(feature))


def test_gradient_in_double_precision():
    features = [
        torch.randn(2, 2, 4, 5, dtype=torch.double, requires_grad=True),
        torch.randn(2, 2, 2, 3, dtype=torch.double, requires_grad=True),
    ]
    boxes = torch.tensor([[1.0, 2, 11, 13], [-3.0, 0, 9, 30], [4.0, 4, 4, 4]])
    image, level = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])

    def pooled(*maps):
        return roi_align(list(maps), boxes, image, level, strides=[4.0, 8.0], size=2, aligned=True)

    assert torch.autograd.gradcheck(pooled, features)


def test_gather_equals_its_definition_where_rows_repeat():
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(9, 3, generator=generator).requires_grad_()
    rows = torch.randint(2, 6, (40, 16), generator=generator).int()  # rows 0, 1 and 6..8 are never met
    weights = torch.rand(40, 16, generator=generator)
    wanted = torch.einsum("nt,ntc->nc", weights, table[rows.long()])
    found = WeightedGather.apply(table, rows, weights)
    torch.testing.assert_close(found, wanted)
    above = torch.randn(40, 3, generator=generator)
    gradients = [torch.autograd.grad(out, table, above)[0] for out in (found, wanted)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(gradients[0][[0, 1, 6, 7, 8]], torch.zeros(5, 3))
