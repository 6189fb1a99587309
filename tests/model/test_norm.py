"""The norm kinds against torch's and torchvision's layers (in two processes: test_two_processes.py)."""

import pytest
import torch
from torch import nn

from headstart.model.norm import KINDS, norm

CHANNELS = 6


def features(num=7, seed=0):
    """Samples far from zero mean and unit spread, so that no statistic is trivial."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 3, CHANNELS).view(1, -1, 1, 1)
    return torch.randn(num, CHANNELS, 5, 4, generator=generator) * spread + torch.linspace(-4, 4, CHANNELS).view(
        1, -1, 1, 1
    )


def above(num=7):
    return torch.randn(num, CHANNELS, 5, 4, generator=torch.Generator().manual_seed(9))


def randomised(layer):
    """Affine and running statistics away from their initial values, the same for every kind."""
    generator = torch.Generator().manual_seed(5)
    state = layer.state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        if name in state:
            state[name].copy_(torch.rand(CHANNELS, generator=generator) + (0.5 if name != "bias" else -0.5))
    return layer


def run(layer, x, gradient, weight=None):
    """Output, gradients of input and affine, and running statistics after one training step."""
    x = x.clone().requires_grad_()
    layer.train()
    out = layer(x) if weight is None else layer(x, weight)
    out.backward(gradient)
    return {
        "out": out.detach(),
        "x": x.grad,
        "weight": layer.weight.grad,
        "bias": layer.bias.grad,
        "running_mean": layer.running_mean.clone(),
        "running_var": layer.running_var.clone(),
    }


def assert_same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
def test_weights_keep_padding_out_of_the_statistics(kind):
    """Equal to torch's BatchNorm2d on the kept samples alone: values, gradients, running statistics."""
    x, keep = features(), torch.tensor([1, 0, 1, 1, 0, 1, 0]).bool()
    x[~keep] = 1e4  # what lies in empty slots must not matter
    gradient = above() * keep.view(-1, 1, 1, 1)  # and carries no loss
    found = run(randomised(norm(kind, CHANNELS)), x, gradient, keep.float())
    wanted = run(randomised(nn.BatchNorm2d(CHANNELS)), x[keep], gradient[keep])
    assert torch.equal(found["x"][~keep], torch.zeros_like(x[~keep]))
    found["out"], found["x"] = found["out"][keep], found["x"][keep]
    assert_same(found, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_process_equals_torchs_batch_norm(kind, weighted):
    weight = torch.ones(7) if weighted else None
    found = run(randomised(norm(kind, CHANNELS)), features(), above(), weight)
    assert_same(found, run(randomised(nn.BatchNorm2d(CHANNELS)), features(), above()), rtol=2e-4, atol=2e-5)
    ours, theirs = randomised(norm(kind, CHANNELS)).eval(), randomised(nn.BatchNorm2d(CHANNELS)).eval()
    assert torch.equal(ours(features(), weight), theirs(features()))


@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
@pytest.mark.parametrize("num", [0, 3])
def test_no_real_sample_is_finite_and_leaves_the_statistics_alone(kind, num):
    layer = randomised(norm(kind, CHANNELS))
    before = layer.running_mean.clone(), layer.running_var.clone()
    found = run(layer, features(num), torch.zeros(num, CHANNELS, 5, 4), torch.zeros(num))
    assert all(value.isfinite().all() for value in found.values())
    assert torch.equal(found["weight"], torch.zeros(CHANNELS)) and torch.equal(
        found["x"], torch.zeros_like(features(num))
    )
    assert torch.equal(layer.running_mean, before[0]) and torch.equal(layer.running_var, before[1])


def test_frozen_batch_equals_torchvisions():
    import torchvision  # here, because the processes of test_two_processes.py import this file and wait for it

    ours, theirs = norm("frozen_batch", CHANNELS), torchvision.ops.FrozenBatchNorm2d(CHANNELS)
    randomised(theirs)
    ours.load_state_dict(theirs.state_dict())
    for layer in (ours, theirs):
        layer.train()
    torch.testing.assert_close(ours(features(), torch.zeros(7)), theirs(features()), rtol=1e-5, atol=1e-5)
    assert not list(ours.parameters())


def test_group_norm_equals_torchs_and_ignores_the_batch():
    ours = norm("group", CHANNELS, groups=3)
    torch.testing.assert_close(ours(features(), torch.zeros(7)), nn.functional.group_norm(features(), 3))
    torch.testing.assert_close(ours(features()[2:3]), ours(features())[2:3])
    assert ours(features(0)).shape == (0, CHANNELS, 5, 4)


def test_none_is_the_identity():
    assert torch.equal(norm("none", CHANNELS)(features(), torch.zeros(7)), features())


def test_groups_that_do_not_divide_are_refused_with_the_nearest_that_do():
    with pytest.raises(ValueError, match=r"model\.norm_groups: 32 groups do not divide 48 channels; .* is 24"):
        norm("group", 48, groups=32)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'instance', expected one of " + ", ".join(KINDS)):
        norm("instance", CHANNELS)
