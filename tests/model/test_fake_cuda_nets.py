"""Other nets than detectors, test-time augmentation and our own gradients on a CUDA device without values."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_semantic_head import segmenter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from devices import CUDA, Watch, fake_cuda
from headstart.batch import InputSpec, LabelledBatch, PixelBatch
from headstart.data.order import Resize
from headstart.data.stream import make_batch
from headstart.metrics.tta import Tta
from headstart.model.backbones.vgg import Vgg
from headstart.model.box_head import _ScaleGradient
from headstart.model.classifier import Classifier
from headstart.model.region_heads import peaks
from headstart.ops import nms
from headstart.ops.roi_align import WeightedGather
from headstart.tasks.classification import class_loss
from headstart.tasks.detection import predict_batch
from small_detector import small_detector
from weight_nets import NARROW, resnet

PRECISIONS = pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])


def watched(work, *, bf16):
    """What `work` gives under watch; convolutions must have run in the precision that was asked for."""
    with Watch() as watch, torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        found = work()
    assert watch.convolved == {torch.bfloat16 if bf16 else torch.float32}
    return found


@PRECISIONS
@pytest.mark.parametrize("norm", ["group", "batch", "sync_batch", "frozen_batch", "none"])
def test_a_segmenter_stays_on_the_device(norm, bf16):
    model = segmenter(model__norm=norm).to(memory_format=torch.channels_last)
    with fake_cuda():
        labels = torch.zeros(2, 64, 96, dtype=torch.long, device=CUDA)
        batch = PixelBatch(torch.zeros(2, 3, 64, 96, device=CUDA), labels, labels[:, 0, 0])
        model.to(CUDA)
        loss = watched(lambda: model(batch), bf16=bf16)["semantic"]
        logits = watched(lambda: model.eval().predict(batch.images), bf16=bf16)
        found = model.semantic_head.decode(logits[0], (60, 90), (120, 180))
    assert (loss.device, loss.dtype, loss.shape) == (CUDA, torch.float32, ())
    assert (logits.device, logits.dtype) == (CUDA, torch.float32)
    assert (found.device, found.dtype, found.shape) == (CUDA, torch.int64, (120, 180))


CLASSIFIERS = {
    **{norm: lambda norm=norm: Classifier(resnet(18, norm, **NARROW), 4) for norm in ("group", "batch")},
    "vgg": lambda: Classifier(Vgg([1] * 5, width=4, in_channels=3), 4, pool=2, hidden=(8, 8), dropout=0.5),
}


@PRECISIONS
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_stays_on_the_device(kind, bf16):
    model = CLASSIFIERS[kind]()
    with fake_cuda():
        model.train().to(CUDA)
        slots = torch.arange(2, device=CUDA)
        batch = LabelledBatch(torch.zeros(2, 3, 64, 64, device=CUDA), slots, slots, np.arange(2))
        loss = watched(lambda: class_loss(model, batch), bf16=bf16)["class"]
        logits = watched(lambda: model.eval()(batch.images), bf16=bf16)
        with Watch():
            kept = model.train()(model.features(batch.images), slots)
    assert (loss.device, loss.dtype, loss.shape) == (CUDA, torch.float32, ())
    for value in (logits, kept):
        assert (value.device, value.dtype, value.shape) == (CUDA, torch.float32, (2, 4))


@PRECISIONS
def test_test_time_augmentation_stays_on_the_device(bf16, monkeypatch):
    """Its images come from the host, look by look."""
    monkeypatch.setattr(nms, "MAX_ROUNDS", 2)
    model = small_detector(model__keypoint__enabled=True)
    pixels = [np.zeros((48, 60, 3), np.uint8), np.zeros((60, 48, 3), np.uint8)]
    tta = Tta((Resize(64, 96), Resize(96, 128)), True, 0.9)
    with fake_cuda():
        model.eval().to(CUDA)
        looks = partial(make_batch, pixels, spec=InputSpec((1.0,) * 3, (2.0,) * 3, "bgr"), device=CUDA)
        found, sizes = watched(lambda: predict_batch(model, looks, tta), bf16=bf16)
    assert (sizes.device, sizes.shape) == (CUDA, (2, 2))
    shapes = {"boxes": (20, 4), "scores": (20,), "labels": (20,), "valid": (20,), "masks": (20, 28, 28)}
    for name, shape in (shapes | {"heat_maps": (20, 3, 16, 16)}).items():
        value = getattr(found, name)
        assert (value.device, value.shape) == (CUDA, (2, *shape)), name


def test_our_own_gradients_stay_on_the_device():
    """Called by hand, as torch's engine would call them: it has no such device."""
    with fake_cuda(), Watch():
        rows = torch.zeros(6, 16, dtype=torch.int32, device=CUDA)
        saved = SimpleNamespace(saved_tensors=(rows, torch.zeros(6, 16, device=CUDA)), num_rows=50)
        for dtype in (torch.float32, torch.bfloat16):
            gradient = torch.zeros(6, 8, device=CUDA, dtype=dtype)
            table, *others = WeightedGather.backward(saved, gradient)
            assert (table.device, table.dtype, table.shape, others) == (CUDA, dtype, (50, 8), [None, None])
            scaled, _ = _ScaleGradient.backward(SimpleNamespace(factor=0.5), gradient)
            assert (scaled.device, scaled.dtype) == (CUDA, dtype)


def test_peaks_are_found_on_the_device(monkeypatch):
    """They read the sides of the boxes, once; the rest stays where the maps are."""
    with fake_cuda():
        maps, boxes = torch.zeros(2, 3, 16, 16, device=CUDA), torch.zeros(2, 4, device=CUDA)
        with Watch(), pytest.raises(DataDependentOutputException):
            peaks(maps, boxes)
        monkeypatch.setattr(FakeTensor, "tolist", lambda sides: [[5, 7]] * len(sides))
        with Watch():
            found = peaks(maps, boxes)
    assert (found.device, found.shape) == (CUDA, (2, 3, 3))
