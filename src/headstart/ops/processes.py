"""Several processes under torchrun: group, rank, wrapping, and who writes."""

import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from headstart.hardware import choose_device


def start_processes(asked: str) -> None:
    """Join the group that torchrun announced in the environment, for work on the device of a recipe.

    Nothing to do for a single process. ValueError for a device that is not there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        own = device(asked)
        if own.type == "cuda":
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")


def rank() -> int:
    """This process's number; 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_writer() -> bool:
    """Whether this process writes files and speaks to people."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def device(asked: str) -> torch.device:
    """The device of this process for a recipe's `device` (auto, cpu, cuda, mps): of several CUDA GPUs its own.

    ValueError for one that is not there.
    """
    kind = choose_device(asked).value
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)


def wrap(model: nn.Module, own: torch.device) -> nn.Module:
    """The model, on this process's `own` device, under DistributedDataParallel when there are several processes.

    Statistics of `batch` norms are this process's own within a step; rank 0's are taken from then on, and are saved.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # A 1x1 convolution in channels-last memory has two equal layouts; DDP warns of the one that it did not expect.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return nn.parallel.DistributedDataParallel(model, device_ids=[own.index] if own.type == "cuda" else None)
    return model


def share_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers, as DDP would before the next step: statistics of `batch` norms differ."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def mean(values: torch.Tensor) -> torch.Tensor:
    """A tensor averaged over processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def gather(value: Any) -> list[Any]:
    """Every process's object, in order of rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def stop_processes() -> None:
    """Leave the group."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
