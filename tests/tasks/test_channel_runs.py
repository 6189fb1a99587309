"""Runs on images that are not RGB, for each task: trained, resumed, predicted from, exported, checked, drawn."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cli_call import call
from headstart.data.images import load_image
from headstart.data.shapes.write import generate
from headstart.model.flops import predict_macs
from headstart.recipe.recipe import ADDED, digest, to_dict
from headstart.report.pictures import _panel
from headstart.tasks.export import _facts
from headstart.tasks.footprint import costs
from headstart.tasks.predict import draw_prediction, load_trained, predict
from headstart.tasks.segmentation import draw_labels, predict_labels
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.weights import checkpoint
from tiny import SIDE, class_paths, tiny_classifier, tiny_recipe, tiny_segmenter, without_clock

FOUR = {"input__channels": 4, "input__mean": [100.0, 110.0, 120.0, 130.0], "input__std": [50.0, 60.0, 70.0, 80.0]}
GREY = {"input__channels": 1, "input__mean": [110.0], "input__std": [60.0]}


def to_arrays(root, *, document=True):
    """Every picture below a folder as .npy of four channels, 16 bits; annotations name them."""
    for path in [path for path in root.rglob("*") if path.suffix == ".jpg"]:
        pixels = load_image(path).astype(np.uint16)
        np.save(path.with_suffix(".npy"), np.concatenate([pixels, pixels[..., :1] // 2], 2) * 257)
        path.unlink()
    for path in root.glob("*.json") if document else ():
        path.write_text(path.read_text().replace(".jpg", ".npy"))
    return root


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Scenes of four channels with label maps."""
    root = tmp_path_factory.mktemp("arrays")
    generate(root / "scenes", 4, 2, 0, SIDE, semantic=True, processes=1)
    to_arrays(root / "scenes")
    return root


@pytest.fixture(scope="module")
def finished(arrays, tmp_path_factory):
    return train(tiny_recipe(arrays, **FOUR, train__schedule="1x"), tmp_path_factory.mktemp("runs"))


def stop_at(fatal):
    def progress(step, values):
        if step == fatal:
            raise KeyboardInterrupt

    return progress


def assert_resumes(recipe, straight, out):
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out, progress=stop_at(4))
    again = train(recipe, out)
    rows = [without_clock(read_rows(run.directory / "rows.jsonl")) for run in (straight, again)]
    assert [row for row in rows[0] if row["kind"] != "start"] == [row for row in rows[1] if row["kind"] != "start"]
    states = [checkpoint.load(run.checkpoint)["model"] for run in (straight, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_detector_of_four_channels_resumes_to_the_same_weights(arrays, finished, tmp_path):
    assert checkpoint.load(finished.checkpoint)["model"]["backbone.conv1.weight"].shape[1] == 4
    assert_resumes(tiny_recipe(arrays, **FOUR, train__schedule="1x"), finished, tmp_path)


def test_a_detector_of_four_channels_predicts_draws_and_is_evaluated(monkeypatch, capsys, arrays, finished, tmp_path):
    folder = arrays / "scenes/val"
    said = call(monkeypatch, capsys, "predict", finished.checkpoint, folder, "--out", tmp_path / "out", "--score", "0")
    assert said.code == 0, said.err
    names = sorted(path.stem for path in folder.iterdir())
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == names
    assert json.loads((tmp_path / "out/predictions.json").read_text())
    said = call(monkeypatch, capsys, "eval", finished.checkpoint)
    assert said.code == 0, said.err
    trained = load_trained(finished.checkpoint)
    path = next(folder.iterdir())
    pixels = load_image(path)
    found = predict(trained, path)
    np.testing.assert_array_equal(found.boxes, predict(trained, pixels).boxes)
    view = pixels[:, ::-1, ::-1]  # of an image of OpenCV, mirrored; read-only, as Pillow's arrays are
    view.flags.writeable = False
    np.testing.assert_array_equal(predict(trained, view).boxes, predict(trained, view.copy()).boxes)
    assert draw_prediction(path, found).tobytes() == draw_prediction(pixels[..., :3], found).tobytes()
    assert _panel("title", pixels, []).picture == _panel("title", pixels[..., :3], []).picture
    assert _facts(trained, (SIDE, SIDE))["images"] == [1, 4, SIDE, SIDE]
    assert predict_macs(trained.model, SIDE, SIDE, num_channels=4) > 0


@pytest.mark.parametrize(
    "pixels", [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 4), np.uint16), np.zeros((0, 9, 4), np.uint8)]
)
def test_an_array_that_is_not_the_models_is_refused(finished, pixels):
    with pytest.raises(ValueError, match=r"image: an array uint\d+ \[\d, 9, \d\], expected uint8, .* \[H,W,4\]"):
        predict(load_trained(finished.checkpoint), pixels)


def test_a_program_takes_four_channels(finished, tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.safetensors"
    said = call(monkeypatch, capsys, "export", finished.checkpoint, path)
    assert said.code == 0, said.err
    assert load_trained(path).recipe.input.channels == 4


def test_the_data_check_reads_arrays(monkeypatch, capsys, arrays, tmp_path):
    said = call(monkeypatch, capsys, "data", "check", arrays / "scenes/train.json", arrays / "scenes/val.json")
    assert said.code == 0, said.out
    broken = tmp_path / "train"
    broken.mkdir()
    for path in (arrays / "scenes/train").iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[:-1])
    said = call(monkeypatch, capsys, "data", "check", arrays / "scenes/train.json", "--images", broken)
    assert said.code == 1 and "bytes of values: expected" in said.out


def test_data_with_other_channels_end_a_run_in_one_line(arrays, data_root, tmp_path):
    with pytest.raises(ValueError, match=r"^\S+\.npy: 4 channels: expected 3 \(input\.channels\)$"):
        train(tiny_recipe(arrays), tmp_path)
    with pytest.raises(ValueError, match=r"^\S+\.jpg: 3 channels: expected 4 \(input\.channels\)$"):
        train(tiny_recipe(data_root, **FOUR), tmp_path)


def test_a_classifier_of_16_bit_grey(data_root, tmp_path):
    for path in (data_root / "classes").rglob("*.jpg"):
        grey = load_image(path)[..., 1].astype(np.uint16) * 257
        out = tmp_path / "classes" / path.relative_to(data_root / "classes").with_suffix(".png")
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(out)
    recipe = tiny_classifier(tmp_path, **GREY, train__schedule="2x", **{
        name.replace(".", "__"): value for name, value in class_paths(tmp_path).items()
    })  # fmt: skip
    straight = train(recipe, tmp_path / "runs")
    assert checkpoint.load(straight.checkpoint)["model"]["backbone.conv1.weight"].shape[1] == 1
    assert_resumes(recipe, straight, tmp_path / "again")


def test_a_segmentation_model_of_four_channels(arrays, tmp_path):
    result = train(tiny_segmenter(arrays / "scenes", **FOUR, train__schedule="1x"), tmp_path)
    trained = load_trained(result.checkpoint)
    path = next((arrays / "scenes/val").iterdir())
    labels, pixels = predict_labels(trained, path), load_image(path)
    np.testing.assert_array_equal(labels, predict_labels(trained, pixels))
    assert draw_labels(pixels, labels).tobytes() == draw_labels(pixels[..., :3], labels).tobytes()


def test_weights_of_rgb_start_a_run_of_four_channels(arrays, data_root, tmp_path):
    source = train(tiny_classifier(data_root), tmp_path / "source").checkpoint
    start = {"start__kind": "backbone", "start__weights": str(source)}
    with pytest.raises(ValueError, match=r"takes 3 channels, the model's 4; set start\.stem to mean or random"):
        train(tiny_recipe(arrays, **FOUR, **start), tmp_path)
    run = train(tiny_recipe(arrays, **FOUR, **start, start__stem="mean", train__schedule="1x"), tmp_path)
    stem = json.loads((run.directory / "audit.json").read_text())["rows"][0]
    assert "mean of the RGB weights times 3 / 4" in stem["source"]


def test_three_channels_keep_their_digest_and_others_have_their_own(data_root):
    recipe = tiny_recipe(data_root, train__precision="fp32")
    assert {name: ADDED[name] for name in ("input.channels", "start.stem")} == {"input.channels": 3, "start.stem": None}
    assert to_dict(recipe)["input"]["channels"] == 3
    other = tiny_recipe(data_root, train__precision="fp32", **FOUR)
    again = other.model_copy(update={"input": other.input.model_copy(update={"channels": 5})})
    assert len({digest(recipe), digest(other), digest(again)}) == 3


def test_the_memory_of_images_counts_their_channels(data_root):
    kept = [
        next(cost.kept for cost in costs(recipe) if cost.weights == 0)
        for recipe in (tiny_recipe(data_root), tiny_recipe(data_root, **FOUR))
    ]
    assert kept == [3 * SIDE**2, 4 * SIDE**2]
