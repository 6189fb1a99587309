"""Our convolution is torch's, whichever way it is computed."""

import pytest
import torch
from torch import nn

from headstart.model.conv import Conv2d

SHAPES = {
    "product": {"kernel_size": 1},
    "without bias": {"kernel_size": 1, "bias": False},
    "strided": {"kernel_size": 1, "stride": 2},
    "padded": {"kernel_size": 1, "padding": 1},
    "grouped": {"kernel_size": 1, "groups": 2},
    "three by three": {"kernel_size": 3, "padding": 1},
}
LAYOUTS = (torch.channels_last, torch.contiguous_format)


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
            ["product", "without bias"] if layout == torch.channels_last else []
        )


def test_no_image_gives_no_map():
    x = torch.empty(0, 6, 5, 7).to(memory_format=torch.channels_last)
    assert Conv2d(6, 8, 1)(x).shape == (0, 8, 5, 7)
