"""What leaves headstart comes back the same, or finds the same; what does not is not written."""

import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cli_call import call
from headstart.ops import nms
from headstart.recipe.load import load_recipe
from headstart.tasks.export import difference, export_program, export_weights, tensors_of
from headstart.tasks.predict import load_trained, predict
from headstart.training.run import train
from headstart.weights import checkpoint
from headstart.weights.files import read_weights
from headstart.weights.load import load_weights
from tiny import DETECTOR, scene_paths

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A run of the tiny detector, BatchNorm included, that reports everything however unsure."""
    patch = {
        "name": "tiny",
        **DETECTOR,
        **scene_paths(data_root),
        "train.base": "2 steps",
        "evaluate.score_threshold": 0.0,
    }
    return train(load_recipe("base", patch | {"model.norm": "batch"}), tmp_path_factory.mktemp("run")).directory


def test_exported_weights_are_the_model(run, data_root, tmp_path):
    out = tmp_path / "tiny.safetensors"
    export_weights(run, out)
    first, again = load_trained(run), load_trained(out)
    assert os.listdir(tmp_path) == ["tiny.safetensors"] and again.recipe == first.recipe
    assert (again.class_names, again.category_ids, again.step) == (first.class_names, first.category_ids, first.step)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    image = data_root / "scenes/val/000000.jpg"
    a, b = (predict(trained, image) for trained in (first, again))
    assert len(a.scores) > 0 and np.array_equal(a.boxes, b.boxes) and a.masks == b.masks
    export_weights(out, tmp_path / "copy.safetensors")
    assert checkpoint.load(tmp_path / "copy.safetensors").keys() == checkpoint.load(out).keys()
    assert read_weights(tmp_path / "copy.safetensors").input == read_weights(out).input


def test_exported_weights_are_a_start_with_their_own_input(run, tmp_path):
    export_weights(run, tmp_path / "tiny.safetensors")
    file, trained = read_weights(tmp_path / "tiny.safetensors"), load_trained(run)
    assert file.input.mean == trained.recipe.input.mean and file.author == "headstart"
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    for value in trained.model.state_dict().values():
        value.zero_()
    report = load_weights(trained.model, file, scope="detector", input=file.input)
    assert report.missing == report.unexpected == report.left_out == report.notes == ()
    for name, value in trained.model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, before[name]), name


@pytest.fixture
def few_rounds(monkeypatch):
    """A graph of a tiny net needs few rounds of suppression; each is written out, and takes time to export."""
    monkeypatch.setattr(nms, "MAX_ROUNDS", 3)


@pytest.mark.slow
def test_torch_program_finds_the_same(run, tmp_path, few_rounds):
    out = tmp_path / "tiny.pt2"
    assert export_program(run, out) > 10
    facts = {"headstart.json": ""}
    program = torch.export.load(out, extra_files=facts).module()
    trained = load_trained(run)
    assert json.loads(facts["headstart.json"])["classes"]["names"] == list(trained.class_names)
    images, sizes = torch.randn(1, 3, 64, 64), torch.tensor([[64, 50]])
    expected = tensors_of(trained.model.predict(images, sizes))
    assert expected["valid"].sum() > 3 and set(expected) == {"boxes", "scores", "labels", "valid", "masks"}
    assert difference(expected, program(images, sizes)) == ""
    assert os.listdir(tmp_path) == ["tiny.pt2"]


@pytest.mark.slow
@pytest.mark.skipif(not ONNX, reason="needs ONNX: make test extras=export")
def test_onnx_program_finds_the_same(run, data_root, tmp_path, few_rounds):
    import onnxruntime

    out = tmp_path / "tiny.onnx"
    assert export_program(run, out, size=(64, 96), images=[data_root / "scenes/val"]) > 10
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["headstart"])
    assert facts["images"] == [1, 3, 64, 96]
    images, sizes = torch.randn(1, 3, 64, 96), torch.tensor([[60, 96]])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {"images": images.numpy(), "sizes": sizes.numpy()})
    expected = tensors_of(load_trained(run).model.predict(images, sizes))
    assert expected["valid"].sum() > 3
    assert difference(expected, {name: torch.from_numpy(value) for name, value in zip(names, found)}) == ""


def found_of(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "boxes": torch.rand(1, num, 4, generator=generator) * 50,
        "scores": torch.rand(1, num, generator=generator),
        "labels": torch.randint(0, 3, (1, num), generator=generator),
        "valid": torch.ones(1, num, dtype=torch.bool),
        "masks": torch.rand(1, num, 4, 4, generator=generator),
    }


def test_a_difference_is_found_in_every_field_and_order_is_none():
    found = found_of(5)
    assert difference(found, {name: value.flip(1) for name, value in found.items()}) == ""
    for name, change in (("boxes", 0.5), ("scores", 0.01), ("labels", 1), ("masks", 0.1)):
        other = {key: value.clone() for key, value in found.items()}
        other[name][0, 2] += change
        assert "is not the same" in difference(found, other), name
    fewer = found | {"valid": found["valid"].clone()}
    fewer["valid"][0, 4] = False
    assert difference(found, fewer) == "4 detections, expected 5"
    twice = {name: torch.cat([value[:, :4], value[:, :1]], dim=1) for name, value in found.items()}
    assert "is not the same" in difference(found, twice)


def test_a_program_that_is_not_the_model_is_not_written(run, tmp_path, monkeypatch):
    from headstart.tasks import export

    def other(module, example, path, facts):
        path.write_text("a program")
        return lambda images, sizes: {**module(images, sizes), "boxes": module(images, sizes)["boxes"] + 1}

    monkeypatch.setattr(export, "_write_torch", other)
    with pytest.raises(
        ValueError, match=r"tiny\.pt2: not written, because the program is not the model: image 0: the "
    ):
        export_program(run, tmp_path / "tiny.pt2")
    assert os.listdir(tmp_path) == []


def test_bad_exports_are_one_line(monkeypatch, capsys, run, data_root, tmp_path):
    def refused(*arguments, expected):
        answer = call(monkeypatch, capsys, "export", *arguments)
        assert answer.code == 2 and len(answer.err.splitlines()) == 1 and expected in answer.err, answer
        assert not list(tmp_path.glob("x.*"))

    out = tmp_path / "x.safetensors"
    refused(tmp_path / "nowhere.pt", out, expected="nowhere.pt: no such checkpoint")
    refused(run, tmp_path / "x.h5", expected="x.h5: unknown suffix '.h5' of an export, expected .safetensors, .pt2")
    refused(run, tmp_path / "nowhere/x.pt2", expected="x.pt2: the folder does not exist")
    refused(run, out, "--size", "64x64", expected="--size and --check are for programs")
    refused(run, tmp_path / "x.pt2", "--size", "65x64", expected="size: '65x64', expected HEIGHTxWIDTH in multiples")
    refused(run, tmp_path / "x.pt2", "--check", tmp_path / "no.png", expected="no.png: no such image or folder")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00")
    refused(tmp_path / "torn.safetensors", out, expected="torn.safetensors: is not a whole checkpoint")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(
        run, tmp_path / "x.onnx", expected="ONNX needs onnx, onnxscript, onnxruntime, which pip install 'headstart[ex"
    )


def test_nothing_found_is_nothing_compared(run, tmp_path):
    state = checkpoint.load(checkpoint.newest(run))
    state["recipe"]["evaluate"]["score_threshold"] = 0.99
    checkpoint.save(tmp_path / "sure.pt", state)
    with pytest.raises(ValueError, match=r"sure\.pt: finds nothing on 3 images.*--check"):
        export_program(tmp_path / "sure.pt", tmp_path / "x.pt2")
    with safe_open_error(tmp_path):
        checkpoint.load(tmp_path / "bare.safetensors")


def safe_open_error(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with safe_open(tmp_path / "bare.safetensors", framework="pt") as file:
        assert file.metadata() is None
    return pytest.raises(ValueError, match=r"bare\.safetensors: is not a headstart checkpoint")
