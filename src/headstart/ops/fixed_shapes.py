"""Fixed tensor shapes: cached constants of a shape, and the one place where an eager CPU drops unused slots.

On a GPU and in a traced graph, shapes never depend on the data. On an eager CPU empty slots cost time and a host
synchronisation costs nothing, so unused slots are dropped. Dropped slots carry zero weight.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Constant = TypeVar("Constant", Tensor, tuple[Tensor, ...])
CACHE_SIZE = 64  # entries a function: a recipe has a few buckets, each with a few shapes


def constant(make: Callable[Arguments, Constant]) -> Callable[Arguments, Constant]:
    """Decorator that caches the tensors of a function of hashable arguments; callers must not modify them.

    A traced graph computes its own tensors; those of a fake mode are not cached, because they hold no values. Tensors
    are made outside inference mode, since training may use them later.
    """

    def fresh(*args: Arguments.args) -> Constant:
        with torch.inference_mode(False):
            return make(*args)

    cached = lru_cache(maxsize=CACHE_SIZE)(fresh)

    @wraps(make)
    def look_up(*args: Arguments.args) -> Constant:
        if torch.compiler.is_compiling():
            return make(*args)
        value = cached(*args)
        if any(type(tensor) is not Tensor for tensor in (value if isinstance(value, tuple) else (value,))):
            cached.cache_clear()
        return value

    return look_up


def _static(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu" or torch.compiler.is_compiling()


def used_length(valid: Tensor) -> int:
    """Number of leading slots of valid [B,G] that any row uses, at least 1; all of them where shapes are fixed."""
    if _static(valid):
        return valid.shape[1]
    used = valid.any(dim=0)
    return max(int(used.nonzero().max()) + 1, 1) if bool(used.any()) else 1


def pool_slots(flags: Tensor, capacity: int, priority: Tensor) -> tuple[Tensor, Tensor]:
    """Choose up to `capacity` of the flagged entries of flags [N]: (index [S], chosen [S] bool).

    S is the capacity, or on an eager CPU the number of flagged entries when that is smaller (0 when there are none).
    When more are flagged than fit, those of lowest priority [N] are dropped: a uniform random choice for priorities
    that are uniform in [0,1).
    """
    capacity = min(capacity, flags.shape[0])
    if not _static(flags):
        index = flags.nonzero().squeeze(1)
        if index.shape[0] <= capacity:
            return index, flags[index]
    key = torch.where(flags, priority, priority - 2.0)
    value, index = torch.topk(key, capacity)
    return index, value >= 0
