"""The memory estimate: close to the weights of a model, never above what a step keeps, one line where it cannot fit."""

import time

import pytest
import torch
from torch import nn

from headstart import hardware
from headstart.model.build import build
from headstart.recipe.load import load_recipe, shipped
from headstart.tasks import make_task
from headstart.tasks.footprint import GIB, check_memory, costs
from tiny import tiny_classifier, tiny_recipe


@pytest.mark.parametrize("name", sorted(shipped()))
def test_weights_are_those_of_the_model(name):
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = build(recipe, 1, num_keypoints=1)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    actual = sum(layer.weight.numel() for layer in layers)
    estimate = sum(cost.weights for cost in costs(recipe))
    assert 0.99 * actual < estimate <= actual, (estimate, actual)


DETECTORS = [
    {},
    {"model__cascade__enabled": True, "model__box__class_agnostic": True},
    {"model__mask__enabled": False, "model__box__convs": 2, "model__box__conv_channels": 8},
    {"start__freeze": "stage2"},
    {"model__norm": "none"},
    {
        "model__backbone": {"kind": "vgg", "depth": [1, 1, 1, 1, 1], "width": 8},
        "model__norm": "none",
        "model__pyramid": False,
    },
    {"model__backbone": {"kind": "detnet", "depth": [1, 1, 1, 1, 1], "width": 8}},
]


@pytest.mark.parametrize("changes", [*DETECTORS, "classifier"], ids=str)
def test_a_step_keeps_at_least_what_is_estimated(data_root, changes):
    recipe = tiny_classifier(data_root) if changes == "classifier" else tiny_recipe(data_root, **changes)
    task, kept = make_task(recipe), {}
    if recipe.start.freeze != "none":
        from headstart.weights.freeze import freeze

        freeze(task.model, recipe.start.freeze)
    own = {parameter.untyped_storage().data_ptr() for parameter in task.model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = task.losses(task.model, next(iter(task.batches(0, 1, torch.device("cpu")))))
    assert losses
    estimate = sum(cost.kept for cost in costs(recipe)) * 4 * recipe.train.batch
    assert 0 < estimate <= sum(size for _, size in kept.values())


CASES = [
    (
        {"model.box.pool": 128, "model.box.num_regions": 10**6, "model.rpn.train_after_nms": 10**6},
        "model.box.num_regions",
    ),
    ({"model.box.fc_width": 16_384, "model.box.fcs": 16}, "model.box.fc_width 16384"),
    ({"model.backbone.width": 16_384}, "model.backbone.width 16384"),
    ({"model.mask.pool": 128, "model.mask.conv_channels": 8192}, "model.mask.pool 128"),
    ({"train.batch": 65_536}, "train.batch 65536"),
    ({"input.short": [16_384], "input.long": 16_384}, "input.short [16384]"),
    ({"data.max_objects": 10**6, "data.mask_frame": 512}, "data.max_objects 1000000, data.mask_frame 512"),
]


@pytest.mark.parametrize(("patch", "field"), CASES, ids=[field for _, field in CASES])
def test_what_cannot_fit_is_refused_before_data_are_read(monkeypatch, patch, field):
    monkeypatch.setattr(hardware, "memory", lambda: 64 * GIB)
    recipe, since = load_recipe("base", {"device": "cpu", **patch}), time.process_time()
    with pytest.raises(ValueError, match=r"GiB for a training step, but this machine has 64\.0 GiB") as caught:
        make_task(recipe)  # no such data
    assert field in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert time.process_time() - since < 0.1


def test_recipes_of_a_usual_size_fit(monkeypatch):
    monkeypatch.setattr(hardware, "memory", lambda: GIB)
    for name in ("demo", "demo_pretrain", "small", "small_pretrain"):
        check_memory(load_recipe(name))
    monkeypatch.setattr(hardware, "memory", lambda: None)  # where nothing tells
    check_memory(load_recipe("paper/x152", {"train.batch": 65_536}))


def test_a_gpu_has_its_own_memory_and_its_part_of_the_batch(monkeypatch):
    monkeypatch.setattr(hardware, "choose_device", lambda asked: hardware.Choice("cuda", ""))
    monkeypatch.setattr(hardware, "gpus", lambda: [{"memory": 8 * GIB}])
    with pytest.raises(ValueError, match=r"but the GPU has 8\.0 GiB"):
        check_memory(load_recipe("paper/r50"))
    check_memory(load_recipe("paper/r50", {"processes": 8}))
