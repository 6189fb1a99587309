"""Two processes with half batches make what one process makes with the whole batch."""

import pickle

import pytest
import torch
import torch.multiprocessing as mp

from headstart.train import checkpoint
from headstart.train.record import read_rows
from headstart.train.run import train
from tiny import tiny_recipe

CHANGES = {"train__batch": 4, "train__log_every": 1, "train__base": "3 steps", "evaluate__every": "0 steps"}


def work(rank, recipe, out, port):
    """One of two processes, as torchrun would start it."""
    import os

    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    from headstart.train import distributed

    distributed.start_processes()
    try:
        result = train(pickle.loads(recipe), out)
        assert distributed.gather(rank) == [0, 1]
        assert distributed.mean(torch.tensor(float(rank))).item() == 0.5
        assert result.metrics["box"].keys() >= {"AP"}
    finally:
        distributed.stop_processes()


@pytest.fixture(scope="module")
def runs(data_root, tmp_path_factory):
    """Directories of the run of one process and of two."""
    import socket

    recipe, folder = tiny_recipe(data_root, **CHANGES), tmp_path_factory.mktemp("distributed")
    alone = train(recipe, folder / "alone").directory
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    mp.spawn(work, (pickle.dumps(recipe), folder / "both", port), nprocs=2)
    return alone, next((folder / "both").iterdir())


def test_losses_and_counters_are_those_of_one_process(runs):
    alone, both = ([row for row in read_rows(run / "rows.jsonl") if row["kind"] == "train"] for run in runs)
    assert [row["step"] for row in alone] == [row["step"] for row in both] == list(range(1, 7))
    for one, two in zip(alone, both):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
        assert [two[key] for key in ("images", "instances", "pixels")] == [
            one[key] for key in ("images", "instances", "pixels")
        ]


def test_weights_are_those_of_one_process(runs):
    assert runs[0].name == runs[1].name
    one, two = (checkpoint.load(checkpoint.path_of(run, 6))["model"] for run in runs)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=0, msg=name)


def test_metrics_and_predictions_are_gathered_from_both(runs):
    one, two = (read_rows(run / "rows.jsonl") for run in runs)
    assert [row["metrics"] for row in one if row["kind"] == "eval"] == [
        pytest.approx(row["metrics"]) if not isinstance(row["metrics"], dict) else row["metrics"]
        for row in two
        if row["kind"] == "eval"
    ]
    assert len([row for row in two if row["kind"] in ("start", "end")]) == 2  # one writer only
