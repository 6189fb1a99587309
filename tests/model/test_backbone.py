"""Our ResNets are torchvision's: names, parameters and outputs; timm's models through their features interface."""

import pytest
import torch
import torchvision
from torch import nn

from headstart.model.backbones.resnet import DEPTHS, ResNet, build_detnet
from headstart.model.backbones.timm_net import TimmNet
from headstart.model.backbones.vgg import Vgg
from headstart.model.norm import FrozenBatchNorm, GroupNorm

RESNEXT = {"groups": 32, "group_width": 4}


def ours(depth, *, norm_kind="batch", **changes):
    return ResNet(depth, norm_kind=norm_kind, **changes)


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.startswith("fc.")}


PAIRS = {
    "resnet18": (torchvision.models.resnet18, 18, {}),
    "resnet34": (torchvision.models.resnet34, 34, {}),
    "resnet50": (torchvision.models.resnet50, 50, {}),
    "resnet101": (torchvision.models.resnet101, 101, {}),
    "resnet152": (torchvision.models.resnet152, 152, {}),
    "resnext50_32x4d": (torchvision.models.resnext50_32x4d, 50, RESNEXT),
    "resnext101_32x8d": (torchvision.models.resnext101_32x8d, 101, {"groups": 32, "group_width": 8}),
    "resnext101_64x4d": (torchvision.models.resnext101_64x4d, 101, {"groups": 64, "group_width": 4}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_names_and_shapes_are_torchvisions(name):
    make, depth, changes = PAIRS[name]
    with torch.device("meta"):
        assert shapes(ours(depth, **changes)) == shapes(make(weights=None))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_outputs_are_torchvisions_in_both_modes(name):
    make, depth, changes = PAIRS[name]
    torch.manual_seed(0)
    theirs, model = make(weights=None), ours(depth, **changes)
    for value in theirs.parameters():
        if value.dim() == 1:
            nn.init.uniform_(value, 0.3, 1.2)
    model.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    images = torch.randn(3, 3, 64, 96)

    def stages(x):
        x, maps = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))), []
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    for mode in (True, False):
        theirs.train(mode)
        model.train(mode)
        with torch.no_grad():
            found, wanted = model(images), stages(images)
        for stride, channels, one, other in zip((4, 8, 16, 32), model.channels, found, wanted):
            assert one.shape == (3, channels, 64 // stride, 96 // stride)
            assert (one - other).abs().max() < 1e-4 * other.abs().max()
    statistics = [dict(m.named_buffers()) for m in (model, theirs)]
    for key in statistics[0]:
        torch.testing.assert_close(statistics[0][key], statistics[1][key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["group", "sync_batch", "frozen_batch", "none"])
def test_every_norm_kind_in_a_narrow_net(kind):
    for bottleneck in (False, True):
        model = ours([1, 2, 1, 1], bottleneck=bottleneck, width=8, norm_kind=kind, norm_groups=4, in_channels=1)
        maps = model(torch.randn(2, 1, 64, 32))
        expansion = 4 if bottleneck else 1
        assert [m.shape for m in maps] == [(2, 8 * expansion * 2**n, 16 >> n, 8 >> n) for n in range(4)]
        sum(m.sum() for m in maps).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        # A convolution has a bias exactly where no norm follows.
        assert all(
            (layer.bias is not None) == (kind == "none") for layer in model.modules() if isinstance(layer, nn.Conv2d)
        )


def test_initialisation_is_he_fan_out():
    model = ours(18, norm_kind="group")
    weight = model.layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-4
    for layer in model.modules():
        if isinstance(layer, GroupNorm):
            assert torch.equal(layer.weight, torch.ones_like(layer.weight)) and not layer.bias.any()


def test_parts_partition_the_parameters_from_the_input_up():
    for model in (
        ours(18),
        Vgg(16, width=8, in_channels=3),
        build_detnet(59, width=8, norm_kind="none", norm_groups=1, in_channels=3),
    ):
        parts = model.parts()
        assert list(parts)[:5] == ["stem", "stage1", "stage2", "stage3", "stage4"]
        inside = [id(p) for modules in parts.values() for module in modules for p in module.parameters()]
        assert sorted(inside) == sorted(id(p) for p in model.parameters())
    assert len(DEPTHS) == 5


def test_an_unknown_depth_is_refused():
    with pytest.raises(ValueError, match=r"model\.backbone\.depth: 51 .* 18, 34, 50, 101, 152"):
        ours(51)
    with pytest.raises(ValueError, match="depth: 15 is not known, expected one of 11, 13, 16, 19 or five counts"):
        Vgg(15, width=8, in_channels=3)
    with pytest.raises(ValueError, match="depth: 50 is not known, expected 59 or five block counts"):
        build_detnet(50, width=8, norm_kind="group", norm_groups=4, in_channels=3)


def test_resnext_152_in_both_readings():
    """8 groups x width 32 and 32 groups x width 8: the same channels, other numbers of weights in the 3x3."""
    for groups, width in ((8, 32), (32, 8)):
        with torch.device("meta"):
            model = ours(152, norm_kind="group", groups=groups, group_width=width)
        assert model.layer1[0].conv2.weight.shape == (256, 256 // groups, 3, 3)
        assert model.channels == (256, 512, 1024, 2048)


def test_vgg_gives_torchvisions_last_map():
    torch.manual_seed(0)
    plan = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
    theirs, model = torchvision.models.vgg.make_layers(plan), Vgg(16, width=8, in_channels=3)
    model.features.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        (found,) = model(images)
        assert torch.allclose(found, theirs[:-1](images), rtol=1e-4, atol=1e-5)
    assert found.shape == (1, *model.channels, 64 // 16, 96 // 16) and model.strides == (16,)
    for depth in (11, 13, 16, 19):
        with torch.device("meta"):
            named = torchvision.models.get_model(f"vgg{depth}", weights=None).features.state_dict()
            mine = Vgg(depth, width=64, in_channels=3).features.state_dict()
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in named.items()}


def test_vgg_keeps_the_size_of_its_input():
    """He et al. 2015: with fan-in initialisation the second moment survives thirteen layers (to a factor of two)."""
    torch.manual_seed(0)
    model = Vgg(16, width=16, in_channels=3)
    images = torch.randn(2, 3, 64, 64)
    assert 0.3 < float(model(images)[0].detach().square().mean() / images.square().mean()) < 2


def test_detnet_is_resnet_50_up_to_stage_3_and_keeps_the_stride_from_there():
    model = build_detnet(59, width=8, norm_kind="group", norm_groups=4, in_channels=3)
    plain = ours(50, norm_kind="group", width=8, norm_groups=4)
    early = {k: v.shape for k, v in plain.state_dict().items() if not k.startswith("layer4")}
    assert early == {k: v.shape for k, v in model.state_dict().items() if not k.startswith(("layer4", "layer5"))}
    maps = model(torch.randn(1, 3, 64, 96))
    assert [m.shape for m in maps] == [(1, c, 64 // s, 96 // s) for c, s in zip(model.channels, model.strides)]
    assert model.strides == (4, 8, 16, 16, 16) and model.channels == (32, 64, 128, 128, 128)
    for layer in (model.layer4, model.layer5):  # the first block projects, all spread their 3x3 by two
        assert [block.downsample is not None for block in layer] == [True, False, False]
        assert all(block.conv2.dilation == (2, 2) and block.conv2.stride == (1, 1) for block in layer)
    convs = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in name]
    assert len(convs) == 58  # and the classifier's layer


@pytest.mark.parametrize("kind", ["batch", "group", "frozen_batch"])
@pytest.mark.parametrize("name", ["resnet18", "regnetx_002"])
def test_timm_backbones_keep_their_activations_under_another_norm(name, kind):
    torch.manual_seed(0)
    model = TimmNet(name, norm_kind=kind, norm_groups=8).eval()
    maps = model(torch.randn(1, 3, 64, 96))
    assert [m.shape for m in maps] == [(1, c, 64 // s, 96 // s) for c, s in zip(model.channels, (4, 8, 16, 32))]
    layers = list(model.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in layers) == (kind == "batch")
    wanted = {"group": GroupNorm, "frozen_batch": FrozenBatchNorm}.get(kind)
    assert wanted is None or any(isinstance(layer, wanted) for layer in layers)
    if kind == "frozen_batch":  # in eval mode a fresh BatchNorm is the identity too: nothing but the layers may differ
        reference = TimmNet(name, norm_kind="batch").eval()
        state = {key: value for key, value in reference.state_dict().items() if "num_batches" not in key}
        images = torch.randn(1, 3, 64, 96)
        for found, expected in zip(copy_state(model, state)(images), reference(images)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def copy_state(model, state):
    """Load by order: replacing a norm that holds its activation adds a level to the name."""
    own = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    assert len(own) == len(state)
    for target, source in zip(own.values(), state.values()):
        target.copy_(source)
    return model


def test_timm_names_are_checked():
    with pytest.raises(ValueError, match="timm has no model 'resnet5O'; the nearest name is 'resnet50"):
        TimmNet("resnet5O", norm_kind="batch")
    with pytest.raises(ValueError, match="expected 4, 8, 16 and 32 among them"):
        TimmNet("vit_tiny_patch16_224", norm_kind="batch")
