"""Other devices on a CPU: the path with fixed shapes, and a CUDA device whose tensors have shapes but no values."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.ops import fixed_shapes

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


def static():
    """The path with fixed shapes, as a traced graph or a GPU takes it."""
    return mock.patch("torch.compiler.is_compiling", return_value=True)


class HostWaits(RuntimeError):
    """An operation for which the host would wait until the GPU has done all that it was told."""


class Watch(TorchDispatchMode):
    """Raises HostWaits for what a fake mode lets pass: copies between host and GPU, and CPU tensors as an index.

    Allowed are copies from page-locked memory that are not waited for, and what is copied once: a model by its `to`,
    and the tensors of `ops.constant`.
    `convolved` holds the types of all convolutions' results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolved: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._pin_memory.default:  # needs a driver; what it makes differs from its input in speed alone
            locked = args[0].clone()
            locked.page_locked = True
            return locked
        # torch has no form without values of this one; in place, with no result
        out = None if func is aten._fused_sgd_.default else func(*args, **kwargs)
        if func is aten.convolution.default:
            self.convolved.add(out.dtype)
        if func in (aten._to_copy.default, aten.copy_.default):
            self._check_copy(func, args, kwargs, out)
        elif {"cuda", "cpu"} <= {tensor.device.type for tensor in _tensors(args) if tensor.dim()}:
            # a CPU tensor without dimensions is a number, which a kernel is given by value
            raise HostWaits(f"{func}: tensors of the host and of the GPU together")
        return out

    def _check_copy(self, func, args, kwargs, out) -> None:
        source = args[1] if func is aten.copy_.default else args[0]
        way = source.device.type, out.device.type
        if way == ("cuda", "cpu"):
            raise HostWaits(f"{func}: the GPU's values are read")
        unwaited = kwargs.get("non_blocking", False) or args[2:] == (True,)
        free = unwaited and getattr(source, "page_locked", False)
        if way == ("cpu", "cuda") and source.dim() and not free and not _once():
            raise HostWaits(f"{func}: the host waits for a copy to the GPU")


def _tensors(args) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _once() -> bool:
    """Whether a constant is being made, or a model moved."""
    frame = sys._getframe()
    while frame and frame.f_code.co_filename != fixed_shapes.__file__ and frame.f_code is not nn.Module.to.__code__:
        frame = frame.f_back
    return frame is not None


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """A CUDA device without a GPU: torch computes shapes, types and devices, and raises where they do not fit.

    What reads a value raises too. `model.to(CUDA)` inside makes a model's tensors fake, for good. Autocast acts as it
    would on a GPU with bf16; without this it turns itself off where no GPU is found. `backward` has no such device, and
    builds of torch without CUDA have none: skipped there.
    """
    if not torch.backends.cuda.is_built():
        pytest.skip("this build of torch knows no CUDA device")
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
