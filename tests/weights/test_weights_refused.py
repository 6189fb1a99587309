"""What does not fit is refused in one line that says what to change, and nothing is touched."""

import pytest
import torch
from torch import nn

from headstart.model.backbones.resnet import ResNet
from headstart.weights.load import expected_names, load_weights, named_tensors
from weight_nets import NARROW, file_of, group_detector, resnet


def tensors_of(depth=18, kind="batch", **changes):
    return resnet(depth, kind, **changes).state_dict()


@pytest.mark.parametrize(
    "file, model, message",
    [
        (
            tensors_of(**NARROW),
            ResNet((2, 2, 2, 2), bottleneck=False, width=16, norm_groups=4),
            r"trained with BatchNorm \(.*running_mean\).*set model.norm to batch",
        ),
        (
            tensors_of(kind="group", **NARROW),
            ResNet((2, 2, 2, 2), bottleneck=False, width=16, norm_kind="batch"),
            "has no BatchNorm statistics.*set model.norm",
        ),
        (
            tensors_of(34, **NARROW),
            ResNet((2, 2, 2, 2), bottleneck=False, width=16, norm_kind="batch"),
            r"blocks a stage, the model has \[2, 2, 2, 2\]; set model.backbone.depth",
        ),
        (
            tensors_of(**NARROW),
            ResNet((2, 2, 2, 2), bottleneck=False, width=16, norm_kind="batch", in_channels=1),
            r"backbone\.conv1\.weight takes 3 channels, the model's 1; set start\.stem to mean or random",
        ),
    ],
    ids=["norm", "statistics", "depth", "channels"],
)
def test_mismatch_says_what_to_change_and_touches_nothing(file, model, message):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(model, file_of(file), scope="backbone")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_backbone_file_for_a_detector_names_the_setting():
    model = group_detector()
    file = {name: value for name, value in named_tensors(model).items() if name.startswith("backbone.")}
    with pytest.raises(ValueError, match=r"holds a backbone only.*set start.kind to backbone"):
        load_weights(model, file_of(file), scope="detector")
    with pytest.raises(ValueError, match="cannot be loaded as 'random', expected one of backbone, detector"):
        load_weights(model, file_of(file), scope="random")


def test_not_strict_reports_the_rest():
    file = tensors_of(**NARROW)
    del file["layer4.1.bn2.bias"]
    file["conv1.weight"] = torch.zeros(16, 4, 7, 7)
    file["attention.weight"] = torch.zeros(1)
    model = ResNet((2, 2, 2, 2), bottleneck=False, width=16, norm_kind="batch")
    report = load_weights(model, file_of(file), scope="backbone", strict=False)
    assert report.missing == ("backbone.layer4.1.bn2.bias",)
    assert report.mismatched == {"backbone.conv1.weight": ((16, 4, 7, 7), (16, 3, 7, 7))}
    assert report.unexpected == ("attention.weight",)
    assert set(report.loaded) == set(expected_names(model, "backbone")) - {*report.missing, *report.mismatched}


def test_counters_are_no_weights():
    assert not any("num_batches" in name for name in named_tensors(nn.Sequential(nn.BatchNorm2d(3))))
