"""Two processes equal one with both shares: norms over the joined batch, losses, gradients. On gloo."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from test_norm import CHANNELS, above, assert_same, features, randomised, run

from headstart.model.norm import norm
from headstart.ops.processes import mean_over_processes
from headstart.training.workers import run_processes
from small_detector import (
    HOURGLASS,
    assert_same_gradients,
    in_double,
    rows,
    small_batch,
    small_detector,
    with_keypoints,
)

SPLITS = {"even": (4, 3), "one sample": (6, 1), "empty": (7, 0), "empty first": (0, 7)}
KEEP = torch.tensor([1, 1, 0, 1, 1, 0, 1]).bool()  # which of the 7 samples are real, in the weighted cases


def detector():
    # Slots for all positives: what overflows is dropped a process at a time.
    slots = {"model__mask__slots": 64, "model__keypoint__slots": 64}
    return small_detector(model__norm="sync_batch", model__keypoint__enabled=True, **slots).double()


def corners():
    return small_detector(**HOURGLASS, model__norm="sync_batch").double()


def batches():
    """Four images; and the same where the second process has no object, so that its mask head sees no region."""
    full = in_double(with_keypoints(small_batch(4)))
    first = torch.arange(4).unsqueeze(1) < 2
    return {
        "full": full,
        "one without objects": replace(full, gt_valid=full.gt_valid & first, gt_crowd=full.gt_crowd & first),
    }


def step(model, batch):
    """Losses, gradients and running statistics of one training step."""
    losses = model(batch)
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()}, gradients, dict(model.named_buffers())


def _norms(rank):
    for name, split in SPLITS.items():
        for weighted in (False, True):
            x, gradient, keep = (value.split(split)[rank] for value in (features(), above(), KEEP))
            weight = keep.float() if weighted else None
            gradient = gradient * keep.view(-1, 1, 1, 1) if weighted else gradient
            yield (name, weighted), run(randomised(norm("sync_batch", CHANNELS)), x, gradient, weight)


def _worker(send, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    results = {
        "norms": dict(_norms(rank)),
        "steps": {name: step(detector(), rows(batch, [2 * rank, 2 * rank + 1])) for name, batch in batches().items()},
        "corners": {name: step(corners(), rows(batch, [2 * rank, 2 * rank + 1])) for name, batch in batches().items()},
        "mean": mean_over_processes(torch.tensor(5.0 if rank == 0 else 0.0)),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(2, _worker, (str(folder),), lambda *content: None, silence=60.0)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_statistics_are_those_of_the_joined_batch(parts, split, weighted):
    """Uneven and empty shares: outputs, gradients and running statistics."""
    first, second = (dict(part["norms"][split, weighted]) for part in parts)
    weight = KEEP.float() if weighted else torch.ones(7)
    wanted = run(randomised(norm("batch", CHANNELS)), features(), above() * weight.view(-1, 1, 1, 1), weight)
    for key in ("out", "x"):
        first[key] = torch.cat([first[key], second[key]])
    for key in ("weight", "bias"):  # each process has the gradient of its own loss; their sum is the whole
        first[key] = first[key] + second[key]
    assert torch.equal(first["running_mean"], second["running_mean"])
    assert_same(first, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("case", ["full", "one without objects"])
def test_losses_and_gradients_are_those_of_the_joined_batch(parts, case):
    """The mean over processes, which is what DDP takes, is the one process's value; in double precision."""
    (losses, gradients, buffers), (other_losses, other_gradients, other_buffers) = (
        part["steps"][case] for part in parts
    )
    wanted_losses, wanted_gradients, wanted_buffers = step(detector(), batches()[case])
    if case == "one without objects":
        assert other_losses["mask"] == other_losses["box_delta"] == other_losses["keypoints"] == 0
    for name, wanted in wanted_losses.items():
        assert wanted > 0
        torch.testing.assert_close((losses[name] + other_losses[name]) / 2, wanted, rtol=1e-12, atol=0)
    assert_same_gradients({name: (gradients[name] + other_gradients[name]) / 2 for name in gradients}, wanted_gradients)
    for name, wanted in wanted_buffers.items():
        assert torch.equal(buffers[name], other_buffers[name])
        torch.testing.assert_close(buffers[name], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["full", "one without objects"])
def test_losses_and_gradients_of_corners_are_those_of_the_joined_batch(parts, case):
    (losses, gradients, _), (other_losses, other_gradients, _) = (part["corners"][case] for part in parts)
    wanted_losses, wanted_gradients, _ = step(corners(), batches()[case])
    for name, wanted in wanted_losses.items():
        torch.testing.assert_close((losses[name] + other_losses[name]) / 2, wanted, rtol=1e-12, atol=0)
    assert_same_gradients({name: (gradients[name] + other_gradients[name]) / 2 for name in gradients}, wanted_gradients)


def test_counts_are_averaged(parts):
    assert parts[0]["mean"] == parts[1]["mean"] == 2.5
    assert mean_over_processes(torch.tensor(5.0)) == 5.0
