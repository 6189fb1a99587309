"""Run what is missing of a study, in order, on this machine or a cluster; or one segment of it, as a task does."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf
from pathlib import Path

from headstart.files import locked
from headstart.hardware import choose_device
from headstart.ops import processes as distributed
from headstart.study.plan import Segment
from headstart.study.prepare import (
    Prepared,
    Progress,
    ancestors,
    asked_recipes,
    find_segments,
    needs,
    run_segment,
    segment_run,
    segments_folder,
    write_plan,
)
from headstart.study.ray import Cluster, run_on_ray
from headstart.study.spec import check_names
from headstart.study.workers import run_parallel
from headstart.training.lineage import Finder, RunResult


def check_threads(prepared: Prepared) -> None:
    """ValueError where the number of jobs would change results: sums on a CPU depend on the threads that share them."""
    for recipe in asked_recipes(prepared).values():
        if recipe.train.threads is None and choose_device(recipe.device).value == "cpu":
            raise ValueError(
                f"study {prepared.study.name}: train.threads of {recipe.name} is null, expected a number such as 1 for "
                "several segments at a time: results depend on it in the last bits"
            )


def refuse_auto(prepared: Prepared) -> None:
    """ValueError where the machines of a cluster would settle the precision of segments, each by its own hardware."""
    for name, recipe in asked_recipes(prepared).items():
        if recipe.train.precision == "auto":
            raise ValueError(
                f"study {prepared.study.name}: train.precision of {name} is auto, expected fp32 or bf16 on a cluster: "
                "its machines may differ, and arms must not"
            )


def lock(directory: Path) -> AbstractContextManager[None]:
    """Only one process runs a study at a time; ValueError says who does. A killed process holds nothing."""
    return locked(directory / "lock", taken="this study is being run")


def plan_lock(directory: Path) -> AbstractContextManager[None]:
    """Wait for one's turn to write plan.json: the tasks of a cluster may end at the same time."""
    return locked(directory / "plan.lock", taken="the plan is being written", wait=inf)


def run_named(prepared: Prepared, name: str, out: str | Path = "runs") -> RunResult:
    """Run one segment of a study by its name, as a task of a cluster does, or find it finished.

    Other segments may run at the same time; those that this one needs must be finished. ValueError says which is not,
    and for an unknown name which is nearest. Under torchrun it joins the other processes.
    """
    directory, segments = Path(out) / prepared.study.name, {each.name: each for each in prepared.plan.segments}
    check_names([name], segments, "segment")
    segment, finder = segments[name], Finder()
    done, _ = find_segments(prepared, directory, finder, segments=ancestors(prepared.plan, segment))
    for needed in sorted(needs(segment) - set(done)):
        raise ValueError(f"segment {name}: needs {needed}, which is not finished in {directory}; run that one first")
    recipe, _, span = segment_run(prepared, segment, done)
    distributed.start_processes(recipe.device)
    _update_plan(prepared, directory, {name: finder.place(recipe, segments_folder(prepared, directory), span)})
    result = run_segment(prepared, segment, directory, done)
    _update_plan(prepared, directory, {})
    return result


def _update_plan(prepared: Prepared, directory: Path, begun: dict[str, Path]) -> None:
    """Write plan.json as the study is now, whoever else works on it; `begun` is what has no directory yet."""
    if distributed.is_writer():
        with plan_lock(directory):
            done, known = find_segments(prepared, directory)
            write_plan(prepared, directory, done, begun | known)


def run_study(
    prepared: Prepared,
    out: str | Path = "runs",
    *,
    jobs: int = 1,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    finished: Callable[[str], None] | None = None,
) -> Path:
    """Run every segment that is not finished, `jobs` at a time here, or on a `cluster`; returns the study's directory.

    `progress` is told of every step (on a cluster of none), `finished` of every segment that is done (or was found
    done). Kill it anywhere and call it again: finished segments are found by their digest, those in work continue at
    their last checkpoint.
    """
    if jobs > 1 or (cluster and not cluster.gpus):
        check_threads(prepared)
    if cluster:
        refuse_auto(prepared)
    directory = Path(out) / prepared.study.name
    finder = Finder()

    def write() -> None:
        with plan_lock(directory):
            write_plan(prepared, directory, done, begun)

    def begin(segment: Segment) -> None:
        recipe, _, span = segment_run(prepared, segment, done)
        begun[segment.name] = finder.place(recipe, segments_folder(prepared, directory), span)
        write()

    def record(segment: Segment, result: RunResult) -> None:
        done[segment.name] = result
        write()
        if finished:
            finished(segment.name)

    with lock(directory):
        done, begun = find_segments(prepared, directory, finder)
        write()
        for name in done if finished else ():
            finished(name)
        missing = [segment for segment in prepared.plan.segments if segment.name not in done]
        if cluster and missing:
            run_on_ray(prepared, missing, directory, dict(done), cluster, began=begin, finished=record)
        elif jobs > 1 and missing:
            run_parallel(
                prepared, missing, directory, dict(done), jobs, progress=progress, began=begin, finished=record
            )
        else:
            for segment in missing:
                begin(segment)
                record(segment, run_segment(prepared, segment, directory, done, progress=progress))
    return directory
