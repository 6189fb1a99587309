"""The ways to use a pre-trained classifier: what moves and what stays, and kept features against computed ones."""

import pytest
import torch

from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.weights import checkpoint
from headstart.weights.files import read_weights
from tiny import tiny_classifier

WHOLE = {"input__min_area": 1.0, "input__flip": 0.0}


@pytest.fixture(scope="module")
def source(data_root, tmp_path_factory):
    """Weights of a tiny classifier of the same classes, trained with another seed."""
    return train(tiny_classifier(data_root, seed=5), tmp_path_factory.mktemp("source")).checkpoint


def transfer(data_root, out, source, freeze, *, progress=None, **changes):
    start = {"start__kind": "backbone", "start__weights": str(source), "start__freeze": freeze}
    return train(tiny_classifier(data_root, evaluate__every="2 steps", **start, **changes), out, progress=progress)


@pytest.mark.parametrize(
    ("freeze", "fixed"),
    [("backbone", ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
     ("stage2", ("conv1", "bn1", "layer1", "layer2")),
     ("none", ())],
)  # fmt: skip
def test_what_is_frozen_stays_what_it_was_and_all_else_is_trained(data_root, source, tmp_path, freeze, fixed):
    result = transfer(data_root, tmp_path, source, freeze)
    before = read_weights(source).tensors
    after = checkpoint.load(result.checkpoint)["model"]
    backbone = [name for name in after if name.startswith("backbone.")]
    assert len(backbone) > 20 and {name.split(".")[1] for name in backbone} >= set(fixed)
    for name in backbone:
        assert torch.equal(before[name], after[name]) == (name.split(".")[1] in fixed), name
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_training_on_kept_features_equals_training_on_images(data_root, source, tmp_path, norm):
    changes = {**WHOLE, "model__norm": norm, "model__dropout": 0.5, "evaluate__batch": 3}
    if norm == "batch":
        source = train(tiny_classifier(data_root, seed=6, model__norm=norm), tmp_path / "batch").checkpoint
    runs = {
        kept: transfer(data_root, tmp_path / str(kept), source, "backbone", data__cache_features=kept, **changes)
        for kept in (False, True)
    }
    rows = {kept: read_rows(run.directory / "rows.jsonl") for kept, run in runs.items()}
    assert [row["kind"] for row in rows[True]] == [row["kind"] for row in rows[False]]
    for ours, theirs in zip(rows[True], rows[False]):
        assert ours.get("metrics") == theirs.get("metrics") and ours.get("pixels") == theirs.get("pixels")
        assert ours.get("losses", {}) == pytest.approx(theirs.get("losses", {}), rel=1e-5)
    states = [checkpoint.load(run.checkpoint)["model"] for run in runs.values()]
    for name in states[0]:
        assert torch.allclose(states[0][name], states[1][name], rtol=1e-5, atol=1e-7), name


def test_a_run_on_kept_features_resumes_to_the_same_weights(data_root, source, tmp_path):
    changes = {**WHOLE, "data__cache_features": True}
    straight = transfer(data_root, tmp_path / "a", source, "backbone", **changes)
    with pytest.raises(KeyboardInterrupt):
        transfer(data_root, tmp_path / "b", source, "backbone", progress=interrupt_at(3), **changes)
    again = transfer(data_root, tmp_path / "b", source, "backbone", **changes)
    hashes = [read_rows(run.directory / "rows.jsonl")[-1]["hash"] for run in (straight, again)]
    assert hashes[0] == hashes[1]


def interrupt_at(fatal):
    def progress(step, values):
        if step == fatal:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"data\.cache_features: true .* start\.freeze is 'none'.*expected start\.freeze 'backbone'"),
        ({"start__freeze": "stage4"}, r"start\.freeze is 'stage4'"),
        (
            {"start__freeze": "backbone", "input__min_area": 0.5},
            r"input\.min_area is 0\.5.*expected input\.min_area 1\.0",
        ),
        ({"start__freeze": "backbone", "input__min_area": 1.0}, r"input\.flip is 0\.5.*expected input\.flip 0\.0"),
    ],
)
def test_features_that_would_change_cannot_be_kept(data_root, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_classifier(data_root, data__cache_features=True, start__kind="backbone", start__weights="w.pt", **changes)
    assert "\n" not in str(error.value)


def test_a_frozen_random_backbone_is_refused_kept_features_or_not(data_root, tmp_path):
    for kept in (False, True):
        with pytest.raises(ValueError, match="random and frozen, so they will never be learnt"):
            train(tiny_classifier(data_root, start__freeze="backbone", data__cache_features=kept, **WHOLE), tmp_path)
