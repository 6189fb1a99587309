"""Rows: appended at once, cut where a resumed run continues, always JSON; and the clock."""

import json
import math

import numpy as np
import pytest

from headstart.training.rows import Clock, Rows, line_of, read_rows


def row(step, kind="train", **more):
    """A row with what any kind needs."""
    common = {"rate": 0.1, "loss": 1.0, "losses": {"a": 1.0}, "grad_norm": 2.0, "metrics": {}}
    return {"kind": kind, "step": step, **common, "checkpoint": "c.pt", "hash": "0", **more}


def write(directory, rows, after_step=None):
    file = Rows(directory, after_step=after_step)
    for item in rows:
        file.write(item)
    file.close()


def steps(directory):
    return [(item["kind"], item["step"]) for item in read_rows(directory / "rows.jsonl")]


def test_rows_are_read_as_written_while_the_run_goes_on(tmp_path):
    file = Rows(tmp_path, after_step=None)
    for step in (1, 2):
        file.write(row(step))
        assert read_rows(tmp_path / "rows.jsonl")[-1] == row(step)
    file.close()


def test_rows_after_the_checkpoint_and_the_end_row_are_cut(tmp_path):
    write(tmp_path, [row(0, "start"), row(5), row(10), row(10, "eval", metrics={}), row(15), row(15, "end")])
    write(tmp_path, [row(11)], after_step=10)
    assert steps(tmp_path) == [("start", 0), ("train", 5), ("train", 10), ("eval", 10), ("train", 11)]


def test_the_end_row_of_the_same_step_is_cut_too(tmp_path):
    write(tmp_path, [row(5), row(5, "end")])
    write(tmp_path, [row(5, "end")], after_step=5)
    assert steps(tmp_path) == [("train", 5), ("end", 5)]


def test_a_run_that_starts_anew_has_no_old_rows(tmp_path):
    write(tmp_path, [row(5)])
    write(tmp_path, [row(0, "start")])
    assert steps(tmp_path) == [("start", 0)]


@pytest.mark.parametrize("torn", ['{"kind": "train", "st', '{"kind": "train", "step": 6}x', "{", '{"kind": "train"\n'])
def test_a_torn_last_row_is_left_out_and_written_over(tmp_path, torn):
    write(tmp_path, [row(5)])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(torn)
    assert steps(tmp_path) == [("train", 5)]
    write(tmp_path, [row(6)], after_step=5)
    assert [json.loads(line)["step"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [5, 6]


def test_a_line_in_the_middle_that_is_not_json_is_somebodys_edit(tmp_path):
    write(tmp_path, [row(5), row(6), row(7)])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], "oops", *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 2 is not JSON"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("kind", ["start", "train", "eval", "end"])
def test_a_row_read_and_written_again_is_the_same_line(tmp_path, kind):
    """So that the rows of a resumed run equal those of an uninterrupted one byte by byte; ours are in this order."""
    counted = {"images": 2, "instances": 3, "pixels": 4, "flops": 10**20}
    rest = {
        "start": {"source": "random", "path": None, "total": 8, "stop": 8, "device": "cpu", "precision": "fp32"},
        "train": {**counted, "rate": 0.1, "loss": 1.0, "losses": {"a": 1.0}, "grad_norm": None},
        "eval": {"split": "val", **counted, "metrics": {"box": {"AP": None}}, "per_class": {"box": {"a": {"AP": 0.5}}}},
        "end": {**counted, "checkpoint": "c.pt", "hash": "0", "memory": None},
    }[kind]
    write(tmp_path, [{"kind": kind, "step": 1, **rest, "seconds": {"train": 0.1}}])
    text = (tmp_path / "rows.jsonl").read_text()
    assert "".join(map(line_of, read_rows(tmp_path / "rows.jsonl"))) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "low"}, "line 2: loss = 'low': expected float"),
        ({"los": 1.0}, "line 2: 'los': unknown field, did you mean 'loss'"),
        ({"images": 1.5}, "line 2: images = 1.5: expected int"),
    ],
)
def test_a_row_with_a_wrong_field_is_named(tmp_path, change, message):
    write(tmp_path, [row(5), row(6, **change), row(7)])
    with pytest.raises(ValueError, match=rf"rows\.jsonl: {message}"):
        read_rows(tmp_path / "rows.jsonl")


def test_what_is_not_a_number_is_null_and_numpy_is_plain(tmp_path):
    values = {"ap": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": np.int64(3), "e": (1, math.inf), "f": {1: 2}}
    write(tmp_path, [row(1, patch=values)])
    text = (tmp_path / "rows.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_rows(tmp_path / "rows.jsonl")[0]["patch"] == {
        "ap": None, "b": None, "c": 0.5, "d": 3, "e": [1, None], "f": {"1": 2},
    }  # fmt: skip


def test_numpy_numbers_that_are_not_finite_are_null_too(tmp_path):
    write(tmp_path, [row(1, metrics={"box": {"a": np.float32("nan"), "b": np.float64("inf")}})])
    assert read_rows(tmp_path / "rows.jsonl")[0]["metrics"] == {"box": {"a": None, "b": None}}


def test_an_absent_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "rows.jsonl") == []


def test_names_with_markup_and_line_ends_stay_one_row(tmp_path):
    name = "<b>[red]a\nb\u2028c</b>"
    write(tmp_path, [row(1, per_class={"box": {name: {"AP": 0.5}}}), row(2)])
    assert read_rows(tmp_path / "rows.jsonl")[0]["per_class"]["box"] == {name: {"AP": 0.5}}
    assert steps(tmp_path) == [("train", 1), ("train", 2)]


def test_the_clock_counts_by_kind_and_goes_on_after_a_restart(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock({"train": 5.0, "eval": 1.0, "other": 0.0})
    for kind, seconds in (("train", 2.0), ("eval", 3.0), ("train", 4.0)):
        clock.switch(kind)
        now[0] += seconds
    assert clock.read() == {"train": 11.0, "eval": 4.0, "other": 0.0}
    now[0] += 1.5
    assert clock.read() == {"train": 12.5, "eval": 4.0, "other": 0.0}
