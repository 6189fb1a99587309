"""Tensors that depend on shapes alone, kept between steps."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found", Tensor, tuple[Tensor, ...])
KEPT = 64  # of one kind: a recipe has a few buckets, and each a few uses


def constant(make: Callable[Arguments, Found]) -> Callable[Arguments, Found]:
    """Decorates a function of hashable arguments that makes tensors: each is made once and must not be changed.

    A graph that is being traced computes its own; what a fake mode makes is not kept, because it holds no numbers.
    Made outside inference mode whatever the caller is in, since training may ask for the same tensor later.
    """

    def fresh(*args: Arguments.args) -> Found:
        with torch.inference_mode(False):
            return make(*args)

    kept = lru_cache(maxsize=KEPT)(fresh)

    @wraps(make)
    def look_up(*args: Arguments.args) -> Found:
        if torch.compiler.is_compiling():
            return make(*args)
        found = kept(*args)
        if any(type(tensor) is not Tensor for tensor in (found if isinstance(found, tuple) else (found,))):
            kept.cache_clear()
        return found

    return look_up
