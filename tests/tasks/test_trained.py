"""Classes, weights and statistics of a checkpoint against its recipe: what does not fit is one line."""

import json

import pytest
import torch

from cli_call import call
from headstart.recipe.load import load_recipe
from headstart.tasks.export import export_weights
from headstart.tasks.predict import load_trained
from headstart.tasks.trained import trained_model
from headstart.training.run import train
from headstart.weights import checkpoint
from headstart.weights.files import write_safetensors
from tiny import DETECTOR, scene_paths


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A run of the tiny detector with BatchNorm, and precise statistics in its checkpoint."""
    patch = {"name": "tiny", **DETECTOR, **scene_paths(data_root), "train.base": "2 steps", "evaluate.precise_bn": 2}
    return train(load_recipe("base", patch | {"model.norm": "batch"}), tmp_path_factory.mktemp("run"))


@pytest.fixture
def state(run):
    return checkpoint.load(run.checkpoint)


def refused(state, path, message):
    with pytest.raises(ValueError, match=message) as error:
        trained_model(state, path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_statistics_change_running_averages_only(run, state):
    path, name = run.checkpoint, next(iter(state["statistics"]))
    assert name.endswith(".running_mean")
    model, *_ = trained_model(state, path)
    assert torch.equal(model.state_dict()[name], state["statistics"][name])
    weight = next(name for name in state["model"] if name.endswith(".weight"))
    refused({**state, "statistics": {weight: state["model"][weight] * 2}}, path, rf"statistics: '{weight}': expected")
    refused({**state, "statistics": {"nothing": torch.zeros(1)}}, path, "statistics: 'nothing': expected only running")
    refused({**state, "statistics": {name: torch.zeros(1)}}, path, rf"statistics: {name} is float32 \[1\], expected")
    bad = torch.full_like(state["statistics"][name], torch.nan)
    refused({**state, "statistics": {name: bad}}, path, f"statistics: {name} holds values that are not finite")
    refused({**state, "statistics": [1]}, path, "statistics: expected tensors by name")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"names": ["one"]}, r"classes: \d+ different ids, expected 1, one for each name"),
        ({"ids": [1, 1, 2]}, r"classes: 2 different ids, expected \d+"),
        ({"ids": []}, r"classes: ids = \[\]: expected array of length >= 1"),
        ({"ids": [1], "names": ["one"]}, r"model: box_head\S+ is float32 .*, expected .* for its 1 classes"),
        ({"names": "text"}, "classes: names = 'text': expected array"),
        ({"colours": []}, "classes: 'colours': unknown field"),
        ({"skeleton": [[0, 1]]}, r"classes: skeleton = .* expected pairs below 0"),
    ],
)
def test_class_lists_fit_the_weights(run, state, classes, message):
    refused({**state, "classes": {**state["classes"], **classes}}, run.checkpoint, message)


def test_weights_are_those_of_the_recipe(run, state):
    path, weights = run.checkpoint, state["model"]
    name = next(iter(weights))
    fewer = {key: value for key, value in weights.items() if key != name}
    refused({**state, "model": fewer}, path, f"model: '{name}': missing")
    refused({**state, "model": weights | {"more": torch.zeros(1)}}, path, "model: 'more': unknown")
    refused({**state, "model": weights | {name: weights[name][:1]}}, path, rf"model: {name} is float32 \[1, .*expected")
    refused({**state, "model": weights | {name: weights[name].double()}}, path, f"model: {name} is float64")
    refused({**state, "model": None}, path, "model: expected tensors by name")
    refused({**state, "recipe": []}, path, "recipe: the content: expected object, got array")
    refused({**state, "recipe": {**state["recipe"], "task": ["x"]}}, path, r"recipe: task = \['x'\]: expected one of")
    refused({key: value for key, value in state.items() if key != "classes"}, path, "classes: ")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_neither_predict_nor_export(
    run, state, data_root, tmp_path, monkeypatch, capsys, value
):
    name = next(name for name in state["model"] if name.endswith(".weight"))
    state["model"][name][0, 0, 0, 0] = value
    checkpoint.save(tmp_path / "bad.pt", state)
    for words in (
        ["predict", tmp_path / "bad.pt", data_root / "scenes/val", "--out", tmp_path / "out"],
        ["eval", tmp_path / "bad.pt"],
        ["export", tmp_path / "bad.pt", tmp_path / "bad.safetensors"],
        ["export", tmp_path / "bad.pt", tmp_path / "bad.pt2"],
    ):
        answer = call(monkeypatch, capsys, *words)
        assert answer.code == 2 and len(answer.err.splitlines()) == 1
        assert f"bad.pt: model: {name} holds values that are not finite" in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pt"]


def test_an_export_is_the_model_that_was_evaluated(run, state, tmp_path):
    """Its running averages are the precise statistics, which an export has no other place for."""
    export_weights(run.directory, tmp_path / "tiny.safetensors")
    ours, theirs = (load_trained(path).model.state_dict() for path in (run.directory, tmp_path / "tiny.safetensors"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items()) and ours.keys() == theirs.keys()


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("recipe", "{", r"recipe = '\{': expected JSON"),
        ("classes", '{"ids": [1], "names": []}', "classes: 1 different ids, expected 0"),
        ("classes", "[]", "classes: the content: expected object, got array"),
        ("step", '"x"', "step: the content: expected int, got str"),
    ],
)
def test_metadata_of_an_export_is_read_as_strictly(run, tmp_path, field, text, message):
    path = tmp_path / "tiny.safetensors"
    export_weights(run.directory, path)
    state = checkpoint.load(path)
    facts = {name: json.dumps(state[name]) for name in checkpoint.EXPORTED} | {field: text}
    write_safetensors(path, state["model"], facts)
    with pytest.raises(ValueError, match=message) as error:
        load_trained(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
