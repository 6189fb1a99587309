"""Make one file operation of a small study fail, run the same command again, and compare it with an undisturbed one.

python benchmarks/faults.py [--minutes M] [--lanes N] [--json FILE]   (every operation without `--minutes`; with it as
many as fit, evenly spaced over the study)

Faults: the n-th open, read, write, fsync or rename below the study's folder, data and cache fails with EIO, or, of
writes, this and all later ones with ENOSPC, as a full disk has it; a rename also with EINTR, after which it must be
tried again. Python itself repeats the other calls that a signal interrupts (PEP 475).

The study is as small as it can be with every kind of file: a pre-training, a trunk with two checkpoints, and a tail
with boxes and masks, on three images, and one figure in the report. Files are buffered in blocks of 1 MiB, so that a
checkpoint is a few operations, not dozens. Commands are forked from a process that has run such a study once.

Exit code 1 unless each faulty command ends with one line and an exit code other than 0, or does no harm, loses nothing
finished, and the command after it ends with the same weights, rows, plan and report.
"""

import argparse
import builtins
import errno
import gc
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kill import evidence
from record import ROOT, keep

from headstart.training.rows import end_row, read_rows

OPERATIONS = ("open", "read", "write", "fsync", "rename")
BLOCK = 1 << 20  # bytes between two operations on a file
LEFT_OUT = "tensorboard"  # in the path: its writer is a thread, so that no run has the same n-th operation


@dataclass(frozen=True)
class Fault:
    """The operation that fails: its kind, its number from 1 on, the error, and whether all later ones fail too."""

    operation: str
    number: int
    error: int
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.operation} {self.number} {errno.errorcode[self.error]}{' and later' * self.lasting}"


def errors_of(operation: str) -> tuple[tuple[int, bool], ...]:
    """(error, lasting) that an operation is made to fail with."""
    more = {"write": ((errno.ENOSPC, True),), "rename": ((errno.EINTR, False),)}
    return ((errno.EIO, False), *more.get(operation, ()))


class Injector:
    """Counts the file operations of this process below some folders, and lets one of them fail."""

    def __init__(self, folders: Sequence[Path], fault: Fault | None):
        self.folders = tuple(f"{folder}{os.sep}" for folder in folders)
        self.fault, self.counts = fault, Counter()
        self.open, self.replace, self.fsync = builtins.open, os.replace, os.fsync

    def watches(self, path: Any) -> bool:
        """True for a file whose operations count."""
        return (
            isinstance(path, str | os.PathLike)
            and str(path).startswith(self.folders)
            and LEFT_OUT not in str(path)
            and threading.current_thread() is threading.main_thread()
        )

    def meet(self, operation: str, *names: Any) -> None:
        """Count an operation; OSError where it is the one that fails."""
        self.counts[operation] += 1
        number, fault = self.counts[operation], self.fault
        if fault is None or fault.operation != operation:
            return
        if number == fault.number or (fault.lasting and number > fault.number):
            raise OSError(fault.error, os.strerror(fault.error), *names)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the counting functions in the places of Python's own."""
        try:
            builtins.open = io.open = self._open
            os.replace, os.fsync = self._replace, self._fsync
            yield
        finally:
            builtins.open = io.open = self.open
            os.replace, os.fsync = self.replace, self.fsync

    def _open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not self.watches(file):
            return self.open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.meet("open", str(file))
        raw = _raw_file(self, os.fspath(file), mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = BLOCK if buffering < 2 else buffering
        kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        buffered = kind(raw, size)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode
        return text

    def _replace(self, source, target, **options):
        if self.watches(target):
            self.meet("rename", str(source), None, str(target))
        self.replace(source, target, **options)

    def _fsync(self, file):
        self.meet("fsync")
        self.fsync(file)


def _raw_file(injector: Injector, *given: Any) -> io.FileIO:
    class Raw(io.FileIO):
        def write(self, data):
            injector.meet("write")
            return super().write(data)

        def read(self, size=-1):
            injector.meet("read")
            return super().read(size)

        def readinto(self, buffer):
            injector.meet("read")
            return super().readinto(buffer)

        def readall(self):
            injector.meet("read")
            return super().readall()

    return Raw(*given)


def attempt(command: Sequence[str], folders: Sequence[Path], fault: Fault | None, said: Path, counted: Path) -> None:
    """Run a headstart command under a fault in a process of its own, its streams and counts kept in files.

    No plan is timed: what a step takes on this machine is given, so that the process starts no others. All figures are
    written alike, so that one is enough.
    """
    from headstart.cli import main
    from headstart.report import build
    from headstart.study import timing

    for stream, path in ((1, counted.with_suffix(".out")), (2, said)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ["XDG_CACHE_HOME"] = str(said.with_name("cache"))
    timing.measure_apart = given_loads
    build.write_figures = first_figure
    sys.argv = ["headstart", *command]
    injector = Injector(folders, fault)
    try:
        with injector.installed():
            main()
    finally:
        counted.write_text("".join(f"{name} {count}\n" for name, count in injector.counts.items()), encoding="utf-8")


def given_loads(prepared: Any, jobs: int) -> dict[str, Any]:
    """Loads in place of `timing.measure_apart`: nothing is timed."""
    from headstart.study.forecast import Load

    costs = {"seconds_per_step": 0.01, "seconds_per_eval_image": 0.01, "seconds_to_start": 0.1, "num_eval_images": 3}
    more = {"num_images": {**prepared.num_images, 1.0: 8}, "batch": 2, "eval_every": 4, "variants": 0.0}
    return {name: Load(**costs, **more) for name in prepared.plan_arms()}


def first_figure(figures: Mapping[str, Any], directory: Path) -> None:
    """Write one of a report's figures, as `plots.write_figures` writes all."""
    from headstart.report.plots import write_figures

    write_figures(dict(list(figures.items())[:1]), directory)


@dataclass(frozen=True)
class Outcome:
    """Exit code, lines on the error stream, and counts of operations of a command."""

    code: int
    lines: tuple[str, ...]
    counts: dict[str, int]

    @property
    def is_refused(self) -> bool:
        """True for a command that ended with one line that names a file, and an exit code other than 0."""
        return self.code > 0 and len(self.lines) == 1 and self.lines[0].startswith(f"headstart: {os.sep}")

    @property
    def is_silent(self) -> bool:
        """True for a command that succeeded and had nothing to say: the fault did no harm, as to a cache."""
        return self.code == 0 and not self.lines


class Trial:
    """Commands on one study, each in a process of its own, forked from one that has run it once.

    All but that process's own folder is at its first run as if nothing had run.
    """

    def __init__(self, root: Path, study: Path, data: Path):
        self.root, self.study = root, study
        context = multiprocessing.get_context("spawn")  # a clean process: pytest's has threads
        self.pipe, theirs = context.Pipe()
        warm = (["study", "run", str(study), "--out", str(root / "warm"), "--jobs", "1"], root / "warm")
        folders = (study.parent, data, root / "cache")
        context.Process(target=serve, args=(theirs, root, folders, warm), daemon=True).start()
        theirs.close()

    def run(self, out: Path, fault: Fault | None = None) -> Outcome:
        """Run the study into `out`."""
        out.mkdir(parents=True, exist_ok=True)
        self.pipe.send((["study", "run", str(self.study), "--out", str(out), "--jobs", "1"], out, fault))
        code = self.pipe.recv()
        counted = (self.root / "counted").read_text(encoding="utf-8").splitlines()
        counts = {name: int(count) for name, count in map(str.split, counted)}
        said = (self.root / "said").read_text(encoding="utf-8", errors="replace")
        return Outcome(code, tuple(said.splitlines()), counts)


def serve(pipe: Connection, root: Path, folders: Sequence[Path], warm: tuple[list[str], Path]) -> None:
    """Main function of a process: run a command here for what it imports and compiles, then fork for each request."""
    said, counted, code = root / "said", root / "counted", 0
    streams = [os.dup(stream) for stream in (1, 2)]
    warm[1].mkdir()
    try:
        attempt(warm[0], (warm[1],), None, said, counted)
    except SystemExit as stop:
        code = stop.code
    finally:
        for stream, copy in zip((1, 2), streams):
            os.dup2(copy, stream)
    assert not code, said.read_text(encoding="utf-8")
    shutil.rmtree(warm[1])
    shutil.rmtree(root / "cache")
    gc.freeze()  # else each child's first collection copies all that it shares
    while True:
        command, out, fault = pipe.recv()  # EOFError at the end, when the parent has gone
        child = os.fork()
        if child == 0:
            code = 0
            try:
                attempt(command, (out, *folders), fault, said, counted)
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)
        pipe.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def finished(out: Path) -> dict[str, bytes]:
    """Rows of the finished runs below a folder, by path."""
    rows = sorted(out.glob("*/*/rows.jsonl"))
    return {str(path.relative_to(out)): path.read_bytes() for path in rows if end_row(read_rows(path))}


def faults_of(counts: Mapping[str, int]) -> list[Fault]:
    """Every fault of a study with so many operations, in an order of which each beginning is spread evenly."""
    faults = [
        Fault(operation, number, error, lasting)
        for operation in OPERATIONS
        for error, lasting in errors_of(operation)
        for number in range(1, counts.get(operation, 0) + 1)
    ]
    digits = len(f"{len(faults):b}")
    reversed_bits = sorted(range(1 << digits), key=lambda place: f"{place:0{digits}b}"[::-1])  # van der Corput's
    return [faults[place] for place in reversed_bits if place < len(faults)]


def try_fault(trial: Trial, out: Path, fault: Fault, expected: dict[str, object]) -> str:
    """Run a study under a fault, then without; "" if all is right, else the first thing that is wrong."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(trial.root / "cache", ignore_errors=True)
    first = trial.run(out, fault)
    if not (first.is_refused or first.is_silent):
        return f"exit code {first.code}, {len(first.lines)} lines: {first.lines[-1] if first.lines else ''}"
    before = finished(out)
    again = trial.run(out)
    if again.code != 0:
        return f"the next command: exit code {again.code}: {again.lines[-1] if again.lines else ''}"
    after = finished(out)
    if any(after.get(name) != rows for name, rows in before.items()):
        return "a finished run was lost"
    found = evidence(next(out.glob("*/plan.json")).parent)
    odd = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    return f"different: {', '.join(odd)}" if odd else ""


def write_inputs(root: Path) -> tuple[Path, Path]:
    """A study file and its data in a folder."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny
    from headstart.data.shapes.write import generate, generate_classes

    data, file = root / "data", root / "study" / "tiny.yaml"
    generate(data / "scenes", 2, 1, 0, tiny.SIDE, processes=1)
    generate_classes(data / "classes", 2, 2, 0, 32, num_classes=2, processes=1)
    own = {"train.base": "2 steps", "train.warmup": "1 steps", "train.log_every": 2, "train.batch": 1}
    own |= {"train.reference_batch": 1, "evaluate.every": "4 steps", "checkpoint.every": "3 steps"}
    study = tiny.tiny_study(data, schedules=["2x"])
    del study["arms"]["scratch"]
    study["set"] |= own
    study["pretrain"]["forms"]["set"]["checkpoint.every"] = "4 steps"
    file.parent.mkdir()
    return tiny.write_study(file, study), data


class Lane:
    """One trial after another in a folder of its own, with the undisturbed study beside it."""

    def __init__(self, root: Path):
        root.mkdir()
        self.trial = Trial(root, *write_inputs(root))
        self.out = root / "out"
        self.whole = self.trial.run(root / "undisturbed")
        if self.whole.code != 0:
            raise SystemExit(f"the undisturbed study failed: {self.whole.lines}")
        self.expected = evidence(root / "undisturbed" / "tiny")

    def work(self, faults: Iterator[Fault], until: float, found: list[tuple[Fault, str]]) -> None:
        """Take faults until there are none, or the time is over; what was wrong goes to `found`."""
        for fault in faults:
            reason = try_fault(self.trial, self.out, fault, self.expected)
            found.append((fault, reason))
            if reason:
                print(f"{fault}: {reason}", flush=True)
            if len(found) % 100 == 0:
                print(f"{len(found)} tried", flush=True)
            if time.monotonic() > until:
                return


class Turns:
    """An iterator that several threads may take from."""

    def __init__(self, values: Sequence[Fault]):
        self.values, self.turn = iter(values), threading.Lock()

    def __iter__(self) -> Iterator[Fault]:
        return self

    def __next__(self) -> Fault:
        with self.turn:
            return next(self.values)


def main(minutes: float | None, lanes: int, path: Path | None) -> int:
    """Print a table of faults by operation and error, with those that went wrong."""
    since = time.monotonic()
    until = float("inf") if minutes is None else since + 60 * minutes
    found: list[tuple[Fault, str]] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(lanes) as pool:
        places = [Path(folder).resolve() / str(number) for number in range(lanes)]
        made = list(pool.map(Lane, places))
        counts = made[0].whole.counts
        assert all(lane.whole.counts == counts for lane in made), "two undisturbed studies differ"
        every = faults_of(counts)
        print(f"operations: {counts}; {len(every)} faults", flush=True)
        turns = Turns(every)
        for task in [pool.submit(lane.work, turns, until, found) for lane in made]:
            task.result()
    tried, wrong = Counter(map(kind_of, (fault for fault, _ in found))), {}
    for fault, reason in found:
        wrong.setdefault(kind_of(fault), [])
        wrong[kind_of(fault)] += [f"{fault}: {reason}"] if reason else []
    print(f"{'fault':16}{'tried':>8}{'of':>8}{'wrong':>8}")
    totals = Counter(map(kind_of, every))
    for kind, total in totals.items():
        print(f"{kind:16}{tried[kind]:8}{total:8}{len(wrong.get(kind, ())):8}")
    figures = {"operations": counts, "faults": totals, "tried": tried, "wrong": wrong}
    keep(path, figures | {"seconds": round(time.monotonic() - since)})
    return 1 if any(wrong.values()) else 0


def kind_of(fault: Fault) -> str:
    """Operation and error."""
    return f"{fault.operation} {errno.errorcode[fault.error]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.exit(main(given.minutes, given.lanes, given.json))
