"""Worker processes on this machine: one job shared by several, or many calls on a pool. All die with their parent."""

import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from math import inf
from multiprocessing.connection import Connection, wait
from typing import Any

from headstart.tasks import TASKS

Send = Callable[..., None]
GRACE = 2.0  # seconds until a killed process is known as such, after its peers have lost it
BEAT = 1.0  # seconds between two signs of life of a process
_queue: Any = None  # of a pool's worker, for its messages to the parent


def run_processes(
    num: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    hear: Callable[..., None],
    *,
    silence: float,
) -> Any:
    """Run work(send, *arguments) in `num` new processes, as torchrun would start them; the result of the first.

    send(*content) calls hear(*content) in this process. If any process fails, all are stopped and its error is raised:
    a ValueError, FloatingPointError, OSError or MemoryError as it is, ChildProcessError for any other failure, for a
    killed process and for one that has given no sign of life for `silence` seconds.
    """
    context = multiprocessing.get_context("spawn")
    port, processes, pipes = _free_port(), [], []
    try:
        for rank in range(num):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_enter, args=(rank, num, port, theirs, work, arguments))
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        return _listen(processes, pipes, hear, silence)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _listen(processes: list[Any], pipes: list[Any], hear: Callable[..., None], silence: float) -> Any:
    """Pass messages on until every process has sent its result; raises the first error."""
    results: dict[int, Any] = {}
    # Before its first sign a process is starting, which takes as long as its imports.
    quiet, since = [-inf] * len(pipes), time.monotonic()
    while len(results) < len(pipes):
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in results], timeout=BEAT)
        now = time.monotonic()
        # At most two beats: while this process itself was stopped, as by Ctrl-Z, it could not hear.
        quiet, since = [each + min(now - since, 2 * BEAT) for each in quiet], now
        for pipe in ready:
            rank = pipes.index(pipe)
            quiet[rank] = 0.0
            try:
                kind, content = pipe.recv()
            except EOFError:
                kind, content = "failed", "exited without a result"
            if kind == "message":
                hear(*content)
            elif kind == "result":
                results[rank] = content
            elif kind == "refused":
                raise content
            elif kind == "failed":
                raise ChildProcessError(_reason(processes, rank, content, quiet))
        for rank, seconds in enumerate(quiet):
            if rank not in results and seconds > silence:
                raise ChildProcessError(_silent(rank, seconds, len(processes)))
    return results[0]


def _silent(rank: int, seconds: float, num: int) -> str:
    return f"process {rank} of {num} has given no sign of life for {seconds:.0f} s; all were stopped"


def _reason(processes: list[Any], rank: int, content: str, quiet: list[float]) -> str:
    """Reason of a failure; a process that was killed, or stopped, explains the errors of its peers."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        for number, process in enumerate(processes):
            if process.exitcode is not None and process.exitcode < 0:
                names = {-each: each.name for each in signal.Signals}
                name = names.get(process.exitcode, f"signal {-process.exitcode}")
                return f"process {number} of {len(processes)} was killed ({name}); the others were stopped"
        time.sleep(0.05)
    longest = max(range(len(quiet)), key=lambda each: quiet[each])
    if quiet[longest] > 10 * BEAT:
        return _silent(longest, quiet[longest], len(processes))
    return f"process {rank} of {len(processes)} failed: {content}; the others were stopped"


def _enter(
    rank: int, num: int, port: int, pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Main function of a process: torchrun's environment, then the work, then one message with its outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    _end_with_parent()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    turn = threading.Lock()  # a pipe takes one message at a time

    def tell(kind: str, content: Any) -> None:
        with turn:
            pipe.send((kind, content))

    def live() -> None:
        with suppress(OSError):  # the parent has gone
            while True:
                tell("alive", None)
                time.sleep(BEAT)

    threading.Thread(target=live, daemon=True).start()
    try:
        tell("result", work(lambda *content: tell("message", content), *arguments))
        return
    except (ValueError, FloatingPointError, OSError, MemoryError) as error:
        tell("refused", error)
    except BaseException as error:
        tell("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        traceback.print_exc()
    os._exit(1)  # a process group with a missing member waits for it


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended: a worker of a killed parent must not write on."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing started has such a parent"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def worker_calls(jobs: int, hear: Callable[..., None] | None) -> Iterator[Callable[..., Future[Any]]]:
    """A function that submits a call to one of `jobs` processes of one thread each.

    On a small net several processes of one thread use a CPU better than one process of several threads; the result does
    not depend on their number. send(*content) in a worker calls hear(*content) in this process. An error inside the
    context ends the processes at once.
    """
    queue = _context().Queue()
    with _listening(queue, hear), worker_pool(jobs, _start_worker, queue) as pool:
        try:
            yield pool.submit
        except BaseException:
            for process in list(pool._processes.values()):  # a call may run for hours: do not wait for it
                process.terminate()
            raise


def send(*content: Any) -> None:
    """In a process of `worker_calls`: pass a message to the parent."""
    _queue.put(content)


@contextmanager
def worker_pool(jobs: int, prepare: Callable[..., None] | None = None, *given: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, each of which begins with `prepare(*given)`; ChildProcessError where one is killed."""
    with ProcessPoolExecutor(jobs, _context(), _begin, (prepare, given)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise ChildProcessError(
                f"one of {jobs} worker processes was killed, by hand or where memory ran out; the others were stopped"
            ) from None


def _context() -> multiprocessing.context.BaseContext:
    """Worker processes forked from one clean process that has imported everything, where the system can.

    So they share what the imports take, 0.4 GB each otherwise. A fork of this process would inherit its threads' locks.
    """
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    # torch's optimizers import torch._dynamo when the first is made, which takes three seconds.
    context.set_forkserver_preload(["headstart.training.run", "torch._dynamo", *(row.module for row in TASKS.values())])
    return context


def _begin(prepare: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    _end_with_parent()
    if prepare:
        prepare(*given)


def _start_worker(queue: Any) -> None:
    import torch

    global _queue
    _queue = queue
    torch.set_num_threads(1)


@contextmanager
def _listening(queue: Any, hear: Callable[..., None] | None) -> Iterator[None]:
    """Pass the workers' messages to `hear` in this process."""

    def listen() -> None:
        for message in iter(queue.get, None):
            if hear:
                hear(*message)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        queue.put(None)
        thread.join(timeout=5)
