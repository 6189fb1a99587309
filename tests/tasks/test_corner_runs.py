"""A corner detector from the data to the metric: resumed, branched, loaded, exported; and what its recipe refuses."""

import importlib.util

import pytest
import torch

from headstart.model.build import build
from headstart.recipe.load import load_recipe
from headstart.study.prepare import prepare
from headstart.study.run import run_study
from headstart.study.spec import parse_study
from headstart.tasks.export import export_program
from headstart.tasks.predict import load_trained, predict
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.weights.audit import audit, tensor_digests
from headstart.weights.freeze import set_train_mode
from headstart.weights.input import IMAGENET
from headstart.weights.load import load_weights, named_tensors
from killed import Killed, kill_at
from small_detector import HOURGLASS
from tiny import SIDE, outcome, tiny_recipe, tiny_study, without_clock
from weight_nets import file_of

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
AUGMENTED = {
    "input__crop": {"enabled": True, "size": SIDE, "scales": [0.7, 1.0, 1.3], "border": 16},
    "input__colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "lighting": 0.1},
    "train__optimizer": "adam",
    "train__rate": 0.001,
    "evaluate__score_threshold": 0.0,
}
RUN = HOURGLASS | AUGMENTED


def moved(rows):
    return [row for row in without_clock(rows) if row["kind"] in ("train", "eval")]


@pytest.fixture(scope="module")
def straight(data_root, tmp_path_factory):
    return train(tiny_recipe(data_root, **RUN, train__schedule="2x"), tmp_path_factory.mktemp("straight"))


def test_a_resumed_run_is_the_uninterrupted_one(data_root, tmp_path, straight):
    """On an hourglass with Adam, random crops and colours; evaluated, with all losses in its rows."""
    recipe = tiny_recipe(data_root, **RUN, train__schedule="2x")
    with pytest.raises(Killed):
        train(recipe, tmp_path, progress=kill_at(5))
    rows, wanted = (read_rows(run.directory / "rows.jsonl") for run in (train(recipe, tmp_path), straight))
    assert rows[-1]["hash"] == wanted[-1]["hash"] and moved(rows) == moved(wanted)
    names = {"corner_heat", "corner_pull", "corner_push", "corner_offset"}
    assert {name for row in wanted if row["kind"] == "train" for name in row["losses"]} == names
    assert list(straight.metrics) == ["box"]


def test_a_branched_run_is_the_straight_one(data_root, tmp_path, straight):
    """2x off the trunk that it shares with 3x."""
    changes = {name.replace("__", "."): value for name, value in RUN.items()}
    study = tiny_study(data_root, arms={"scratch": {"start.kind": "random"}}, pretrain={})
    study["set"] = {key: value for key, value in study["set"].items() if not key.startswith("model.backbone")} | changes
    directory = run_study(prepare(parse_study(study, source="tiny")), tmp_path)
    found, rows = outcome(directory), read_rows(straight.directory / "rows.jsonl")
    assert found["scratch-f1-s0-2x-5-8"][1] == rows[-1]["hash"]


@pytest.mark.parametrize("num_classes", [5, 7])
def test_weights_load_by_name_and_the_audit_has_a_row_a_part(data_root, num_classes):
    """Another number of classes leaves the last layers of the heat maps as they were drawn."""
    torch.manual_seed(0)
    recipe = tiny_recipe(data_root, **HOURGLASS)
    source, model = build(recipe, num_classes), build(recipe, 5)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01)
    set_train_mode(model, "none")
    initial = tensor_digests(model)
    report = load_weights(model, file_of(named_tensors(source), input=IMAGENET), scope="detector", input=IMAGENET)
    result = audit(model, start="detector", freeze="none", input=IMAGENET, report=report, initial=initial)
    assert result.errors == () and [row.group for row in result.rows] == ["stem", "stage1", "stage2", "heads"]
    corners = [f"heads.{stack}.{corner}.heat.2." for stack in (0, 1) for corner in ("top_left", "bottom_right")]
    reset = {f"{name}{part}" for name in corners for part in ("weight", "bias")}
    assert set(report.reset) == (set() if num_classes == 5 else reset)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_program_finds_the_same(data_root, tmp_path, straight, suffix):
    """The export compares it with the model on real images before it is written."""
    if suffix == ".onnx" and not ONNX:
        pytest.skip("needs ONNX: make test extras=export")
    assert export_program(straight.directory, tmp_path / f"corners{suffix}") > 10
    assert len(predict(load_trained(straight.directory), data_root / "scenes/val/000000.jpg").scores) > 0


ON = {"model.corners.enabled": True, "model.mask.enabled": False}
HOUR = ON | {"model.backbone": {"kind": "hourglass", "depth": 54}, "model.pyramid": False}
COUNTS = {"kind": "hourglass", "depth": [1, 1]}
REFUSED = [
    (
        {"model.corners.enabled": True},
        "model.mask.enabled: true, but model.corners.enabled finds boxes by their corners",
    ),
    (ON | {"model.keypoint.enabled": True}, "model.keypoint.enabled: true, but model.corners.enabled finds boxes"),
    (ON | {"model.cascade.enabled": True}, "model.cascade.enabled: true, but model.corners.enabled finds boxes"),
    (ON | {"model.pyramid": False}, "model.pyramid: false, but model.corners need a map of stride 4; expected true"),
    (HOUR | {"model.pyramid": True}, "model.pyramid: true for model.backbone.kind hourglass, which gives maps of one"),
    (
        HOUR | {"model.corners.stride": 8},
        "model.corners.stride: 8, but an hourglass gives maps of stride 4; expected 4",
    ),
    (ON | {"model.corners.stride": 6}, "model.corners.stride: 6 is not valid"),
    (HOUR | {"model.backbone": COUNTS}, "model.backbone.widths: None for depth (1, 1); expected null for 104"),
    (
        HOUR | {"model.backbone": COUNTS | {"widths": [8], "stacks": 1}},
        "model.backbone.widths: (8,) for depth (1, 1); expected null for 104 and 54, else a width",
    ),
    (
        {"input.crop.enabled": True, "input.jitter.enabled": True},
        "input.crop.enabled: true, as is input.jitter.enabled",
    ),
    (
        {"input.crop.enabled": True, "input.short": [600, 800]},
        "input.short: [600, 800] has no effect with input.crop.en",
    ),
    ({"input.crop.size": 500}, "input.crop.size: 500 is not valid"),
    ({"input.crop.enabled": True, "input.copy_paste": True}, "input.copy_paste: needs a fixed crop"),
    ({"input.crop.enabled": True, "input.mosaic": 0.5}, "input.mosaic: needs a fixed crop, expected input.jitter.enab"),
    ({"input.mosaic": 1.5}, "input.mosaic: 1.5 is not valid"),
    ({"input.colour.hue": 0.6}, "input.colour.hue: 0.6 is not valid"),
    ({"input.transform": "blur"}, "input.transform: 'blur' is not valid: expected MODULE:FUNCTION"),
    ({"input.transform": "a..b:blur"}, "input.transform: 'a..b:blur' is not valid: expected MODULE:FUNCTION"),
    ({"data.fraction_seed": "per_step"}, "data.fraction_seed: 'per_step' is not valid: expected a whole number, or pe"),
    ({"data.repeat_threshold": 0.0}, "data.repeat_threshold: 0.0 is not valid"),
    (
        {"input.colour.hue": 0.1, "input.channels": 1, "input.mean": [1.0], "input.std": [1.0]},
        "input.colour: needs RGB images, but input.channels is 1",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda each: each[:40] if isinstance(each, str) else "")
def test_what_cannot_work_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as raised:
        load_recipe("base", changes)
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1
