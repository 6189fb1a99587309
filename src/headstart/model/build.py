"""Recipes to models: the only file of this room that knows recipes.

A new detector family is a section of the recipe, a file or room beside this one, and a branch in `build`.
"""

from collections.abc import Sequence
from typing import overload

import torch
from torch import nn

from headstart.batch import InputSpec
from headstart.model.backbones import Backbone
from headstart.model.backbones.hourglass import Hourglass
from headstart.model.backbones.resnet import ResNet, build_detnet
from headstart.model.backbones.vgg import Vgg
from headstart.model.box_head import BoxHead, DetectionLimits, Weights
from headstart.model.classifier import Classifier
from headstart.model.corner_head import CornerHead
from headstart.model.corner_net import CornerNet, PairLimits
from headstart.model.detector import Detector
from headstart.model.pyramid import LastMap, Pyramid
from headstart.model.region_heads import KeypointHead, MaskHead
from headstart.model.regions import RegionConvs, RegionPooler
from headstart.model.rpn import ProposalLimits, Rpn
from headstart.model.semantic_head import Segmenter, SemanticHead
from headstart.ops.random import fold
from headstart.recipe.detection import BoxPart, ConvHead, Model
from headstart.recipe.labelling import ClassifyModel, SegmentModel
from headstart.recipe.recipe import AnyRecipe, ClassifyRecipe, Recipe, SegmentRecipe

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of box deltas: the inverse of their spread (R-CNN; Detectron: BBOX_REG_WEIGHTS)


def input_spec(recipe: AnyRecipe) -> InputSpec:
    """Input normalisation of a recipe's model."""
    return InputSpec(recipe.input.mean, recipe.input.std, recipe.input.order)


@overload
def build(recipe: ClassifyRecipe, num_classes: int) -> Classifier: ...
@overload
def build(recipe: SegmentRecipe, num_classes: int) -> Segmenter: ...
@overload
def build(
    recipe: Recipe, num_classes: int, num_keypoints: int = 0, left_right: Sequence[tuple[int, int]] = ()
) -> Detector | CornerNet: ...
def build(
    recipe: AnyRecipe, num_classes: int, num_keypoints: int = 0, left_right: Sequence[tuple[int, int]] = ()
) -> nn.Module:
    """Model of a recipe, randomly initialised from its seed.

    Equal recipes and numbers of classes give equal tensors; the caller's random state is kept. `num_keypoints` and the
    pairs `left_right` of them matter only to a keypoint head. ValueError where a name, depth or size does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(recipe.seed, 0))
        backbone = _backbone(recipe.model, len(recipe.input.mean))
        if recipe.task == "classification":
            model = recipe.model
            return Classifier(
                backbone, num_classes, dropout=model.dropout, pool=model.pool, hidden=model.hidden, seed=recipe.seed
            )
        if recipe.task == "segmentation":
            return _segmenter(recipe.model, backbone, num_classes)
        if recipe.model.corners.enabled:
            return _corner_net(recipe, backbone, num_classes)
        return _detector(recipe, backbone, num_classes, num_keypoints, left_right)


def _backbone(model: Model | ClassifyModel | SegmentModel, in_channels: int) -> Backbone:
    chosen = model.backbone
    if chosen.kind == "vgg":
        return Vgg(chosen.depth, width=chosen.width, in_channels=in_channels)
    options = {"norm_kind": model.norm, "norm_groups": model.norm_groups, "in_channels": in_channels}
    if chosen.kind == "timm":
        from headstart.model.backbones.timm_net import TimmNet  # timm takes a second to import, few recipes need it

        return TimmNet(chosen.name, **options)
    if chosen.kind == "detnet":
        return build_detnet(chosen.depth, width=chosen.width, **options)
    if chosen.kind == "hourglass":
        return Hourglass(chosen.depth, widths=chosen.widths, stacks=chosen.stacks, **options)
    return ResNet(
        chosen.depth,
        bottleneck=chosen.bottleneck,
        width=chosen.width,
        groups=chosen.groups,
        group_width=chosen.group_width,
        **options,
    )


def _segmenter(model: SegmentModel, backbone: Backbone, num_classes: int) -> Segmenter:
    pyramid = _pyramid(model, backbone, subsample=False)
    head = SemanticHead(
        pyramid.channels,
        pyramid.strides,
        num_classes=num_classes,
        width=model.semantic.channels,
        norm_kind=model.norm if model.semantic.norm else "none",
        norm_groups=model.norm_groups,
        weight=model.semantic.weight,
    )
    return Segmenter(backbone, pyramid, head)


def _corner_net(recipe: Recipe, backbone: Backbone, num_classes: int) -> CornerNet:
    model, part, limits = recipe.model, recipe.model.corners, recipe.evaluate
    pyramid = _pyramid(model, backbone, subsample=False, finest=part.stride) if model.pyramid else None
    channels = [pyramid.channels] if pyramid else backbone.channels
    heads = [
        CornerHead(
            width,
            num_classes=num_classes,
            width=part.width,
            norm_kind=model.norm,
            norm_groups=model.norm_groups,
            pull=part.pull,
            push=part.push,
            offset=part.offset,
        )
        for width in channels
    ]
    return CornerNet(
        backbone,
        pyramid,
        heads,
        stride=part.stride,
        min_iou=part.min_iou,
        flip=part.flip,
        pairs=PairLimits(part.num_corners, part.num_pairs, part.distance, part.soft_nms),
        limits=DetectionLimits(limits.score_threshold, limits.nms_threshold, limits.detections),
    )


def _detector(
    recipe: Recipe,
    backbone: Backbone,
    num_classes: int,
    num_keypoints: int,
    left_right: Sequence[tuple[int, int]],
) -> Detector:
    model, points, part = recipe.model, recipe.model.keypoint, recipe.evaluate
    pyramid = _detection_pyramid(model, backbone)
    weights = model.cascade.weights if model.cascade.enabled else (WEIGHTS,)
    return Detector(
        backbone,
        pyramid,
        _rpn(model, pyramid),
        _box_head(model, pyramid, num_classes, weights[0]),
        MaskHead(_region_convs(model, model.mask, pyramid), num_classes=num_classes, channels=model.mask.conv_channels)
        if model.mask.enabled
        else None,
        KeypointHead(_region_convs(model, points, pyramid), num_keypoints=num_keypoints, left_right=left_right)
        if points.enabled
        else None,
        num_regions=model.box.num_regions,
        positive_fraction=model.box.positive_fraction,
        iou_threshold=model.box.iou_threshold,
        mask_slots=model.mask.slots,
        keypoint_slots=points.slots,
        limits=DetectionLimits(part.score_threshold, part.nms_threshold, part.detections),
        seed=recipe.seed,
        # last, so that all else starts as without a cascade
        cascade=[_box_head(model, pyramid, num_classes, stage) for stage in weights[1:]],
        cascade_iou=model.cascade.iou[1:] if model.cascade.enabled else (),
    )


def _pyramid(model: Model | SegmentModel, backbone: Backbone, *, subsample: bool, finest: int | None = None) -> Pyramid:
    return Pyramid(
        backbone.channels,
        model.pyramid_channels,
        norm_kind=model.norm if model.pyramid_norm else "none",
        norm_groups=model.norm_groups,
        map_strides=backbone.strides,
        subsample=subsample,
        finest=finest,
    )


def _detection_pyramid(model: Model, backbone: Backbone) -> Pyramid | LastMap:
    """The pyramid on all maps, with a subsampled level where there is one anchor size more than maps; or no pyramid."""
    if not model.pyramid:
        return LastMap(backbone.channels[-1], backbone.strides[-1])
    num_maps, num_sizes = len(backbone.strides), len(model.rpn.anchor_sizes)
    if num_sizes not in (num_maps, num_maps + 1):
        raise ValueError(
            f"model.rpn.anchor_sizes: {num_sizes} sizes for a pyramid on {num_maps} maps, expected one a level: "
            f"{num_maps}, or {num_maps + 1} with a subsampled level"
        )
    return _pyramid(model, backbone, subsample=num_sizes > num_maps)


def _rpn(model: Model, pyramid: Pyramid | LastMap) -> Rpn:
    part = model.rpn
    return Rpn(
        pyramid.channels,
        anchor_sizes=tuple((size,) for size in part.anchor_sizes) if model.pyramid else (part.anchor_sizes,),
        ratios=part.ratios,
        strides=pyramid.strides,
        num_convs=part.num_convs,
        num_samples=part.num_samples,
        positive_fraction=part.positive_fraction,
        high=part.high,
        low=part.low,
        straddle=part.straddle,
        train_limits=ProposalLimits(part.train_before_nms, part.train_after_nms, part.nms_threshold),
        test_limits=ProposalLimits(part.test_before_nms, part.test_after_nms, part.nms_threshold),
    )


def _box_head(model: Model, pyramid: Pyramid | LastMap, num_classes: int, weights: Weights) -> BoxHead:
    part = model.box
    return BoxHead(
        _region_convs(model, part, pyramid),
        num_classes=num_classes,
        fcs=part.fcs,
        fc_width=part.fc_width,
        class_agnostic=part.class_agnostic,
        weights=weights,
        smooth_l1_beta=part.smooth_l1_beta,
    )


def _region_convs(model: Model, part: BoxPart | ConvHead, pyramid: Pyramid | LastMap) -> RegionConvs:
    return RegionConvs(
        pyramid.channels,
        RegionPooler(part.pool, pyramid.pooled_strides, model.canonical_size, model.aligned),
        num=part.convs,
        channels=part.conv_channels,
        norm_kind=model.norm if part.norm else "none",
        norm_groups=model.norm_groups,
    )
