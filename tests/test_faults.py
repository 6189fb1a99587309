"""Failing disks, closed streams, missing homes, stopped processes: one line, and the same result afterwards."""

import errno
import os
import pickle
import pwd
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import Fault, Injector, Trial, finished
from kill import evidence
from matplotlib.figure import Figure
from safetensors.torch import save_file

import headstart
from cli_call import call
from headstart import cli
from headstart.cli.study_runs import say_verdict
from headstart.data.digests import cache_folder, file_states
from headstart.data.images import load_image
from headstart.files import write_whole
from headstart.metrics.predictions import Predictions
from headstart.report.plots import write_figures
from headstart.tasks import make_task
from headstart.training import workers
from headstart.training.pool import worker_pool
from headstart.training.run import train
from headstart.training.workers import run_processes
from headstart.weights.files import read_weights
from shares import lost, pause, share
from tiny import tiny_classifier, tiny_recipe, tiny_study, write_study

SOURCE = Path(headstart.__file__).parent.parent


@pytest.fixture(scope="module")
def trial(data_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("trial").resolve()
    (root / "study").mkdir()
    study = tiny_study(data_root, schedules=["2x"])
    for part in (study["set"], study["pretrain"]["forms"]["set"]):
        part["checkpoint.every"] = "2 steps"
    return Trial(root, write_study(root / "study" / "tiny.yaml", study), data_root)


@pytest.fixture(scope="module")
def undisturbed(trial):
    outcome = trial.run(trial.root / "undisturbed")
    assert outcome.is_silent
    return outcome.counts, evidence(trial.root / "undisturbed" / "tiny")


CHAIN = [
    Fault("open", 12, errno.EIO),
    Fault("rename", 2, errno.EIO),
    Fault("write", 12, errno.ENOSPC, lasting=True),
    Fault("read", 40, errno.EIO),
    Fault("fsync", 1, errno.EIO),
    Fault("rename", 9, errno.EIO),
    Fault("write", 25, errno.EIO),
    Fault("open", 92, errno.EACCES),
    Fault("write", 30, errno.ENOSPC, lasting=True),
    Fault("fsync", 4, errno.EIO),
    Fault("open", 126, errno.EMFILE),
    Fault("rename", 20, errno.ENOSPC),
]


@pytest.mark.slow
def test_a_chain_of_faults_ends_as_an_undisturbed_study(trial, undisturbed):
    """Each command is stopped by the next fault; between two of them the folder moves, beside a dead machine's lock."""
    out, kept = trial.root / "chain", {}
    for number, fault in enumerate(CHAIN):
        outcome = trial.run(out, fault)
        assert outcome.is_refused, (str(fault), outcome)
        found = finished(out)
        assert {name: found.get(name) for name in kept} == kept, str(fault)
        kept = found
        if number == 6:
            out = out.rename(trial.root / "moved to\nα β")
            (out / "tiny" / "lock").write_text("process 1 on a-machine-that-is-gone")
    assert trial.run(out).is_silent
    assert evidence(out / "tiny") == undisturbed[1]


def test_an_interrupted_rename_is_tried_again(tmp_path):
    injector = Injector([tmp_path], Fault("rename", 1, errno.EINTR))
    with injector.installed():
        write_whole(tmp_path / "a", "new")
    assert injector.counts["rename"] == 2 and (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("operation", ["open", "write", "rename"])
def test_an_error_while_writing_names_the_file_and_leaves_the_old_one(tmp_path, operation):
    write_whole(tmp_path / "a", "old")
    injector = Injector([tmp_path], Fault(operation, 1, errno.ENOSPC, lasting=True))
    with injector.installed(), pytest.raises(OSError) as caught:
        write_whole(tmp_path / "a", "new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    assert (tmp_path / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]


WRITERS = {
    "a.pt": lambda path: torch.save({"model": {"a": torch.ones(3)}}, path),
    "a.safetensors": lambda path: save_file({"a": torch.ones(3)}, path),
    "a.pkl": lambda path: path.write_bytes(pickle.dumps({"a": np.ones(3)})),
    "a.npy": lambda path: np.save(path, np.zeros((4, 4), np.uint8)),
    "a.json": lambda path: path.write_text("[]"),
    "report.json": lambda path: path.write_text(
        '{"title": "", "text": "", "saved_with_seconds": null, "next_with_seconds": [], "answers": []}'
    ),
}
READERS = {"a.npy": load_image, "a.json": Predictions.from_json, "report.json": say_verdict}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    """An error of each of its reads as the kernel gives it: without a name."""
    path, read, undisturbed = tmp_path / name, READERS.get(name, read_weights), Injector([tmp_path], None)
    WRITERS[name](path)
    with undisturbed.installed():
        read(path)
    for number in range(1, undisturbed.counts["read"] + 1):
        injector = Injector([tmp_path], Fault("read", number, errno.EIO))
        with injector.installed(), pytest.raises((OSError, ValueError)) as caught:
            read(path)
        assert getattr(caught.value, "filename", None) == str(path) or str(caught.value).startswith(f"{path}: ")
    assert undisturbed.counts["read"]


def test_records_of_a_classifier_that_cannot_be_written_are_named_and_leave_the_old_ones(data_root, tmp_path):
    found, path = make_task(tiny_classifier(data_root)).evaluate(torch.device("cpu")), tmp_path / "records-class-4.npz"
    write_whole(path, "old")
    injector = Injector([tmp_path], Fault("write", 2, errno.EIO))
    with injector.installed(), pytest.raises(OSError) as caught:
        found.save(tmp_path, 4)
    assert caught.value.filename == str(path) and path.read_text() == "old"


def test_a_figure_that_cannot_be_written_is_named_and_leaves_the_old_one(tmp_path):
    write_whole(tmp_path / "a.svg", "old")
    injector = Injector([tmp_path], Fault("write", 1, errno.ENOSPC, lasting=True))
    with injector.installed(), pytest.raises(OSError) as caught:
        write_figures({"a": Figure}, tmp_path)
    assert caught.value.filename == str(tmp_path / "a.svg") and (tmp_path / "a.svg").read_text() == "old"


IN_A_CONTAINER = """
import pwd, resource
def no_account(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = no_account
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from headstart.study import timing
import faults
timing.measure_apart = faults.given_loads
from headstart.cli import main
main()
"""


@pytest.mark.slow
def test_a_bare_container_makes_no_difference(trial, undisturbed, tmp_path):
    """No home, account, cache, stdin or stdout, 64 open files, LC_ALL=C, and a folder that needs quoting."""
    out = tmp_path / "données 2\nγ"
    bare = {"LC_ALL": "C", "PATH": os.defpath, "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path])}
    bare |= {"XDG_CACHE_HOME": os.devnull, "OMP_NUM_THREADS": "1"}
    limits = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # other kernels round differently
    bare |= {name: os.environ[name] for name in limits if name in os.environ}
    command = ["study", "run", str(trial.study), "--out", str(out), "--jobs", "1"]
    shell = ["sh", "-c", 'exec "$0" "$@" <&- >&-', sys.executable, "-c", IN_A_CONTAINER, *command]
    ended = subprocess.run(shell, env=bare, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert evidence(out / "tiny") == undisturbed[1]


def headstart_in_shell(redirected, *command):
    """A command of headstart with its streams redirected by a shell."""
    shell = ["sh", "-c", f'exec "$0" "$@" {redirected}', sys.executable, "-m", "headstart", *command]
    return subprocess.run(
        shell,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("kib", [150_000, 400_000])
def test_a_limit_of_memory_is_one_line(tmp_path, kib):
    """Of address space: too small for the first libraries, and for torch's."""
    shell = ["sh", "-c", f'ulimit -v {kib} && exec "$0" "$@"', sys.executable, "-m", "headstart"]
    bare = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*shell, "study", "run", "demo", "--out", str(tmp_path)], env=bare, capture_output=True)
    assert ended.returncode == 1 and list(tmp_path.iterdir()) == []
    assert ended.stderr.startswith(b"headstart: memory: ") and ended.stderr.count(b"\n") == 1


def test_a_full_output_is_one_line():
    ended = headstart_in_shell(">/dev/full", "recipe", "list")
    assert ended.returncode == 1
    assert ended.stderr == "headstart: standard output: No space left on device\n"


def test_closed_streams_are_no_error_and_no_file_takes_their_place(tmp_path):
    ended = headstart_in_shell("<&- >&-", "recipe", "list")
    assert (ended.returncode, ended.stderr) == (0, "")
    code = (
        "import os\n"
        "from headstart.cli.console import open_streams\n"
        "open_streams()\n"
        f"assert os.open({str(tmp_path / 'new')!r}, os.O_CREAT | os.O_WRONLY) > 2\n"
    )
    shell = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", code]
    assert subprocess.run(shell, env={**os.environ, "PYTHONPATH": str(SOURCE)}).returncode == 0


def test_a_dangling_link_as_out_is_named(monkeypatch, capsys, trial, tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    answer = call(monkeypatch, capsys, "study", "run", trial.study, "--out", tmp_path / "runs", "--jobs", "1")
    gone = tmp_path / "gone"
    assert (answer.code, answer.err) == (
        1,
        f"headstart: {tmp_path / 'runs'}: File exists: a link to {gone}, which is not there\n",
    )
    assert not gone.exists()


def test_without_a_home_nothing_is_cached(monkeypatch, tmp_path):
    def no_account(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_account)
    (tmp_path / "a").write_bytes(b"1")
    assert len(file_states(tmp_path, ("a", "b"))) == 2
    assert not cache_folder().exists()


def test_an_image_that_cannot_be_read_is_not_absent(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="a: is a folder: expected a regular file"):
        file_states(tmp_path, ("a",))


class BrokenThread(RuntimeError):
    """Not an error of the system."""


def torch_without_memory():
    torch.empty(2**60)


def python_without_memory():
    bytearray(2**60)


def onednn_without_memory():
    raise RuntimeError("could not execute a primitive")


def loader_without_memory():
    """As NumPy reports a library that the loader cannot map: with advice around the one line that matters."""
    cause = ImportError("libscipy_openblas.so: failed to map segment from shared object")
    raise ImportError("\n\nIMPORTANT: PLEASE READ THIS\n") from cause


def thread_without_disk():
    """As TensorBoard's writer has it: the error is raised in its thread and then in the main one."""
    error = OSError(errno.EIO, os.strerror(errno.EIO), "events")

    def write():
        raise error

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    raise error


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (torch_without_memory, "headstart: memory: "),
        (onednn_without_memory, "headstart: memory: could not execute a primitive\n"),
        (python_without_memory, "headstart: memory: the system gives no more\n"),
        (loader_without_memory, "headstart: memory: libscipy_openblas.so: failed to map segment from shared object\n"),
        (thread_without_disk, "headstart: events: Input/output error\n"),
    ],
)
def test_errors_of_the_system_are_one_line(monkeypatch, capsys, command, line):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(cli, "app", command)
    answer = call(monkeypatch, capsys)
    assert answer.code == 1 and answer.err.startswith(line) and answer.err.count("\n") == 1


def test_an_error_of_headstart_itself_is_not_hidden(monkeypatch, capsys):
    def broken():
        raise RuntimeError("a bug")

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        call(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        ("killed", ChildProcessError, r"^process 2 of 3 was killed \(SIGKILL\); the others were stopped$"),
        ("full", OSError, r"^\[Errno 28\] No space left on device: 'rows\.jsonl'$"),
        ("stopped", ChildProcessError, r"^process 2 of 3 has given no sign of life for \d+ s; all were stopped$"),
    ],
)
def test_one_of_three_processes_that_dies_or_stops_ends_all(ending, kind, message):
    since = time.monotonic()
    with pytest.raises(kind, match=message):
        run_processes(3, share, (ending,), lambda *content: None, silence=3.0)
    assert time.monotonic() - since < 60


def test_a_process_that_stopped_explains_the_error_of_its_peer(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "BEAT", 0.2)  # here; ten of these are still more than one of the processes' own
    with pytest.raises(ChildProcessError, match=r"^process 1 of 2 has given no sign of life for \d+ s; all were"):
        run_processes(2, lost, (tmp_path / "stopped", 4.0), lambda *content: None, silence=60.0)


def test_a_process_may_pause():
    """Stopped for longer than it may be silent but continued by then, as by a debugger or a batch system."""

    def hear(kind, number):
        os.kill(number, signal.SIGSTOP)
        threading.Timer(1.5, os.kill, (number, signal.SIGCONT)).start()

    assert run_processes(2, pause, (2.0,), hear, silence=5.0) == "0"


def nan_on_one(send, recipe, out):
    """One of two processes, of which the second has a NaN in its loss at the second step."""
    from dataclasses import replace

    from headstart.ops import processes as distributed

    module = sys.modules["headstart.training.run"]
    honest = module.make_task

    def poisoned(*given):
        task, calls = honest(*given), []

        def losses(model, batch):
            calls.append(1)
            bad = distributed.rank() == 1 and len(calls) == 2
            return {name: value * (float("nan") if bad else 1.0) for name, value in task.losses(model, batch).items()}

        return replace(task, losses=losses)

    module.make_task = poisoned
    distributed.start_processes(recipe.device)
    train(recipe, out)


@pytest.mark.slow
def test_a_nan_on_one_of_two_processes_stops_both(data_root, tmp_path):
    recipe = tiny_recipe(data_root, processes=2, train__batch=4, checkpoint__every="1 steps")
    with pytest.raises(
        FloatingPointError, match=r"^step 1: the loss is not finite .* on images \d+, \d+, images \d+, "
    ):
        run_processes(2, nan_on_one, (recipe, tmp_path), lambda *content: None, silence=60.0)
    assert [path.stem for path in tmp_path.glob("*/checkpoints/*")] == ["00000001"]


@pytest.mark.slow
def test_a_worker_of_a_pool_that_is_stopped_ends_all():
    with (
        pytest.raises(
            ChildProcessError, match=r"^one of 2 worker processes \(number \d+ of .*\) has given no sign of "
        ),
        worker_pool(2, silence=3.0) as pool,
    ):
        pool.submit(signal.raise_signal, signal.SIGSTOP).result()


@pytest.mark.slow
def test_an_error_ends_a_worker_that_is_stopped():
    with pytest.raises(ValueError, match="another segment"), worker_pool(1) as pool:
        pool.submit(os.getpid).result()
        pool.submit(signal.raise_signal, signal.SIGSTOP)
        time.sleep(1.0)  # it is at work by then
        raise ValueError("another segment")


@pytest.mark.slow
def test_a_warning_of_a_worker_is_given_by_its_parent():
    with pytest.warns(UserWarning, match=r"^a checkpoint is torn$"), worker_pool(1) as pool:
        pool.submit(warnings.warn, "a checkpoint is torn").result()


def test_a_warning_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(cli, "app", lambda: warnings.warn("a checkpoint\nis torn \x1b[2J", stacklevel=1))
    answer = call(monkeypatch, capsys)
    assert (answer.code, answer.err) == (0, "headstart: warning: a checkpoint is torn \\x1b[2J\n")


@pytest.mark.slow
def test_a_worker_of_a_pool_that_is_killed_is_one_line():
    with (
        pytest.raises(ChildProcessError, match=r"^one of 2 worker processes was killed, by hand or where memory"),
        worker_pool(2) as pool,
    ):
        pool.submit(signal.raise_signal, signal.SIGKILL).result()
