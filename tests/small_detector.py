"""A narrow detector and batches of 96 pixels, on which a step takes a fraction of a second."""

from dataclasses import replace

import torch

from headstart.batch import Batch
from headstart.model.build import build
from headstart.recipe.load import load_recipe
from tiny import patched

NUM_CLASSES, SIDE, FRAME, NUM_KEYPOINTS = 5, 96, 28, 3

NARROW = {
    "model.backbone.depth": [1, 1, 1, 1],
    "model.backbone.bottleneck": False,
    "model.backbone.width": 8,
    "model.norm_groups": 4,
    "model.pyramid_channels": 16,
    "model.canonical_size": 32,
    "model.rpn.anchor_sizes": [8, 16, 32, 48, 64],
    "model.rpn.num_samples": 64,
    "model.rpn.train_before_nms": 200,
    "model.rpn.train_after_nms": 300,
    "model.rpn.test_before_nms": 60,
    "model.rpn.test_after_nms": 40,
    "model.box.convs": 1,
    "model.box.conv_channels": 16,
    "model.box.fc_width": 32,
    "model.box.num_regions": 64,
    "model.mask.convs": 1,
    "model.mask.conv_channels": 16,
    "model.mask.slots": 8,
    "model.keypoint.convs": 1,
    "model.keypoint.conv_channels": 16,
    "model.keypoint.slots": 8,
    "model.keypoint.pool": 4,
    "evaluate.score_threshold": 0.01,
    "evaluate.detections": 20,
}
CORNERS = {
    "model__mask__enabled": False,
    "model__corners__enabled": True,
    "model__corners__width": 16,
    "model__corners__num_corners": 20,
    "model__corners__num_pairs": 60,
}
HOURGLASS = CORNERS | {
    "model__backbone": {"kind": "hourglass", "depth": [1, 1, 2], "widths": [16, 16, 24], "stacks": 2},
    "model__pyramid": False,
}


def small_detector(**changes):
    """Built from the base recipe; `changes` are further overrides, with "__" for the dots."""
    overrides = patched(NARROW, {name.replace("__", "."): value for name, value in changes.items()})
    return build(load_recipe("base", overrides), NUM_CLASSES, NUM_KEYPOINTS)


def small_batch(num=3, *, slots=6, seed=0):
    """Images of noise with 1 to 4 objects, the last of them a crowd where there are 4; slot numbers 10, 11, ..."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(num, slots, 2, generator=generator) * SIDE * 0.6
    size = SIDE * (0.12 + torch.rand(num, slots, 2, generator=generator) * 0.3)
    count = 1 + torch.arange(num) % 4
    valid = torch.arange(slots) < count.unsqueeze(1)
    crowd = valid & (torch.arange(slots) == 3)
    ids = torch.arange(num)
    return Batch(
        images=torch.randn(num, 3, SIDE, SIDE, generator=generator),
        sizes=torch.tensor([[SIDE, SIDE - 8 * (n % 2)] for n in range(num)]),
        gt_boxes=torch.cat([low, low + size], dim=2) * valid.unsqueeze(2),
        gt_labels=torch.randint(0, NUM_CLASSES, (num, slots), generator=generator) * valid,
        gt_valid=valid,
        gt_crowd=crowd,
        gt_masks=(torch.rand(num, slots, FRAME, FRAME, generator=generator) > 0.3) & valid.view(num, slots, 1, 1),
        gt_keypoints=torch.zeros(num, slots, 0, 3),
        image_ids=ids,
        slots=ids + 10,
    )


def with_keypoints(batch, *, seed=0):
    """The batch with three points inside each object's box, some of them not labelled."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch.gt_valid.shape, NUM_KEYPOINTS)
    low, high = batch.gt_boxes[..., None, :2], batch.gt_boxes[..., None, 2:]
    places = low + torch.rand(*shape, 2, generator=generator) * (high - low)
    visibility = torch.randint(0, 3, shape, generator=generator) * batch.gt_valid.unsqueeze(2)
    return replace(batch, gt_keypoints=torch.cat([places, visibility.unsqueeze(3)], dim=3))


def in_double(batch):
    """The batch with its images, boxes and keypoints in double precision."""
    values = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    return Batch(**{name: v.double() if v.is_floating_point() else v for name, v in values.items()})


def assert_same_gradients(found, wanted):
    """Gradients by name in double precision, equal up to rounding: measured 2e-14 of a norm at most."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.dtype == torch.float64, name
        # the second term is for gradients that are zero but for rounding, as of a bias before a softmax
        assert (found[name] - gradient).norm() <= 1e-12 * gradient.norm() + 1e-15, name


def rows(batch, index):
    """The images of a batch at `index`, in that order."""
    return Batch(**{name: getattr(batch, name)[index] for name in Batch.__dataclass_fields__})
