"""Segments as tasks of a Ray cluster whose machines share the file system that the study lies on.

A worker that is lost takes nothing with it: its task is started again and continues at the last checkpoint.
"""

import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.ops import processes as distributed
from headstart.study.plan import Segment
from headstart.study.prepare import Prepared, run_segment, segment_run
from headstart.study.workers import run_as_ready
from headstart.training.lineage import RunResult


@dataclass(frozen=True)
class Cluster:
    """What the task of a segment asks of Ray: CPUs, GPUs, and how often a lost worker is replaced.

    With several GPUs a segment runs as that many processes, one a GPU, on one machine.
    """

    cpus: float = 1.0
    gpus: int = 0
    retries: int = 3


def run_on_ray(
    prepared: Prepared,
    segments: list[Segment],
    directory: Path,
    done: dict[str, RunResult],
    cluster: Cluster,
    *,
    began: Callable[[Segment], None],
    finished: Callable[[Segment, RunResult], None],
) -> None:
    """Run segments as Ray tasks, each as soon as what it needs is in `done`; the first error stops the rest.

    The cluster is the one that Ray finds (RAY_ADDRESS), else this machine. Where a segment lands, and how often it is
    started again, does not change its result. ValueError where Ray is not installed, where no machine has what a task
    asks for, and for a segment whose workers were lost more often than `retries`.
    """
    with _connected(cluster) as ray:
        task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=cluster.retries)(_work)

        started = []

        def submit(segment: Segment, needed: dict[str, RunResult]) -> Future[RunResult]:
            own = task.options(name=segment.name)
            started.append(own.remote(prepared, segment, directory, needed, str(Path.cwd()), cluster.gpus))
            return started[-1].future()

        try:
            run_as_ready(segments, done, submit, began=began, finished=finished)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"study {prepared.study.name}: the workers of a segment were lost more than {cluster.retries} times "
                f"({type(error).__name__}); the same command continues at the last checkpoint"
            ) from None
        finally:
            for reference in started:  # nothing where all are finished
                ray.cancel(reference, force=True)


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected to a cluster that can run these tasks; what is left of them is stopped at the end."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            "executor: ray is not installed, expected pip install 'headstart[cluster]', or --executor local"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here reaches for the network by itself
    import ray

    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(has.get("CPU", 0) >= cluster.cpus and has.get("GPU", 0) >= cluster.gpus for has in machines):
            raise ValueError(
                f"executor: no machine of the Ray cluster has {cluster.cpus:g} CPUs and {cluster.gpus} GPUs for a "
                f"segment, expected at most {_most(machines, 'CPU'):g} and {_most(machines, 'GPU'):g}"
            )
        yield ray
    finally:
        if own:
            ray.shutdown()


def _most(machines: list[dict[str, float]], kind: str) -> float:
    return max((has.get(kind, 0) for has in machines), default=0)


def _work(
    prepared: Prepared, segment: Segment, directory: Path, done: dict[str, RunResult], folder: str, gpus: int
) -> RunResult:
    """One segment, on whichever machine this is; paths are relative to the folder that the study was started in."""
    try:
        os.chdir(folder)
    except OSError:
        raise ValueError(
            f"{folder}: not there on {platform.node()}, expected a file system that all machines share"
        ) from None
    if gpus < 2:
        return run_segment(prepared, segment, directory, done)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # what torchrun does, for a function
    config = LaunchConfig(1, 1, gpus, run_id=segment.name, rdzv_backend="c10d", rdzv_endpoint="localhost:0")
    return elastic_launch(config, _one_of_several)(prepared, segment, directory, done)[0]


def _one_of_several(prepared: Prepared, segment: Segment, directory: Path, done: dict[str, RunResult]) -> RunResult:
    distributed.start_processes(segment_run(prepared, segment, done)[0].device)
    try:
        return run_segment(prepared, segment, directory, done)
    finally:
        distributed.stop_processes()
