"""Make each file operation of a small study fail once, run the same command again, and compare with an undisturbed one.

python benchmarks/faults.py [--minutes M] [--lanes N] [--json FILE]   (every operation without `--minutes`)

Faults: an open, read, write, fsync or rename below the study's folder, data and cache fails with EIO, or, of writes,
this and all later ones with ENOSPC, as a full disk has it; a rename also with EINTR, after which it must be tried
again. Python itself repeats the other calls that a signal interrupts (PEP 475).

An operation is told by its kind, its file, and its number among those of this kind on that file in one command. A
command fails at the first one that has not failed yet; the next one continues from there and fails at the next. After
every tenth fault a copy of the folder is finished without faults and compared. All is over when a study from an empty
folder meets no operation that has not failed. Lanes work in parallel, each on its share of the operations.

The study is as small as it can be with every kind of file: a pre-training, a trunk with two checkpoints, and a tail
with boxes and masks, on three images, and one figure in the report. Files are buffered in blocks of 1 MiB, so that a
checkpoint is a few operations, not dozens. Commands are forked from a process that has run such a study once.

Exit code 1 unless each faulty command ends with one line and an exit code other than 0, or does no harm, loses nothing
finished, and the study then ends with the same weights, rows, plan and report.
"""

import argparse
import builtins
import errno
import gc
import io
import os
import pickle
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from zlib import crc32

from kill import evidence
from record import ROOT, keep

from headstart.training.rows import end_row, read_rows
from headstart.training.workers import forking

OPERATIONS = ("open", "read", "write", "fsync", "rename")
BLOCK = 1 << 20  # bytes between two operations on a file
_PARTS = re.compile(r"\.(?=[^/]*\.[0-9a-f]{8}\.part\Z)|\.[0-9a-f]{8}\.part\Z")  # of a temporary name
GROUP = 10  # faults between two comparisons


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


@dataclass(frozen=True)
class Key:
    """An operation and its error: the kind, the file, the number of it on that file in one command, the errno."""

    operation: str
    file: str
    number: int
    error: int

    @property
    def kind(self) -> str:
        """Operation and error."""
        return f"{self.operation} {errno.errorcode[self.error]}"

    def lane(self, lanes: int) -> int:
        """The lane that tries it."""
        return crc32(repr(self).encode()) % lanes


class Injector:
    """Counts the file operations of this process below some folders, and lets one of them fail.

    With `tried` it is the first of the share whose key is not in there, which goes to `met`; after EINTR, which does
    not end a command, so do others.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        fault: Fault | None,
        tried: Collection[Key] | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.folders = tuple(f"{folder}{os.sep}" for folder in folders)
        self.fault, self.counts = fault, Counter()
        self.tried, self.share, self.met, self.by_file = tried, share, [], Counter()
        self.open, self.replace, self.fsync = builtins.open, os.replace, os.fsync

    def watches(self, path: Any) -> bool:
        """True for a file whose operations count."""
        return (
            isinstance(path, str | os.PathLike)
            and str(path).startswith(self.folders)
            and threading.current_thread() is threading.main_thread()
        )

    def meet(self, operation: str, path: str, *names: Any) -> None:
        """Count an operation; OSError where it is the one that fails."""
        self.counts[operation] += 1
        number, fault = self.counts[operation], self.fault
        if self.tried is not None:
            fault = self._untried(operation, path)
        if fault is None or fault.operation != operation:
            return
        if number == fault.number or (fault.lasting and number > fault.number):
            raise OSError(fault.error, os.strerror(fault.error), *names)

    def _untried(self, operation: str, path: str) -> Fault | None:
        """The fault of an operation that has not failed yet, or the one that was met before and may last."""
        file = next(_PARTS.sub("", path.removeprefix(folder)) for folder in (*self.folders, "") if folder in path)
        self.by_file[operation, file] += 1
        if any(key.error != errno.EINTR for key in self.met):
            return self.fault
        for error, lasting in errors_of(operation):
            key = Key(operation, file, self.by_file[operation, file], error)
            if key not in self.tried and key not in self.met and key.lane(self.share[1]) == self.share[0]:
                self.met.append(key)
                if error == errno.EINTR:
                    self.by_file[operation, file] -= 1  # it is tried again
                self.fault = Fault(operation, self.counts[operation], error, lasting)
                return self.fault
        return None

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
        self.meet("open", str(file), str(file))
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
            self.meet("rename", str(target), str(source), None, str(target))
        self.replace(source, target, **options)

    def _fsync(self, file):
        self.meet("fsync", os.readlink(f"/proc/self/fd/{file}"))
        self.fsync(file)


def _raw_file(injector: Injector, *given: Any) -> io.FileIO:
    class Raw(io.FileIO):
        def write(self, data):
            injector.meet("write", self.name)
            return super().write(data)

        def read(self, size=-1):
            injector.meet("read", self.name)
            return super().read(size)

        def readinto(self, buffer):
            injector.meet("read", self.name)
            return super().readinto(buffer)

        def readall(self):
            injector.meet("read", self.name)
            return super().readall()

    return Raw(*given)


def attempt(command: Sequence[str], injector: Injector, said: Path, counted: Path) -> None:
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
    try:
        with injector.installed():
            main()
    finally:
        counted.write_bytes(pickle.dumps((injector.counts, injector.met)))


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
    """Exit code, lines on the error stream, counts of operations of a command, and those of `tried` that failed."""

    code: int
    lines: tuple[str, ...]
    counts: dict[str, int]
    met: list[Key]

    @property
    def is_refused(self) -> bool:
        """True for a command that ended with one line that names a file by its path, and an exit code other than 0."""
        return self.code > 0 and len(self.lines) == 1 and bool(re.match(rf"headstart: (.*: )?{os.sep}", self.lines[0]))

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
        context = forking()  # not of this process: pytest's has threads
        self.pipe, theirs = context.Pipe()
        warm = (["study", "run", str(study), "--out", str(root / "warm"), "--jobs", "1"], root / "warm")
        folders = (study.parent, data, root / "cache")
        context.Process(target=serve, args=(theirs, root, folders, warm), daemon=True).start()
        theirs.close()

    def run(
        self, out: Path, fault: Fault | None = None, tried: Collection[Key] | None = None, share: Any = (0, 1)
    ) -> Outcome:
        """Run the study into `out` under a fault, or until an operation that is not among those tried."""
        out.mkdir(parents=True, exist_ok=True)
        self.pipe.send(
            (["study", "run", str(self.study), "--out", str(out), "--jobs", "1"], out, (fault, tried, share))
        )
        code = self.pipe.recv()
        said = (self.root / "said").read_text(encoding="utf-8", errors="replace")
        return Outcome(code, tuple(said.splitlines()), *pickle.loads((self.root / "counted").read_bytes()))


def serve(pipe: Connection, root: Path, folders: Sequence[Path], warm: tuple[list[str], Path]) -> None:
    """Main function of a process: run a command here for what it imports and compiles, then fork for each request."""
    said, counted, code = root / "said", root / "counted", 0
    streams = [os.dup(stream) for stream in (1, 2)]
    warm[1].mkdir()
    try:
        attempt(warm[0], Injector((warm[1],), None), said, counted)
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
        try:
            command, out, given = pipe.recv()
        except EOFError:  # the parent has gone
            return
        child = os.fork()
        if child == 0:
            code = 0
            try:
                attempt(command, Injector((out, *folders), *given), said, counted)
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
    """A trial in a folder of its own, with the undisturbed study beside it, and what went wrong {kind: [reason]}."""

    def __init__(self, root: Path, share: tuple[int, int], until: float):
        root.mkdir()
        self.trial, self.out, self.share, self.until = Trial(root, *write_inputs(root)), root / "out", share, until
        self.whole = self.trial.run(root / "undisturbed")
        if self.whole.code != 0:
            raise SystemExit(f"the undisturbed study failed: {self.whole.lines}")
        self.expected = evidence(root / "undisturbed" / "tiny")
        self.tried: set[Key] = set()
        self.wrong: list[tuple[list[Key], str]] = []
        self.commands, self.is_complete = 0, False

    def work(self) -> None:
        """Let all operations of the share fail in turn, from as many empty folders as it takes, or until time is up."""
        while not self.is_complete and time.monotonic() < self.until:
            shutil.rmtree(self.out, ignore_errors=True)
            shutil.rmtree(self.trial.root / "cache", ignore_errors=True)
            since = len(self.tried)
            self.is_complete = self.chain() and len(self.tried) == since

    def chain(self) -> bool:
        """Commands until one succeeds, or something is wrong; False where the time is up before."""
        group: list[Key] = []
        kept: dict[str, bytes] = {}
        while time.monotonic() < self.until:
            outcome = self.trial.run(self.out, None, self.tried, self.share)
            self.commands += 1
            if self.commands % 50 == 0:
                print(f"lane {self.share[0]}: {len(self.tried)} faults in {self.commands} commands", flush=True)
            self.tried |= set(outcome.met)
            group += outcome.met
            found = finished(self.out)
            if not (outcome.is_refused or outcome.is_silent):
                reason = f"exit code {outcome.code}, {len(outcome.lines)} lines: {' | '.join(outcome.lines[-1:])}"
                return self.note(outcome.met, reason)
            if {name: found.get(name) for name in kept} != kept:
                return self.note(outcome.met, "a finished run was lost")
            kept = found
            if outcome.is_silent:
                return self.note(group, self.difference(self.out))
            if not outcome.met:
                return self.note(group, f"refused without a fault: {outcome.lines[-1]}")
            if len(group) >= GROUP:
                copy = self.out.with_name("copy")
                shutil.copytree(self.out, copy)
                ended = self.trial.run(copy)
                self.note(group, self.difference(copy) if ended.is_silent else f"not finished: {ended.lines}")
                shutil.rmtree(copy)
                group = []
        return False

    def difference(self, out: Path) -> str:
        """Names of what is not as in the undisturbed study; "" where all is the same."""
        found = evidence(out / "tiny")
        odd = sorted(name for name in self.expected | found if self.expected.get(name) != found.get(name))
        return f"different: {', '.join(odd)}" if odd else ""

    def note(self, keys: list[Key], reason: str) -> bool:
        """Keep and print what is wrong, if anything is; True."""
        if reason:
            self.wrong.append((keys, reason))
            print(f"{reason}: {keys}", flush=True)
        return True


def main(minutes: float | None, lanes: int, path: Path | None) -> int:
    """Print a table of faults by operation and error, with those that went wrong."""
    since = time.monotonic()
    until = float("inf") if minutes is None else since + 60 * minutes
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(lanes) as pool:
        root = Path(folder).resolve()
        made = list(pool.map(lambda n: Lane(root / str(n), (n, lanes), until), range(lanes)))
        counts = made[0].whole.counts
        print(f"operations of an undisturbed study: {dict(counts)}", flush=True)
        list(pool.map(Lane.work, made))
    tried = Counter(key.kind for lane in made for key in lane.tried)
    wrong = [([str(key) for key in keys], reason) for lane in made for keys, reason in lane.wrong]
    is_complete = all(lane.is_complete for lane in made)
    print(f"{'fault':16}{'tried':>8}")
    for kind, count in sorted(tried.items()):
        print(f"{kind:16}{count:8}")
    print(f"{sum(tried.values())} faults{'' if is_complete else ', not all'}; {len(wrong)} findings")
    figures = {"operations": counts, "tried": tried, "complete": is_complete, "findings": wrong}
    figures |= {"commands": sum(lane.commands for lane in made), "seconds": round(time.monotonic() - since)}
    keep(path, figures)
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.exit(main(given.minutes, given.lanes, given.json))
