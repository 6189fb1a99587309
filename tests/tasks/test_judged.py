"""What judging a run leaves beside validation rows: training images judged too, error types, and the memory it took."""

import json

import numpy as np
import pytest

from headstart.data.dataset import nested_fraction
from headstart.metrics.coco import evaluate
from headstart.metrics.errors import TYPES, error_types
from headstart.metrics.predictions import Predictions
from headstart.metrics.records import Records
from headstart.ops.processes import device
from headstart.tasks import make_task
from headstart.tasks.detection import training_data, validation_data
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.weights.checkpoint import load
from tiny import tiny_recipe, without_clock

NUM = 4


@pytest.fixture(scope="module")
def watched(data_root, tmp_path_factory):
    recipe = tiny_recipe(data_root, evaluate__train_images=NUM)
    return recipe, train(recipe, tmp_path_factory.mktemp("watched"))


def evaluations(rows, split):
    return [row for row in rows if row["kind"] == "eval" and row["split"] == split]


def test_training_images_are_judged_beside_the_validation_images(watched, tmp_path):
    recipe, result = watched
    rows = read_rows(result.directory / "rows.jsonl")
    assert [row["step"] for row in evaluations(rows, "val")] == [4, 8]
    assert [row["step"] for row in evaluations(rows, "train")] == [4, 8]
    task = make_task(recipe)
    task.model.load_state_dict(load(result.checkpoint)["model"])
    task.evaluate_train(device("cpu")).save(tmp_path, 8)
    data = training_data(recipe)
    judged = Records.load(tmp_path / "records-box-8.npz").image_ids
    assert sorted(judged) == sorted(data.image_ids[nested_fraction(6, 1.0, 0)[:NUM]])
    found = Predictions.from_json(tmp_path / "predictions-8.json")
    again = evaluate(data.take(np.flatnonzero(np.isin(data.image_ids, judged))), found, max_detections=10)
    told = evaluations(rows, "train")[-1]["metrics"]
    known = {kind: {k: v if v == v else None for k, v in values.items()} for kind, values in again.metrics.items()}
    assert told == known and set(found.image_ids) <= set(judged)


def test_judging_training_images_changes_nothing_else(watched, data_root, tmp_path):
    plain = train(tiny_recipe(data_root), tmp_path)
    assert plain.directory.name == watched[1].directory.name  # not in the digest
    rows = [without_clock(read_rows(r.directory / "rows.jsonl")) for r in (plain, watched[1])]
    assert rows[0][1:] == [row for row in rows[1] if row.get("split") != "train"][1:]


@pytest.mark.parametrize(("fraction", "num", "expected"), [(1.0, NUM, 4), (0.5, NUM, 3), (0.5, 2, 2), (1.0, 99, 6)])
def test_the_judged_images_are_the_same_for_all_fractions(data_root, fraction, num, expected):
    recipe = tiny_recipe(data_root, evaluate__train_images=num, data__fraction=fraction)
    task, order = make_task(recipe), nested_fraction(6, 1.0, 0)
    assert task.num_eval_train_images == expected
    ids = training_data(tiny_recipe(data_root)).image_ids[np.sort(order[:expected])]
    assert set(ids) <= set(task.image_ids)
    assert any(f"evaluate.train_images: {num} asked for" in note for note in task.notes) == (num > expected)


def test_error_types_are_those_of_the_predictions(watched):
    recipe, result = watched
    told = json.loads((result.directory / "errors-8.json").read_text())
    predictions = Predictions.from_json(result.directory / "predictions-8.json")
    for kind in ("box", "mask"):
        found = error_types(validation_data(recipe), predictions, kind, max_detections=10)
        assert told[kind] == found.to_json() and set(told[kind]["counts"]) == set(TYPES)


def test_the_end_row_tells_the_memory(watched):
    end = read_rows(watched[1].directory / "rows.jsonl")[-1]
    assert end["kind"] == "end" and 50e6 < end["memory"] < 20e9  # a process with torch, on any machine
