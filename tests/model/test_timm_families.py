"""Convolutional families of timm: a classifier's file gives timm's own maps; the nets train and freeze by stage."""

import pytest
import timm
import torch
from torch import nn

from headstart.model.backbones import STAGES
from headstart.model.backbones.timm_net import PointwiseConv2d, TimmNet
from headstart.model.norm import FrozenBatchNorm
from headstart.ops import products
from headstart.weights.audit import audit
from headstart.weights.freeze import freeze
from headstart.weights.load import COUNTER, expected_names, load_weights
from weight_nets import file_of, randomise

SIDE = 64
# A small member of each family, and the number of tensors that only its classifier has.
FAMILIES = {
    "convnext_atto": 4,
    "cs3darknet_s": 2,
    "densenet121": 2,
    "dla46_c": 2,
    "dpn48b": 6,
    "edgenext_xx_small": 4,
    "ese_vovnet19b_slim_dw": 2,
    "fasternet_t0": 3,
    "ghostnet_050": 97,
    "gernet_s": 2,
    "hgnetv2_b0": 5,
    "hrnet_w18_small": 26,
    "inception_next_atto": 6,
    "lcnet_035": 4,
    "mambaout_femto": 8,
    "mobilenetv2_035": 7,
    "mobilenetv3_small_050": 4,
    "mobilenetv4_conv_small_035": 7,
    "regnetx_002": 2,
    "regnety_002": 2,
    "repghostnet_050": 129,
    "repvgg_a0": 2,
    "resnest14d": 2,
    "resnet18d": 2,
    "resnetv2_18": 6,
    "resnext26ts": 2,
    "rexnet_100": 7,
    "semnasnet_050": 7,
    "starnet_s050": 6,
    "tf_efficientnet_lite0": 7,
    "tinynet_e": 7,
}


def maps_of(whole, images):
    """The last map of each stride that timm's classifier itself computes."""
    maps = whole.forward_intermediates(images, intermediates_only=True)
    by_stride = {images.shape[-1] // found.shape[-1]: found for found in maps}
    return [by_stride[stride] for stride in TimmNet.strides]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifiers_file_loads_and_the_net_trains_and_freezes(name):
    whole, model = randomise(timm.create_model(name, num_classes=2)), TimmNet(name, norm_kind="batch").eval()
    report = load_weights(model, file_of(whole.state_dict()), scope="backbone")
    assert (report.layout, report.unexpected, report.mismatched) == ("timm", (), {})
    assert set(report.loaded) == set(expected_names(model, "backbone"))
    counted = [key for key in whole.state_dict() if not key.endswith(COUNTER)]
    assert sorted([*report.loaded.values(), *report.left_out]) == sorted(counted)
    assert len(report.left_out) == FAMILIES[name], report.left_out
    config = whole.pretrained_cfg
    assert report.source_input.mean == tuple(255 * value for value in config["mean"])
    assert report.source_input.std == tuple(255 * value for value in config["std"])

    images = torch.randn(2, 3, SIDE, SIDE)
    maps = model(images)
    assert [each.shape[1:] for each in maps] == [
        (c, SIDE // s, SIDE // s) for c, s in zip(model.channels, TimmNet.strides)
    ]
    with torch.no_grad():
        for ours, theirs in zip(maps, maps_of(whole, images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    sum(each.mean() for each in maps).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    sizes = {part: sum(p.numel() for m in modules for p in m.parameters()) for part, modules in model.parts().items()}
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    by_stage = (sizes["stage1"], sizes["stage2"], sizes["stage3"])
    assert all(by_stage) != name.startswith("hrnet")  # whose maps all come from its end


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18d"])
def test_stages_are_those_of_the_maps(name):
    """What a part below a map holds changes that map and all later ones, and no earlier one."""
    torch.manual_seed(0)
    model, images = TimmNet(name, norm_kind="batch").eval(), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        before = model(images)
        for place, part in enumerate(STAGES[1:]):
            for parameter in (p for m in model.parts()[part] for p in m.parameters() if p.dim() == 1):
                parameter.add_(0.5)
            after = model(images)
            same = [torch.equal(a, b) for a, b in zip(before, after)]
            assert same == [index < place for index in range(4)]
            before = after


def test_freezing_by_stage_names_its_parts():
    model = TimmNet("convnext_atto", norm_kind="batch")
    names = freeze(model, "stage1")
    assert {name.split(".")[1] for name in names} == {"stem_0", "stem_1", "stages_0"}
    assert "body.stages_0.blocks.0.gamma" in names  # of a block itself, not of a layer in it
    rows = {row.group: row for row in audit(model.train(), start="random", freeze="stage1", input=model.input).rows}
    assert list(rows) == list(STAGES)
    assert [rows[part].training for part in STAGES] == ["frozen"] * 2 + ["trains"] * 3


@pytest.mark.parametrize("kind", ["frozen_batch", "sync_batch"])
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnetv2_18"])
def test_another_norm_keeps_epsilon_activation_and_padding(name, kind):
    live, other = TimmNet(name, norm_kind="batch"), TimmNet(name, norm_kind=kind)
    file = file_of(randomise(timm.create_model(name)).state_dict())
    for model in (live, other):
        load_weights(model.eval(), file, scope="backbone")
        for layer in model.modules():  # small variances, so that the epsilon matters
            if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm):
                layer.running_var.mul_(1e-3)
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        for ours, theirs in zip(other(images), live(images)):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_a_tag_says_how_images_were_normalised():
    assert TimmNet("resnetv2_50x1_bit.goog_in21k", norm_kind="batch").input.mean == (127.5,) * 3
    with pytest.raises(ValueError, match=r"timm has no weights 'resnet18\.a9_in1k', expected 'resnet18' or one of res"):
        TimmNet("resnet18.a9_in1k", norm_kind="batch")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tiny_patch4_window7_224", "takes images of one size only, expected a convolutional net"),
        ("vit_tiny_patch16_224", "expected 4, 8, 16 and 32 among them"),
        ("mixer_s16_224", "expected 4, 8, 16 and 32 among them"),
        ("resnet*", r"timm has no model 'resnet\*'"),
    ],
)
def test_other_nets_are_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=f"model.backbone.name: .*{message}") as error:
        TimmNet(name, norm_kind="batch")
    assert "\n" not in str(error.value)


def test_a_file_of_another_deviation_is_converted_exactly():
    whole = randomise(timm.create_model("tf_efficientnet_lite0"))
    own, converted = (TimmNet("tf_efficientnet_lite0", norm_kind="batch").eval() for _ in range(2))
    load_weights(own, file_of(whole.state_dict()), scope="backbone", input=own.input)
    other = type(own.input)(own.input.mean[::-1], (50.0, 100.0, 200.0), "bgr")
    report = load_weights(converted, file_of(whole.state_dict()), scope="backbone", input=other)
    assert report.source_input == other and len(report.notes) == 2
    pixels = torch.randint(0, 256, (1, 3, SIDE, SIDE)).float()
    std = torch.tensor(other.std).view(1, 3, 1, 1)
    with torch.no_grad():
        for ours, theirs in zip(converted((pixels.flip(1) - 127.5) / std), own((pixels - 127.5) / 127.5)):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet50"])
def test_pointwise_layers_by_onednn_are_timms(name, monkeypatch):
    monkeypatch.setattr(products, "mkl_is_held_back", lambda: True)
    monkeypatch.setattr(products, "LEAST_WORK", 1)
    calls, onednn = [], products.OneDNNLinear.apply
    monkeypatch.setattr(products.OneDNNLinear, "apply", lambda *given: calls.append(0) or onednn(*given))
    ours = TimmNet(name, norm_kind="batch").eval()
    theirs = timm.create_model(name, features_only=True, pretrained=False).eval()
    theirs.load_state_dict(ours.body.state_dict())
    images = torch.randn(2, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    found, expected = ours.to(memory_format=torch.channels_last)(images), theirs.double()(images.double())
    for one, index in zip(found, ours.chosen, strict=True):
        torch.testing.assert_close(
            one.double(), expected[index], rtol=1e-4, atol=1e-4 * float(expected[index].detach().abs().max())
        )
    sum(one.square().mean() for one in found).backward()
    sum(expected[index].square().mean() for index in ours.chosen).backward()
    assert (
        0
        < len(calls)
        == sum(isinstance(layer, PointwiseConv2d) and min(layer.weight.shape[:2]) >= 32 for layer in ours.modules())
    )
    for (key, one), other in zip(ours.body.named_parameters(), theirs.parameters(), strict=True):
        if one.grad is not None:
            error = float((one.grad - other.grad).norm() / other.grad.norm().clamp_min(1e-12))
            assert error < 1e-4 or float(other.grad.norm()) < 1e-10, key
