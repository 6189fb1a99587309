"""What the loop needs to know of a task: a model, its batches by step, and how it is judged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.model.flops import step_flops
from headstart.ops.processes import num_processes


@dataclass(frozen=True)
class Judgement:
    """One evaluation: metrics by kind, per class by kind, and `save(directory, step)` for its evidence."""

    metrics: dict[str, dict[str, float]]
    per_class: dict[str, dict[str, dict[str, float]]]
    save: Callable[[Path, int], None]


@dataclass(frozen=True)
class Task:
    """A model and its data, ready for the loop.

    losses(model, batch) gives a dict of scalar losses (the model may be wrapped for several processes). batches(start,
    stop, device) yields the batches of those steps; counts(step) gives the instances and pixels of a whole step,
    flops(batch) the floating-point operations of the step of a batch, of all processes.
    evaluate(device) judges the model (all processes call it); evaluate_train does so on some of the training images,
    evaluate_first(device, n) on the first n images, for a timing (None: evaluate takes seconds).
    describe says which images a step held, for messages. classes and num_images describe the training data.
    """

    model: nn.Module
    losses: Callable[[nn.Module, Any], dict[str, Tensor]]
    batches: Callable[[int, int, torch.device], Iterator[Any]]
    counts: Callable[[int], tuple[int, int]]
    flops: Callable[[Any], int]
    evaluate: Callable[[torch.device], Judgement]
    describe: Callable[[Any], str]
    classes: dict[str, Any]
    num_images: int
    num_eval_images: int
    fingerprint: str
    image_ids: list[Any]
    notes: list[str] = field(default_factory=list)
    evaluate_train: Callable[[torch.device], Judgement] | None = None
    num_eval_train_images: int = 0
    evaluate_first: Callable[[torch.device, int], Judgement] | None = None


def forward_losses(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The losses of a model that computes them itself, through its forward so that DDP sees it."""
    return model(batch)


_counted: dict[tuple[str, tuple[int, ...]], int] = {}  # tracing a model takes a second


class StepFlops:
    """Floating-point operations of a step by the shape of its images, counted when a shape is first met.

    `losses` as in Task; `key` tells models apart: whatever decides their shapes, and what of them is frozen.
    """

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module, Any], dict[str, Tensor]], key: str):
        self.model, self.losses, self.key = model, losses, key

    def __call__(self, batch: Any) -> int:
        shape = (self.key, tuple(batch.images.shape))
        if shape not in _counted:
            ghost = batch.to("meta")
            _counted[shape] = step_flops(self.model, lambda model: self.losses(model, ghost))
        return _counted[shape] * num_processes()


def parameter_groups(model: nn.Module, *, weight_decay: float, norm_weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: weights; and scales, shifts and biases, with `norm_weight_decay`.

    They are named, so that a checkpoint says whose momentum it holds.
    """
    plain: list[tuple[str, Tensor]] = []
    special: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (special if parameter.dim() <= 1 else plain).append((name, parameter))
    groups = [{"params": plain, "weight_decay": weight_decay}, {"params": special, "weight_decay": norm_weight_decay}]
    return [group for group in groups if group["params"]]
