"""From the host to the device, the one way."""

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """An array as a tensor on a device; on a CPU it shares the array's memory.

    A GPU reads from page-locked memory, because a copy from any other waits for all that the GPU was told before
    (CUDA's rule for pageable memory), and the host could never be a step ahead.
    """
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
