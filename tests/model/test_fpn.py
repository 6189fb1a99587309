"""The pyramid against torchvision's."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from headstart.model.pyramid import ConvNorm, LastMap, Pyramid

CHANNELS = (4, 6, 8, 10)


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
