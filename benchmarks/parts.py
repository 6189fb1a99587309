"""Seconds of a detector's parts: its methods and those of its heads, wrapped for as long as a block lasts."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

from headstart.model import box_head, detector, region_heads, regions, rpn
from headstart.model.detector import Detector


@contextmanager
def stopwatch(model: Detector, clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Seconds by part, filled while the block runs; a part's time is its own, without the parts inside it.

    Gradients are one part: autograd does not tell whose they are.
    """
    spent: dict[str, float] = defaultdict(float)
    inner = [0.0]

    def wrapped(part: str, function: Callable) -> Callable:
        def timed(*args, **options):
            start, inner[-1:] = clock(), [inner[-1], 0.0]
            try:
                return function(*args, **options)
            finally:
                taken, within = clock() - start, inner.pop()
                spent[part] += taken - within
                inner[-1] += taken

        return timed

    places = [
        ("backbone", model.backbone, "forward"),
        ("pyramid", model.pyramid, "forward"),
        ("rpn convolutions", model.rpn, "predict"),
        ("targets", model.rpn, "loss"),
        ("targets", detector, "sample_regions"),
        ("targets", detector, "sample_frames"),
        ("proposals", model.rpn, "decode"),
        ("nms", rpn, "nms"),
        ("nms", box_head, "nms_by_label"),
        ("roi align", regions, "roi_align"),
        ("box head", model.box_head, "predict"),
        ("box head", model.box_head, "loss"),
        ("masks", model, "_mask_loss"),
        ("masks", region_heads.MaskHead, "predict"),
        ("backward", torch.Tensor, "backward"),
        ("update", torch.optim.SGD, "step"),
        ("box head", model.box_head, "decode"),
        ("masks", model, "complete"),
    ]
    with ExitStack() as stack:
        for part, owner, name in places:
            stack.enter_context(mock.patch.object(owner, name, wrapped(part, getattr(owner, name))))
        yield spent


def shares(spent: dict[str, float]) -> dict[str, float]:
    """Each part's share of all that was measured, largest first."""
    whole = sum(spent.values())
    return {part: seconds / whole for part, seconds in sorted(spent.items(), key=lambda item: -item[1])}
