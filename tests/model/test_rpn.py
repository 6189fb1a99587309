"""Anchors and proposals against torchvision's, and the border rule."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms

from headstart.model.regions import take
from headstart.model.rpn import ProposalLimits, anchors_for
from headstart.ops.boxes import decode
from small_detector import SIDE, small_batch, small_detector

STRIDES = (4, 8, 16, 32, 64)


@pytest.mark.parametrize("ratios", [(0.5, 1.0, 2.0), (1.0,), (0.33, 3.0)])
@pytest.mark.parametrize("sizes", [(32.0, 64.0, 128.0, 256.0, 512.0), (8.0, 15.0, 33.0, 48.0, 64.0)])
def test_anchors_are_torchvisions(sizes, ratios):
    shapes = tuple((128 // stride, 192 // stride) for stride in STRIDES)
    generator = AnchorGenerator(tuple((size,) for size in sizes), (ratios,) * 5)
    features = [torch.zeros(1, 1, *shape) for shape in shapes]
    wanted = generator(ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)]), features)[0]
    levels = tuple((size,) for size in sizes)
    assert torch.equal(anchors_for(shapes, STRIDES, levels, ratios, torch.device("cpu")), wanted)


def test_all_sizes_on_one_map_are_torchvisions():
    sizes, ratios = (16.0, 32.0, 64.0, 128.0), (0.5, 1.0, 2.0)
    wanted = AnchorGenerator((sizes,), (ratios,))(
        ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)]), [torch.zeros(1, 1, 4, 6)]
    )[0]
    assert torch.equal(anchors_for(((4, 6),), (16,), (sizes,), ratios, torch.device("cpu")), wanted)


def raw(seed=0):
    """A detector's RPN, anchors and random raw outputs for images of 96 pixels."""
    generator = torch.Generator().manual_seed(seed)
    rpn = small_detector().rpn
    features = [torch.zeros(2, 16, -(-SIDE // stride), -(-SIDE // stride)) for stride in STRIDES]
    counts = [3 * f.shape[2] * f.shape[3] for f in features]
    logits = [torch.randn(2, n, generator=generator) * 2 for n in counts]
    deltas = [torch.randn(2, n, 4, generator=generator) * 0.3 for n in counts]
    return rpn, rpn.anchors(features), logits, deltas


def test_proposals_follow_the_rule_one_image_and_level_at_a_time():
    rpn, anchors, logits, deltas = raw()
    sizes, limits = torch.tensor([[96, 80], [70, 96]]), ProposalLimits(50, 60)
    found, valid = rpn.decode(logits, deltas, anchors, sizes, limits)
    assert found.shape == (2, 60, 4) and valid.any()
    for image in range(2):
        boxes, scores = [], []
        for score, delta, own in zip(logits, deltas, anchors.split([level.shape[1] for level in logits])):
            best = score[image].argsort(descending=True)[:50]
            box = decode(delta[image, best], own[best], (1.0,) * 4)
            limit = sizes[image].flip(0).repeat(2).float()
            box = torch.minimum(box.clamp(min=0), limit)
            best = best[((box[:, 2:] - box[:, :2]) >= 1e-3).all(1)]
            box = box[((box[:, 2:] - box[:, :2]) >= 1e-3).all(1)]
            kept = nms(box, score[image, best], 0.7)
            boxes.append(box[kept])
            scores.append(score[image, best][kept])
        order = torch.cat(scores).argsort(descending=True)[:60]
        assert valid[image].sum() == len(order)
        torch.testing.assert_close(found[image, valid[image]], torch.cat(boxes)[order])


def test_anchors_over_the_border_are_left_out_where_asked():
    batch = small_batch(2)
    for straddle, outside in ((0.0, True), (None, False), (1e5, False)):
        rpn = small_detector(model__rpn__straddle=straddle).rpn
        _, anchors, _, _ = raw()
        inside = rpn._inside(anchors, batch.sizes)
        if straddle is None:
            assert inside is None
            continue
        height, width = batch.sizes[:, :1] + straddle, batch.sizes[:, 1:] + straddle
        wanted = (anchors[:, :2] >= -straddle).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
        assert torch.equal(inside, wanted) and (~inside).any() == outside


def test_left_out_anchors_carry_no_loss():
    """With the rule, what the network says at an anchor over the border does not matter."""
    rpn, anchors, logits, deltas = raw()
    logits, deltas = torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
    rpn.straddle, rpn.num_samples, rpn.max_positive = 0.0, 10**6, 10**6
    batch = small_batch(2)
    noise = torch.where(rpn._inside(anchors, batch.sizes), 0.0, 100.0)

    def losses(logits):
        chosen, wanted = rpn.targets(anchors, batch, batch.slots)
        return rpn.loss(take(logits, chosen.index), take(deltas, chosen.index), chosen, wanted)

    wanted, found = losses(logits), losses(logits + noise)
    for name in wanted:
        assert wanted[name] > 0 and torch.equal(found[name], wanted[name])
    rpn.straddle = None
    assert not torch.equal(losses(logits)["rpn_objectness"], wanted["rpn_objectness"])


@pytest.mark.parametrize("num_convs", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_chosen_anchors_are_what_all_anchors_are(num_convs, images):
    """Values and every gradient, in the middle, on borders and in corners, chosen twice or not at all."""
    generator = torch.Generator().manual_seed(num_convs)
    rpn = small_detector(model__rpn__num_convs=num_convs).rpn.double()
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    shapes = [(7, 5), (3, 2), (1, 1), (1, 2), (1, 1)]
    maps = [torch.randn(images, 16, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    num = rpn.per_cell * sum(height * width for height, width in shapes)
    every = torch.arange(num).repeat(images, 1)
    for index in (every, torch.randint(0, num, (images, 40), generator=generator), every[:, :0]):
        dense, sparse = ([m.clone().requires_grad_() for m in maps] for _ in range(2))
        logits, deltas = (torch.cat(part, dim=1) for part in rpn.predict(dense))
        outcome = []
        for values, found in (
            ((take(logits, index), take(deltas, index)), dense),
            (rpn.predict_at(sparse, index), sparse),
        ):
            rpn.zero_grad()
            sum((value * (1 + torch.arange(value.numel()).view(value.shape))).sum() for value in values).backward()
            outcome.append([*values, *(m.grad for m in found), *(p.grad.clone() for p in rpn.parameters())])
        for one, other in zip(*outcome):
            torch.testing.assert_close(one, other)
