"""Make one file operation of a small study fail, run the same command again, and compare it with an undisturbed one.

python benchmarks/faults.py [--minutes M] [--json FILE]   (10 minutes without arguments: then an evenly spaced sample of
the operations; `--minutes 0` for every one, hours)

Faults: the n-th open, read, write, fsync or rename below the study's folder, data and cache fails with EIO, or, of
writes, this and all later ones with ENOSPC, as a full disk has it; a rename also with EINTR, after which it must be
tried again. Python itself repeats the other calls that a signal interrupts (PEP 475).

Exit code 1 unless each faulty command ends with one line and an exit code other than 0, or does no harm, loses nothing
finished, and the command after it ends with the same weights, rows, plan and report.
"""

import argparse
import builtins
import errno
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kill import evidence
from record import ROOT, keep

from headstart.training.rows import end_row, read_rows

OPERATIONS = ("open", "read", "write", "fsync", "rename")
PRELOADED = (
    "headstart.cli",
    "headstart.report.build",
    "headstart.study.run",
    "headstart.study.timing",
    "torch._dynamo",  # which the first optimizer imports
)
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
        size = io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering
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
    """Main function of a process: run a headstart command under a fault, its streams and counts kept in files.

    No plan is timed: what a step takes on this machine is given, so that the process starts no others.
    """
    from headstart.cli import main
    from headstart.study import timing

    for stream, path in ((1, counted.with_suffix(".out")), (2, said)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ["XDG_CACHE_HOME"] = str(said.with_name("cache"))
    timing.measure_apart = given_loads
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
    """Commands on one study, each in a process of its own that is forked with everything imported."""

    def __init__(self, root: Path, study: Path, data: Path):
        self.root, self.study, self.data = root, study, data
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))

    def run(self, out: Path, fault: Fault | None = None) -> Outcome:
        """Run the study into `out`."""
        out.mkdir(parents=True, exist_ok=True)
        said, counted = self.root / "said", self.root / "counted"
        command = ["study", "run", str(self.study), "--out", str(out), "--jobs", "1"]
        folders = (out, self.study.parent, self.data, self.root / "cache")
        process = self.context.Process(target=attempt, args=(command, folders, fault, said, counted))
        process.start()
        process.join()
        counts = {name: int(count) for name, count in map(str.split, counted.read_text(encoding="utf-8").splitlines())}
        return Outcome(process.exitcode, tuple(said.read_text(encoding="utf-8", errors="replace").splitlines()), counts)


def finished(out: Path) -> dict[str, bytes]:
    """Rows of the finished runs below a folder, by path."""
    rows = sorted(out.glob("*/*/rows.jsonl"))
    return {str(path.relative_to(out)): path.read_bytes() for path in rows if end_row(read_rows(path))}


def sample(counts: dict[str, int], share: float) -> list[Fault]:
    """Every fault of a study with so many operations, or an evenly spaced share of those of each kind."""
    faults = []
    for operation in OPERATIONS:
        for error, lasting in errors_of(operation):
            total = counts.get(operation, 0)
            number = max(1, min(total, round(total * share)))
            chosen = sorted({1 + k * (total - 1) // max(1, number - 1) for k in range(number)}) if total else []
            faults += [Fault(operation, n, error, lasting) for n in chosen]
    return faults


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


def main(minutes: float, path: Path | None) -> int:
    """Print a table of faults by operation and error, with those that went wrong."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        study = root / "study" / "tiny.yaml"
        study.parent.mkdir()
        data = tiny.write_data(root / "data")
        trial = Trial(root, tiny.write_study(study, tiny.tiny_study(data, schedules=["2x"])), data)
        trial.run(root / "first")  # pays for the imports
        since = time.monotonic()
        whole = trial.run(root / "undisturbed")
        if whole.code != 0:
            raise SystemExit(f"the undisturbed study failed: {whole.lines}")
        cost = 2 * (time.monotonic() - since)  # a fault costs two commands, the first of which is short
        expected = evidence(root / "undisturbed" / "tiny")
        every = sample(whole.counts, 1.0)
        faults = sample(whole.counts, 60 * minutes / (cost * len(every))) if minutes else every
        print(f"operations: {whole.counts}; {len(faults)} of {len(every)} faults", flush=True)
        wrong: dict[str, list[str]] = {}
        for fault in faults:
            reason = try_fault(trial, root / "out", fault, expected)
            kind = f"{fault.operation} {errno.errorcode[fault.error]}"
            wrong.setdefault(kind, [])
            if reason:
                wrong[kind].append(f"{fault}: {reason}")
                print(wrong[kind][-1], flush=True)
    tried = Counter(f"{fault.operation} {errno.errorcode[fault.error]}" for fault in faults)
    print(f"{'fault':16}{'tried':>8}{'wrong':>8}")
    for kind, count in tried.items():
        print(f"{kind:16}{count:8}{len(wrong[kind]):8}")
    figures = {"operations": whole.counts, "tried": tried, "wrong": wrong, "seconds": round(time.monotonic() - since)}
    keep(path, figures)
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.exit(main(given.minutes, given.json))
