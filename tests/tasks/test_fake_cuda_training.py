"""Training on a CUDA device without values: streams, the loop between two rows, and PreciseBN do not wait for it."""

from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from devices import CUDA, Watch, fake_cuda
from headstart.ops import nms
from headstart.recipe.schedule import Schedule
from headstart.tasks import make_task
from headstart.training import loop
from headstart.training.averages import holding, live_norms
from headstart.training.lineage import Span
from headstart.weights import checkpoint
from small_detector import HOURGLASS
from tiny import tiny_classifier, tiny_recipe, tiny_segmenter

STEPS = 3
RECIPES = {
    "detection": tiny_recipe,
    "classification": tiny_classifier,
    "kept features": partial(
        tiny_classifier, data__cache_features=True, start__freeze="backbone", start__kind="backbone",
        start__weights="none.pth", input__min_area=1.0, input__flip=0.0, model__dropout=0.5,
    ),
    "corners": partial(
        tiny_recipe, **HOURGLASS, input__crop__enabled=True, input__crop__size=64, input__crop__border=16,
        input__colour={"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "lighting": 0.1},
    ),
    "segmentation": lambda root, **changes: tiny_segmenter(root / "scenes", maps=False, **changes),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECIPES)
def test_batches_are_made_on_the_device(data_root, kind):
    task = make_task(RECIPES[kind](data_root))
    expected = list(task.batches(0, 2, torch.device("cpu")))
    task = make_task(RECIPES[kind](data_root))
    with fake_cuda(), Watch():
        task.model.to(CUDA)
        found = list(task.batches(0, 2, CUDA))
    for fake, real in zip(found, expected, strict=True):
        for field in fields(real):
            here, there = getattr(fake, field.name), getattr(real, field.name)
            if isinstance(there, np.ndarray):
                assert np.array_equal(here, there)
            else:
                assert (here.device, here.shape, here.dtype) == (CUDA, there.shape, there.dtype), field.name


def with_fields(recipe, **sections):
    """The recipe with other fields of its sections, for the loop alone."""
    changed = {name: getattr(recipe, name).model_copy(update=fields) for name, fields in sections.items()}
    return recipe.model_copy(update=changed)


def run_loop(root, kind, directory, monkeypatch):
    """The loop on the fake device under watch, its first row at the last step: convolutions, updates and the error.

    Gradients are zeros, because torch's engine has no such device; operations are not counted, because it takes long.
    """
    recipe = RECIPES[kind](root)
    task, updates = replace(make_task(recipe), flops=lambda batch: 0), []
    rows = {"precision": "bf16", "clip_norm": 1.0, "log_every": STEPS}
    recipe = with_fields(recipe, train=rows, evaluate={"every": 0}, checkpoint={"every": 0})

    def backward(loss):
        assert loss.device == CUDA and loss.requires_grad
        updates.append(loss)
        for parameter in task.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    monkeypatch.setattr(nms, "MAX_ROUNDS", 2)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(loop.distributed, "device", lambda *args: CUDA)
    monkeypatch.setattr(loop.memory, "reset_peak", lambda device: None)
    schedule = Schedule(total=STEPS, warmup=1, warmup_from=0.1, base_rate=0.01)
    start = checkpoint.StartPoint("random", None, 0, None)
    with fake_cuda(), Watch() as watch, pytest.raises(RuntimeError) as raised:
        loop.run(task, recipe, Span(schedule, STEPS), directory, start, device=CUDA, keep={})
    return watch.convolved, len(updates), raised


@pytest.mark.parametrize("kind", [kind for kind in RECIPES if kind != "kept features"])
def test_the_loop_reads_nothing_before_its_row(data_root, tmp_path, kind, monkeypatch):
    convolved, updates, raised = run_loop(data_root, kind, tmp_path, monkeypatch)
    assert raised.type is DataDependentOutputException and "_finite" in [entry.name for entry in raised.traceback]
    assert convolved == {torch.bfloat16} and updates == STEPS - 1


def test_a_loop_that_reads_its_losses_at_every_step_is_found(data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_read_at_once", lambda device: True)
    _, updates, raised = run_loop(data_root, "classification", tmp_path, monkeypatch)
    assert raised.type is DataDependentOutputException and updates == 0


@pytest.mark.parametrize("norm", ["batch", "sync_batch"])
def test_precise_statistics_are_made_and_held_on_the_device(data_root, norm):
    recipe = tiny_classifier(data_root, model__norm=norm, evaluate__precise_bn=2)
    task = make_task(recipe)
    recipe = with_fields(recipe, train={"precision": "bf16"})
    with fake_cuda(), Watch():
        task.model.to(CUDA)
        statistics = loop._precise(task, recipe, 0, CUDA)
        with holding(task.model, statistics):
            buffers = dict(task.model.named_buffers())
    kinds = ("running_mean", "running_var")
    assert set(statistics) == {f"{name}.{kind}" for name in live_norms(task.model, "none") for kind in kinds}
    for name, value in statistics.items():
        assert value.device == buffers[name].device == CUDA and value.shape == buffers[name].shape
