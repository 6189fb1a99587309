"""A keypoint detector from the data to the metric: trained, judged, evaluated again from its checkpoint, drawn."""

import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cli_call import call
from headstart.data.shapes.write import generate
from headstart.tasks import make_task
from headstart.training.rows import read_rows
from headstart.training.run import train
from tiny import SIDE, tiny_recipe

SIGMAS = [0.5, 0.6, 0.7, 0.8, 0.9]  # wide, so that an untrained net scores
ON = {
    "model__keypoint__enabled": True,
    "model__keypoint__convs": 1,
    "model__keypoint__conv_channels": 8,
    "model__keypoint__pool": 4,
    "evaluate__keypoint_sigmas": SIGMAS,
    "evaluate__score_threshold": 0.0,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("arrows")
    generate(root / "scenes", 12, 6, 2, SIDE, keypoints=True, processes=1)
    recipe = tiny_recipe(root, **ON, train__base="2 steps")
    return root, recipe, train(recipe, root / "runs")


def test_training_leaves_out_images_without_keypoints_and_rows_hold_the_metrics(finished):
    root, _, result = finished
    content = json.loads((root / "scenes/train.json").read_text())
    shown = {a["image_id"] for a in content["annotations"] if a.get("num_keypoints")}
    assert 1 < len(shown) < 12
    assert {int(line) for line in (result.directory / "image_ids.txt").read_text().split()} == shown
    facts = json.loads((result.directory / "segment.json").read_text())
    assert any(f"{12 - len(shown)} of 12 images show no object with a labelled keypoint" in n for n in facts["notes"])
    rows = read_rows(result.directory / "rows.jsonl")
    assert all(row["losses"]["keypoints"] > 1 for row in rows if row["kind"] == "train")
    assert list(result.metrics) == ["box", "mask", "keypoints"]
    assert {"AP", "AP50", "AP75", "APm", "APl", "AR"} <= set(result.metrics["keypoints"])


def test_the_metrics_are_pycocotools_on_the_predictions_that_were_written(finished):
    root, _, result = finished
    truth = COCO()
    truth.dataset = json.loads((root / "scenes/val.json").read_text())
    for annotation in truth.dataset["annotations"]:
        annotation.setdefault("keypoints", [0] * 15)
        annotation.setdefault("num_keypoints", 0)
    truth.createIndex()
    found = json.loads(next(result.directory.glob("predictions-*.json")).read_text())
    judged = COCOeval(
        truth, truth.loadRes([{k: v for k, v in f.items() if k != "segmentation"} for f in found]), "keypoints"
    )
    judged.params.kpt_oks_sigmas = np.array(SIGMAS)
    judged.evaluate(), judged.accumulate(), judged.summarize()
    wanted = np.where(judged.stats < 0, np.nan, judged.stats)
    told = np.array(list(result.metrics["keypoints"].values()), float)  # rows hold null for what is undefined
    np.testing.assert_allclose(told, wanted, atol=1e-9)
    assert result.metrics["keypoints"]["AR"] > 0.01


def test_a_checkpoint_alone_evaluates_and_draws(finished, monkeypatch, capsys, tmp_path):
    root, _, result = finished
    monkeypatch.chdir(tmp_path)
    answer = call(monkeypatch, capsys, "eval", result.directory, "--save", tmp_path / "found.json")
    assert answer.code == 0 and "keypoints" in answer.out
    again = json.loads((tmp_path / "found.json").read_text())
    written = json.loads(next(result.directory.glob("predictions-*.json")).read_text())
    assert again == written
    image = root / "scenes/val/000001.jpg"
    assert call(monkeypatch, capsys, "predict", result.directory, image, "--score", "0.0").code == 0
    drawn = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert drawn and all(len(each["keypoints"]) == 15 for each in drawn)
    wanted = [each["keypoints"] for each in written if each["image_id"] == 2]
    np.testing.assert_allclose([each["keypoints"] for each in drawn], wanted, atol=1e-3)
    assert (tmp_path / "predictions/000001.png").is_file()


def test_operations_are_counted_for_the_number_of_keypoints(finished, tmp_path):
    """Another data set of this process may have as many classes, and other keypoints."""
    root, recipe, _ = finished
    paths = {}
    for split in ("train", "val"):
        content = json.loads((root / f"scenes/{split}.json").read_text())
        for category in content["categories"]:
            category |= {"keypoints": category["keypoints"][:2], "skeleton": []} if "keypoints" in category else {}
        for points in (a for a in content["annotations"] if "keypoints" in a):
            points |= {"keypoints": points["keypoints"][:6], "num_keypoints": 2}
        paths[f"data__{split}"] = str(tmp_path / f"{split}.json")
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    two = tiny_recipe(root, **{**ON, "evaluate__keypoint_sigmas": SIGMAS[:2]}, **paths)
    many, few = (task.flops(next(task.batches(0, 1, torch.device("cpu")))) for task in map(make_task, (recipe, two)))
    assert many > few
