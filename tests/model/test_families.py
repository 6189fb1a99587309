"""A second detector family needs its own file only: flops, audit and loading know detectors by their contract."""

import pytest
import torch
from torch import nn

from headstart.batch import Detections
from headstart.model import Predictor
from headstart.model.box_head import DetectionLimits
from headstart.model.detector import AnyDetector
from headstart.model.flops import predict_macs
from headstart.weights.audit import audit, tensor_digests
from headstart.weights.freeze import set_train_mode
from headstart.weights.input import IMAGENET
from headstart.weights.load import load_weights, named_tensors
from small_detector import CORNERS, HOURGLASS, small_detector
from weight_nets import NARROW, file_of, resnet

CLASSES = 5


class Centres(nn.Module):
    """Objects as peaks of a class map at stride 32, each as large as four cells."""

    kinds, keypoint_mirror, limits = ("box",), (), DetectionLimits(0.0, 0.5, 4)

    def __init__(self, num_classes=CLASSES):
        super().__init__()
        self.backbone = resnet(18, "group", **NARROW)
        self.heat = nn.Conv2d(self.backbone.channels[-1], num_classes, 1)

    def forward(self, batch):
        return {"heat": self.heat(self.features(batch.images)[0]).square().mean()}

    def features(self, images):
        return self.backbone(images)[-1:]

    def find(self, features, sizes):
        heat = self.heat(features[0])
        scores, index = heat.flatten(1).sigmoid().topk(self.limits.num, dim=1)
        cells = heat.shape[2] * heat.shape[3]
        x, y = index % cells % heat.shape[3], torch.div(index % cells, heat.shape[3], rounding_mode="floor")
        boxes = torch.stack([x - 1, y - 1, x + 1, y + 1], dim=2) * 32.0
        return Detections(boxes, scores, torch.div(index, cells, rounding_mode="floor"), scores > 0)

    def complete(self, features, detections):
        return detections

    def predict(self, images, sizes):
        features = self.features(images)
        return self.complete(features, self.find(features, sizes))

    def predictors(self):
        return (Predictor("classes", ("heat.",), "heat.weight"),)

    def initialisers(self):
        return {"heat": "torch's own"}


def test_families_keep_the_contract():
    for model in (small_detector(), small_detector(**CORNERS), small_detector(**HOURGLASS), Centres()):
        assert isinstance(model, AnyDetector)
    assert not isinstance(resnet(18, "group", **NARROW), AnyDetector)


def test_multiply_adds_are_those_of_backbone_and_head():
    model = Centres()
    before, width = predict_macs(model, 64, 96), model.backbone.channels[-1]
    model.heat = nn.Conv2d(width, 3 * CLASSES, 1)
    assert predict_macs(model, 64, 96) - before == 2 * CLASSES * width * 2 * 3


@pytest.mark.parametrize("num_classes", [CLASSES, 7])
def test_weights_load_by_name_and_the_audit_has_a_row_a_part(num_classes):
    torch.manual_seed(0)
    source, model = Centres(num_classes), Centres()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01)  # as training does: scales and shifts of 1 and 0 are of a network that never was
    set_train_mode(model, "none")
    initial = tensor_digests(model)
    report = load_weights(model, file_of(named_tensors(source), input=IMAGENET), scope="detector", input=IMAGENET)
    result = audit(model, start="detector", freeze="none", input=IMAGENET, report=report, initial=initial)
    assert result.errors == ()
    assert [row.group for row in result.rows] == ["stem", "stage1", "stage2", "stage3", "stage4", "heat"]
    reset = () if num_classes == CLASSES else ("heat.weight", "heat.bias")
    assert report.reset == reset
    assert (result.rows[-1].source == "random (torch's own)") == bool(reset)
    assert bool(reset) or torch.equal(model.heat.weight, source.heat.weight)
