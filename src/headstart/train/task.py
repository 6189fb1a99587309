"""What the loop needs to know of a task: a model, its batches by step, and how it is judged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


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
    stop, device) yields the batches of those steps; counts(step) gives the instances and pixels of a whole step.
    evaluate(device) judges the model (all processes call it); evaluate_train does so on some of the training images.
    describe says which images a step held, for messages. classes and num_images describe the training data.
    """

    model: nn.Module
    losses: Callable[[nn.Module, Any], dict[str, Tensor]]
    batches: Callable[[int, int, torch.device], Iterator[Any]]
    counts: Callable[[int], tuple[int, int]]
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
