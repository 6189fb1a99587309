"""The cases that benchmarks/step.py times: ours and torchvision's Mask R-CNN of one shape, with one set of weights.

torchvision's detector is put together from its own parts (`torchvision.models.detection`), with our sampling sizes; its
images need no resizing. Ours gets its weights. Objects are ellipses; both sides get them ready to use (torchvision's as
masks of the image's size, ours as box frames), so that no loader is in the time.
"""

import tempfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, faster_rcnn, mask_rcnn, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from headstart.batch import Batch
from headstart.model.build import build
from headstart.model.detector import Detector
from headstart.recipe.load import load_recipe
from headstart.recipe.recipe import Recipe
from headstart.weights.files import read_weights
from headstart.weights.load import load_weights

PLAIN = {"model.pyramid_norm": False, "model.box.norm": False, "model.mask.norm": False}
TWO_FC = {"model.norm": "batch", "model.box.convs": 0, "model.box.fcs": 2, **PLAIN}
LITE0 = {"model.backbone": {"kind": "timm", "name": "tf_efficientnet_lite0"}, "model.norm": "batch", **PLAIN}
FRAME = 28  # of our masks; the base recipe's is larger, which costs our side more memory and next to no time


@dataclass(frozen=True)
class Case:
    """B images of side x side (or side x width) pixels with `objects` objects each, and the recipe of the model."""

    name: str
    batch: int
    side: int
    objects: int
    num_classes: int
    recipe: str = "base"
    changes: dict[str, Any] = field(default_factory=dict)
    width: int | None = None

    def load(self) -> Recipe:
        """Our recipe; without torchvision's half-cell difference, so that both sides compute the same function."""
        return load_recipe(self.recipe, {"model.aligned": False} | self.changes)


CASES = {
    case.name: case
    for case in (
        Case("demo", 8, 96, 3, 6, recipe="demo"),
        Case("r18-256", 8, 256, 7, 80, changes={"model.backbone.depth": 18, **TWO_FC}),
        Case("r50-256", 4, 256, 7, 80, changes=TWO_FC),
        Case("r50-800", 1, 800, 7, 80, changes=TWO_FC),
        Case("r50-800-gn", 1, 800, 7, 80),
        # the recipe of the shipped studies from ImageNet weights, at the size of real images
        Case("lite0-192", 8, 192, 3, 6, recipe="demo", changes=LITE0, width=256),
    )
}


class TheirBackbone(nn.Module):
    """A body and torchvision's pyramid over its four maps."""

    def __init__(self, body: nn.Module, widths: list[int], out_channels: int, norm):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(widths, out_channels, LastLevelMaxPool(), norm)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        return self.fpn(OrderedDict((str(level), value) for level, value in enumerate(maps)))


def norm_of(recipe: Recipe, used: bool):
    """torchvision's norm_layer argument: GroupNorm, BatchNorm, or none."""
    if not used:
        return None
    groups = recipe.model.norm_groups
    kinds = {"group": lambda width: nn.GroupNorm(groups, width), "frozen_batch": torchvision.ops.FrozenBatchNorm2d}
    return kinds.get(recipe.model.norm, nn.BatchNorm2d)


def their_body(recipe: Recipe, ours: Detector) -> tuple[nn.Module, list[int]]:
    """torchvision's ResNet, or timm's net; for a narrow ResNet, which torchvision cannot make, ours with its layers."""
    part = recipe.model.backbone
    if part.kind == "timm":
        body = timm.create_model(part.name, features_only=True, out_indices=ours.backbone.chosen)
        return body, list(ours.backbone.channels)
    if not isinstance(part.depth, int) or part.width != 64:
        return build(recipe, 1).backbone, list(ours.backbone.channels)
    shape = {"groups": part.groups, "width_per_group": part.group_width or 64}
    body = getattr(torchvision.models, f"resnet{part.depth}")(weights=None, norm_layer=norm_of(recipe, True), **shape)
    layers = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    return torchvision.models._utils.IntermediateLayerGetter(body, layers), list(ours.backbone.channels)


def their_detector(case: Case, ours: Detector) -> MaskRCNN:
    """torchvision's Mask R-CNN of the same shape."""
    recipe = case.load()
    model, box, mask, first = recipe.model, recipe.model.box, recipe.model.mask, recipe.model.rpn
    channels, canonical = model.pyramid_channels, int(model.canonical_size)
    backbone = TheirBackbone(*their_body(recipe, ours), channels, norm_of(recipe, model.pyramid_norm))
    levels, cells = ["0", "1", "2", "3"], (channels, box.pool, box.pool)
    if box.convs:
        norm = norm_of(recipe, box.norm)
        head = faster_rcnn.FastRCNNConvFCHead(cells, [box.conv_channels] * box.convs, [box.fc_width] * box.fcs, norm)
    else:
        head = faster_rcnn.TwoMLPHead(channels * box.pool**2, box.fc_width)
    return MaskRCNN(
        backbone,
        min_size=case.side,
        max_size=case.width or case.side,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        _skip_resize=True,
        rpn_anchor_generator=AnchorGenerator(tuple((int(s),) for s in first.anchor_sizes), (tuple(first.ratios),) * 5),
        rpn_head=rpn.RPNHead(channels, len(first.ratios), first.num_convs),
        rpn_pre_nms_top_n_train=first.train_before_nms,
        rpn_post_nms_top_n_train=first.train_after_nms,
        rpn_pre_nms_top_n_test=first.test_before_nms,
        rpn_post_nms_top_n_test=first.test_after_nms,
        rpn_batch_size_per_image=first.num_samples,
        rpn_positive_fraction=first.positive_fraction,
        box_roi_pool=MultiScaleRoIAlign(levels, box.pool, 2, canonical_scale=canonical),
        box_head=head,
        box_predictor=faster_rcnn.FastRCNNPredictor(box.fc_width, case.num_classes + 1),
        box_batch_size_per_image=box.num_regions,
        box_positive_fraction=box.positive_fraction,
        mask_roi_pool=MultiScaleRoIAlign(levels, mask.pool, 2, canonical_scale=canonical),
        mask_head=mask_rcnn.MaskRCNNHeads(
            channels, [mask.conv_channels] * mask.convs, 1, norm_layer=norm_of(recipe, mask.norm)
        ),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(mask.conv_channels, mask.conv_channels, case.num_classes + 1),
    )


def pair(case: Case) -> tuple[Detector, MaskRCNN]:
    """Ours and torchvision's detector with the same random weights."""
    ours = build(case.load(), case.num_classes)
    torch.manual_seed(0)
    theirs = their_detector(case, ours)
    # So that a random net reports objects as a trained one does: a few hundred candidates an image pass the
    # threshold, and proposals are told apart by more than rounding.
    nn.init.normal_(theirs.roi_heads.box_predictor.cls_score.weight, std=0.25)
    nn.init.normal_(theirs.rpn.head.cls_logits.weight, std=0.25)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theirs.pth"
        # Our loader knows the fc of torchvision's own head of four convolutions, which comes fifth.
        own = f"roi_heads.box_head.{len(ours.box_head.convs) + 1}."
        state = {name.replace(own, "roi_heads.box_head.5."): value for name, value in theirs.state_dict().items()}
        timm_body = case.load().model.backbone.kind == "timm"  # the same names on both sides, which no file has
        if timm_body:
            ours.backbone.body.load_state_dict(theirs.backbone.body.state_dict())
            state = {name: value for name, value in state.items() if not name.startswith("backbone.body.")}
        torch.save(state, path)
        report = load_weights(ours, read_weights(path), scope="detector", strict=not timm_body)
        assert all(name.startswith("backbone.body.") for name in report.missing), report.missing
    return ours.to(memory_format=torch.channels_last), theirs


def inputs(case: Case, seed: int = 0) -> tuple[Batch, tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """One batch in both forms: images of smooth noise, objects that are ellipses of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    num, objects, (height, width) = case.batch, case.objects, (case.side, case.width or case.side)
    images = torch.randn(num, 3, height // 8, width // 8, generator=generator)
    images = nn.functional.interpolate(images, size=(height, width), mode="bilinear")
    size = height * torch.exp(torch.empty(num, objects, 2).uniform_(-2.5, -0.4, generator=generator))
    low = torch.rand(num, objects, 2, generator=generator) * (torch.tensor([width, height]) - size)
    boxes = torch.cat([low, low + size], dim=2)
    labels = torch.randint(0, case.num_classes, (num, objects), generator=generator)
    real = torch.ones(num, objects, dtype=torch.bool)
    axis = (torch.arange(FRAME) + 0.5) / FRAME * 2 - 1
    disc = ((axis[:, None] ** 2 + axis**2) <= 1).expand(num, objects, FRAME, FRAME).contiguous()
    batch = Batch(
        images=images.contiguous(memory_format=torch.channels_last),
        sizes=torch.tensor([[height, width]] * num),
        gt_boxes=boxes,
        gt_labels=labels,
        gt_valid=real,
        gt_crowd=~real,
        gt_masks=disc,
        gt_keypoints=torch.zeros(num, objects, 0, 3),
        image_ids=torch.arange(num),
        slots=torch.arange(num) + seed * num,
    )
    targets = [{"boxes": b, "labels": c + 1, "masks": ellipses(b, height, width)} for b, c in zip(boxes, labels)]
    return batch, (list(images), targets)


def ellipses(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks [N,H,W] uint8 of the ellipses that fill boxes [N,4]."""
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    across = (x - centre[:, :1]) / radius[:, :1]
    down = (y - centre[:, 1:]) / radius[:, 1:]
    return (across.unsqueeze(1) ** 2 + down.unsqueeze(2) ** 2 <= 1).to(torch.uint8)
