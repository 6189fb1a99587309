"""timm's layers as a CPU computes them: equal to timm's own in double precision, and timm's own everywhere else."""

import pytest
import timm
import torch
from torch import nn

from devices import CUDA, Watch, fake_cuda, static
from headstart.model.backbones.inverted_residual import InvertedResidual
from headstart.model.backbones.timm_net import TimmNet
from headstart.ops.convolution import depth_wise5x5
from headstart.ops.expansion import expand

EXACT = {"rtol": 1e-12, "atol": 1e-12}
NAME = "tf_efficientnet_lite0"


def pair(place, seed=0):
    """A block of timm's EfficientNet-Lite0 and the same block of ours, in double precision, channels-last."""
    torch.manual_seed(seed)
    theirs = timm.create_model(NAME, features_only=True)
    ours = TimmNet(NAME, norm_kind="batch")
    for parameter in theirs.parameters():  # norms away from the identity, and the two nets alike
        nn.init.normal_(parameter, std=0.5)
    ours.body.load_state_dict(theirs.state_dict())
    blocks = [
        net.double().to(memory_format=torch.channels_last).blocks[place[0]][place[1]] for net in (theirs, ours.body)
    ]
    assert isinstance(blocks[1], InvertedResidual)
    return blocks


def outcome(block, x, above):
    """Output, gradients and running statistics of a forward and a backward."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    block.zero_grad()
    out = block(x)
    out.backward(above)
    found = {"out": out.detach(), "x": x.grad, **{name: p.grad for name, p in block.named_parameters()}}
    return found | {name: value.clone() for name, value in block.named_buffers()}


# stride 2 of an even and an odd size (padding that is not the same on all sides), 5x5, and with a shortcut
@pytest.mark.parametrize("place", [(1, 0), (2, 0), (2, 1), (3, 1)])
@pytest.mark.parametrize("size", [(12, 16), (9, 13)])
@pytest.mark.parametrize("training", [True, False])
def test_a_block_equals_timms(place, size, training):
    theirs, ours = pair(place)
    x = (
        torch.randn(3, theirs.conv_pw.in_channels, *size, dtype=torch.double).to(memory_format=torch.channels_last)
        + 0.3
    )
    above = torch.randn_like(theirs(x))
    ours(x)
    theirs.train(training), ours.train(training)
    for _ in range(2):
        wanted, found = outcome(theirs, x, above), outcome(ours, x, above)
        assert found.keys() == wanted.keys()
        for name in wanted:
            scale = max(1.0, float(wanted[name].abs().max()))
            torch.testing.assert_close(
                found[name] / scale, wanted[name] / scale, **EXACT, msg=lambda m, n=name: f"{n}: {m}"
            )
    theirs.eval(), ours.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), **EXACT)


@pytest.mark.parametrize("highest", [1.0, float("inf")])
def test_the_gradient_of_an_expansion_is_that_of_its_values(highest):
    x = torch.randn(2, 3, 4, 5, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    weight, scale, shift = (
        torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((7, 3, 1, 1), (7,), (7,))
    )
    rest = (1e-3, highest, (0, 1, 1, 2))
    assert torch.autograd.gradcheck(lambda *values: expand(*values, *rest)[0], (x, weight, scale, shift))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (2, 2), (1, 2)])
def test_a_depth_wise_convolution_has_torchs_gradients(stride, padding):
    x = torch.randn(2, 6, 9, 10, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 1, 5, 5, dtype=torch.double, requires_grad=True)
    wanted = nn.functional.conv2d(x, weight, None, stride, padding, 1, 6)
    found = depth_wise5x5(x, weight, (stride, stride), padding)
    assert torch.equal(found, wanted)
    above = torch.randn_like(wanted)
    for ours, theirs in zip(*(torch.autograd.grad(out, (x, weight), above) for out in (found, wanted))):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_names_values_and_draws_are_timms():
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, features_only=True)
    after = torch.rand(())
    torch.manual_seed(0)
    ours = TimmNet(NAME, norm_kind="batch")
    assert torch.equal(torch.rand(()), after)
    assert list(ours.body.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.body.state_dict().values(), theirs.state_dict().values()))


def test_other_devices_and_traced_graphs_take_timms_own_way(monkeypatch):
    net = TimmNet(NAME, norm_kind="batch").to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    monkeypatch.setattr("headstart.model.backbones.inverted_residual.expand", None)
    with static():
        net(x)
    with fake_cuda():
        net.to(CUDA)
        with Watch() as watch, torch.autocast("cuda", torch.bfloat16):
            maps = net(torch.zeros(2, 3, 32, 32, device=CUDA).to(memory_format=torch.channels_last))
    assert watch.convolved == {torch.bfloat16} and all(each.device == CUDA for each in maps)


def test_a_frozen_part_computes_no_gradient():
    net = TimmNet(NAME, norm_kind="batch").to(memory_format=torch.channels_last).eval()
    net.requires_grad_(False)
    assert all(not each.requires_grad for each in net(torch.randn(1, 3, 32, 32).to(memory_format=torch.channels_last)))
