"""Precision and device of a run: settled before its digest, told by its rows, and the same whoever computes again."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from cli_call import call
from headstart import hardware
from headstart.data.shapes.write import generate
from headstart.hardware import Choice, choose_device
from headstart.metrics.pixels import pixel_metrics
from headstart.ops import processes as distributed
from headstart.recipe.dotted import flatten
from headstart.recipe.load import load_recipe, resolve, settle, stored_recipe
from headstart.recipe.recipe import ADDED, DIGESTED_BY_CONTENT, NOT_IN_DIGEST, digest, to_dict
from headstart.study.prepare import prepare
from headstart.study.run import run_study
from headstart.study.slurm import Job, write_jobs
from headstart.study.spec import parse_study
from headstart.study.timing import hardware_lines
from headstart.tasks import make_task
from headstart.tasks.detection import validation_data
from headstart.tasks.predict import evaluate, load_trained, predict
from headstart.tasks.segmentation import evaluate_labels, predict_labels, validation_pixels
from headstart.training import run as train_run
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.training.verify import verify
from headstart.weights import checkpoint
from tiny import SIDE, tiny_classifier, tiny_recipe, tiny_segmenter, tiny_study


def machine(monkeypatch, *, native):
    """This machine as one that computes bf16 natively, or not."""
    monkeypatch.setattr(hardware, "native_bf16", lambda device: Choice(native, f"native is {native}"))
    monkeypatch.setattr(hardware, "bf16_speed", lambda device: 0.25)


def evaluations(directory):
    return [row for row in read_rows(directory / "rows.jsonl") if row["kind"] == "eval"]


def plain(metrics):
    """Metrics as rows hold them."""
    return {kind: {k: v if v == v else None for k, v in values.items()} for kind, values in metrics.items()}


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A finished bf16 run of the tiny detector."""
    recipe = tiny_recipe(data_root, train__precision="bf16", train__rate=0.05, evaluate__score_threshold=0.0)
    return train(recipe, tmp_path_factory.mktemp("bf16"))


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """A finished bf16 run of the tiny segmentation model, stopped where several classes are near ties."""
    root = tmp_path_factory.mktemp("pixels")
    generate(root, 8, 5, 0, SIDE, semantic=True, processes=1)
    return train(tiny_segmenter(root, train__precision="bf16", train__rate=0.006), root / "runs")


def test_auto_is_settled_by_the_machine_and_each_value_has_its_own_digest(monkeypatch, data_root):
    asked = tiny_recipe(data_root, train__precision="auto")
    with pytest.raises(ValueError, match=r"^train\.precision: auto, expected fp32 or bf16"):
        digest(asked)
    with pytest.raises(ValueError, match=r"^train\.precision: auto"):
        make_task(asked)
    for native, value in ((True, "bf16"), (False, "fp32")):
        machine(monkeypatch, native=native)
        recipe, origins = settle(asked, {"train.precision": "override"})
        given = tiny_recipe(data_root, train__precision=value)
        assert recipe == given and digest(recipe) == digest(given) and asked.train.precision == "auto"
        assert origins == {"train.precision": f"override, auto: native is {native}"}
        assert settle(given, {"seed": "x"}) == (given, {"seed": "x"})
    assert digest(recipe) != digest(tiny_recipe(data_root, train__precision="bf16"))


def test_recipes_from_before_these_fields_are_what_they_were(data_root):
    """Digests of runs made before `device` existed, and before `auto`, still find them."""
    recipe = tiny_recipe(data_root)
    older = to_dict(recipe)
    del older["device"]
    assert stored_recipe(older, "a.pt") == recipe and recipe.device == "auto" and recipe.train.precision == "fp32"
    assert len({digest(tiny_recipe(data_root, device=kind)) for kind in ("auto", "cpu", "cuda", "mps")}) == 1
    left_out = (*NOT_IN_DIGEST, *DIGESTED_BY_CONTENT, *ADDED)
    flat = {key: value for key, value in flatten(older).items() if key not in left_out}
    assert digest(recipe) == hashlib.sha256(json.dumps([flat], sort_keys=True).encode()).hexdigest()[:12]


def test_a_run_holds_what_was_used(monkeypatch, data_root, tmp_path):
    """Directory, rows, recipe.yaml, checkpoint and environment, for one recipe on two machines."""
    _, origins = resolve("base", [("override", {"train.precision": "auto"})])
    recipe = tiny_recipe(data_root, train__precision="auto", evaluate__every="0 steps")
    names = set()
    for native, value in ((True, "bf16"), (False, "fp32")):
        machine(monkeypatch, native=native)
        said = []
        result = train(recipe, tmp_path, provenance=origins, say=said.append)
        assert f"train.precision: {value} (auto: native is {native})" in said
        assert train(recipe, tmp_path).directory == result.directory
        assert train(tiny_recipe(data_root, train__precision=value, evaluate__every="0 steps"), tmp_path) == result
        start = read_rows(result.directory / "rows.jsonl")[0]
        assert (start["precision"], start["device"]) == (value, choose_device("auto").value)
        text = (result.directory / "recipe.yaml").read_text()
        assert yaml.safe_load(text)["train"]["precision"] == value
        assert f"# train.precision: override, auto: native is {native}\n" in text
        assert checkpoint.load(result.checkpoint)["recipe"]["train"]["precision"] == value
        environment = json.loads((result.directory / "environment.json").read_text())
        assert environment["device"] == choose_device("auto").value and environment["processor"]
        names.add(result.directory.name)
    assert len(names) == 2


def test_bf16_is_trained_in_where_it_is_slow_after_one_line(monkeypatch, data_root, tmp_path):
    machine(monkeypatch, native=False)
    recipe = tiny_recipe(data_root, train__precision="bf16", train__base="3 steps", train__schedule="1x")
    said = []
    train(recipe, tmp_path, say=said.append)
    lines = [line for line in said if line.startswith("train.precision")]
    assert len(lines) == 1 and "native is False" in lines[0] and "4.0 times as long" in lines[0]


def test_the_command_line_says_what_is_taken(monkeypatch, capsys, data_root, tmp_path, run):
    monkeypatch.chdir(tmp_path)
    machine(monkeypatch, native=False)
    answer = call(monkeypatch, capsys, "recipe", "explain", "demo", "train.precision=auto", "device=cpu")
    lines = answer.out.splitlines()
    assert "device: cpu (as given)" in lines and "train.precision: fp32 (auto: native is False)" in lines
    assert any(line.startswith("train.threads: ") for line in lines) and "train.compile: false (as given)" in lines
    named = load_recipe("demo", {"train.precision": "fp32"})
    assert digest(named) in answer.out
    answer = call(monkeypatch, capsys, "eval", run.directory)
    assert answer.code == 0 and answer.out.count("4.0 times as long as in fp32") == 1
    answer = call(monkeypatch, capsys, "eval", run.directory, "train.precision=auto")
    assert answer.code == 0 and "times as long" not in answer.out
    photo = next(iter(sorted((data_root / "scenes/val").iterdir())))
    answer = call(monkeypatch, capsys, "predict", run.directory, photo)
    assert answer.code == 0 and answer.out.count("4.0 times as long as in fp32") == 1


def test_evaluation_again_is_that_of_the_rows(run):
    """To the last bit: in bf16, as the run was judged; another precision is another result."""
    trained = load_trained(run.directory)
    result, _ = evaluate(trained, validation_data(trained.recipe))
    assert plain(result.metrics) == evaluations(run.directory)[-1]["metrics"]
    kept = json.loads(next(run.directory.glob("predictions-*.json")).read_text())
    _, again = evaluate(trained, validation_data(trained.recipe))
    assert again.scores.tolist() == [entry["score"] for entry in kept]
    other = load_trained(run.directory, {"train.precision": "fp32"})
    _, found = evaluate(other, validation_data(other.recipe))
    assert found.scores.tolist() != again.scores.tolist()


def test_one_image_is_predicted_as_it_is_evaluated(run):
    trained = load_trained(run.directory, {"evaluate.batch": 1})
    data = validation_data(trained.recipe)
    for index in range(data.num_images):
        _, whole = evaluate(trained, data.take(np.array([index])))
        one = predict(trained, data.load_image(index))
        assert len(one.scores) > 0 and sorted(one.scores.tolist()) == sorted(whole.scores.tolist())


def test_pixels_are_judged_again_as_in_the_rows(pixels):
    """In the run's precision: fp32 finds other pixels."""
    trained = load_trained(pixels.directory)
    maps = validation_pixels(trained.recipe)
    records = evaluate_labels(trained, maps)
    assert plain({"semantic": pixel_metrics(records)}) == evaluations(pixels.directory)[-1]["metrics"]
    other = evaluate_labels(load_trained(pixels.directory, {"train.precision": "fp32"}), maps)
    assert not np.array_equal(other.num_predicted, records.num_predicted) and pixel_metrics(other) != pixel_metrics(
        records
    )


def test_a_label_map_is_predicted_as_it_is_evaluated(pixels):
    trained = load_trained(pixels.directory, {"evaluate.batch": 1})
    maps = validation_pixels(trained.recipe)
    records = evaluate_labels(trained, maps)
    for index in range(maps.dataset.num_images):
        found = predict_labels(trained, maps.dataset.load_image(index))
        truth = np.append(maps.class_ids, -1)[np.minimum(maps(index), len(maps.class_ids))]
        assert (found == truth).sum() == records.true_positives[index].sum()


def test_bf16_runs_are_verified_bit_for_bit(run, pixels):
    assert verify(run.directory).differences == ()
    assert verify(pixels.directory).differences == ()


def test_several_processes_settle_on_one_precision(data_root, tmp_path):
    """The real machine's, as one process does: the same directory, so the same digest."""
    asked = tiny_recipe(data_root, train__precision="auto", train__batch=4, train__base="2 steps", train__warmup=1)
    both = train(asked.model_copy(update={"processes": 2}), tmp_path / "both")
    start = read_rows(both.directory / "rows.jsonl")[0]
    assert start["precision"] == settle(asked)[0].train.precision
    assert both.directory.name == train(settle(asked)[0], tmp_path / "alone").directory.name


def test_processes_are_counted_against_gpus_only_on_gpus(gpu, monkeypatch, data_root, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    started = []
    monkeypatch.setattr(train_run, "run_processes", lambda num, *_, silence: started.append(num))
    with pytest.raises(ValueError, match="processes: 2, but this machine has 1 GPUs"):
        train(tiny_recipe(data_root, processes=2), tmp_path)
    assert started == []
    train(tiny_recipe(data_root, processes=2, device="cpu"), tmp_path)
    assert started == [2]


# A machine with a GPU, as far as torch is asked: nothing can be computed on it, so what ends well was on the CPU.


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))


def test_the_device_of_a_process(gpu, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.device("auto") == distributed.device("cuda") == torch.device("cuda", 3)
    assert distributed.device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a real GPU this would be computed on it")
def test_a_machine_with_a_gpu_can_use_its_cpu(gpu, data_root, tmp_path, monkeypatch, capsys):
    """Training, evaluation, prediction, verification, planning and studies, all with device=cpu."""
    recipe = tiny_recipe(data_root, device="cpu", evaluate__train_images=2)
    with pytest.raises((RuntimeError, AssertionError)):
        train(recipe.model_copy(update={"device": "auto"}), tmp_path / "gpu")
    result = train(recipe, tmp_path)
    assert read_rows(result.directory / "rows.jsonl")[0]["device"] == "cpu"
    trained = load_trained(result.directory)
    assert trained.device == torch.device("cpu")
    found, _ = evaluate(trained, validation_data(trained.recipe))
    assert plain(found.metrics) == [r for r in evaluations(result.directory) if r["split"] == "val"][-1]["metrics"]
    predict(trained, validation_data(trained.recipe).load_image(0))
    assert verify(result.directory).differences == ()
    settings = tiny_study(data_root, schedules=["2x"], also_evaluate={"small": {"input.test_short": 48}})
    prepared = prepare(parse_study(settings, source="tiny"), {"device": "cpu"})
    assert hardware_lines(prepared)[0] == "device: cpu (as given)"
    directory = run_study(prepared, tmp_path)
    assert all(segment["finished"] for segment in json.loads((directory / "plan.json").read_text())["segments"])
    answer = call(monkeypatch, capsys, "eval", result.directory, "device=cpu")
    assert answer.code == 0
    with pytest.raises((RuntimeError, AssertionError)):
        load_trained(result.directory, {"device": "auto"})


def test_a_classifier_is_trained_on_the_device_of_its_recipe(data_root, tmp_path, gpu):
    if torch.cuda.device_count():
        pytest.skip("with a real GPU this would be computed on it")
    result = train(tiny_classifier(data_root, device="cpu"), tmp_path)
    assert read_rows(result.directory / "rows.jsonl")[0]["device"] == "cpu"


def test_a_run_is_verified_where_it_ran(data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = train(tiny_recipe(data_root), tmp_path / "first")
    copied = shutil.copytree(result.directory, tmp_path / result.directory.name)
    path = copied / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "cuda"}))
    answer = call(monkeypatch, capsys, "verify", copied)
    assert answer.code == 2 and answer.err.startswith("headstart: device: cuda, but ")
    assert call(monkeypatch, capsys, "verify", copied, "device=cpu").code == 0
    answer = call(monkeypatch, capsys, "verify", copied, "train.precision=bf16")
    assert answer.code == 2 and "a run is verified as it was, expected device=" in answer.err


@pytest.mark.parametrize("verb", [("train",), ("recipe", "explain"), ("pretrain",)])
def test_a_device_that_is_not_there_is_named(monkeypatch, capsys, verb, data_root, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name = "base_classify" if verb == ("pretrain",) else "base"
    recipe = tiny_classifier(data_root) if verb == ("pretrain",) else tiny_recipe(data_root)
    path = tmp_path / f"{name}-own.yaml"
    path.write_text(yaml.safe_dump(to_dict(recipe)))
    answer = call(monkeypatch, capsys, *verb, path, "device=cuda")
    assert answer.code == 2 and len(answer.err.splitlines()) == 1
    assert answer.err.startswith("headstart: device: cuda, but ") and "expected auto or cpu" in answer.err
    assert not (tmp_path / "runs").exists()


def test_one_gpu_of_apples_is_not_shared(data_root):
    with pytest.raises(ValueError, match="processes: 2, but device mps has one GPU; expected 1"):
        tiny_recipe(data_root, device="mps", processes=2)


# Studies.


def test_the_difference_sheet_compares_what_is_used(monkeypatch, data_root):
    arms = {"plain": {}, "auto": {"train.precision": "auto"}}
    study = parse_study(tiny_study(data_root, arms=arms, pretrain={}), source="tiny")
    machine(monkeypatch, native=True)
    prepared = prepare(study)
    assert prepared.recipes["auto"][0].train.precision == "bf16"
    row = {"field": "train.precision", "values": {"plain": "fp32", "auto": "bf16"}, "declared": True}
    assert prepared.differences == [row]
    lines = hardware_lines(prepared)
    assert "plain: train.precision: fp32 (as given)" in lines
    assert "auto: train.precision: bf16 (auto: native is True)" in lines
    assert [line.split(":")[0] for line in lines] == ["device", "plain", "auto", "train.threads", "train.compile"]
    machine(monkeypatch, native=False)
    with pytest.raises(ValueError, match="arms: 'plain' and 'auto' are the same"):
        prepare(study)


def test_the_plan_says_what_this_machine_takes(monkeypatch, capsys, data_root, tmp_path):
    machine(monkeypatch, native=False)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study(data_root, schedules=["2x"])))
    answer = call(monkeypatch, capsys, "study", "plan", path, "train.precision=auto", "device=cpu", "--jobs", "1")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    for line in (
        "device: cpu (as given)",
        "train.precision: fp32 (auto: native is False)",
        "train.threads: 1 (as given)",
    ):
        assert line in lines


def test_a_cluster_is_told_the_precision(data_root, tmp_path):
    study = parse_study(tiny_study(data_root), source="tiny")
    prepared = prepare(study, {"train.precision": "auto"})
    with pytest.raises(ValueError, match=r"study tiny: train\.precision of scratch is auto, expected fp32 or bf16"):
        write_jobs(prepared, "tiny.yaml", [], tmp_path, Job())
    assert not list(tmp_path.iterdir())
