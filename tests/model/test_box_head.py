"""The box head's decode against torchvision's rule, the class-agnostic variant, and what its losses ignore."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

from headstart.model.box_head import BoxHead, DetectionLimits
from headstart.model.regions import RegionConvs, RegionPooler, Regions

NUM_CLASSES, WEIGHTS = 6, (10.0, 10.0, 5.0, 5.0)
LIMITS = DetectionLimits(score_threshold=0.05, nms_threshold=0.5, num=25)


def head(*, class_agnostic=False):
    return BoxHead(
        RegionConvs(8, RegionPooler(3, (4, 8)), num=0, channels=8, norm_kind="none", norm_groups=1),
        num_classes=NUM_CLASSES,
        fcs=1,
        fc_width=16,
        class_agnostic=class_agnostic,
        weights=WEIGHTS,
        smooth_l1_beta=1.0,
    )


def raw(num=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(2, num, 2, generator=generator) * 60
    boxes = torch.cat([low, low + 5 + torch.rand(2, num, 2, generator=generator) * 40], dim=2)
    logits = torch.randn(2, num, NUM_CLASSES + 1, generator=generator) * 2
    deltas = torch.randn(2, num, 4 * NUM_CLASSES, generator=generator)
    return logits, deltas, boxes, torch.rand(2, num, generator=generator) > 0.2


def test_decode_follows_torchvisions_rule():
    logits, deltas, proposals, valid = raw()
    sizes = torch.tensor([[90, 100], [80, 70]])
    found = head().decode(logits.softmax(2), deltas, proposals, valid, sizes, LIMITS)
    for image in range(2):
        real = valid[image]
        scores = logits[image, real].softmax(1)[:, :-1]
        boxes = BoxCoder(WEIGHTS).decode(deltas[image, real], [proposals[image, real]])
        boxes = clip_boxes_to_image(boxes, tuple(sizes[image].tolist())).view(-1, 4)
        labels = torch.arange(NUM_CLASSES).expand_as(scores).flatten()
        keep = (scores.flatten() > 0.05) & ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(1)
        boxes, scores, labels = boxes[keep], scores.flatten()[keep], labels[keep]
        kept = batched_nms(boxes, scores, labels, 0.5)
        assert 25 < len(kept) < len(boxes)
        kept = kept[:25]
        assert found.valid[image].all() and torch.equal(found.labels[image], labels[kept])
        torch.testing.assert_close(found.boxes[image], boxes[kept])
        torch.testing.assert_close(found.scores[image], scores[kept])


def test_a_cap_that_is_not_reached_changes_nothing():
    logits, deltas, proposals, valid = raw()
    sizes = torch.tensor([[90, 100], [80, 70]])
    wanted = head().decode(logits.softmax(2), deltas, proposals, valid, sizes, LIMITS)
    found = head().decode(logits.softmax(2), deltas, proposals, valid, sizes, replace(LIMITS, num_candidates=250))
    assert torch.equal(found.boxes, wanted.boxes) and torch.equal(found.scores, wanted.scores)


def regions(num=40, leading=10):
    _, _, boxes, valid = raw(num, seed=1)
    positive = torch.arange(num).expand(2, num) < 10
    labels = torch.where(positive, torch.arange(num) % NUM_CLASSES, NUM_CLASSES)
    gt = torch.arange(num).expand(2, num) % 4
    return Regions(boxes, labels, gt, positive, valid | positive, leading), boxes[:, 10:14] + 3.0


def test_class_agnostic_is_the_same_box_for_every_class():
    specific, agnostic = head(), head(class_agnostic=True)
    logits, deltas, proposals, valid = raw()
    one = deltas[..., :4]
    assert agnostic.regress.out_features == 4
    sizes = torch.tensor([[90, 100], [80, 70]])
    wanted = specific.decode(logits.softmax(2), one.repeat(1, 1, NUM_CLASSES), proposals, valid, sizes, LIMITS)
    found = agnostic.decode(logits.softmax(2), one, proposals, valid, sizes, LIMITS)
    assert torch.equal(found.boxes, wanted.boxes)
    chosen, gt = regions()
    args = logits[:, :40], one[:, :40], chosen, gt
    wanted = specific.loss(args[0], args[1].repeat(1, 1, NUM_CLASSES), *args[2:])
    assert wanted["box_delta"] > 0
    assert agnostic.loss(*args) == wanted


@pytest.mark.parametrize("leading", [10, 25, 40])
def test_losses_ignore_empty_slots_and_other_classes(leading):
    chosen, gt = regions(leading=leading)
    logits, deltas, _, _ = (value[:, :40] for value in raw())
    wanted = head().loss(logits, deltas, chosen, gt)
    empty = ~chosen.valid
    assert empty.any() and wanted["box_delta"] > 0
    found = head().loss(
        logits + 50 * empty.unsqueeze(2) * torch.arange(7.0),
        deltas + 50 * ~chosen.positive.unsqueeze(2),
        replace(chosen, labels=torch.where(empty, 2, chosen.labels)),
        gt,
    )
    assert found == wanted
    # By hand: cross-entropy over valid regions, smooth L1 of the label's own deltas, both over the number of regions.
    count = chosen.valid.sum()
    entropy = -logits.log_softmax(2).gather(2, chosen.labels.unsqueeze(2)).squeeze(2)[chosen.valid].sum() / count
    torch.testing.assert_close(wanted["box_class"], entropy)
    image, slot = chosen.positive.nonzero(as_tuple=True)
    own = deltas.view(2, 40, NUM_CLASSES, 4)[image, slot, chosen.labels[image, slot]]
    target = BoxCoder(WEIGHTS).encode_single(gt[image, chosen.gt[image, slot]], chosen.boxes[image, slot])
    box = torch.nn.functional.smooth_l1_loss(own, target, beta=1.0, reduction="sum") / count
    torch.testing.assert_close(wanted["box_delta"], box)
