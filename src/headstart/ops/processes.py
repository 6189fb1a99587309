"""Processes under torchrun: group, rank, device, reductions, and DistributedDataParallel.

Without a group each function answers for a single process.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from headstart.hardware import choose_device

# Seconds without an answer after which a process counts as lost: NCCL's default. No process works alone for longer:
# writing a checkpoint and joining the parts of an evaluation take seconds to minutes.
SILENCE = 600.0


def start_processes(asked: str) -> None:
    """Join the group that torchrun announced in the environment, for work on the device of a recipe.

    Does nothing for a single process. A process that waits for another longer than SILENCE fails. ValueError for a
    device that is not there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        own = device(asked)
        if own.type == "cuda":
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=timedelta(seconds=SILENCE))


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Compute with this number of CPU threads within the block, None: with as many as before.

    The last bits of sums depend on it, so what comes after the block must not.
    """
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_processes() -> int:
    """Processes in the group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 without a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_writer() -> bool:
    """True if this process (rank 0) writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def device(asked: str) -> torch.device:
    """The device of this process for a recipe's `device` (auto, cpu, cuda, mps): of several CUDA GPUs its own.

    ValueError for a device that is not there.
    """
    kind = choose_device(asked).value
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)


def wrap(model: nn.Module, own: torch.device) -> nn.Module:
    """The model, on this process's `own` device, under DistributedDataParallel when there are several processes.

    Statistics of `batch` norms are this process's own within a step; rank 0's are taken from then on, and are saved.
    """
    if num_processes() > 1:
        # A 1x1 convolution in channels-last memory has two equal layouts; DDP warns of the one that it did not expect.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return nn.parallel.DistributedDataParallel(model, device_ids=[own.index] if own.type == "cuda" else None)
    return model


def share_buffers(model: nn.Module) -> None:
    """Broadcast rank 0's buffers, as DDP does before the next step: statistics of `batch` norms differ."""
    if num_processes() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def is_shared(tensor: Tensor) -> bool:
    """True if a reduction of a tensor spans processes: there are several, and the tensor is not on the meta device."""
    return num_processes() > 1 and not tensor.is_meta


def mean_over_processes(values: Tensor) -> Tensor:
    """A tensor averaged over processes, without gradient; the tensor itself for a single process.

    Local losses divided by a mean count average, as DDP averages their gradients, to the loss of the whole batch.
    """
    if not is_shared(values):
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / num_processes()


def gather(value: Any) -> list[Any]:
    """The objects of all processes, in order of rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def stop_processes() -> None:
    """Leave the process group."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
