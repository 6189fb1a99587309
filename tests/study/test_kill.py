"""A study killed with SIGKILL at random moments, with its workers, ends as if nothing had happened."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from headstart.study.prepare import prepare
from headstart.study.run import run_study
from headstart.study.spec import parse_study
from headstart.training.pool import worker_pool
from tiny import outcome, tiny_study, tree_digest

NUM_KILLS = 6
SEED = 2


def short_study(data_root):
    """Both arms at 2x, with a checkpoint after every step, so that there is much to tear."""
    study = tiny_study(data_root, schedules=["2x"])
    study["set"]["checkpoint.every"] = study["pretrain"]["forms"]["set"]["checkpoint.every"] = "1 steps"
    return study


def work(study, out, jobs):
    """One attempt, in a process group of its own so that all of it can be killed at once."""
    os.setsid()
    run_study(prepare(parse_study(study, source="tiny")), out, jobs=jobs)


@pytest.fixture(scope="module")
def start():
    """Start an attempt, in a process that needs no import."""
    context = multiprocessing.get_context("forkserver")
    preloaded = ["headstart.study.run", "headstart.training.run", "torch._dynamo", "tiny", "pytest"]
    context.set_forkserver_preload(preloaded)

    def started(study, out, jobs=1):
        process = context.Process(target=work, args=(study, out, jobs))
        process.start()
        return process

    return started


def plan_and_wait(out):
    """What times a plan, with work that does not end by itself."""
    os.setsid()
    with worker_pool(2) as pool:
        for number in range(2):
            pool.submit(mark_and_sleep, out / str(number))


def mark_and_sleep(path):
    path.touch()
    time.sleep(600)


def evidence(directory):
    """Rows, weights, predictions, match records and the plan, without what only the clock decides."""
    files = tree_digest(directory)
    lasting = ("plan.json", "image_ids.txt", ".npz")
    kept = {name: value for name, value in files.items() if name.endswith(lasting) or "predictions-" in name}
    return outcome(directory), kept


def alive(group):
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def saved(out):
    """Checkpoints below a folder, with their times."""
    found = {}
    for path in out.glob("tiny/*/checkpoints/*.pt"):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:  # pruned while we look
            continue
    return found


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(data_root, tmp_path_factory):
    directory = run_study(prepare(parse_study(short_study(data_root), source="tiny")), tmp_path_factory.mktemp("study"))
    return evidence(directory)


@pytest.mark.slow
def test_killed_at_random_moments(start, undisturbed, data_root, tmp_path):
    study, moments, kills = short_study(data_root), random.Random(SEED), 0
    while True:
        before, process = saved(tmp_path), start(study, tmp_path)
        if kills < NUM_KILLS:  # some moment after the first checkpoint of this attempt, so that the study ends one day
            wait_for(lambda before=before, process=process: saved(tmp_path) != before or process.exitcode is not None)
            process.join(timeout=moments.uniform(0.0, 0.1))
        else:
            process.join()
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= 5
    assert evidence(tmp_path / "tiny") == undisturbed


@pytest.mark.slow
def test_workers_leave_with_a_killed_parent_and_the_next_attempt_goes_on(start, undisturbed, data_root, tmp_path):
    study = short_study(data_root)
    process = start(study, tmp_path, jobs=2)
    wait_for(lambda: saved(tmp_path) or process.exitcode is not None)
    workers = set(alive(process.pid)) - {process.pid}
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and workers
    wait_for(lambda: not alive(process.pid), seconds=10)
    again = start(study, tmp_path)
    again.join()
    assert again.exitcode == 0
    assert evidence(tmp_path / "tiny") == undisturbed


@pytest.mark.slow
def test_workers_that_time_a_plan_leave_with_a_killed_parent(tmp_path):
    """They have nothing to write, but hold half a gigabyte each."""
    process = multiprocessing.get_context("forkserver").Process(target=plan_and_wait, args=(tmp_path,))
    process.start()
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    assert len(alive(process.pid)) > 2
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not alive(process.pid), seconds=10)
