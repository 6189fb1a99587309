"""Data that passes between images and models: input normalisation, batches, detections.

B images, G ground-truth slots, K keypoints, M mask frame side, D detection slots. Shapes depend on the bucket and B
only, never on the content of the images: empty slots are marked by a validity flag, not left out.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class InputSpec:
    """Input normalisation of a network, part of what its weights mean: (pixel - mean) / std, pixels in 0..255.

    mean and std are listed in the channel order that `order` names: "rgb" or "bgr" (other channel counts: any order).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: str

    def in_order(self, order: str) -> "InputSpec":
        """The same normalisation written for another channel order; three channels only."""
        if order == self.order:
            return self
        assert len(self.mean) == len(self.std) == 3
        return InputSpec(self.mean[::-1], self.std[::-1], order)


Inputs = Tensor | list[Tensor]  # of a detector: images [B,3,H,W], or in their place the maps of a frozen backbone


@dataclass(frozen=True)
class Batch:
    """One training or evaluation batch.

    images [B,3,H,W] float (3: `input.channels`), normalised, zero-padded at the right and bottom, or the backbone's
    maps of them (`Inputs`); sizes [B,2] (height, width) in pixels before padding.
    gt_boxes [B,G,4] XYXY pixels of the padded image; gt_labels [B,G] in 0..C-1; gt_valid, gt_crowd [B,G] bool.
    gt_masks [B,G,M,M] bool in the box frame (M = 0 without masks); gt_keypoints [B,G,K,3] (x, y, visibility).
    image_ids [B] ids in the data set; slots [B] the global slot numbers that key all randomness.
    """

    images: Inputs
    sizes: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    gt_valid: Tensor
    gt_crowd: Tensor
    gt_masks: Tensor
    gt_keypoints: Tensor
    image_ids: Tensor
    slots: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """This batch on another device."""

        def moved(value: Inputs) -> Inputs:
            return list(map(moved, value)) if isinstance(value, list) else value.to(device, non_blocking=True)

        return Batch(**{field.name: moved(getattr(self, field.name)) for field in fields(self)})

    def __len__(self) -> int:
        return self.slots.shape[0]


IGNORE_LABEL = -1  # of pixels without a known class (padding among them): ignored in loss and metrics


@dataclass(frozen=True)
class PixelBatch:
    """One training batch of the segmentation task.

    images [B,3,H,W] float, normalised, zero-padded at the right and bottom; labels [B,H/s,W/s] int64 in 0..C-1 or
    IGNORE_LABEL; image_ids [B] ids in the data set.
    """

    images: Tensor
    labels: Tensor
    image_ids: Tensor

    def to(self, device: torch.device | str) -> "PixelBatch":
        """This batch on another device."""
        return PixelBatch(self.images.to(device), self.labels.to(device), self.image_ids.to(device))


@dataclass(frozen=True)
class LabelledBatch:
    """One training batch of the classification task.

    images [B,3,S,S] normalised, or their features [B,W]; labels [B] in 0..C-1; slots [B] the global slot numbers that
    key all randomness; indices [B] of the images in the data set, on the host.
    """

    images: Tensor
    labels: Tensor
    slots: Tensor
    indices: np.ndarray

    def to(self, device: torch.device | str) -> "LabelledBatch":
        """This batch on another device."""
        return LabelledBatch(self.images.to(device), self.labels.to(device), self.slots.to(device), self.indices)


@dataclass(frozen=True)
class Detections:
    """Detections of B images in D slots each, best score first.

    boxes [B,D,4] XYXY pixels of the padded image; scores [B,D]; labels [B,D] in 0..C-1; valid [B,D] bool.
    masks [B,D,M,M] probabilities in the box frame, or None; heat_maps [B,D,K,T,T] logits of each keypoint's position in
    the box frame, or None (`model.region_heads.peaks` finds the positions).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    masks: Tensor | None = None
    heat_maps: Tensor | None = None
