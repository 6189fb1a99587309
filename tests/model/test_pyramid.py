"""The convolution against torch's, the pyramid against torchvision's."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from headstart.model import pyramid
from headstart.model.pyramid import Conv2d, ConvNorm, LastMap, Pyramid

CHANNELS = (4, 6, 8, 10)
SHAPES = {
    "product": {"kernel_size": 1},
    "without bias": {"kernel_size": 1, "bias": False},
    "strided": {"kernel_size": 1, "stride": 2},
    "padded": {"kernel_size": 1, "padding": 1},
    "grouped": {"kernel_size": 1, "groups": 2},
    "three by three": {"kernel_size": 3, "padding": 1},
}
LAYOUTS = (torch.channels_last, torch.contiguous_format)


def maps(size):
    generator = torch.Generator().manual_seed(1)
    sides = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]
    return [torch.randn(2, c, *side, generator=generator) for c, side in zip(CHANNELS, sides)]


@pytest.mark.parametrize("norm_kind", ["none", "batch"])
@pytest.mark.parametrize("size", [(64, 128), (72, 104)], ids=["even", "odd sides"])
def test_equals_torchvisions(norm_kind, size):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d if norm_kind == "batch" else None
    theirs = FeaturePyramidNetwork(list(CHANNELS), 12, extra_blocks=LastLevelMaxPool(), norm_layer=layer)
    ours = Pyramid(CHANNELS, 12, norm_kind=norm_kind, norm_groups=4)
    # Both list their layers in the order inner (lateral), then layer (output).
    with torch.no_grad():
        assert len(list(ours.parameters())) == len(list(theirs.parameters()))
        for target, source in zip(ours.parameters(), theirs.parameters()):
            target.copy_(source.uniform_(-0.5, 0.5))
    features = maps(size)
    wanted = list(theirs(OrderedDict((str(n), m) for n, m in enumerate(features))).values())
    found = ours(features)
    assert len(found) == len(ours.strides) == 5
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_channels_last_changes_nothing():
    torch.manual_seed(0)
    pyramid = Pyramid(CHANNELS, 8, norm_kind="group", norm_groups=4)
    features = maps((64, 64))
    wanted = pyramid(features)
    found = pyramid.to(memory_format=torch.channels_last)(
        [m.contiguous(memory_format=torch.channels_last) for m in features]
    )
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_conv_norm_has_a_bias_exactly_without_a_norm():
    assert ConvNorm(4, 8, 3, norm_kind="none", norm_groups=1).conv.bias is not None
    assert ConvNorm(4, 8, 3, norm_kind="group", norm_groups=2).conv.bias is None
    assert (ConvNorm(4, 8, 3, norm_kind="group", norm_groups=2, relu=True)(torch.randn(2, 4, 5, 5)) >= 0).all()


def test_maps_of_one_stride_are_added_as_they_are():
    """DetNet's pyramid: no subsampled level, and each sum taken cell by cell."""
    torch.manual_seed(0)
    pyramid = Pyramid((4, 6, 6), 8, norm_kind="none", norm_groups=1, map_strides=(8, 16, 16), subsample=False)
    features = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4), torch.randn(1, 6, 4, 4)]
    lateral = [layer(x) for layer, x in zip(pyramid.lateral, features)]
    middle = lateral[1] + lateral[2]
    low = lateral[0] + middle.repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = [layer(x) for layer, x in zip(pyramid.output, (low, middle, lateral[2]))]
    assert pyramid.strides == pyramid.pooled_strides == (8, 16, 16)
    for found, other in zip(pyramid(features), wanted, strict=True):
        torch.testing.assert_close(found, other)


def test_without_a_pyramid_the_last_map_stays_as_it_is():
    last = LastMap(6, 16)
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    assert last(maps) == maps[1:] and last.strides == last.pooled_strides == (16,) and not list(last.parameters())


def gradients(layer, x):
    out = layer(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("layout", LAYOUTS, ids=("channels last", "channels first"))
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_torchs(options, layout):
    ours, theirs = Conv2d(6, 8, **options).double(), nn.Conv2d(6, 8, **options).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 6, 5, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    (ours_out, ours_grads), (out, grads) = gradients(ours, x), gradients(theirs, x)
    torch.testing.assert_close(ours_out, out)
    for ours_grad, grad in zip(ours_grads, grads, strict=True):
        torch.testing.assert_close(ours_grad, grad)
    assert ours_out.is_contiguous(memory_format=layout) and ours_grads[0].is_contiguous(memory_format=layout)


def test_only_single_cells_in_channels_last_memory_are_a_product():
    x = torch.randn(1, 6, 5, 7)
    for layout in LAYOUTS:
        taken = {
            name: Conv2d(6, 8, **options)._is_product(x.to(memory_format=layout)) for name, options in SHAPES.items()
        }
        assert [name for name in taken if taken[name]] == (
            ["product", "without bias", "strided"] if layout == torch.channels_last else []
        )
    wide = Conv2d(16, 8, 1, stride=2), torch.randn(1, 16, 5, 7).to(memory_format=torch.channels_last)
    assert not wide[0]._is_product(wide[1])


def test_narrow_strided_cells_have_gradients():
    """With AVX-512, torch's own convolution of this size ends the process."""
    ours, x = Conv2d(8, 16, 1, stride=2, bias=False), torch.randn(2, 8, 64, 64).to(memory_format=torch.channels_last)
    theirs = nn.Conv2d(8, 16, 1, stride=2, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    _, ours_grads = gradients(ours, x.requires_grad_())
    _, grads = gradients(theirs, x.detach().double().contiguous().requires_grad_())
    for ours_grad, grad in zip(ours_grads, grads, strict=True):
        torch.testing.assert_close(ours_grad.double(), grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["DEFAULT", "AVX2", "AVX512"])
def test_the_gradient_of_3x3_kernels_is_ours_only_below_avx512(monkeypatch, level):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    x, least = torch.randn(1, 6, 14, 15), pyramid.LEAST_TAP
    monkeypatch.setattr(pyramid, "LEAST_TAP", x.numel() * 8)
    taken = {
        (name, layout): Conv2d(6, 8, **options)._has_own_gradient(x.to(memory_format=layout))
        for name, options in SHAPES.items()
        for layout in LAYOUTS
    }
    mine = [] if level == "AVX512" else [("three by three", torch.channels_last)]
    assert [place for place in taken if taken[place]] == mine
    conv, x = Conv2d(6, 8, 3, padding=1), x.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not conv._has_own_gradient(x)
    with torch.no_grad():
        assert not conv._has_own_gradient(x)
    assert conv._has_own_gradient(x) is (level != "AVX512") and not conv._has_own_gradient(x[:, :, 1:].clone())
    monkeypatch.setattr(pyramid, "LEAST_TAP", least)
    assert not conv._has_own_gradient(x)


def test_no_image_gives_no_map():
    x = torch.empty(0, 6, 5, 7).to(memory_format=torch.channels_last)
    assert Conv2d(6, 8, 1)(x).shape == (0, 8, 5, 7)
