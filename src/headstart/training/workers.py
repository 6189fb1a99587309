"""One job shared by several processes of this machine, which end with their parent."""

import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from headstart.tasks import TASKS

Send = Callable[..., None]
GRACE = 2.0  # seconds until a killed process is known as such, after its peers have lost it
BEAT = 1.0  # seconds between two signs of life of a process


class Signs:
    """Seconds since the last sign of life of each process, from its first one on.

    Before its first sign a process is starting, which takes as long as its imports.
    """

    def __init__(self):
        self.quiet: dict[int, float] = {}
        self.since = time.monotonic()

    def hear(self, process: int) -> None:
        """Note a sign of life."""
        self.quiet[process] = 0.0

    def pass_time(self) -> None:
        """Add the time since the last call, at most two beats: while it was stopped, this process received no signs."""
        now = time.monotonic()
        self.quiet = {each: seconds + min(now - self.since, 2 * BEAT) for each, seconds in self.quiet.items()}
        self.since = now

    def longest(self) -> tuple[int, float]:
        """The process that has been silent longest, and its seconds."""
        return max(self.quiet.items(), key=lambda entry: entry[1], default=(0, 0.0))


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
    context = forking()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes, pipes = [], []
    try:
        for rank in range(num):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_enter, args=(rank, environment, theirs, work, arguments))
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


def forking() -> multiprocessing.context.BaseContext:
    """Context whose processes are forked from one clean process with all imports, where the system can.

    They share the memory of the imports, else 0.4 GB each. A fork of this process would inherit its threads' locks.
    """
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    # torch's optimizers import torch._dynamo when the first is made, which takes three seconds.
    context.set_forkserver_preload(["headstart.training.run", "torch._dynamo", *(row.module for row in TASKS.values())])
    return context


def _listen(processes: list[Any], pipes: list[Any], hear: Callable[..., None], silence: float) -> Any:
    """Pass messages on until every process has sent its result; raises the first error."""
    results: dict[int, Any] = {}
    signs = Signs()
    while len(results) < len(pipes):
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in results], timeout=BEAT)
        signs.pass_time()
        for pipe in ready:
            rank = pipes.index(pipe)
            signs.hear(rank)
            try:
                kind, content = pipe.recv()
            except EOFError:
                kind, content = "failed", "exited without a result"
            if kind == "message":
                hear(*content)
            elif kind == "result":
                results[rank] = content
                del signs.quiet[rank]
            elif kind == "refused":
                raise content
            elif kind == "failed":
                raise ChildProcessError(_reason(processes, rank, content, signs))
        if signs.longest()[1] > silence:
            raise ChildProcessError(_silent(signs, len(processes)))
    return results[0]


def _silent(signs: Signs, num: int) -> str:
    process, seconds = signs.longest()
    return f"process {process} of {num} has given no sign of life for {seconds:.0f} s; all were stopped"


def _reason(processes: list[Any], rank: int, content: str, signs: Signs) -> str:
    """Reason of a failure; a process that was killed, or stopped, explains the errors of its peers."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        for number, process in enumerate(processes):
            if process.exitcode is not None and process.exitcode < 0:
                names = {-each: each.name for each in signal.Signals}
                name = names.get(process.exitcode, f"signal {-process.exitcode}")
                return f"process {number} of {len(processes)} was killed ({name}); the others were stopped"
        time.sleep(0.05)
    if signs.longest()[1] > 10 * BEAT:
        return _silent(signs, len(processes))
    return f"process {rank} of {len(processes)} failed: {content}; the others were stopped"


def _enter(
    rank: int, environment: dict[str, str], pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Main function of a process: torchrun's environment, then the work, then one message with its outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    end_with_parent()
    os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    turn = threading.Lock()  # a pipe takes one message at a time

    def tell(kind: str, content: Any) -> None:
        with turn:
            pipe.send((kind, content))

    live(tell, rank)
    try:
        tell("result", work(lambda *content: tell("message", content), *arguments))
        return
    except (ValueError, FloatingPointError, OSError, MemoryError) as error:
        tell("refused", error)
    except BaseException as error:
        tell("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        traceback.print_exc()
    os._exit(1)  # a process group with a missing member waits for it


def live(tell: Callable[[str, int], None], number: int) -> None:
    """Send a sign of life of this process now, before work that may stop it at once, and then at each beat."""

    def beat() -> None:
        with suppress(OSError):  # the parent has gone
            while True:
                time.sleep(BEAT)
                tell("alive", number)

    tell("alive", number)
    threading.Thread(target=beat, daemon=True).start()


def end_with_parent() -> None:
    """End this process as soon as its parent has ended: a worker of a killed parent must not write on."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing started has such a parent"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
