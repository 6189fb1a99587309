"""Regions: which candidates are sampled, with which labels, and the features under them."""

from dataclasses import replace

import torch
from torchvision.ops import box_iou, roi_align

from headstart.model.regions import RegionPooler, image_index, sample_regions
from small_detector import NUM_CLASSES, small_batch

RULE = {"num_classes": NUM_CLASSES, "iou_threshold": 0.5, "num": 10**6, "max_positive": 10**6}


def proposals(batch, num=80, seed=3):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(len(batch), num, 2, generator=generator) * 60
    boxes = torch.cat([low, low + 5 + torch.rand(len(batch), num, 2, generator=generator) * 30], dim=2)
    return boxes, torch.rand(len(batch), num, generator=generator) > 0.25


def test_labels_are_those_of_the_best_object_and_background_is_last():
    batch = small_batch(3)  # without crowds
    boxes, valid = proposals(batch)
    found = sample_regions(boxes, valid, batch, batch.slots, **RULE)
    for image in range(3):
        gt, labels = (values[image, batch.gt_valid[image]] for values in (batch.gt_boxes, batch.gt_labels))
        wanted = torch.cat([boxes[image, valid[image]], gt])
        best, which = box_iou(wanted, gt).max(dim=1)
        wanted_labels = torch.where(best >= 0.5, labels[which], NUM_CLASSES)
        assert (best < 0.5).any()
        kept = found.valid[image]
        assert kept.sum() == len(wanted)
        assert found.positive[image].sum() == (best >= 0.5).sum()
        table = torch.cat([wanted, wanted_labels.unsqueeze(1)], dim=1)
        other = torch.cat([found.boxes[image, kept], found.labels[image, kept].unsqueeze(1)], dim=1)
        assert sorted(map(tuple, table.tolist())) == sorted(map(tuple, other.tolist()))
        chosen = found.positive[image]
        assert torch.equal(batch.gt_labels[image, found.gt[image, chosen]], found.labels[image, chosen])


def test_a_crowds_box_is_no_candidate():
    """Not even where it lies on an object so well that it would be a positive."""
    batch = small_batch(1)
    boxes = batch.gt_boxes.clone()
    boxes[0, 1] = boxes[0, 0] + 0.5
    flags = torch.arange(6).unsqueeze(0)
    batch = replace(batch, gt_boxes=boxes, gt_valid=flags < 2, gt_crowd=flags == 1)
    found = sample_regions(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool), batch, batch.slots, **RULE)
    assert found.valid.sum() == 1 and torch.equal(found.boxes[0, 0], boxes[0, 0])


def test_counts_are_capped_and_positives_come_first():
    batch = small_batch(3)
    boxes, valid = proposals(batch)
    found = sample_regions(boxes, valid, batch, batch.slots, **(RULE | {"num": 20, "max_positive": 2}))
    assert found.boxes.shape == (3, 20, 4) and found.valid.all()
    assert (found.positive[:, 2:].sum() == 0) and found.positive[:, 0].all()


def test_the_pooler_takes_each_region_from_the_level_of_its_size():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, 96 // stride, 96 // stride, generator=generator) for stride in (4, 8, 16, 32, 64)]
    boxes = torch.tensor([[[4.0, 4, 20, 20], [0, 0, 45, 45]], [[0, 0, 90, 90], [10, 10, 31, 31]]])  # 16, 45, 90, 21
    pooler = RegionPooler(5, (4, 8, 16, 32), canonical_size=32.0, aligned=True)
    found = pooler(features, boxes.flatten(0, 1), image_index(boxes))
    for index, (box, image, level) in enumerate(zip(boxes.flatten(0, 1), (0, 0, 1, 1), (1, 2, 3, 1))):
        rois = torch.cat([torch.tensor([float(image)]), box]).unsqueeze(0)
        wanted = roi_align(features[level], rois, 5, 1 / 2 ** (level + 2), sampling_ratio=2, aligned=True)
        torch.testing.assert_close(found[index], wanted[0], rtol=1e-4, atol=1e-5)
