"""Everything about data and evaluation switched on at once: a run trains, counts what it showed, and is judged."""

import json

import numpy as np
import pytest
import torch

from cli_call import call
from headstart.metrics.predictions import Predictions
from headstart.tasks.detection import make_task, validation_data
from headstart.tasks.detection_images import augmentation_of
from headstart.tasks.predict import evaluate, load_trained, predict
from headstart.training.rows import read_rows
from headstart.training.run import train
from tiny import tiny_recipe

REGIME = {
    "input__jitter": {"enabled": True, "low": 0.5, "high": 1.5, "crop": 64},
    "input__copy_paste": True,
    "input__mosaic": 0.5,
    "input__quarter_turns": True,
    "input__flip_vertical": 0.5,
    "input__colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "lighting": 0.1, "hue": 0.1},
    "data__repeat_threshold": 0.9,
    "evaluate__voc": True,
    "evaluate__tta": {"enabled": True, "shorts": [64, 48], "long": 64},
    "evaluate__score_threshold": 0.0,
    "train__base": "2 steps",
    "train__warmup": "1 steps",
}


@pytest.fixture(scope="module")
def result(data_root, tmp_path_factory):
    return train(tiny_recipe(data_root, **REGIME), tmp_path_factory.mktemp("runs"))


def test_a_run_counts_what_its_batches_show(data_root, result):
    """Pixels exactly; of the objects those whose box is in the window, so never fewer than the batch holds."""
    recipe = tiny_recipe(data_root, **REGIME)
    task = make_task(recipe)
    shown, objects = 0, 0
    for batch in task.batches(0, 4, torch.device("cpu")):
        shown += int(batch.sizes.prod(dim=1).sum())
        objects += int(batch.gt_valid.sum())
    row = read_rows(result.directory / "rows.jsonl")[-1]
    last = next(r for r in reversed(read_rows(result.directory / "rows.jsonl")) if r["kind"] == "train")
    assert row["kind"] == "end" and last["step"] == 4
    assert last["pixels"] == shown and 0.5 * last["instances"] < objects <= last["instances"]
    assert augmentation_of(recipe).jitter.crop == 64 and augmentation_of(tiny_recipe(data_root)).jitter is None


def test_a_checkpoint_is_judged_as_its_run_was(result):
    trained = load_trained(result.directory)
    _, found = evaluate(trained, validation_data(trained.recipe))
    own = Predictions.from_json(result.directory / "predictions-4.json")
    assert len(own) > 5 and set(result.metrics) == {"box", "mask", "voc"}
    np.testing.assert_array_equal(own.scores, found.scores)
    np.testing.assert_allclose(own.boxes, found.boxes, atol=1e-9)
    plain = load_trained(result.directory, {"evaluate.tta.enabled": False})
    _, other = evaluate(plain, validation_data(plain.recipe))
    assert not np.array_equal(other.scores, found.scores)


def test_one_image_is_looked_at_as_often_as_a_data_set(data_root, result):
    trained = load_trained(result.directory)
    data = validation_data(trained.recipe)
    _, all_of_them = evaluate(trained, data)
    for index in range(2):
        one = predict(trained, data.image_path(index))
        mine = all_of_them.image_ids == data.image_ids[index]
        np.testing.assert_allclose(one.scores, all_of_them.scores[mine], atol=1e-5)
        np.testing.assert_allclose(one.boxes, all_of_them.boxes[mine], atol=1e-2)


def test_the_command_line_looks_as_it_is_told(monkeypatch, capsys, tmp_path, result):
    """`eval` and `predict` with an override: the plain look's scores instead of the merged ones."""
    trained = load_trained(result.directory, {"evaluate.tta.enabled": False})
    data = validation_data(trained.recipe)
    _, expected = evaluate(trained, data)
    saved, off = tmp_path / "found.json", "evaluate.tta.enabled=false"
    answer = call(monkeypatch, capsys, "eval", result.directory, off, "--save", saved)
    assert answer.code == 0 and "voc" in answer.out
    np.testing.assert_array_equal(Predictions.from_json(saved).scores, expected.scores)
    path = data.image_path(0)
    answer = call(
        monkeypatch, capsys, "predict", result.directory, path, off, "--score", "0", "--out", tmp_path / "out"
    )
    assert answer.code == 0
    scores = [row["score"] for row in json.loads((tmp_path / "out/predictions.json").read_text())]
    np.testing.assert_allclose(scores, expected.scores[expected.image_ids == data.image_ids[0]], atol=1e-5)
