"""Sums over processes, for losses that do not depend on how a batch was split."""

import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Processes in the group; 1 when none was started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_shared(tensor: Tensor) -> bool:
    """Whether sums of a tensor go over processes: there are several, and it has values (not when work is counted)."""
    return num_processes() > 1 and not tensor.is_meta


def mean_over_processes(count: Tensor) -> Tensor:
    """A count (scalar, no gradient) averaged over the processes.

    Dividing local sums by it gives local losses whose mean over processes, which is what DDP takes of their gradients,
    is the loss of the joined batch.
    """
    if not is_shared(count):
        return count
    total = count.detach().clone()
    dist.all_reduce(total)
    return total / num_processes()
