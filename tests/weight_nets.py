"""Networks with random values for the weight tests: ours, in the shapes of other projects'."""

from dataclasses import dataclass

import torch

from headstart.model.backbones.resnet import ResNet
from headstart.model.box_head import BoxHead, DetectionLimits
from headstart.model.classifier import Classifier
from headstart.model.detector import Detector
from headstart.model.pyramid import Pyramid
from headstart.model.region_heads import MaskHead
from headstart.model.regions import RegionConvs, RegionPooler
from headstart.model.rpn import ProposalLimits, Rpn
from headstart.weights.files import WeightFile

NARROW = {"width": 16, "norm_groups": 4}


def resnet(depth=18, norm_kind="batch", **changes):
    return ResNet(depth, norm_kind=norm_kind, **changes).eval()


def classifier(kind="group", seed=0):
    torch.manual_seed(seed)
    return Classifier(resnet(18, kind, **NARROW), 3).train()


def file_of(tensors, **fields):
    return WeightFile("weights.pth", "0" * 64, dict(tensors), **fields)


def randomise(model, seed=0):
    """Random values everywhere, running statistics included, so that every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + noise if name.endswith(("var", "bn.weight")) or value.dim() < 2 else (noise - 0.5) * 0.1)
    return model.eval()


def assert_same_maps(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert b.std() > 0
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@dataclass(frozen=True)
class Size:
    """Widths of a detector; the defaults are those of torchvision's two Mask R-CNNs."""

    blocks: tuple = (3, 4, 6, 3)
    width: int = 64
    channels: int = 256
    fc_width: int = 1024
    groups: int = 32


SMALL = Size((1, 1, 1, 1), width=8, channels=16, fc_width=8, groups=4)


def detector(kind, *, norm_kind="none", body_norm="batch", num_classes=90, rpn_convs=1, box_convs=0, fcs=2, size=None):
    size = size or Size()
    norms = {"norm_kind": norm_kind, "norm_groups": size.groups}
    backbone = ResNet(size.blocks, bottleneck=True, width=size.width, norm_kind=body_norm, norm_groups=size.groups)
    limits, pyramid = ProposalLimits(20, 10), Pyramid(backbone.channels, size.channels, **norms)
    rpn = Rpn(
        size.channels,
        anchor_sizes=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        ratios=(0.5, 1.0, 2.0),
        strides=pyramid.strides,
        num_convs=rpn_convs,
        num_samples=16,
        positive_fraction=0.5,
        high=0.7,
        low=0.3,
        straddle=None,
        train_limits=limits,
        test_limits=limits,
    )
    box_pooler, mask_pooler = (RegionPooler(side, pyramid.pooled_strides) for side in (7, 14))
    box = BoxHead(
        RegionConvs(size.channels, box_pooler, num=box_convs, channels=size.channels, **norms),
        num_classes=num_classes,
        fcs=fcs,
        fc_width=size.fc_width,
        class_agnostic=False,
        weights=(10.0, 10.0, 5.0, 5.0),
        smooth_l1_beta=1.0,
    )
    mask_convs = RegionConvs(size.channels, mask_pooler, num=4, channels=size.channels, **norms)
    mask = MaskHead(mask_convs, num_classes=num_classes, channels=size.channels)
    return Detector(
        backbone,
        pyramid,
        rpn,
        box,
        mask if kind == "mask" else None,
        num_regions=8,
        positive_fraction=0.25,
        iou_threshold=0.5,
        mask_slots=2,
        limits=DetectionLimits(0.05, 0.5, 5),
        seed=0,
    ).eval()


def group_detector(seed=0):
    model = detector("mask", norm_kind="group", body_norm="group", num_classes=5, box_convs=4, fcs=1, size=SMALL)
    return randomise(model, seed)
