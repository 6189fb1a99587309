"""Kept maps of a frozen backbone against maps computed at every step: same images, losses, weights and evaluations."""

import hashlib
import json

import numpy as np
import pytest
import torch
from test_transfer import interrupt_at

import headstart.data.stream as stream_file
import headstart.data.train_stream as train_stream_file
import headstart.tasks.detection_images as kept_maps_file
from headstart.hardware import Choice
from headstart.metrics.predictions import Predictions
from headstart.recipe.dotted import flatten
from headstart.recipe.load import stored_recipe
from headstart.recipe.recipe import ADDED, DIGESTED_BY_CONTENT, NOT_IN_DIGEST, digest, to_dict
from headstart.tasks import make_task
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.weights import checkpoint
from headstart.weights.freeze import freeze, set_train_mode
from tiny import tiny_classifier, tiny_recipe

FROZEN = {"start__kind": "backbone", "start__freeze": "backbone"}


@pytest.fixture(scope="module")
def source(data_root, tmp_path_factory):
    """Weights of a tiny detector that was trained with another seed."""
    return train(tiny_recipe(data_root, seed=5), tmp_path_factory.mktemp("source")).checkpoint


def frozen_task(data_root, *, kept, **changes):
    """A task in double precision, its backbone frozen as in a run."""
    recipe = tiny_recipe(data_root, data__cache_features=kept, start__weights="w.pt", **FROZEN, **changes)
    task = make_task(recipe)
    task.model.double()
    freeze(task.model, "backbone")
    set_train_mode(task.model, "backbone")
    return task


@pytest.fixture
def doubles(monkeypatch):
    """Images in double precision, however they reach the backbone."""
    for file in (stream_file, train_stream_file, kept_maps_file):
        whole = file.stack_images
        monkeypatch.setattr(file, "stack_images", lambda *given, whole=whole: whole(*given).double())


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_losses_gradients_and_predictions_are_those_of_computed_maps(data_root, doubles, tmp_path, norm):
    tasks = [frozen_task(data_root, kept=kept, model__norm=norm, train__batch=3) for kept in (False, True)]
    tasks[1].model.load_state_dict(tasks[0].model.state_dict())
    device = torch.device("cpu")
    for plain, kept in zip(*(task.batches(0, 6, device) for task in tasks), strict=True):  # three epochs
        assert isinstance(kept.images, list) and not any(level.requires_grad for level in kept.images)
        assert torch.equal(plain.gt_boxes, kept.gt_boxes) and torch.equal(plain.slots, kept.slots)
        losses = [task.losses(task.model, batch) for task, batch in zip(tasks, (plain, kept))]
        gradients = []
        for task, found in zip(tasks, losses):
            task.model.zero_grad()
            sum(found.values()).backward()
            assert all(p.grad is None for p in task.model.backbone.parameters())
            gradients.append([p.grad for p in task.model.parameters() if p.requires_grad])
        for name in losses[0]:
            assert losses[0][name].item() == pytest.approx(losses[1][name].item(), rel=1e-12, abs=1e-14), name
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    found = []
    for place, task in enumerate(tasks):
        task.evaluate(device).save(tmp_path, place)
        found.append(Predictions.from_json(tmp_path / f"predictions-{place}.json"))
    assert len(found[0].scores) > 5
    assert np.array_equal(found[0].image_ids, found[1].image_ids)
    for name in ("boxes", "scores"):
        np.testing.assert_allclose(*(getattr(each, name) for each in found), rtol=1e-6)


def test_an_image_passes_the_backbone_once_a_view(data_root):
    task, calls = frozen_task(data_root, kept=True), []
    task.model.float()
    task.model.backbone.register_forward_hook(lambda module, given, maps: calls.append(len(given[0])))
    for _ in task.batches(0, 60, torch.device("cpu")):  # 20 epochs of 6 images
        pass
    assert calls == [1] * 12
    task.evaluate(torch.device("cpu"))
    task.evaluate(torch.device("cpu"))
    assert calls == [1] * 15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_kept_maps_resumes_to_the_same_weights_and_counts(data_root, source, tmp_path, precision, monkeypatch):
    """The maps of an image do not depend on those that were computed before it; operations are counted anew."""
    monkeypatch.setattr("headstart.tasks.task._counted", {})
    own = {"start__weights": str(source), "train__precision": precision}
    recipe = tiny_recipe(data_root, data__cache_features=True, **own, **FROZEN)
    straight = train(recipe, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "b", progress=interrupt_at(4))
    again = train(recipe, tmp_path / "b")
    rows = [read_rows(run.directory / "rows.jsonl") for run in (straight, again)]
    assert rows[0][-1]["hash"] == rows[1][-1]["hash"] and rows[0][-1]["flops"] == rows[1][-1]["flops"]
    before, after = (checkpoint.load(path)["model"] for path in (source, straight.checkpoint))
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    assert moved and not any(name.startswith("backbone.") for name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start__freeze": "stage4"}, r"start\.freeze is 'stage4'.*expected start\.freeze 'backbone'"),
        ({"input__short": [48, 64]}, r"input\.short is \[48, 64\].*expected input\.short \[48\]"),
        ({"input__jitter__enabled": True}, r"input\.jitter\.enabled is True.*expected input\.jitter\.enabled False"),
        (
            {"model__corners__enabled": True, "model__mask__enabled": False},
            r"cache_features: true, but model\.corners\.enabled computes from images alone; expected false",
        ),
    ],
)
def test_maps_that_would_change_cannot_be_kept(data_root, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_recipe(data_root, data__cache_features=True, **{**FROZEN, "start__weights": "w.pt", **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "place"), [("cpu", "this machine"), ("cuda", "the GPU")])
def test_more_maps_than_the_device_holds_are_refused(data_root, monkeypatch, kind, place):
    monkeypatch.setattr(kept_maps_file, "choose_device", lambda asked: Choice(kind, "for this test"))
    monkeypatch.setattr(kept_maps_file.memory, "limit", lambda device: 2**20 if device == kind else 2**40)
    with pytest.raises(ValueError, match=rf"the maps of .*train\.json take .* on {place}, or false") as error:
        frozen_task(data_root, kept=True)
    assert "\n" not in str(error.value)


def test_each_of_several_processes_keeps_the_maps_of_all_training_images(data_root, monkeypatch):
    """12 views of 15 KiB are an eighth of 1.4 MiB."""
    monkeypatch.setattr(kept_maps_file.memory, "limit", lambda device: 2**21)
    frozen_task(data_root, kept=True)
    with pytest.raises(ValueError, match=r"the maps of .*train\.json take .* on this machine, or false"):
        frozen_task(data_root, kept=True, processes=2)


def test_recipes_from_before_the_field_keep_their_digests(data_root):
    """Of a classifier it has been a part of the digest from the start, at any value."""
    recipe = tiny_recipe(data_root)
    older = to_dict(recipe)
    del older["data"]["cache_features"]
    assert ADDED["data.cache_features"] is False
    assert digest(stored_recipe(older, "a.pt")) == digest(recipe)
    kept = tiny_recipe(data_root, data__cache_features=True, start__weights="w.pt", **FROZEN)
    assert digest(kept) != digest(tiny_recipe(data_root, start__weights="w.pt", **FROZEN))


def test_the_digest_of_a_classifier_has_the_field(data_root):
    recipe = tiny_classifier(data_root)
    left_out = {*NOT_IN_DIGEST, *DIGESTED_BY_CONTENT, *ADDED} - {"data.cache_features"}
    flat = {key: value for key, value in flatten(to_dict(recipe)).items() if key not in left_out}
    flat["train.precision"] = "bf16" if recipe.train.bf16 else "fp32"
    assert digest(recipe) == hashlib.sha256(json.dumps([flat], sort_keys=True).encode()).hexdigest()[:12]
