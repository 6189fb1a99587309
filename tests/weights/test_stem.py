"""RGB weights in models of other channels: the first convolution by its mean over RGB, or left random."""

import pytest
import torch

from headstart.batch import InputSpec
from headstart.model.backbones.timm_net import TimmNet
from headstart.model.backbones.vgg import Vgg
from headstart.weights.audit import audit
from headstart.weights.input import DETECTRON, IMAGENET, adapt_stem
from headstart.weights.load import load_weights
from weight_nets import NARROW, file_of, randomise, resnet

FIRST = "backbone.conv1.weight"


def spec(channels):
    return InputSpec((100.0,) * channels, (20.0,) * channels, "rgb")


def loaded(channels, stem, source=IMAGENET, seed=1):
    """A narrow ResNet of so many channels, random before, and the RGB one whose weights it has now; the report."""
    theirs = randomise(resnet(18, **NARROW), seed)
    ours = randomise(resnet(18, in_channels=channels, **NARROW), seed + 1)
    file = file_of(theirs.state_dict(), input=source)
    return ours, theirs, load_weights(ours, file, scope="backbone", input=spec(channels), stem=stem)


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_equal_channels_have_the_response_that_they_had(channels):
    ours, theirs, report = loaded(channels, "mean")
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(
            ours.conv1(image.expand(1, channels, 32, 32)), theirs.conv1(image.expand(1, 3, 32, 32)), atol=1e-5
        )
    by_hand = sum(theirs.conv1.weight[:, c] for c in range(3)) / channels
    for channel in range(channels):
        assert torch.allclose(ours.conv1.weight[:, channel], by_hand, atol=1e-7)
    assert report.missing == () and report.mismatched == {} and len(report.loaded) == len(ours.state_dict()) - 20
    assert report.adapted == {FIRST: f"mean of the RGB weights times 3 / {channels}"}
    assert report.source_input == spec(channels)


def test_weights_that_divide_by_no_deviation_are_scaled_to_imagenets():
    tensors = {"first": torch.ones(1, 3, 1, 1)}
    adapt_stem("mean", "w", tensors, {"first": torch.zeros(1, 4, 1, 1)}, "first", DETECTRON)
    assert torch.allclose(tensors["first"], torch.full((1, 4, 1, 1), (58.395 + 57.12 + 57.375) / 4))


def test_a_random_stem_keeps_its_values():
    before = randomise(resnet(18, in_channels=4, **NARROW), 2).conv1.weight.clone()
    ours, theirs, report = loaded(4, "random")
    assert torch.equal(ours.conv1.weight, before) and torch.equal(ours.bn1.weight, theirs.bn1.weight)
    assert FIRST not in report.loaded and report.reset == (FIRST,) and report.left_out == ("conv1.weight",)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("mean", f"weights.pth (sha256 000000000000); {FIRST}: mean of the RGB weights times 3 / 4"),
        ("random", "weights.pth (sha256 000000000000), 4 of 5; the others random"),
    ],
)
def test_the_audit_says_where_the_stem_is_from(stem, expected):
    ours, _, report = loaded(4, stem)
    found = audit(ours.train(), start="backbone", freeze="none", input=spec(4), report=report)
    assert found.errors == () and next(row for row in found.rows if row.group == "stem").source.startswith(expected)
    assert any("start.stem" in note for note in found.notes)


def test_a_frozen_random_stem_is_an_error():
    ours, _, report = loaded(4, "random")
    ours.conv1.requires_grad_(False)
    found = audit(ours.train(), start="backbone", freeze="stem", input=spec(4), report=report)
    assert any("are random and frozen" in error for error in found.errors)


def test_a_vgg_stem_has_a_bias_too():
    theirs, ours = (Vgg(11, width=8, in_channels=channels) for channels in (3, 4))
    report = load_weights(ours, file_of(theirs.state_dict()), scope="backbone", input=spec(4), stem="random")
    assert report.reset == ("backbone.features.0.weight", "backbone.features.0.bias")


def test_a_timm_stem():
    theirs = randomise(TimmNet("tf_efficientnet_lite0", norm_kind="batch"))
    ours = TimmNet("tf_efficientnet_lite0", norm_kind="batch", in_channels=2)
    file = file_of({name.removeprefix("body."): value for name, value in theirs.state_dict().items()})
    load_weights(ours, file, scope="backbone", input=spec(2), stem="mean")
    name = "body.conv_stem.weight"
    assert torch.allclose(ours.state_dict()[name].sum(1), theirs.state_dict()[name].sum(1), atol=1e-6)


@pytest.mark.parametrize("stem", ["mean", "random"])
def test_a_stem_without_rgb_weights_is_refused(stem):
    ours = resnet(18, in_channels=4, **NARROW)
    two = file_of(resnet(18, in_channels=2, **NARROW).state_dict())
    with pytest.raises(
        ValueError, match=r"conv1\.weight has the shape \[16, 2, 7, 7\]; expected weights of 3 channels"
    ):
        load_weights(ours, two, scope="backbone", input=spec(4), stem=stem)
    none = file_of({name: value for name, value in two.tensors.items() if name != "conv1.weight"})
    with pytest.raises(ValueError, match=r"conv1\.weight is not there; expected weights of 3 channels"):
        load_weights(ours, none, scope="backbone", input=spec(4), stem=stem)
    with pytest.raises(ValueError, match="no plain first convolution; expected null"):
        adapt_stem(stem, "w", {}, {}, "", None)
