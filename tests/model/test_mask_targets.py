"""Mask targets cut from the box frame: against a plain bilinear form, and against exact areas."""

import pytest
import torch

from headstart.model.region_heads import sample_frames

SIDE = 56


def star(num, seed=0):
    """The radius of random smooth star shapes as a function of the angle, in units of the half box."""
    generator = torch.Generator().manual_seed(seed)
    amplitude = torch.rand(num, 5, generator=generator) * 0.12
    phase = torch.rand(num, 5, generator=generator) * 6.28

    def inside(x, y):
        """For points [num,...] in box units (-1..1): whether they lie in the shape."""
        shape = [num] + [1] * (x.dim() - 1)
        angle, radius = torch.atan2(y, x), 0.72
        for k in range(5):
            radius = radius + amplitude[:, k].view(shape) * torch.cos((k + 1) * angle + phase[:, k].view(shape))
        return x.hypot(y) <= radius

    return inside


def grid(num, side):
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    return axis.view(1, 1, -1).expand(num, side, side), axis.view(1, -1, 1).expand(num, side, side)


def objects(num, seed=1):
    """Ground-truth boxes [num,4] of 20 to 200 pixels, and proposals that overlap them well."""
    generator = torch.Generator().manual_seed(seed)
    size = 20 + 180 * torch.rand(num, 2, generator=generator)
    low = torch.rand(num, 2, generator=generator) * 100
    gt = torch.cat([low, low + size], dim=1)
    return gt, gt + (torch.rand(num, 4, generator=generator) - 0.5) * 0.3 * size.repeat(1, 2)


def plainly(frame, gt, box, size):
    """The definition, sample by sample, in double precision."""
    frame, side = frame.double(), frame.shape[0]
    gt, box = gt.double().tolist(), box.double().tolist()
    out = torch.zeros(size, size)
    for row in range(size):
        for column in range(size):
            total = 0.0
            for a in (0.25, 0.75):
                for b in (0.25, 0.75):
                    y = (box[1] + (row + a) / size * (box[3] - box[1]) - gt[1]) / (gt[3] - gt[1]) * side - 0.5
                    x = (box[0] + (column + b) / size * (box[2] - box[0]) - gt[0]) / (gt[2] - gt[0]) * side - 0.5
                    for i in range(int(y // 1), int(y // 1) + 2):
                        for j in range(int(x // 1), int(x // 1) + 2):
                            if 0 <= i < side and 0 <= j < side:
                                total += float(frame[i, j]) * (1 - abs(y - i)) * (1 - abs(x - j))
            out[row, column] = total / 4
    return out


def test_equals_the_plain_bilinear_form():
    gt, boxes = objects(5)
    boxes[4] = gt[4] + torch.tensor([500.0, 0, 500, 0])  # no overlap at all
    frames = star(5)(*grid(5, SIDE))
    wanted = torch.stack([plainly(*row, 14) for row in zip(frames, gt, boxes)])
    found = sample_frames(frames, gt, boxes, 14)
    sure = (wanted - 0.5).abs() > 1e-4  # a value of exactly one half may round either way
    assert sure.float().mean() > 0.95
    assert torch.equal(found[sure], (wanted >= 0.5).float()[sure])
    assert found[:4].any() and not found[4].any()


def exact_targets(inside, gt, boxes, size, samples=16):
    """Cells of which at least half is covered, by 16x16 points a cell (an area error below one percent of a cell)."""
    steps = (torch.arange(size * samples) + 0.5) / (size * samples)
    x = (boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1]) - gt[:, :1]) / (gt[:, 2:3] - gt[:, :1]) * 2 - 1
    y = (boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2]) - gt[:, 1:2]) / (gt[:, 3:] - gt[:, 1:2]) * 2 - 1
    num, n = len(gt), size * samples
    points = inside(x.view(num, 1, n).expand(num, n, n), y.view(num, n, 1).expand(num, n, n))
    return (points.view(num, size, samples, size, samples).float().mean((2, 4)) >= 0.5).float()


@pytest.mark.parametrize(("side", "bound"), [(112, 0.006), (56, 0.008), (28, 0.018)])
def test_few_pixels_differ_from_the_exact_area(side, bound):
    """Measured shares: see the bounds; the frame does not depend on the object's size in pixels, nor does the error."""
    gt, boxes = objects(30)
    inside = star(30)
    wanted = exact_targets(inside, gt, boxes, 28)
    share = (sample_frames(inside(*grid(30, side)), gt, boxes, 28) != wanted).float().mean()
    assert 0.2 < wanted.mean() < 0.8
    assert share < bound


def test_the_box_itself_gives_the_frame_back():
    gt, _ = objects(6)
    frames = star(6)(*grid(6, 28))
    assert torch.equal(sample_frames(frames, gt, gt, 28), frames.float())


def test_flipping_the_frame_and_the_boxes_flips_the_targets():
    gt, boxes = objects(20)
    frames = star(20)(*grid(20, SIDE))
    width = 300.0

    def flipped(b):
        return torch.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], dim=1)

    found = sample_frames(frames.flip(2), flipped(gt), flipped(boxes), 28).flip(2)
    assert (found != sample_frames(frames, gt, boxes, 28)).float().mean() < 1e-3  # ties at one half


def test_targets_do_not_depend_on_scale():
    gt, boxes = objects(20)
    frames = star(20)(*grid(20, SIDE))
    assert (sample_frames(frames, gt * 4, boxes * 4, 28) != sample_frames(frames, gt, boxes, 28)).float().mean() < 1e-3


def test_empty_and_degenerate_boxes_are_finite():
    frames = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    point = torch.tensor([[5.0, 5, 5, 5], [0.0, 0, 0, 0]])
    assert sample_frames(frames, point, point, 28).isfinite().all()
    assert sample_frames(frames[:0], point[:0], point[:0], 28).shape == (0, 28, 28)
    whole = torch.tensor([[0.0, 0, 50, 40]]).expand(2, 4)
    assert sample_frames(frames, whole, whole, 28).all()
