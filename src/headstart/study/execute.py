"""Run what is missing of a study, in order, on this machine."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headstart.study.plan import Segment
from headstart.study.run import (
    Prepared,
    Progress,
    arm_recipe,
    find_segments,
    pretrain_recipe,
    run_segment,
    segment_run,
    segments_folder,
    write_plan,
)
from headstart.study.workers import run_parallel
from headstart.train import distributed
from headstart.train.lineage import Finder, RunResult


def check_threads(prepared: Prepared) -> None:
    """ValueError where the number of jobs would change results: sums on a CPU depend on the threads that share them."""
    if distributed.device().type != "cpu":
        return
    study, overrides = prepared.study, prepared.overrides
    recipes = [arm_recipe(study, arm, overrides)[0] for arm in study.arms]
    recipes += [pretrain_recipe(study, name, overrides)[0] for name in study.pretrain]
    for recipe in recipes:
        if recipe.train.threads is None:
            raise ValueError(
                f"study {study.name}: train.threads of {recipe.name} is null, expected a number such as 1 for several "
                "segments at a time: results depend on it in the last bits"
            )


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Only one process runs a study at a time; ValueError says who does. A killed process holds nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{directory}: this study is being run by {file.read().strip() or 'another process'}"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)


def run_study(
    prepared: Prepared,
    out: str | Path = "runs",
    *,
    jobs: int = 1,
    progress: Progress | None = None,
    finished: Callable[[str], None] | None = None,
) -> Path:
    """Run every segment that is not finished, `jobs` at a time; returns the study's directory.

    `progress` is told of every step, `finished` of every segment that is done (or was found done). Kill it anywhere and
    call it again: finished segments are found by their digest, those in work continue at their last checkpoint.
    """
    if jobs > 1:
        check_threads(prepared)
    directory = Path(out) / prepared.study.name
    finder = Finder()

    def begin(segment: Segment) -> None:
        recipe, _, span = segment_run(prepared, segment, done)
        begun[segment.name] = finder.place(recipe, segments_folder(prepared, directory), span)
        write_plan(prepared, directory, done, begun)

    def record(segment: Segment, result: RunResult) -> None:
        done[segment.name] = result
        write_plan(prepared, directory, done, begun)
        if finished:
            finished(segment.name)

    with lock(directory):
        done, begun = find_segments(prepared, directory, finder)
        write_plan(prepared, directory, done, begun)
        for name in done if finished else ():
            finished(name)
        missing = [segment for segment in prepared.plan.segments if segment.name not in done]
        if jobs > 1 and missing:
            run_parallel(
                prepared, missing, directory, dict(done), jobs, progress=progress, began=begin, finished=record
            )
        else:
            for segment in missing:
                begin(segment)
                record(segment, run_segment(prepared, segment, directory, done, progress=progress))
    return directory
