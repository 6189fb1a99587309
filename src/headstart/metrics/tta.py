"""Test-time augmentation: detections of resized and mirrored views of a batch, merged.

After Detectron: NMS and box voting over the boxes of all views; masks and heat maps of the remaining boxes are averaged
over all views. As in Detectron2 each view gives its own detections, where Detectron joins candidates before NMS. Views
are computed one after the other, and a second time for masks: memory does not grow with their number.

B images, D detections a view, V views, N = V * D candidates.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headstart.batch import Detections, Inputs
from headstart.data.order import Resize
from headstart.model.detector import AnyDetector
from headstart.ops.boxes import iou
from headstart.ops.nms import nms_by_label


@dataclass(frozen=True)
class TtaView:
    """One view of a batch: `make_batch()` gives images [B,3,H,W] and sizes [B,2]; `flip`: they are mirrored."""

    make_batch: Callable[[], tuple[Inputs, Tensor]]
    flip: bool = False


@dataclass(frozen=True)
class Tta:
    """Views to predict on: every resize, and its mirror image if `flip`; and the IoU from which boxes vote."""

    resizes: tuple[Resize, ...]
    flip: bool
    vote_threshold: float

    def views(self) -> list[tuple[Resize, bool]]:
        """(resize, mirrored) of each view, the first one not mirrored."""
        return [(resize, flip) for resize in self.resizes for flip in ((False, True) if self.flip else (False,))]


@torch.no_grad()
def predict(model: AnyDetector, views: Sequence[TtaView], *, vote_threshold: float) -> tuple[Detections, Tensor]:
    """Merged detections of a batch in pixels of the first view, which is not mirrored, and its sizes [B,2].

    With a single view they are the model's own, bit for bit; but of CornerNet's, NMS removes what soft-NMS keeps.
    """
    found: list[Detections] = []
    sizes: list[Tensor] = []
    for view in views:
        images, size = view.make_batch()
        own = model.find(model.features(images), size)
        sizes.append(size)
        found.append(replace(own, boxes=move(own.boxes, size, view.flip, sizes[0], False)))
    limits = model.limits
    merged = merge(found, nms_threshold=limits.nms_threshold, vote_threshold=vote_threshold, num=limits.num)
    masks, heat_maps = _means(_completed(model, view, merged, sizes[0]) for view in views)
    return replace(merged, masks=masks, heat_maps=heat_maps), sizes[0]


def _completed(
    model: AnyDetector, view: TtaView, merged: Detections, first: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Masks [B,D,T,T] and heat maps [B,D,K,T,T] of the merged detections, predicted in one view; None without.

    Those of a mirrored view are mirrored back, left and right keypoints exchanged.
    """
    images, sizes = view.make_batch()
    boxes = move(merged.boxes, first, False, sizes, view.flip)
    found = model.complete(model.features(images), replace(merged, boxes=boxes))
    masks, heat_maps = found.masks, found.heat_maps
    if view.flip and masks is not None:
        masks = masks.flip(-1)
    if view.flip and heat_maps is not None:
        maps = heat_maps.unbind(2)  # an index would be copied to a GPU, which the host waits for
        heat_maps = torch.stack([maps[other] for other in model.keypoint_mirror], dim=2).flip(-1)
    return masks, heat_maps


def _means(parts: Iterable[tuple[Tensor | None, Tensor | None]]) -> tuple[Tensor | None, Tensor | None]:
    """Means over all parts, None where the parts are None; one part is enough for a detector of boxes only."""
    totals, count = (None, None), 0
    for part in parts:
        totals = part if count == 0 else tuple(None if a is None else a + b for a, b in zip(totals, part))
        count += 1
        if all(each is None for each in part):
            break
    return tuple(None if total is None else total / count for total in totals)


def move(boxes: Tensor, sizes: Tensor, flip: bool, to: Tensor, to_flip: bool) -> Tensor:
    """Boxes [B,D,4] from pixels of one view to those of another; each view has sizes [B,2] and may be mirrored."""
    own, other = sizes.flip(1).to(boxes.dtype), to.flip(1).to(boxes.dtype)  # (width, height)
    boxes = _mirror(boxes, own) if flip else boxes
    boxes = boxes * (other / own).repeat(1, 2).unsqueeze(1)
    return _mirror(boxes, other) if to_flip else boxes


def _mirror(boxes: Tensor, extents: Tensor) -> Tensor:
    width = extents[:, :1]
    return torch.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], dim=2)


def merge(found: Sequence[Detections], *, nms_threshold: float, vote_threshold: float, num: int) -> Detections:
    """One list of at most `num` detections an image from several, all in the same pixels; boxes only.

    The union, best score first (an earlier list before a later one among equals), is suppressed class by class; each
    survivor's box becomes the mean, weighted by score, of all boxes of its class in the union that overlap it by at
    least `vote_threshold`, itself among them. Scores stay as they are (Detectron's scoring method ID).
    """
    boxes, scores, labels, valid = (
        torch.cat([getattr(part, name) for part in found], dim=1) for name in ("boxes", "scores", "labels", "valid")
    )
    scores, order = scores.masked_fill(~valid, -1.0).sort(dim=1, descending=True, stable=True)
    boxes, labels, valid = _take(boxes, order), labels.gather(1, order), valid.gather(1, order)
    keep = nms_by_label(boxes, scores, labels, valid, nms_threshold)
    kept, best = scores.masked_fill(~keep, -1.0).sort(dim=1, descending=True, stable=True)
    kept, best = kept[:, :num], best[:, :num]
    chosen, own = _take(boxes, best), labels.gather(1, best)
    voted = vote(chosen, own, boxes, labels, scores.clamp(min=0), vote_threshold)
    return Detections(torch.where(kept.unsqueeze(2) > 0, voted, chosen), kept.clamp(min=0), own, kept > 0)


def vote(chosen: Tensor, own: Tensor, boxes: Tensor, labels: Tensor, weights: Tensor, threshold: float) -> Tensor:
    """Boxes chosen [B,D,4] with labels own [B,D], each the weighted mean of the voters boxes [B,N,4] it overlaps.

    labels, weights [B,N]; a voter has the same label and an IoU of at least `threshold`. A box without voters stays.
    """
    votes = (iou(chosen, boxes) >= threshold) & (own.unsqueeze(2) == labels.unsqueeze(1))
    weight = votes * weights.unsqueeze(1)
    total = weight.sum(dim=2, keepdim=True)
    with torch.autocast(boxes.device.type, enabled=False):  # which would round coordinates to bf16, by pixels
        joined = weight @ boxes
    # The difference from the box itself: a box that only itself votes for then stays the same, bit for bit.
    return chosen + (joined - total * chosen) / total.clamp(min=1e-12)


def _take(boxes: Tensor, index: Tensor) -> Tensor:
    return boxes.gather(1, index.unsqueeze(2).expand(-1, -1, 4))
