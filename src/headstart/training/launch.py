"""One job on several processes of this machine: start them, hear them, and end all when one fails."""

import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

Send = Callable[..., None]
GRACE = 2.0  # seconds in which a process that was killed becomes known, after its peers have lost it


def run_processes(num: int, work: Callable[..., Any], arguments: tuple[Any, ...], hear: Callable[..., None]) -> Any:
    """Run work(send, *arguments) in `num` new processes, as torchrun would start them; the result of the first.

    What a process gives to `send` comes to `hear` here. The first ValueError or FloatingPointError of any process ends
    all and is raised; ChildProcessError where one was killed or failed in another way.
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
        return _listen(processes, pipes, hear)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _listen(processes: list[Any], pipes: list[Any], hear: Callable[..., None]) -> Any:
    """Hand on messages until every process has sent its result; raises the first error."""
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        for pipe in wait([pipe for rank, pipe in enumerate(pipes) if rank not in results]):
            rank = pipes.index(pipe)
            try:
                kind, content = pipe.recv()
            except EOFError:
                kind, content = "failed", "ended without a word"
            if kind == "said":
                hear(*content)
            elif kind == "result":
                results[rank] = content
            elif kind == "refused":
                raise content
            else:
                raise ChildProcessError(_reason(processes, rank, content))
    return results[0]


def _reason(processes: list[Any], rank: int, content: str) -> str:
    """Why processes ended: one that was killed explains what its peers then meet."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        for number, process in enumerate(processes):
            if process.exitcode is not None and process.exitcode < 0:
                names = {-each: each.name for each in signal.Signals}
                name = names.get(process.exitcode, f"signal {-process.exitcode}")
                return f"process {number} of {len(processes)} was killed ({name}); the others were stopped"
        time.sleep(0.05)
    return f"process {rank} of {len(processes)} failed: {content}; the others were stopped"


def _enter(
    rank: int, num: int, port: int, pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """A new process: torchrun's environment, no life without the parent, and one last message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=leave_with_parent, daemon=True).start()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        pipe.send(("result", work(lambda *content: pipe.send(("said", content)), *arguments)))
        return
    except (ValueError, FloatingPointError) as error:
        pipe.send(("refused", error))
    except BaseException as error:
        pipe.send(("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
        traceback.print_exc()
    os._exit(1)  # a process group with a missing member waits for it


def leave_with_parent() -> None:
    """End this process when the one that started it has ended: a worker whose parent was killed must not write on."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing started has such a parent"
    parent.join()
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
