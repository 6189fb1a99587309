"""Mask R-CNN as in the paper's figure: backbone, pyramid, proposals, heads."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from headstart.batch import Batch, Detections
from headstart.model.backbone import Backbone, TimmBackbone, build_detnet, build_resnet
from headstart.model.box_head import BoxHead, DetectionLimits, Weights
from headstart.model.cascade import cascade_loss, cascade_predict
from headstart.model.keypoint_head import KeypointHead, cells_of
from headstart.model.mask_head import MaskHead, sample_frames
from headstart.model.pyramid import LastMap, Pyramid
from headstart.model.regions import RegionPooler, Regions, image_index, pool_regions, sample_regions
from headstart.model.rpn import ProposalLimits, Rpn
from headstart.model.vgg import build_vgg
from headstart.ops.compact import pool_slots, used_length
from headstart.ops.random import fold
from headstart.recipe.recipe import ClassifyModel, Model, Recipe

MASK_SALT, KEYPOINT_SALT = 3, 4
WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of box deltas: the inverse of their spread (R-CNN; Detectron: BBOX_REG_WEIGHTS)


class Detector(nn.Module):
    """A two-stage detector, with masks when `mask_head` is given and keypoints when `keypoint_head` is.

    The heads of `cascade` refine the boxes further, each with its IoU of `cascade_iou`; they and `box_head` are
    class-agnostic then.
    `forward(batch)` returns the losses; `predict(images, sizes)` returns detections. Sampling inside `forward` is a
    pure function of (`seed`, the batch's slot numbers).
    """

    def __init__(
        self,
        backbone: Backbone,
        pyramid: Pyramid | LastMap,
        rpn: Rpn,
        box_head: BoxHead,
        mask_head: MaskHead | None,
        keypoint_head: KeypointHead | None = None,
        *,
        num_regions: int,
        positive_fraction: float,
        iou_threshold: float,
        mask_slots: int,
        keypoint_slots: int = 0,
        limits: DetectionLimits,
        seed: int,
        cascade: Sequence[BoxHead] = (),
        cascade_iou: tuple[float, ...] = (),
    ):
        super().__init__()
        self.backbone, self.pyramid, self.rpn, self.box_head, self.mask_head = (
            backbone,
            pyramid,
            rpn,
            box_head,
            mask_head,
        )
        self.keypoint_head, self.keypoint_slots = keypoint_head, keypoint_slots
        self.num_regions, self.max_positive = num_regions, int(num_regions * positive_fraction)
        self.cascade, self.iou_thresholds = nn.ModuleList(cascade), (iou_threshold, *cascade_iou)
        self.mask_slots, self.limits = mask_slots, limits
        self.key = fold(seed) & 0xFFFFFFFF

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, each a scalar.

        Finite and connected to every parameter even when the batch shows no object.
        """
        batch = without_empty_slots(batch)
        keys = batch.slots ^ self.key
        features = self.pyramid(self.backbone(batch.images))
        anchors = self.rpn.anchors(features)
        targets = self.rpn.targets(anchors, batch, keys)
        losses = self.rpn.loss(*self.rpn.predict_at(features, targets.chosen.index), targets)
        with torch.no_grad():  # what proposes learns from the sampled anchors alone
            logits, deltas = self.rpn.predict(features)
        proposals, valid = self.rpn.decode(logits, deltas, anchors, batch.sizes, self.rpn.train_limits)
        regions = sample_regions(
            proposals,
            valid,
            batch,
            keys,
            num_classes=self.box_head.num_classes,
            iou_threshold=self.iou_thresholds[0],
            num=self.num_regions,
            max_positive=self.max_positive,
        )
        box_losses, regions = cascade_loss(self.box_heads, features, regions, batch, thresholds=self.iou_thresholds)
        losses |= box_losses
        if self.mask_head is not None:
            losses |= self._mask_loss(features, regions, batch, keys)
        if self.keypoint_head is not None:
            losses |= self._keypoint_loss(features, regions, batch, keys)
        return losses

    @property
    def box_heads(self) -> list[BoxHead]:
        """The stages of the box part, in order; one without a cascade."""
        return [self.box_head, *self.cascade]

    def _mask_loss(self, features: list[Tensor], regions: Regions, batch: Batch, keys: Tensor) -> dict[str, Tensor]:
        """Masks of the positive regions, pooled over the batch into `mask_slots` an image.

        In a cascade these are the regions that its last stage has seen, as the boxes of a test image come from there
        (mmdetection's rule; Detectron2 and tensorpack take the first stage's).
        An object without a segmentation has an empty frame and takes no part.
        """
        head = regions.leading
        image = torch.arange(len(batch), device=keys.device).unsqueeze(1)
        segmented = batch.gt_masks.flatten(2).any(dim=2)[image, regions.gt[:, :head]]
        flags = regions.positive[:, :head] & segmented
        boxes, image, gt, chosen = pool_regions(regions, flags, keys, slots=self.mask_slots, salt=MASK_SALT)
        labels = torch.where(chosen, batch.gt_labels[image, gt], 0)
        targets = sample_frames(
            batch.gt_masks[image, gt], batch.gt_boxes[image, gt], boxes, 2 * self.mask_head.pooler.size
        )
        return self.mask_head.loss(self.mask_head.predict(features, boxes, image, labels, chosen), targets, chosen)

    def _keypoint_loss(self, features: list[Tensor], regions: Regions, batch: Batch, keys: Tensor) -> dict[str, Tensor]:
        """Keypoints of the positive regions that show a labelled one, pooled into `keypoint_slots` an image."""
        head = regions.leading
        image = torch.arange(len(batch), device=keys.device).unsqueeze(1)
        points = batch.gt_keypoints[image, regions.gt[:, :head]]
        _, inside = cells_of(points.flatten(0, 1), regions.boxes[:, :head].flatten(0, 1), self.keypoint_head.size)
        flags = regions.positive[:, :head] & inside.any(dim=1).view(-1, head)
        boxes, image, gt, chosen = pool_regions(regions, flags, keys, slots=self.keypoint_slots, salt=KEYPOINT_SALT)
        logits = self.keypoint_head.predict(features, boxes, image, chosen)
        return self.keypoint_head.loss(logits, batch.gt_keypoints[image, gt], boxes, chosen)

    @torch.no_grad()
    def predict(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detections of images [B,3,H,W] (normalised, padded) with sizes [B,2] (height, width) before padding."""
        features = self.features(images)
        return self.complete(features, self.find(features, sizes))

    def features(self, images: Tensor) -> list[Tensor]:
        """The pyramid of images [B,3,H,W]."""
        return self.pyramid(self.backbone(images))

    @torch.no_grad()
    def find(self, features: list[Tensor], sizes: Tensor) -> Detections:
        """Detections without masks."""
        logits, deltas = self.rpn.predict(features)
        proposals, valid = self.rpn.decode(logits, deltas, self.rpn.anchors(features), sizes, self.rpn.test_limits)
        outputs = cascade_predict(self.box_heads, features, proposals, valid, sizes)
        return self.box_heads[-1].decode(*outputs, valid, sizes, self.limits)

    @torch.no_grad()
    def complete(self, features: list[Tensor], detections: Detections) -> Detections:
        """The same detections with all that the other heads say of their boxes."""
        if self.mask_head is not None:
            detections = replace(detections, masks=self._masks(features, detections))
        if self.keypoint_head is not None:
            detections = replace(detections, heat_maps=self._heat_maps(features, detections))
        return detections

    def _masks(self, features: list[Tensor], detections: Detections) -> Tensor:
        """Mask probabilities [B,D,T,T] of the detections; zeros in slots that hold none."""
        index, chosen = _detected(detections)
        boxes, labels = detections.boxes.flatten(0, 1)[index], detections.labels.flatten()[index]
        masks = self.mask_head.decode(
            self.mask_head.predict(features, boxes, image_index(detections.boxes)[index], labels, chosen)
        )
        return _in_slots(masks, index, chosen, detections)

    def _heat_maps(self, features: list[Tensor], detections: Detections) -> Tensor:
        """Heat-map logits [B,D,K,T,T] of the detections; zeros in slots that hold none."""
        index, chosen = _detected(detections)
        boxes = detections.boxes.flatten(0, 1)[index]
        maps = self.keypoint_head.decode(
            self.keypoint_head.predict(features, boxes, image_index(detections.boxes)[index], chosen)
        )
        return _in_slots(maps, index, chosen, detections)


def _detected(detections: Detections) -> tuple[Tensor, Tensor]:
    """Where the detections are among all B*D slots: index [S], and which of these hold one, bool [S]."""
    flags = detections.valid.flatten()
    return pool_slots(flags, flags.shape[0], detections.scores.flatten())


def _in_slots(values: Tensor, index: Tensor, chosen: Tensor, detections: Detections) -> Tensor:
    """Values [S,...] of the slots `index` as [B,D,...], zeros elsewhere."""
    values = values * chosen.view(-1, *[1] * (values.dim() - 1))
    full = values.new_zeros(detections.valid.numel(), *values.shape[1:]).index_copy(0, index, values)
    return full.view(*detections.valid.shape, *values.shape[1:])


def without_empty_slots(batch: Batch) -> Batch:
    """The batch without trailing ground-truth slots that no image uses, where shapes may depend on the data."""
    used = used_length(batch.gt_valid)
    slots = ("gt_boxes", "gt_labels", "gt_valid", "gt_crowd", "gt_masks", "gt_keypoints")
    return replace(batch, **{name: getattr(batch, name)[:, :used] for name in slots})


def build_backbone(model: Model | ClassifyModel, in_channels: int) -> Backbone:
    """The backbone of a recipe's model section, for images of `in_channels` channels."""
    chosen = model.backbone
    if chosen.kind == "vgg":
        return build_vgg(chosen.depth, width=chosen.width, in_channels=in_channels)
    options = {"norm_kind": model.norm, "norm_groups": model.norm_groups, "in_channels": in_channels}
    if chosen.kind == "timm":
        return TimmBackbone(chosen.name, **options)
    if chosen.kind == "detnet":
        return build_detnet(chosen.depth, width=chosen.width, **options)
    shape = {
        "bottleneck": chosen.bottleneck,
        "width": chosen.width,
        "groups": chosen.groups,
        "group_width": chosen.group_width,
    }
    return build_resnet(chosen.depth, **shape, **options)


def build(
    recipe: Recipe, num_classes: int, num_keypoints: int = 0, left_right: Sequence[tuple[int, int]] = ()
) -> Detector:
    """The detector of a recipe, randomly initialised from its seed; nothing below has seen a recipe.

    The same recipe and number of classes give the same tensors, whatever ran before; the caller's random state is kept.
    `num_keypoints` and the pairs `left_right` of them matter only to a recipe with a keypoint head.
    """
    model = recipe.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(recipe.seed, 0))
        backbone = build_backbone(model, len(recipe.input.mean))
        pyramid = _build_pyramid(model, backbone)
        weights = model.cascade.weights if model.cascade.enabled else (WEIGHTS,)
        return Detector(
            backbone,
            pyramid,
            _build_rpn(model, pyramid),
            _build_box_head(model, pyramid, num_classes, weights[0]),
            _build_mask_head(model, pyramid, num_classes) if model.mask.enabled else None,
            _build_keypoint_head(model, pyramid, num_keypoints, left_right) if model.keypoint.enabled else None,
            num_regions=model.box.num_regions,
            positive_fraction=model.box.positive_fraction,
            iou_threshold=model.box.iou_threshold,
            mask_slots=model.mask.slots,
            keypoint_slots=model.keypoint.slots,
            limits=DetectionLimits(
                recipe.evaluate.score_threshold, recipe.evaluate.nms_threshold, recipe.evaluate.detections
            ),
            seed=recipe.seed,
            # last, so that all else starts as without a cascade
            cascade=[_build_box_head(model, pyramid, num_classes, stage) for stage in weights[1:]],
            cascade_iou=model.cascade.iou[1:] if model.cascade.enabled else (),
        )


def _build_pyramid(model: Model, backbone: Backbone) -> Pyramid | LastMap:
    """The pyramid on all maps, with a subsampled level where there is one anchor size more than maps; or no pyramid."""
    if not model.pyramid:
        return LastMap(backbone.channels[-1], backbone.strides[-1])
    num_maps, num_sizes = len(backbone.strides), len(model.rpn.anchor_sizes)
    if num_sizes not in (num_maps, num_maps + 1):
        raise ValueError(
            f"model.rpn.anchor_sizes: {num_sizes} sizes for a pyramid on {num_maps} maps, expected one a level: "
            f"{num_maps}, or {num_maps + 1} with a subsampled level"
        )
    return Pyramid(
        backbone.channels,
        model.pyramid_channels,
        norm_kind=model.norm if model.pyramid_norm else "none",
        norm_groups=model.norm_groups,
        map_strides=backbone.strides,
        subsample=num_sizes > num_maps,
    )


def _build_rpn(model: Model, pyramid: Pyramid | LastMap) -> Rpn:
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


def _pooler(model: Model, pyramid: Pyramid | LastMap, size: int) -> RegionPooler:
    return RegionPooler(size, pyramid.pooled_strides, model.canonical_size, model.aligned)


def _build_box_head(model: Model, pyramid: Pyramid | LastMap, num_classes: int, weights: Weights) -> BoxHead:
    part = model.box
    return BoxHead(
        pyramid.channels,
        _pooler(model, pyramid, part.pool),
        num_classes=num_classes,
        convs=part.convs,
        conv_channels=part.conv_channels,
        fcs=part.fcs,
        fc_width=part.fc_width,
        norm_kind=model.norm if part.norm else "none",
        norm_groups=model.norm_groups,
        class_agnostic=part.class_agnostic,
        weights=weights,
        smooth_l1_beta=part.smooth_l1_beta,
    )


def _build_mask_head(model: Model, pyramid: Pyramid | LastMap, num_classes: int) -> MaskHead:
    part = model.mask
    return MaskHead(
        pyramid.channels,
        _pooler(model, pyramid, part.pool),
        num_classes=num_classes,
        convs=part.convs,
        conv_channels=part.conv_channels,
        norm_kind=model.norm if part.norm else "none",
        norm_groups=model.norm_groups,
    )


def _build_keypoint_head(
    model: Model, pyramid: Pyramid | LastMap, num_keypoints: int, left_right: Sequence[tuple[int, int]]
) -> KeypointHead:
    part = model.keypoint
    assert num_keypoints > 0, "the keypoints of the data"
    return KeypointHead(
        pyramid.channels,
        _pooler(model, pyramid, part.pool),
        num_keypoints=num_keypoints,
        left_right=left_right,
        convs=part.convs,
        conv_channels=part.conv_channels,
        norm_kind=model.norm if part.norm else "none",
        norm_groups=model.norm_groups,
    )
