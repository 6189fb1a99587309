"""A net in double precision computes nothing in float32: equalities in double precision rest on it."""

from contextlib import nullcontext

import pytest
import torch
from test_semantic_head import segmenter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from devices import static
from headstart.batch import PixelBatch
from headstart.model.classifier import Classifier, mean_cross_entropy
from headstart.model.region_heads import peaks
from small_detector import HOURGLASS, in_double, small_batch, small_detector, with_keypoints
from weight_nets import NARROW, resnet


class Narrowed(TorchDispatchMode):
    """Collects the operations that make float32 numbers of float64 ones."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        before, after = ({x.dtype for x in tree_leaves(v) if isinstance(x, torch.Tensor)} for v in (args, out))
        if torch.float64 in before and torch.float32 in after:
            self.found.append(str(func))
        return out


DETECTORS = {
    "group": {},
    "sync_batch": {"model__norm": "sync_batch"},
    "cascade": {"model__cascade__enabled": True, "model__box__class_agnostic": True},
    "keypoints": {"model__keypoint__enabled": True},
    "corners": HOURGLASS,
}


@pytest.mark.parametrize("path", [nullcontext, static], ids=["eager", "fixed"])
@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector(kind, path):
    detector = small_detector(**DETECTORS[kind]).double()
    batch = in_double(with_keypoints(small_batch(4)) if kind == "keypoints" else small_batch(4))
    with path(), Narrowed() as seen:
        losses = detector(batch)
        sum(losses.values()).backward()
        found = detector.eval().predict(batch.images, batch.sizes)
        if found.heat_maps is not None:
            peaks(found.heat_maps[0], found.boxes[0])
    assert seen.found == []
    numbers = [*losses.values(), found.boxes, found.scores, found.masks, *detector.buffers()]
    assert {values.dtype for values in numbers if values is not None and values.is_floating_point()} == {torch.float64}


def test_a_classifier():
    classifier = Classifier(resnet(18, "group", **NARROW), 4, dropout=0.5).double()
    with Narrowed() as seen:
        loss = mean_cross_entropy(classifier(torch.randn(2, 3, 64, 64).double(), torch.arange(2)), torch.tensor([0, 3]))
        loss.backward()
    assert seen.found == [] and loss.dtype == torch.float64


def test_a_segmenter():
    net = segmenter().double()
    with Narrowed() as seen:
        labels = torch.randint(0, 5, (2, 64, 64))
        loss = net(PixelBatch(torch.randn(2, 3, 64, 64).double(), labels, torch.arange(2)))["semantic"]
        loss.backward()
        net.semantic_head.decode(net.predict(torch.randn(1, 3, 64, 64).double())[0], (64, 50), (30, 20))
    assert seen.found == [] and loss.dtype == torch.float64


def test_narrowing_is_seen():
    detector = small_detector().double()
    with Narrowed() as seen:
        detector.features(in_double(small_batch(1)).images)[0].float()
    assert seen.found == ["aten._to_copy.default"]
