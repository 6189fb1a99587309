"""Half precision is raised, the others stay."""

import pytest
import torch

from headstart.ops.precision import at_least_float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype):
    values = torch.randn(5).to(dtype)
    found = at_least_float32(values)
    assert found.dtype == torch.float32 and torch.equal(found, values.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_others_are_not_copied(dtype):
    values = torch.randn(5, dtype=dtype)
    assert at_least_float32(values) is values
