"""The precision of logits, boxes and sums, in which half precision is not enough."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 raised to float32; float32 and float64 as they are, without a copy."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
