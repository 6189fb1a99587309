"""Dense layers by oneDNN against torch's, and where they are taken."""

import pytest
import torch
import torch.nn.functional as F

from headstart.model.pyramid import Conv2d
from headstart.ops import products
from headstart.ops.products import linear

ROWS = {"rows": (70, 40), "cells": (2, 5, 7, 40), "no contiguous rows": (40, 70)}


@pytest.fixture
def held_back(monkeypatch):
    """A processor on which MKL is held back, and no layer too small to count."""
    monkeypatch.setattr(products, "mkl_is_held_back", lambda: True)
    monkeypatch.setattr(products, "LEAST_WORK", 1)


@pytest.mark.parametrize("biased", [True, False], ids=("bias", "no bias"))
@pytest.mark.parametrize("shape", ROWS.values(), ids=ROWS)
def test_values_and_gradients_are_those_of_double_precision(held_back, shape, biased):
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(*size, generator=generator) for size in (shape, (48, 40), (48,))]
    x, weight, bias = draw[0] if shape[-1] == 40 else draw[0].T, draw[1], draw[2] if biased else None
    found = outputs(linear, x, weight, bias)
    exact = outputs(F.linear, x.double(), weight.double(), bias.double() if biased else None)
    assert products.goes_to_onednn(x, weight) and len(found) == 3 + biased
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def outputs(layer, x, weight, bias):
    """The layer's value, and its gradients with respect to each input after an activation in place."""
    given = [each.detach().requires_grad_() for each in (x, weight, bias) if each is not None]
    out = F.relu(layer(given[0], given[1], given[2] if bias is not None else None), inplace=True)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), given)]


def test_a_frozen_weight_has_no_gradient_and_its_input_has(held_back):
    x, weight = torch.randn(64, 32, requires_grad=True), torch.randn(32, 32)
    linear(x, weight, None).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(64, 32))
    assert weight.grad is None


def test_only_large_layers_in_single_precision_on_a_cpu_go_to_onednn(held_back, monkeypatch):
    x, weight = torch.randn(64, 32), torch.randn(32, 32)
    assert products.goes_to_onednn(x, weight)
    assert not products.goes_to_onednn(x.double(), weight.double())
    assert not products.goes_to_onednn(x.to("meta"), weight.to("meta"))
    assert not products.goes_to_onednn(x, weight[:31]) and not products.goes_to_onednn(x[:0], weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not products.goes_to_onednn(x, weight)
    monkeypatch.setattr(products, "LEAST_WORK", 64 * 32 * 32 + 1)
    assert not products.goes_to_onednn(x, weight)


@pytest.mark.parametrize(
    "level, name, expected",
    [
        ("AVX512", "AMD EPYC", True),
        ("AVX512", "Intel(R) Xeon(R)", False),
        ("AVX512", "Intel64 Family 6 Model 143, GenuineIntel", False),
        ("AVX2", "AMD EPYC", False),
        ("DEFAULT", "arm64", False),
    ],
)
def test_mkl_is_held_back_with_avx512_on_processors_that_are_not_intels(monkeypatch, level, name, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products, "processor", lambda: name)
    assert products.mkl_is_held_back.__wrapped__() is expected


def test_a_convolution_of_single_cells_goes_there_and_keeps_its_layout(held_back):
    conv = Conv2d(32, 48, 1)
    x = torch.randn(2, 32, 5, 7).to(memory_format=torch.channels_last).requires_grad_()
    out = conv(x)
    out.square().sum().backward()
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, F.conv2d(x, conv.weight, conv.bias), rtol=1e-5, atol=1e-5)
    assert x.grad.is_contiguous(memory_format=torch.channels_last) and conv.weight.grad.shape == (48, 32, 1, 1)
