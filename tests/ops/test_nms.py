"""Suppression: the sequential and the static form against plain greedy and torchvision."""

import pytest
import torch
import torchvision

from fixed_path import static
from headstart.ops.nms import nms, nms_by_label, nms_fixed_point


def scene(num, kind, seed):
    """Boxes [N,4] by falling score: scattered, or jittered copies of a few (long chains of suppression)."""
    generator = torch.Generator().manual_seed(seed)
    centres = num if kind == "scattered" else max(num // 25, 1)
    low = torch.rand(centres, 2, generator=generator) * 150
    size = 20 + torch.rand(centres, 2, generator=generator) * 40
    which = torch.arange(num) % centres
    jitter = 0 if kind == "scattered" else 14
    low = low[which] + torch.randn(num, 2, generator=generator) * jitter
    size = size[which] * (1 + 0.02 * jitter * torch.rand(num, 2, generator=generator))
    return torch.cat([low, low + size], dim=1)[torch.randperm(num, generator=generator)]


def greedy(boxes, valid, threshold, labels=None):
    """The definition, one box at a time."""
    overlap = torchvision.ops.box_iou(boxes, boxes)
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    for j in range(len(boxes)):
        rivals = keep[:j] & (overlap[:j, j] > threshold)
        if labels is not None:
            rivals &= labels[:j] == labels[j]
        keep[j] = valid[j] and not rivals.any()
    return keep


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("kind", ["scattered", "clustered"])
@pytest.mark.parametrize("num", [0, 1, 2, 30, 200, 600])
def test_every_form_is_greedy(num, kind, threshold):
    boxes = torch.stack([scene(num, kind, seed) for seed in (1, 2)])
    valid = torch.rand(2, num, generator=torch.Generator().manual_seed(3)) > 0.2
    wanted = torch.stack([greedy(b, v, threshold) for b, v in zip(boxes, valid)])
    assert torch.equal(nms(boxes, valid, threshold), wanted)
    assert torch.equal(nms_fixed_point(boxes, valid, threshold), wanted)
    with static():
        assert torch.equal(nms(boxes, valid, threshold), wanted)
    order = torch.arange(num, 0, -1).float()
    full = nms(boxes[:1], torch.ones(1, num, dtype=torch.bool), threshold)[0]
    assert full.nonzero().flatten().tolist() == torchvision.ops.nms(boxes[0], order, threshold).tolist()
    if num >= 200 and kind == "clustered":
        assert 0 < wanted.sum() < valid.sum(), "suppression must matter"


def test_an_overlap_of_exactly_the_threshold_survives():
    boxes = torch.tensor([[[0.0, 0, 2, 2], [0.0, 0, 2, 1], [0.0, 0, 2, 1]]])  # IoU with the first: 0.5
    valid = torch.ones(1, 3, dtype=torch.bool)
    wanted = torch.tensor([[True, True, False]])
    assert torch.equal(nms(boxes, valid, 0.5), wanted)
    assert torch.equal(nms_fixed_point(boxes, valid, 0.5), wanted)


def test_invalid_boxes_neither_survive_nor_suppress():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0.0, 0, 10, 9], [0.0, 0, 10, 8]]])
    valid = torch.tensor([[False, True, True]])
    for form in (nms, nms_fixed_point):
        assert form(boxes, valid, 0.5).tolist() == [[False, True, False]]
        assert not form(boxes, torch.zeros_like(valid), 0.5).any()


def chain(num):
    """Each box suppresses the next one only: the longest possible chain, whose greedy answer is every second box."""
    low = torch.arange(num).float() * 2
    return torch.stack([low, torch.zeros(num), low + 10, torch.ones(num)], dim=1).unsqueeze(0)


@pytest.mark.parametrize("num", [3, 31, 64, 151])
def test_a_chain_is_solved_in_as_many_rounds_as_it_is_long(num):
    boxes, valid = chain(num), torch.ones(1, num, dtype=torch.bool)
    wanted = torch.arange(num).unsqueeze(0) % 2 == 0
    assert torch.equal(nms(boxes, valid, 0.5), wanted)
    assert torch.equal(nms_fixed_point(boxes, valid, 0.5, max_rounds=num), wanted)


def test_an_unfinished_fixed_point_has_the_best_boxes_right_and_loses_none():
    """After t rounds the first t entries of a chain are final; after an even number no true survivor is missing."""
    boxes, valid = chain(101), torch.ones(1, 101, dtype=torch.bool)
    wanted = torch.arange(101).unsqueeze(0) % 2 == 0
    found = nms_fixed_point(boxes, valid, 0.5, max_rounds=32)
    assert torch.equal(found[:, :32], wanted[:, :32])
    assert not (wanted & ~found).any()


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("num", [0, 40, 400])
def test_labels_ignore_one_another(num, threshold):
    generator = torch.Generator().manual_seed(5)
    boxes = torch.stack([scene(num, "clustered", seed) for seed in (1, 2)])
    labels = torch.randint(0, 5, (2, num), generator=generator)
    scores = torch.rand(2, num, generator=generator).sort(dim=1, descending=True).values
    valid = torch.rand(2, num, generator=generator) > 0.2
    wanted = torch.stack([greedy(b, v, threshold, c) for b, v, c in zip(boxes, valid, labels)])
    assert torch.equal(nms_by_label(boxes, scores, labels, valid, threshold), wanted)
    with static():
        assert torch.equal(nms_by_label(boxes, scores, labels, valid, threshold), wanted)
    for image in range(2):
        chosen = valid[image].nonzero().squeeze(1)
        args = boxes[image, chosen], scores[image, chosen], labels[image, chosen]
        reference = chosen[torchvision.ops.batched_nms(*args, threshold)]
        assert sorted(reference.tolist()) == wanted[image].nonzero().flatten().tolist()
