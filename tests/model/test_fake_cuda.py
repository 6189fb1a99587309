"""Every kind of detector on a CUDA device without values: nothing is on another device, and nothing waits for it."""

from dataclasses import fields

import pytest
import torch
from test_nets import DETNET, VGG
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor

from devices import CUDA, HostWaits, Watch, fake_cuda
from headstart.model import box_head, region_heads, regions, rpn
from headstart.ops import nms
from small_detector import CORNERS, HOURGLASS, small_batch, small_detector, with_keypoints

FASTER = {"model__mask__enabled": False}
CASCADE = {"model__cascade__enabled": True, "model__box__class_agnostic": True}
KEYPOINTS = {"model__keypoint__enabled": True}
RESNEXT = {"depth": [1, 1, 1, 1], "bottleneck": True, "width": 8, "groups": 2, "group_width": 4}
FAMILIES = {
    "mask": {},
    "faster": FASTER,
    "cascade with all heads": CASCADE | KEYPOINTS,
    "cascade box": CASCADE | FASTER,
    "keypoints": KEYPOINTS | FASTER,
    "vgg": VGG,
    "corners": CORNERS,
    "corners on hourglasses": HOURGLASS | {"model__norm": "batch"},
    "detnet": DETNET,
    "resnext": {f"model__backbone__{name}": value for name, value in RESNEXT.items()},
    "batch": {"model__norm": "batch"},
    "sync_batch": {"model__norm": "sync_batch"},
    "frozen_batch": {"model__norm": "frozen_batch"},
    "none": {"model__norm": "none"},
    # torchvision's and Detectron's rules
    "original": {
        "model__aligned": False,
        "model__pyramid_norm": False,
        "model__rpn__num_convs": 2,
        "model__rpn__straddle": 0,
        "model__box__convs": 0,
        "model__box__fcs": 2,
        "input__order": "bgr",
    },
} | {
    f"timm {name}, {norm}": {"model__backbone": {"kind": "timm", "name": name}, "model__norm": norm} | FASTER
    for name, norm in (("resnet18", "group"), ("regnety_002", "frozen_batch"), ("convnext_atto", "batch"))
}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """All rounds of the suppression are the same operations."""
    monkeypatch.setattr(nms, "MAX_ROUNDS", 2)


def built(family):
    return small_detector(**FAMILIES[family]).to(memory_format=torch.channels_last)


def on_device(model):
    """A detector and a batch for it, both moved to the fake device."""
    model = model.to(CUDA)
    tensors = [*model.parameters(), *model.buffers()]
    assert all(isinstance(tensor, FakeTensor) and tensor.device == CUDA for tensor in tensors)
    batch = small_batch()
    return model, (with_keypoints(batch) if "keypoints" in model.kinds else batch).to(CUDA)


def step_and_prediction(model, batch, *, bf16=False):
    """Losses and detections as the loop and the evaluation compute them, under watch."""
    with Watch() as watch, torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        losses = model.train()(batch)
        found = model.eval().predict(batch.images, batch.sizes)
    return losses, found, watch.convolved


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_detections_stay_on_the_device(family, bf16):
    model = built(family)
    with fake_cuda():
        model, batch = on_device(model)
        losses, found, convolved = step_and_prediction(model, batch, bf16=bf16)
    assert convolved == {torch.bfloat16 if bf16 else torch.float32}
    assert {(loss.device, loss.dtype, loss.shape) for loss in losses.values()} == {(CUDA, torch.float32, ())}
    assert [kind in losses for kind in ("mask", "keypoints")] == [kind in model.kinds for kind in ("mask", "keypoints")]
    reported = {field.name: getattr(found, field.name) for field in fields(found)}
    assert (reported["masks"] is None) == ("mask" not in model.kinds)
    assert (reported["heat_maps"] is None) == ("keypoints" not in model.kinds)
    for name, value in reported.items():
        if value is not None:
            wanted = {"labels": torch.int64, "valid": torch.bool}.get(name, torch.float32)
            assert (value.device, value.dtype, value.shape[:2]) == (CUDA, wanted, (3, 20)), name


MIXED = "same device|two different devices"  # torch's own words, newer and older
FAULTS = {
    "zeros without a device": (lambda x: x + torch.zeros(x.shape), RuntimeError, MIXED),
    "item": (lambda x: x * x.sum().item(), DataDependentOutputException, "_local_scalar_dense"),
    "branch": (lambda x: x if x.any() else -x, DataDependentOutputException, "_local_scalar_dense"),
    "mask": (lambda x: x + x[x > 0].sum(), DynamicOutputShapeException, "nonzero"),
    "read": (lambda x: x.cpu().to(x.device, non_blocking=True), HostWaits, "values are read"),
    "numbers": (lambda x: x * x.new_tensor([2.0]), HostWaits, "waits for a copy"),
    "index on the host": (lambda x: x[torch.arange(len(x))], HostWaits, "of the host and of the GPU"),
}
PLACES = {
    "rpn": (rpn.Rpn, "loss"),
    "box head": (box_head.BoxHead, "loss"),
    "mask head": (region_heads.MaskHead, "loss"),
    "pooling": (regions.RegionPooler, "__call__"),
    "decoding": (box_head.BoxHead, "decode"),
}


@pytest.mark.parametrize(
    ("place", "fault"),
    [("rpn", fault) for fault in FAULTS] + [(place, "zeros without a device") for place in PLACES if place != "rpn"],
)
def test_a_planted_fault_is_found(place, fault, monkeypatch):
    """In the first tensor that a part of the detector is given."""
    (owner, name), (spoil, error, message) = PLACES[place], FAULTS[fault]
    own = getattr(owner, name)

    def spoilt(self, *args):
        first = [spoil(value) for value in args[0]] if isinstance(args[0], list) else spoil(args[0])
        return own(self, first, *args[1:])

    model = built("mask")
    with fake_cuda():
        model, batch = on_device(model)
        monkeypatch.setattr(owner, name, spoilt)
        with pytest.raises(error, match=message):
            step_and_prediction(model, batch)


@pytest.mark.parametrize("part", ["rpn.objectness", "mask_head.classify"])
def test_a_parameter_left_on_the_host_is_found(part):
    model = built("mask")
    with fake_cuda():
        model, batch = on_device(model)
        layer = model.get_submodule(part)
        layer.bias = torch.nn.Parameter(torch.zeros(layer.bias.shape))
        with pytest.raises(RuntimeError, match=f"{MIXED}|of the host and of the GPU"):
            step_and_prediction(model, batch)
