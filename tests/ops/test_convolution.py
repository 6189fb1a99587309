"""The 3x3 convolution's own backward against torch's, in double precision."""

import pytest
import torch
import torch.nn.functional as F

from headstart.ops.products import conv3x3


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4), (2, 1)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_torchs(size, batch, with_bias):
    x = torch.randn(batch, 4, *size, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True) if with_bias else None
    asked = [x, weight, *([bias] if with_bias else [])]
    found, wanted = conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    for ours, theirs in zip(torch.autograd.grad(found, asked, grad), torch.autograd.grad(wanted, asked, grad)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_only_what_is_asked_for_is_computed():
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(6, 4, 3, 3, requires_grad=True), torch.randn(6)
    conv3x3(x, weight, bias).sum().backward()
    assert x.grad is None and bias.grad is None and weight.grad is not None
