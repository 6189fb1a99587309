"""The one place where a CPU may use the real number of entries instead of the fixed one.

On a GPU (and in a traced graph) shapes never depend on the data. On an eager CPU a host synchronisation costs nothing
and empty slots cost full price, so the slots in use are counted and the rest is cut away. Results are the same: what is
cut carries zero weight.
"""

import torch
from torch import Tensor


def _static(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu" or torch.compiler.is_compiling()


def used_length(valid: Tensor) -> int:
    """How many leading slots of valid [B,G] hold anything in some row; all of them where shapes are fixed.

    At least 1.
    """
    if _static(valid):
        return valid.shape[1]
    used = valid.any(dim=0)
    return max(int(used.nonzero().max()) + 1, 1) if bool(used.any()) else 1


def pool_slots(flags: Tensor, capacity: int, priority: Tensor) -> tuple[Tensor, Tensor]:
    """Choose up to `capacity` of the flagged entries of flags [N]: (index [S], chosen [S] bool).

    S is the capacity, or on an eager CPU the number of flagged entries when that is smaller (0 when there are none).
    When more are flagged than fit, those of lowest priority [N] (uniform in [0,1)) are dropped, so that nobody is
    favoured.
    """
    capacity = min(capacity, flags.shape[0])
    if not _static(flags):
        index = flags.nonzero().squeeze(1)
        if index.shape[0] <= capacity:
            return index, flags[index]
    key = torch.where(flags, priority, priority - 2.0)
    value, index = torch.topk(key, capacity)
    return index, value >= 0
