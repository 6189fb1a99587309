"""Many calls on a pool of processes of this machine, which end with their parent."""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from headstart.ops.processes import SILENCE
from headstart.training.workers import BEAT, Signs, end_with_parent, forking, live

_tell: Callable[[str, Any], None]  # of a pool's worker: a message to the parent


@contextmanager
def worker_calls(jobs: int, hear: Callable[..., None] | None) -> Iterator[Callable[..., Future[Any]]]:
    """A function that submits a call to one of `jobs` processes of one thread each.

    On a small net several processes of one thread use a CPU better than one process of several threads; the result does
    not depend on their number. send(*content) in a worker calls hear(*content) in this process.
    """
    with worker_pool(jobs, hear, threads=1) as pool:
        yield pool.submit


def send(*content: Any) -> None:
    """In a process of `worker_calls`: pass a message to the parent."""
    _tell("message", content)


@contextmanager
def worker_pool(
    jobs: int, hear: Callable[..., None] | None = None, *, threads: int | None = None, silence: float = SILENCE
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, ended at once by an error inside the context; their warnings are repeated here.

    ChildProcessError where one is killed, and where one has given no sign of life for `silence` seconds.
    """
    context = forking()
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, _begin, (writer, context.Lock(), threads))
    lost: list[str] = []

    def lose(process: int, seconds: float) -> None:
        lost.append(
            f"one of {jobs} worker processes (number {process} of the system) has given no sign of life for "
            f"{seconds:.0f} s; all were stopped"
        )
        _kill(pool)

    with _listening(reader, hear, lose, silence), pool:
        try:
            yield pool
        except BrokenProcessPool:
            killed = f"one of {jobs} worker processes was killed, by hand or where memory ran out; the others were"
            raise ChildProcessError(lost[0] if lost else f"{killed} stopped") from None
        except BaseException:
            _kill(pool)  # a call may run for hours: do not wait for it
            raise


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list(pool._processes.values()):
        process.kill()  # a stopped process would not end otherwise


def _begin(writer: Any, turn: Any, threads: int | None) -> None:
    """Start a pool's worker, which sends signs of life and warnings to the parent and ends with it."""

    def tell(kind: str, content: Any) -> None:
        with turn:
            writer.send((kind, content))

    global _tell
    _tell = tell
    end_with_parent()
    warnings.showwarning = lambda message, *where: tell("warning", str(message))
    live(tell, os.getpid())
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _listening(
    reader: Any, hear: Callable[..., None] | None, lose: Callable[[int, float], None], silence: float
) -> Iterator[None]:
    """Pass the workers' messages to `hear` and repeat their warnings; call `lose` for a worker that has gone silent."""
    signs, (ending, end) = Signs(), multiprocessing.Pipe(duplex=False)

    def take() -> None:
        kind, content = reader.recv()
        if kind == "alive":
            signs.hear(content)
        elif kind == "warning":
            warnings.warn(content, stacklevel=1)
        elif hear:
            hear(*content)

    def listen() -> None:
        while ending not in (ready := wait([reader, ending], timeout=BEAT)):
            if ready:
                take()
            signs.pass_time()
            if signs.longest()[1] > silence:
                lose(*signs.longest())
                return
        while reader.poll():
            take()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.send(None)
        thread.join(timeout=5)
