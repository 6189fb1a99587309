"""Exact greedy non-maximum suppression, sequential on CPUs and of fixed shapes; and soft suppression."""

import torch
from torch import Tensor

from headstart.ops.boxes import iou
from headstart.ops.fixed_shapes import constant

# The fixed-point form is exact once two rounds agree, which happens after the length of the longest suppression chain;
# clustered boxes need 3 to 7 rounds, and this is the most that a static graph spends.
MAX_ROUNDS = 32
# Up to this many boxes the N x N form of all problems together is faster on a CPU too, where a call of torchvision's
# costs 60 microseconds before it begins (measured: 8 x 12 boxes 0.27 against 0.64 ms, 8 x 128 1.2 against 1.9, 8 x 256
# 8 against 5).
SMALL = 128


def nms(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Survivors of greedy suppression, bool [P,N] for P independent problems.

    boxes [P,N,4] sorted by falling score; valid [P,N] bool, invalid boxes neither survive nor suppress.
    A box is suppressed by a better survivor when their IoU is strictly above `threshold`.
    """
    if _is_sequential(boxes):
        return _nms_sequential(boxes, valid, threshold)
    return nms_fixed_point(boxes, valid, threshold)


def _is_sequential(boxes: Tensor) -> bool:
    """Return True if torchvision suppresses boxes [P,N,4]. Only then is it imported, which takes four seconds."""
    return boxes.device.type == "cpu" and not torch.compiler.is_compiling() and boxes.shape[1] > SMALL


def _nms_sequential(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """One torchvision call a problem: on a CPU its early exit beats the N x N form of many boxes.

    Invalid boxes are emptied instead of left out: an empty box overlaps nothing, and gathering the valid ones of every
    small problem costs more than the suppression itself.
    """
    import torchvision  # noqa: F401  registers torch.ops.torchvision

    boxes = boxes * valid.unsqueeze(2)
    order = torch.arange(boxes.shape[1], 0, -1, dtype=boxes.dtype)
    keep = torch.zeros_like(valid)
    for own, kept in zip(boxes.unbind(0), keep.unbind(0)):
        kept.index_fill_(0, torch.ops.torchvision.nms(own, order, threshold), True)
    return keep & valid


def nms_fixed_point(boxes: Tensor, valid: Tensor, threshold: float, *, max_rounds: int | None = None) -> Tensor:
    """`nms` without data-dependent shapes or host synchronisation.

    Greedy survival is the unique solution of keep[j] = not any(i < j: keep[i] and IoU(i, j) > threshold); iterating the
    right side from all-true fixes at least one more entry a round (each row looks at better rows only). By default a
    static graph runs MAX_ROUNDS rounds; an eager CPU runs until two rounds agree, which makes the result exact.
    """
    return _solve(_suppresses(boxes, threshold), valid, max_rounds)


@constant
def _better(num: int, device: torch.device) -> Tensor:
    """1 where the row comes before the column, [N,N] float32. Constant for a number of boxes, hence cached."""
    return torch.ones(num, num, device=device).triu_(diagonal=1)


def _suppresses(boxes: Tensor, threshold: float) -> Tensor:
    """1 where the row is better than the column and overlaps it too much, [P,N,N] of the boxes' type.

    Computed in place in the memory of the overlaps. Separate bool, triangle and float tensors take twice as long as
    the overlaps themselves (8 x 128 boxes, one thread).
    """
    return iou(boxes, boxes).gt_(threshold).mul_(_better(boxes.shape[1], boxes.device))


def _solve(suppresses: Tensor, valid: Tensor, max_rounds: int | None = None) -> Tensor:
    """The fixed point for suppresses [P,N,N] (1 where the row may suppress the column) and valid [P,N]."""
    real = valid.to(suppresses.dtype).unsqueeze(1)
    eager = valid.device.type == "cpu" and not torch.compiler.is_compiling()
    if max_rounds is None:
        max_rounds = valid.shape[1] if eager else MAX_ROUNDS
    keep = real
    for _ in range(max_rounds):
        before, keep = keep, (torch.bmm(keep, suppresses) < 0.5) * real
        if eager and torch.equal(before, keep):
            break
    return keep.squeeze(1) > 0.5


def nms_by_label(boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Survivors bool [B,N] when boxes of different labels ignore one another.

    boxes [B,N,4], scores [B,N] sorted falling, labels [B,N]. Labels are compared exactly (no coordinate
    offsets, which would round the boxes) in the static form, and by torchvision's own rule for many boxes on a CPU.
    """
    if _is_sequential(boxes):
        import torchvision

        keep = torch.zeros_like(valid)
        for image in range(boxes.shape[0]):
            chosen = valid[image].nonzero().squeeze(1)
            args = boxes[image, chosen], scores[image, chosen], labels[image, chosen]
            keep[image, chosen[torchvision.ops.batched_nms(*args, threshold)]] = True
        return keep
    same = labels.unsqueeze(2) == labels.unsqueeze(1)
    return _solve(_suppresses(boxes, threshold).mul_(same), valid)


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, *, sigma: float, num: int
) -> tuple[Tensor, Tensor]:
    """Gaussian soft-NMS (Bodla et al. 2017): indices [B,D] and final scores [B,D] of the best `num` boxes, best first.

    boxes [B,N,4], labels, scores, valid [B,N]. Each box that is taken multiplies the scores of the others of its label
    by exp(-IoU**2 / sigma). A score of -1 marks what is not valid; D is at most N.
    """
    left = scores.masked_fill(~valid, -1.0)
    taken, kept = [], []
    for _ in range(min(num, boxes.shape[1])):
        score, index = left.max(dim=1, keepdim=True)
        box = boxes.gather(1, index.unsqueeze(2).expand(-1, -1, 4))
        fall = torch.exp(-iou(box, boxes).squeeze(1).square() / sigma)
        left = torch.where(labels == labels.gather(1, index), left * fall, left).scatter(1, index, -1.0)
        taken.append(index)
        kept.append(score)
    return torch.cat(taken, dim=1), torch.cat(kept, dim=1)
