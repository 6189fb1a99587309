"""Segments on several processes of this machine.

On a small net one thread a process and several processes use a CPU better than several threads, and the result does not
depend on how many there are.
"""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.study.plan import Segment
from headstart.study.prepare import Prepared, Progress, needs, run_segment
from headstart.training.launch import leave_with_parent
from headstart.training.lineage import RunResult

_STRIDE = 10  # steps between two messages of a worker
_queue: Any = None


def run_parallel(
    prepared: Prepared,
    segments: list[Segment],
    directory: Path,
    done: dict[str, RunResult],
    jobs: int,
    *,
    progress: Progress | None,
    began: Callable[[Segment], None],
    finished: Callable[[Segment, RunResult], None],
) -> None:
    """Run segments, each as soon as what it needs is in `done`, `jobs` at a time; the first error stops the rest."""
    queue = _context().Queue()
    with (
        _listening(queue, {segment.name: segment for segment in segments}, progress),
        worker_pool(jobs, _start_worker, queue) as pool,
    ):

        def submit(segment: Segment, needed: dict[str, RunResult]) -> Future[RunResult]:
            return pool.submit(_work, prepared, segment, directory, needed)

        try:
            run_as_ready(segments, done, submit, at_once=jobs, began=began, finished=finished)
        except BaseException:
            for process in list(pool._processes.values()):  # a segment may run for hours: do not wait for it
                process.terminate()
            raise


@contextmanager
def worker_pool(jobs: int, prepare: Callable[..., None] | None = None, *given: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave when this one is gone, however it went; each begins with `prepare(*given)`."""
    with ProcessPoolExecutor(jobs, _context(), _begin, (prepare, given)) as pool:
        yield pool


def _context() -> multiprocessing.context.BaseContext:
    """How worker processes begin: forked from one clean process that has imported everything, where the system can.

    So they share what the imports take, 0.4 GB each otherwise. A fork of this process would inherit its threads' locks.
    """
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    context.set_forkserver_preload(["headstart.study.workers"])
    return context


def run_as_ready(
    segments: list[Segment],
    done: dict[str, RunResult],
    submit: Callable[[Segment, dict[str, RunResult]], Future[RunResult]],
    *,
    at_once: int | None = None,
    began: Callable[[Segment], None],
    finished: Callable[[Segment, RunResult], None],
) -> None:
    """Submit segments, each with the results that it needs as soon as they are in `done`, at most `at_once` at a time.

    Results are added to `done`; the first error is raised while others may still run.
    """
    waiting = list(segments)
    running: dict[Future[RunResult], Segment] = {}
    most = len(segments) if at_once is None else at_once
    while waiting or running:
        for segment in [segment for segment in waiting if needs(segment) <= set(done)][: most - len(running)]:
            waiting.remove(segment)
            began(segment)
            running[submit(segment, {name: done[name] for name in needs(segment)})] = segment
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            segment = running.pop(future)
            done[segment.name] = future.result()
            finished(segment, done[segment.name])


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


def _work(prepared: Prepared, segment: Segment, directory: Path, done: dict[str, RunResult]) -> RunResult:
    def tell(_: Segment, step: int, values: dict[str, Any]) -> None:
        if step % _STRIDE == 0 or step == segment.stop:
            _queue.put((segment.name, step, values))

    return run_segment(prepared, segment, directory, done, progress=tell)


@contextmanager
def _listening(queue: Any, segments: dict[str, Segment], progress: Progress | None) -> Iterator[None]:
    """Hand the workers' messages to `progress` in this process."""

    def listen() -> None:
        for name, step, values in iter(queue.get, None):
            if progress:
                progress(segments[name], step, values)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        queue.put(None)
        thread.join(timeout=5)
