"""Rows sent elsewhere as they are written: to a function, TensorBoard, MLflow and Weights & Biases."""

import json
import math
import struct
import time
import warnings
from contextlib import suppress

import pytest

import headstart
from headstart.recipe.recipe import digest
from headstart.training import loggers
from headstart.training.loggers import Logged, open_loggers, scalars
from headstart.training.rows import read_rows
from tiny import tiny_recipe, without_clock


class Stopped(Exception):
    """A kill in the middle of a run."""


@pytest.fixture(scope="module")
def recipe(data_root):
    return tiny_recipe(data_root, model__mask__enabled=False, train__log_every=1)


@pytest.fixture(scope="module")
def plain(recipe, tmp_path_factory):
    """A run without loggers."""
    return headstart.train(recipe, tmp_path_factory.mktemp("plain"))


def logged(recipe, *names):
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"loggers": names})})


def rows_of(result):
    return without_clock(read_rows(result.directory / "rows.jsonl"))


def killed_and_resumed(recipe, out):
    """A run that was killed at step 4, after its checkpoint of step 3, and continued."""

    def stop(row):
        if row["step"] == 4:
            raise Stopped

    with pytest.raises(Stopped):
        headstart.train(recipe, out, on_row=stop)
    return headstart.train(recipe, out)


def numbers(rows):
    """{name: [(step, value)]} of all rows."""
    found = {}
    for row in rows:
        for name, value in scalars(row).items():
            found.setdefault(name, []).append((row["step"], value))
    return found


def test_a_function_hears_copies_of_the_rows_as_they_are_written(recipe, plain, tmp_path):
    heard, on_disk = [], []

    def listen(row):
        on_disk.append(len(read_rows(next(tmp_path.glob("tiny-*/rows.jsonl")))))
        heard.append({**row})
        row.get("losses", {}).clear()  # a listener cannot change what is written

    result = headstart.train(recipe, tmp_path, on_row=listen)
    assert on_disk == list(range(1, len(heard) + 1))
    assert rows_of(result) == rows_of(plain)
    kinds = [(row["kind"], row["step"]) for row in heard]
    assert kinds == [(row["kind"], row["step"]) for row in rows_of(plain)]
    again = []
    headstart.train(recipe, tmp_path, on_row=again.append)
    assert again == []  # a finished run writes no row


def test_loggers_change_neither_digest_nor_rows(recipe, plain, tmp_path):
    with_board = logged(recipe, "tensorboard")
    assert digest(with_board) == digest(recipe)
    result = headstart.train(with_board, tmp_path)
    assert result.directory.name == plain.directory.name and rows_of(result) == rows_of(plain)
    assert not (plain.directory / "tensorboard").exists()


def test_tensorboard_has_the_numbers_of_the_rows(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = killed_and_resumed(logged(recipe, "tensorboard"), tmp_path)
    board = EventAccumulator(str(result.directory / "tensorboard")).Reload()
    found = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    wanted = numbers(read_rows(result.directory / "rows.jsonl"))
    assert found == {tag: [(s, pytest.approx(v)) for s, v in values] for tag, values in wanted.items()}


def test_mlflow_has_the_numbers_of_the_rows_in_one_run(recipe, plain, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs MLflow: make test extras=loggers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MLflow: its store of files gets no new features
        result = killed_and_resumed(logged(recipe, "mlflow"), tmp_path / "runs")
        client = MlflowClient()
        experiment = client.get_experiment_by_name("headstart")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_name == result.directory.name and run.info.status == "FINISHED"
        assert run.data.params["train.batch"] == "2"
        found = {tag: client.get_metric_history(run.info.run_id, tag) for tag in run.data.metrics}
    assert rows_of(result)[1:] == rows_of(plain)[1:]
    told = {tag: {point.step: point.value for point in history} for tag, history in found.items()}
    assert told == {tag: dict(values) for tag, values in numbers(rows_of(result)).items()}


def offline_records(path):
    """Protocol buffers in an offline file of W&B: a header of 7 bytes, then a block of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place = path.read_bytes(), 7
    assert content[:4] == b":W&B" and len(content) < 2**15
    while place < len(content):
        _, size, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1 and place + 7 + size <= len(content)  # whole
        yield Record.FromString(content[place + 7 : place + 7 + size])
        place += 7 + size


def finished_records(path):
    """The records once the last is there: W&B's own process writes them, after the run has ended here."""
    for _ in range(400):
        with suppress(struct.error, AssertionError):
            records = list(offline_records(path))
            if records and records[-1].HasField("exit"):
                return records
        time.sleep(0.05)
    raise TimeoutError(path)


def test_wandb_has_the_numbers_of_the_rows(recipe, plain, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs Weights & Biases: make test extras=loggers")
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = headstart.train(logged(recipe, "wandb"), tmp_path)
    assert rows_of(result) == rows_of(plain)
    (file,) = (result.directory / "wandb").glob("offline-run-*/run-*.wandb")
    found, names = {}, []
    for record in finished_records(file):
        if record.HasField("run"):
            names.append((record.run.project, record.run.run_id, record.run.display_name))
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name in row.keys() - {"_step", "_runtime", "_timestamp"}:
            found.setdefault(name, []).append((row["_step"], row[name]))
    assert names[0] == ("headstart", result.directory.name.rpartition("-")[2], result.directory.name)
    assert {name: values for name, values in found.items() if not name.startswith("_")} == numbers(rows_of(result))


def test_what_is_not_installed_names_the_extra(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    for name, extra in (("tensorboard", "tensorboard"), ("mlflow", "loggers"), ("wandb", "loggers")):
        with pytest.raises(ValueError, match=rf"^train\.loggers: '{name}' is not .* 'headstart\[{extra}\]'$"):
            headstart.train(logged(recipe, name), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"train\.loggers: .*, expected each once"):
        headstart.load_recipe("base", {"train.loggers": ["mlflow", "mlflow"]})


def test_a_logger_that_fails_is_told_once_and_changes_nothing(recipe, plain, tmp_path, monkeypatch):
    def broken(run):
        raise OSError("no route")

    monkeypatch.setitem(loggers._LOGGERS, "wandb", broken)
    with (
        pytest.raises(ValueError, match=r"^train\.loggers: wandb: no route$"),
        open_loggers(["wandb"], Logged(tmp_path, {}, None)),
    ):
        pass
    from torch.utils.tensorboard import SummaryWriter

    def full(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with pytest.warns(UserWarning, match="tensorboard: disk full; it gets no more rows") as told:
        result = headstart.train(logged(recipe, "tensorboard"), tmp_path)
    assert len([one for one in told if "disk full" in str(one.message)]) == 1
    assert rows_of(result) == rows_of(plain)


def test_undefined_numbers_are_left_out():
    row = {"kind": "eval", "step": 2, "metrics": {"box": {"AP": 0.25, "APl": math.nan, "APs": None}}, "weights": "ema"}
    assert scalars(row) == {"ema/box/AP": 0.25} and scalars({"kind": "end", "step": 2}) == {}
