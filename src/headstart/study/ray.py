"""Calls as tasks of a Ray cluster whose machines share the file system of the study.

The task of a lost worker is started again, and its segment continues at the last checkpoint.
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
from headstart.study.prepare import Prepared, segment_recipe
from headstart.study.spec import check_names


@dataclass(frozen=True)
class Cluster:
    """Resources of a segment's task on Ray: CPUs, GPUs, and how often a lost worker is replaced.

    With several GPUs a segment runs as that many processes, one a GPU, on one machine.
    """

    cpus: float = 1.0
    gpus: int = 0
    retries: int = 3


def cluster_of(executor: str, jobs: int | None, given: dict[str, int | None]) -> Cluster | None:
    """The cluster of an executor and the options given for it; None for this machine.

    ValueError for an unknown executor, for Ray where it is not installed and for an option without effect.
    """
    check_names([executor], ("local", "ray"), "executor")
    chosen = {name: value for name, value in given.items() if value is not None}
    if executor == "ray":
        if jobs is not None:
            raise ValueError(
                f"jobs: {jobs} has no effect with --executor ray, which runs what its machines have room for"
            )
        _require_ray()
        return Cluster(**chosen)
    for name, value in chosen.items():
        raise ValueError(f"{name}: {value} has no effect with --executor local, expected --executor ray")
    return None


@contextmanager
def ray_calls(cluster: Cluster, study: str) -> Iterator[Callable[..., Future[Any]]]:
    """A function that submits a call `work(prepared, segment, ...)` as a Ray task; the first error stops the rest.

    The cluster is the one that Ray finds (RAY_ADDRESS), else this machine. The machine of a segment, and how often it
    is started again, do not change its result. ValueError where Ray is not installed or no machine has the resources of
    a task, and for a segment that lost its workers more than `retries` times.
    """
    with _connected(cluster) as ray:
        task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=cluster.retries)(_work)
        started = []

        def submit(work: Callable[..., Any], prepared: Any, segment: Any, *given: Any) -> Future[Any]:
            name, gpus = (segment, 0) if isinstance(segment, str) else (segment.name, cluster.gpus)  # str: a rehearsal
            own = task.options(name=name)
            started.append(own.remote(str(Path.cwd()), gpus, name, work, prepared, segment, *given))
            return started[-1].future()

        try:
            yield submit
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"study {study}: the workers of a segment were lost more than {cluster.retries} times "
                f"({type(error).__name__}); the same command continues at the last checkpoint"
            ) from None
        finally:
            for reference in started:  # no effect on finished ones
                ray.cancel(reference, force=True)


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected to a cluster that can run these tasks; disconnected at the end."""
    _require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no use of the network without being asked
    import ray

    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(has.get("CPU", 0) >= cluster.cpus and has.get("GPU", 0) >= cluster.gpus for has in machines):
            cpus, gpus = (max((has.get(kind, 0) for has in machines), default=0) for kind in ("CPU", "GPU"))
            raise ValueError(
                f"executor: no machine of the Ray cluster has {cluster.cpus:g} CPUs and {cluster.gpus} GPUs for a "
                f"segment, expected at most {cpus:g} and {gpus:g}"
            )
        yield ray
    finally:
        if own:
            ray.shutdown()


def _require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            "executor: ray is not installed, expected pip install 'headstart[cluster]', or --executor local"
        )


def _work(folder: str, gpus: int, name: str, work: Callable[..., Any], *given: Any) -> Any:
    """A call on one of the cluster's machines; paths are relative to the folder that the study was started in."""
    try:
        os.chdir(folder)
    except OSError:
        raise ValueError(
            f"{folder}: not there on {platform.node()}, expected a file system that all machines share"
        ) from None
    if gpus < 2:
        return work(*given)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # as torchrun, but for a function
    config = LaunchConfig(1, 1, gpus, run_id=name, rdzv_backend="c10d", rdzv_endpoint="localhost:0")
    return elastic_launch(config, _one_of_several)(work, *given)[0]


def _one_of_several(work: Callable[..., Any], prepared: Prepared, segment: Segment, *given: Any) -> Any:
    distributed.start_processes(segment_recipe(prepared, segment)[0].device)
    try:
        return work(prepared, segment, *given)
    finally:
        distributed.stop_processes()
