"""Exact greedy non-maximum suppression, in the two forms that the devices need. Dispatched here and nowhere else."""

import torch
import torchvision
from torch import Tensor

from headstart.ops.boxes import iou

# The fixed-point form is exact once two rounds agree, which happens after the length of the longest suppression chain;
# clustered boxes need 3 to 7 rounds, and this is the most that a static graph spends.
MAX_ROUNDS = 32


def nms(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Which boxes survive greedy suppression: bool [P,N] for P independent problems.

    boxes [P,N,4] sorted by falling score; valid [P,N] bool, invalid boxes neither survive nor suppress.
    A box is suppressed by a better survivor when their IoU is strictly above `threshold`.
    """
    if boxes.device.type == "cpu" and not torch.compiler.is_compiling():
        return _nms_sequential(boxes, valid, threshold)
    return nms_fixed_point(boxes, valid, threshold)


def _nms_sequential(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """One torchvision call a problem: on a CPU its early exit beats every N x N form."""
    keep = torch.zeros_like(valid)
    order = torch.arange(boxes.shape[1], 0, -1, dtype=torch.float32)
    for problem in range(boxes.shape[0]):
        chosen = valid[problem].nonzero().squeeze(1)
        kept = torchvision.ops.nms(boxes[problem, chosen], order[chosen], threshold)
        keep[problem, chosen[kept]] = True
    return keep


def nms_fixed_point(boxes: Tensor, valid: Tensor, threshold: float, *, max_rounds: int = MAX_ROUNDS) -> Tensor:
    """The same without data-dependent shapes or host synchronisation.

    Greedy survival is the unique solution of keep[j] = not any(i < j: keep[i] and IoU(i, j) > threshold); iterating the
    right side from all-true fixes at least one more entry a round (each row looks at better rows only).
    """
    suppresses = torch.triu(iou(boxes, boxes) > threshold, diagonal=1) & valid.unsqueeze(2)
    weights = suppresses.to(boxes.dtype)
    keep = valid
    for _ in range(max_rounds):
        keep = (torch.matmul(keep.to(boxes.dtype).unsqueeze(1), weights).squeeze(1) < 0.5) & valid
    return keep


def nms_by_label(boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Survivors bool [B,N] when boxes of different labels ignore one another.

    boxes [B,N,4], scores [B,N] sorted falling, labels [B,N]. Labels are told apart exactly (no coordinate offsets,
    which would round the boxes) in the static form, and by torchvision's own rule on a CPU.
    """
    if boxes.device.type == "cpu" and not torch.compiler.is_compiling():
        keep = torch.zeros_like(valid)
        for image in range(boxes.shape[0]):
            chosen = valid[image].nonzero().squeeze(1)
            args = boxes[image, chosen], scores[image, chosen], labels[image, chosen]
            keep[image, chosen[torchvision.ops.batched_nms(*args, threshold)]] = True
        return keep
    same = labels.unsqueeze(2) == labels.unsqueeze(1)
    suppresses = torch.triu((iou(boxes, boxes) > threshold) & same, diagonal=1) & valid.unsqueeze(2)
    weights, keep = suppresses.to(boxes.dtype), valid
    for _ in range(MAX_ROUNDS):
        keep = (torch.matmul(keep.to(boxes.dtype).unsqueeze(1), weights).squeeze(1) < 0.5) & valid
    return keep
