"""Mask R-CNN (He et al. 2017) as in the paper's figure, and the contract of every detector family."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from headstart.batch import Batch, Detections, Inputs
from headstart.model import AnyModel, Predictor
from headstart.model.backbones import Backbone
from headstart.model.box_head import BoxHead, DetectionLimits, cascade_loss, cascade_predict
from headstart.model.pyramid import LastMap, Pyramid
from headstart.model.region_heads import KeypointHead, MaskHead, cells_of, sample_frames
from headstart.model.regions import Regions, image_index, pool_regions, sample_regions
from headstart.model.rpn import Rpn
from headstart.ops.fixed_shapes import pool_slots, used_length
from headstart.ops.random import fold

MASK_SALT, KEYPOINT_SALT = 3, 4


@runtime_checkable
class AnyDetector(AnyModel, Protocol):
    """Contract of a detector family, an nn.Module: all that training, evaluation, export, flops and audit ask of it.

    forward(batch) gives scalar losses by name, finite and connected to every parameter even without objects.
    predict(images, sizes) equals complete(f, find(f, sizes)) with f = features(images): `find` gives boxes, scores and
    labels, `complete` adds masks and heat maps to given boxes. images [B,3,H,W] are normalised and padded, or the
    backbone's maps of them (`Inputs`); sizes [B,2] (height, width) in pixels before padding.
    """

    kinds: tuple[str, ...]  # predicted: of "box", "mask", "keypoints"
    limits: DetectionLimits
    keypoint_mirror: tuple[int, ...]  # [K] for each keypoint its place in a mirrored image; () without keypoints

    def forward(self, batch: Batch) -> dict[str, Tensor]: ...

    def predict(self, images: Inputs, sizes: Tensor) -> Detections: ...

    def features(self, images: Inputs) -> list[Tensor]: ...

    def find(self, features: list[Tensor], sizes: Tensor) -> Detections: ...

    def complete(self, features: list[Tensor], detections: Detections) -> Detections: ...


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
        self.backbone, self.pyramid, self.rpn = backbone, pyramid, rpn
        self.box_head, self.mask_head, self.keypoint_head = box_head, mask_head, keypoint_head
        self.keypoint_mirror = () if keypoint_head is None else keypoint_head.mirror
        heads = {"mask": mask_head, "keypoints": keypoint_head}
        self.kinds = ("box", *(kind for kind, head in heads.items() if head is not None))
        self.num_regions, self.max_positive = num_regions, int(num_regions * positive_fraction)
        self.cascade, self.iou_thresholds = nn.ModuleList(cascade), (iou_threshold, *cascade_iou)
        self.mask_slots, self.keypoint_slots, self.limits = mask_slots, keypoint_slots, limits
        self.key = fold(seed) & 0xFFFFFFFF

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, each a scalar.

        Finite and connected to every parameter even when the batch shows no object.
        """
        batch = without_empty_slots(batch)
        keys = batch.slots ^ self.key
        features = self.features(batch.images)
        anchors = self.rpn.anchors(features)
        chosen, wanted = self.rpn.targets(anchors, batch, keys)
        losses = self.rpn.loss(*self.rpn.predict_at(features, chosen.index), chosen, wanted)
        with torch.no_grad():  # the RPN learns from the sampled anchors alone
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

    def predictors(self) -> tuple[Predictor, ...]:
        """Class predictors of boxes (every stage) and masks, which change together, and the keypoint predictor."""
        stages = ["box_head", *(f"cascade.{stage}" for stage in range(len(self.cascade)))]
        layers = [f"{stage}.{layer}." for stage in stages for layer in ("classify", "regress")]
        prefixes = (*layers, "mask_head.classify.")
        classes = Predictor("classes", prefixes, "box_head.classify.weight", background=1)
        points = Predictor("keypoints", ("keypoint_head.deconv.",), "keypoint_head.deconv.weight", axis=1)
        return (classes, points) if self.keypoint_head is not None else (classes,)

    def initialisers(self) -> dict[str, str]:
        """Initial values of each part in words."""
        parts = {"pyramid": self.pyramid, "rpn": self.rpn, "box_head": self.box_head, "cascade": self.box_head}
        heads = {"mask_head": self.mask_head, "keypoint_head": self.keypoint_head}
        return {name: part.initialiser for name, part in (parts | heads).items() if part is not None}

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
            batch.gt_masks[image, gt], batch.gt_boxes[image, gt], boxes, 2 * self.mask_head.convs.pooler.size
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
    def predict(self, images: Inputs, sizes: Tensor) -> Detections:
        """Detections of images [B,3,H,W] (normalised, padded; or `Inputs`) of sizes [B,2] before padding."""
        features = self.features(images)
        return self.complete(features, self.find(features, sizes))

    def features(self, images: Inputs) -> list[Tensor]:
        """The pyramid of images [B,3,H,W], or of the backbone's maps of them."""
        return self.pyramid(images if isinstance(images, list) else self.backbone(images))

    @torch.no_grad()
    def find(self, features: list[Tensor], sizes: Tensor) -> Detections:
        """Detections without masks and heat maps."""
        logits, deltas = self.rpn.predict(features)
        proposals, valid = self.rpn.decode(logits, deltas, self.rpn.anchors(features), sizes, self.rpn.test_limits)
        outputs = cascade_predict(self.box_heads, features, proposals, valid, sizes)
        return self.box_heads[-1].decode(*outputs, valid, sizes, self.limits)

    @torch.no_grad()
    def complete(self, features: list[Tensor], detections: Detections) -> Detections:
        """The same detections with the mask probabilities and heat-map logits of their boxes."""
        if self.mask_head is None and self.keypoint_head is None:
            return detections
        flags = detections.valid.flatten()
        index, chosen = pool_slots(flags, flags.shape[0], detections.scores.flatten())
        boxes, image = detections.boxes.flatten(0, 1)[index], image_index(detections.boxes)[index]

        def in_slots(values: Tensor) -> Tensor:
            """Values [S,...] of the chosen slots as [B,D,...], zeros in slots that hold no detection."""
            values = values * chosen.view(-1, *[1] * (values.dim() - 1))
            full = values.new_zeros(flags.shape[0], *values.shape[1:]).index_copy(0, index, values)
            return full.view(*detections.valid.shape, *values.shape[1:])

        masks, heat_maps = detections.masks, detections.heat_maps
        if self.mask_head is not None:
            labels = detections.labels.flatten()[index]
            masks = in_slots(self.mask_head.predict(features, boxes, image, labels, chosen).sigmoid())
        if self.keypoint_head is not None:
            heat_maps = in_slots(self.keypoint_head.predict(features, boxes, image, chosen))
        return replace(detections, masks=masks, heat_maps=heat_maps)


def without_empty_slots(batch: Batch) -> Batch:
    """Batch without trailing ground-truth slots that no image uses, where shapes may depend on the data."""
    used = used_length(batch.gt_valid)
    slots = ("gt_boxes", "gt_labels", "gt_valid", "gt_crowd", "gt_masks", "gt_keypoints")
    return replace(batch, **{name: getattr(batch, name)[:, :used] for name in slots})
