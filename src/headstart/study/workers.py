"""Calls on several processes of this machine.

On a small net one thread a process and several processes use a CPU better than several threads, and the result does not
depend on how many there are.
"""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from headstart.study.plan import Segment
from headstart.training.launch import leave_with_parent

_STRIDE = 10  # steps between two messages of a worker
_queue: Any = None


@contextmanager
def worker_calls(
    jobs: int, progress: Callable[[Segment, int, dict[str, Any]], None] | None
) -> Iterator[Callable[..., Future[Any]]]:
    """A function that submits a call to one of `jobs` processes of one thread each; what they `tell` is passed on.

    An error inside the context ends the processes at once.
    """
    queue = _context().Queue()
    with _listening(queue, progress), worker_pool(jobs, _start_worker, queue) as pool:
        try:
            yield pool.submit
        except BaseException:
            for process in list(pool._processes.values()):  # a segment may run for hours: do not wait for it
                process.terminate()
            raise


def tell(segment: Segment, step: int, values: dict[str, Any]) -> None:
    """In a worker: send the progress of a segment to the parent, now and then."""
    if step % _STRIDE == 0 or step == segment.stop:
        _queue.put((segment, step, values))


@contextmanager
def worker_pool(jobs: int, prepare: Callable[..., None] | None = None, *given: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave when this one is gone, however it went; each begins with `prepare(*given)`."""
    with ProcessPoolExecutor(jobs, _context(), _begin, (prepare, given)) as pool:
        yield pool


def _context() -> multiprocessing.context.BaseContext:
    """Worker processes forked from one clean process that has imported everything, where the system can.

    So they share what the imports take, 0.4 GB each otherwise. A fork of this process would inherit its threads' locks.
    """
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    context.set_forkserver_preload(["headstart.study.run"])
    return context


def _begin(prepare: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    """A worker whose parent was killed must not write on, nor keep its memory."""
    threading.Thread(target=leave_with_parent, daemon=True).start()
    if prepare:
        prepare(*given)


def _start_worker(queue: Any) -> None:
    """One thread a worker."""
    import torch

    global _queue
    _queue = queue
    torch.set_num_threads(1)


@contextmanager
def _listening(queue: Any, progress: Callable[[Segment, int, dict[str, Any]], None] | None) -> Iterator[None]:
    """Hand the workers' messages to `progress` in this process."""

    def listen() -> None:
        for message in iter(queue.get, None):
            if progress:
                progress(*message)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        queue.put(None)
        thread.join(timeout=5)
