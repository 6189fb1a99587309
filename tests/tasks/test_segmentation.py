"""A segmentation model from label maps and from instances to mIoU: trained, judged, evaluated again, drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cli_call import call
from headstart.batch import IGNORE_LABEL
from headstart.data.shapes.write import generate
from headstart.metrics.pixels import PixelRecords, pixel_metrics
from headstart.tasks.draw import colour_of
from headstart.tasks.predict import load_trained
from headstart.tasks.segmentation import (
    draw_labels,
    evaluate_files,
    label_maps,
    pixel_stream,
    save_labels,
    training_pixels,
)
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.training.verify import verify
from tiny import SEGMENTER, SIDE, pixel_paths, tiny_segmenter, write_study


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    generate(root, 8, 5, 0, SIDE, semantic=True, processes=1)
    return root


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    return train(tiny_segmenter(scenes), tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("maps", [True, False])
def test_labels_lie_on_the_pixels_in_every_view(scenes, maps):
    """Images whose colours are their labels: after resizing, mirroring each known label finds its own."""
    changes = {"input__mean": [0.0] * 3, "input__std": [1.0] * 3, "train__batch": 2}
    changes |= {"input__short": [SIDE, 2 * SIDE], "input__long": 2 * SIDE}
    recipe = tiny_segmenter(scenes, maps=maps, **changes)
    source = label_maps(training_pixels(recipe), recipe.data.train_labels, recipe)
    stream = pixel_stream(source, recipe)
    stream.stream.images = lambda i: np.repeat(10 * source(i)[..., None] + 20, 3, axis=2).astype(np.uint8)
    sizes = set()
    for batch in stream.batches(0, 8, torch.device("cpu")):
        shown = (batch.images[:, 0] - 20) / 10
        known = batch.labels != IGNORE_LABEL
        right = (shown - batch.labels).abs() < 1e-3
        assert right[known].float().mean() > 0.9  # all but the edges, where resizing mixes colours
        assert known.float().mean() == 1 or batch.images.shape[2] > SIDE
        sizes.add(tuple(batch.labels.shape))
    assert sizes == {(2, 2 * SIDE, 2 * SIDE)}


def test_a_step_is_the_same_wherever_the_stream_begins_and_with_workers(scenes):
    recipe = tiny_segmenter(scenes)
    source = label_maps(training_pixels(recipe), recipe.data.train_labels, recipe)
    whole = list(pixel_stream(source, recipe).batches(0, 4, torch.device("cpu")))
    other = tiny_segmenter(scenes, data__num_workers=2, data__cache=True)
    later = list(pixel_stream(source, other).batches(2, 4, torch.device("cpu")))
    for one, two in zip(whole[2:], later):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
    assert not torch.equal(whole[0].labels, whole[1].labels)


def test_rows_records_and_a_second_evaluation_agree(finished, monkeypatch, capsys, tmp_path):
    rows = read_rows(finished.directory / "rows.jsonl")
    assert [list(row["losses"]) for row in rows if row["kind"] == "train"] == [["semantic"]] * 2
    records = PixelRecords.load(next(finished.directory.glob("records-semantic-*.npz")))
    assert finished.metrics["semantic"] == pytest.approx(pixel_metrics(records))
    assert 0 < finished.metrics["semantic"]["mIoU"] < finished.metrics["semantic"]["accuracy"] < 1
    assert records.num_gt.sum() == 5 * SIDE * SIDE  # evaluated at the original's size, not at the net's
    answer = call(monkeypatch, capsys, "eval", finished.directory, "--per-class")
    assert answer.code == 0 and f"{100 * finished.metrics['semantic']['accuracy']:.1f}" in answer.out
    assert "background" in answer.out and "arrow" in answer.out
    assert verify(finished.directory).differences == ()


def test_predicted_label_maps_give_the_same_score(finished, scenes, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, capsys, "predict", finished.directory, scenes / "val").code == 0
    right, seen = 0, 0
    for path in sorted((scenes / "val_labels").glob("*.png")):
        found = np.asarray(Image.open(tmp_path / "predictions" / f"{path.stem}-labels.png"))
        truth = np.asarray(Image.open(path))
        assert found.shape == truth.shape and (tmp_path / "predictions" / f"{path.stem}.png").is_file()
        right, seen = right + (found == truth).sum(), seen + truth.size
    assert right / seen == pytest.approx(finished.metrics["semantic"]["accuracy"], abs=1e-3)


def test_evaluation_reads_no_training_file(finished, scenes, tmp_path):
    trained = load_trained(finished.directory)
    moved = trained.recipe.data.model_copy(update={"train": str(tmp_path / "gone.json")})
    there = replace(trained, recipe=trained.recipe.model_copy(update={"data": moved}))
    given = (None, None, None, None, None)
    assert evaluate_files(there, *given).metrics == evaluate_files(trained, *given).metrics
    with pytest.raises(ValueError, match=r"gone\.json"):
        evaluate_files(there, "train", *given[1:])


def test_only_the_background_is_left_as_it_is(tmp_path):
    ids, grey = np.array([[0, 1], [2, 2]]), np.full((2, 2, 3), 100, np.uint8)
    for background in (0, 2, None):
        tinted = np.asarray(draw_labels(grey, ids, background=background)) != grey
        assert (tinted.any(axis=2) == (ids != background)).all()
        save_labels(ids, tmp_path / "a.png", background=background)
        picture = Image.open(tmp_path / "a.png")
        assert (np.asarray(picture) == ids).all()
        black = (np.asarray(picture.convert("RGB")) == 0).all(axis=2)
        assert (black == (ids == background)).all()
    for number in (-9, 2**16):
        with pytest.raises(ValueError, match=rf"a\.png: class id {number}: a PNG holds ids from 0 to 65,535"):
            save_labels(np.array([[0, number]]), tmp_path / "a.png")
    assert len({colour_of(number) for number in range(-20, 20)}) == 40


def test_instances_train_and_their_labels_are_nearly_the_maps(scenes, tmp_path):
    result = train(tiny_segmenter(scenes, maps=False, model__semantic__loss_stride=4, train__base="1 steps"), tmp_path)
    assert result.metrics["semantic"]["accuracy"] > 0
    facts = json.loads((result.directory / "segment.json").read_text())
    assert facts["classes"]["ids"][-1] == 0 and facts["classes"]["names"][-1] == "background"


def test_scratch_or_pretrained_can_be_asked_of_pixels(scenes, tmp_path):
    """A study of two arms with a rule on mIoU, from its plan to its report."""
    from headstart.api import Study
    from headstart.report.headline.resampled import NUM_RESAMPLES, resampled_differences
    from headstart.study.folder import read_study_folder

    rule = {"metric": "semantic.mIoU", "baseline": "pretrained", "candidate": "scratch", "margin": 0.05, "level": 0.9}
    rule |= {"test": "t", "min_seeds": 2, "kind": "equivalence"}
    weights = train(tiny_segmenter(scenes, seed=3), tmp_path / "other").checkpoint
    study = {
        "name": "pixels",
        "recipe": "base_segment",
        "set": {**SEGMENTER, **pixel_paths(scenes), "train.base": "2 steps", "train.warmup": "0 steps"},
        "arms": {
            "scratch": {"start.kind": "random"},
            "pretrained": {"start.kind": "backbone", "start.weights": str(weights)},
        },
        "schedules": ["1x"],
        "seeds": 2,
        "rule": rule,
    }
    report = Study.read(write_study(tmp_path / "pixels.yaml", study), out=tmp_path / "runs").run().report
    assert "semantic mIoU" in report.read_text()
    folder = read_study_folder(report.parent)
    drawn, num_images = resampled_differences(folder, "1x", 1.0)
    told = folder.scores(rule["metric"], "scratch", "1x", 1.0) - folder.scores(rule["metric"], "pretrained", "1x", 1.0)
    assert num_images == 5 and drawn.shape == (2, NUM_RESAMPLES) and (drawn.std(axis=1) > 0).all()
    assert np.abs(drawn.mean(axis=1) - told).max() < drawn.std(axis=1).max()
    for recipe in (run.directory / "recipe.yaml" for run in folder.runs.values()):
        origins = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
        assert "# train.base: study" in origins and not any("base_segment.yaml" in line for line in origins)


def test_a_model_of_other_classes_keeps_all_but_the_predictor(finished, scenes, tmp_path):
    recipe = tiny_segmenter(
        scenes, maps=False, start__kind="detector", start__weights=str(finished.checkpoint), train__base="1 steps"
    )
    for split in ("train", "val"):
        other = json.loads((scenes / f"{split}.json").read_text())
        other["categories"] = [c for c in other["categories"] if c["id"] != 21]
        other["annotations"] = [a for a in other["annotations"] if a["category_id"] != 21]
        (tmp_path / f"{split}.json").write_text(json.dumps(other))
    changed = recipe.data.model_copy(update={"train": str(tmp_path / "train.json"), "val": str(tmp_path / "val.json")})
    result = train(recipe.model_copy(update={"data": changed}), tmp_path / "runs")
    audit = json.loads((result.directory / "audit.json").read_text())
    assert "9 classes and this model 8" in " ".join(audit["notes"])
