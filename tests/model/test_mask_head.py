"""The mask head's last two layers, computed cell by cell, are the transposed and the 1x1 convolution they replace."""

import pytest
import torch
import torch.nn.functional as F

from headstart.model.region_heads import MaskHead
from headstart.model.regions import RegionConvs, RegionPooler

SLOTS, CLASSES, SIDE = 5, 4, 7


@pytest.fixture
def head():
    torch.manual_seed(0)
    convs = RegionConvs(6, RegionPooler(SIDE, (4,)), num=1, channels=8, norm_kind="none", norm_groups=1)
    found = MaskHead(convs, num_classes=CLASSES, channels=8)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter)
    return found.double()


def asked(seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(2, 6, 16, 16, generator=generator, dtype=torch.float64)]
    low = torch.rand(SLOTS, 2, generator=generator) * 30
    boxes = torch.cat([low, low + 5 + torch.rand(SLOTS, 2, generator=generator) * 25], dim=1)
    return features, boxes, torch.arange(SLOTS) % 2, torch.arange(SLOTS) % CLASSES, torch.ones(SLOTS, dtype=torch.bool)


def plain(head, features, boxes, image, labels, valid):
    """The layers one after another, all classes evaluated and one chosen."""
    x = head.convs.pooler(features, boxes, image)
    for conv in head.convs:
        x = conv(x)
    maps = head.classify(F.relu(head.deconv(x)))
    return maps[torch.arange(len(labels)), labels]


def test_logits_and_gradients_are_those_of_the_plain_layers(head):
    ours, wanted = head.predict(*asked()), plain(head, *asked())
    assert ours.shape == (SLOTS, 2 * SIDE, 2 * SIDE)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view(ours.shape)
    parameters = list(head.parameters())
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), parameters),
        torch.autograd.grad((wanted * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_no_region_gives_no_mask(head):
    features, *rest = asked()
    assert head.predict(features, *(part[:0] for part in rest)).shape == (0, 2 * SIDE, 2 * SIDE)
