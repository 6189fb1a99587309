"""Run the missing segments of a study on this machine or a cluster, or one segment as a cluster's task."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from math import inf
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import asdict

from headstart.files import locked
from headstart.hardware import choose_device, usable_cores
from headstart.ops import processes as distributed
from headstart.study.begin.kept_seeds import with_kept_seeds
from headstart.study.begin.rehearse import refuse_missing_weights, refuse_overlap, rehearse, starts_of
from headstart.study.folder import note_segment, plan_lock, write_study
from headstart.study.plan import Segment
from headstart.study.prepare import Prepared, segment_run
from headstart.study.ray import Cluster, ray_calls
from headstart.study.spec import check_names
from headstart.study.variants import evaluate_variants, missing_variants
from headstart.training.lineage import Finder, RunResult, fault_of, find_result
from headstart.training.pool import send, worker_calls
from headstart.training.run import only_process, train

Progress = Callable[[Segment, int, dict[str, Any]], None]
_STRIDE = 10  # steps between two progress messages of a worker


def run_study(
    prepared: Prepared,
    out: str | Path = "runs",
    *,
    jobs: int = 1,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    finished: Callable[[str, bool], None] | None = None,
    say: Callable[[str], None] = warnings.warn,
    rehash: bool = False,
) -> Path:
    """Run every segment that is not finished, `jobs` at a time here, or on a `cluster`; returns the study's directory.

    `progress` is called at every step, every 10 steps with several jobs, and never on a cluster. `finished` is called
    with the name of every finished segment, and True where an earlier call had finished it. A killed call can be
    repeated: finished segments are found by their digest, begun ones continue at their last checkpoint. Segments with a
    damaged file, which `say` names, run again. Segments that another study trains in the same folder are waited for.
    The first error stops the segments that are running. With `rehash` the final checkpoint of every finished segment is
    read whole, else only those that are used.
    """
    if jobs > 1 or (cluster and not cluster.gpus):
        check_threads(prepared)
    if cluster:
        refuse_auto(prepared)
    directory = Path(out) / prepared.study.name
    refuse_missing_weights(prepared)
    asked = {segment.name for segment in prepared.plan.segments}
    folder, finder = segments_folder(prepared, directory), Finder()
    prepared = with_kept_seeds(prepared, directory, finder)
    if cluster:
        calls, listener = ray_calls(cluster, prepared.study.name), None
    elif jobs > 1:
        calls, listener = worker_calls(jobs, progress), _send_progress
    else:
        calls, listener = nullcontext(_call_here), progress
    with lock(directory):
        done, begun = find_segments(prepared, directory, finder, whole=True, every=rehash, say=say)
        _write(prepared, directory, done, begun)
        for name in done if finished else ():
            if name in asked:
                finished(name, True)
        waiting = [segment for segment in prepared.plan.segments if segment.name not in done]
        running: dict[Future[RunResult], Segment] = {}
        most = len(waiting) if cluster else jobs
        try:
            with calls if waiting else nullcontext() as call:
                starts, gpus = starts_of(prepared, waiting, done), cluster.gpus if cluster else 0
                for rehearsal in [call(rehearse, prepared, name, weights, gpus) for name, weights in starts.items()]:
                    refuse_overlap(prepared, rehearsal.result())
                while waiting or running:
                    ready = [segment for segment in waiting if segment.needs <= done.keys()]  # in the plan's order
                    for segment in ready[: most - len(running)]:
                        waiting.remove(segment)
                        recipe, _, span = segment_run(prepared, segment, done)
                        begun[segment.name] = finder.place(recipe, folder, span)
                        _note(directory, segment, begun[segment.name], finished=False)
                        needed = {name: done[name] for name in segment.needs}
                        running[call(run_segment, prepared, segment, directory, needed, listener)] = segment
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        segment, result = running.pop(future), future.result()
                        if result.directory.name != begun[segment.name].name:
                            raise ValueError(
                                f"segment {segment.name}: the data or weights changed while the study ran, expected "
                                "the same for all segments; run it again"
                            )
                        done[segment.name] = result
                        _note(directory, segment, result.directory, finished=True)
                        if finished:
                            finished(segment.name, False)
        finally:
            _write(prepared, directory, done, begun)
    return directory


def run_segment(
    prepared: Prepared,
    segment: Segment,
    directory: Path,
    done: Mapping[str, RunResult],
    progress: Progress | None = None,
) -> RunResult:
    """Run one segment whose parent and weights are in `done`, or find it finished.

    A finished tail is then evaluated by the missing variants of the study.
    """
    recipe, origins, span = segment_run(prepared, segment, done)
    report = None if progress is None else (lambda step, values: progress(segment, step, values))
    out = segments_folder(prepared, directory)
    result = train(recipe, out, span=span, label=asdict(segment), provenance=origins, progress=report, wait=inf)
    variants = prepared.study.also_evaluate
    if segment.kind == "tail" and distributed.gather(missing_variants(variants, result.directory))[0]:
        with only_process(result.directory, inf):  # another study that shares the run may evaluate it too
            evaluate_variants(variants, result.directory, result.checkpoint, recipe)
            torch.cuda.empty_cache()  # the next segment may be trained by other processes, on the same GPU
    return result


def run_named(prepared: Prepared, name: str, out: str | Path = "runs") -> RunResult:
    """Run one segment of a study by its name, as a task of a cluster does, or find it finished.

    Other segments may run at the same time; those that this one needs must be finished. ValueError names one that is
    not, or the name nearest to an unknown one. Under torchrun the call joins the other processes.
    """
    directory, finder = Path(out) / prepared.study.name, Finder()
    prepared = with_kept_seeds(prepared, directory, finder)
    segments = {each.name: each for each in prepared.plan.segments}
    check_names([name], segments, "segment")
    segment = segments[name]
    chain = [*prepared.plan.ancestors(segment), segment]
    done, _ = find_segments(prepared, directory, finder, segments=chain, whole=True)
    for needed in sorted(segment.needs - done.keys()):
        raise ValueError(f"segment {name}: needs {needed}, which is not finished in {directory}; run that one first")
    recipe, _, span = segment_run(prepared, segment, done)
    distributed.start_processes(recipe.device)
    _update_plan(prepared, directory, {name: finder.place(recipe, segments_folder(prepared, directory), span)})
    result = run_segment(prepared, segment, directory, done)
    _update_plan(prepared, directory, {})
    return result


def find_segments(
    prepared: Prepared,
    directory: Path,
    finder: Finder | None = None,
    *,
    segments: Iterable[Segment] | None = None,
    whole: bool = False,
    every: bool = False,
    say: Callable[[str], None] = warnings.warn,
) -> tuple[dict[str, RunResult], dict[str, Path]]:
    """The finished segments and the directories of those only begun, by name, found by digest; no model is built.

    A tail is finished when all variants of the study have been evaluated too. `segments` (all by default) come after
    what they need. `whole` reads the checkpoints that missing segments begin from, `every` those of all finished
    segments. A segment whose checkpoint is damaged is not finished; `say` names the file.
    """
    finder, done, begun = finder or Finder(), {}, {}
    out, variants = segments_folder(prepared, directory), prepared.study.also_evaluate
    listed = list(prepared.plan.segments if segments is None else segments)
    for segment in listed:
        if segment.needs <= done.keys():
            recipe, _, span = segment_run(prepared, segment, done)
            place = finder.place(recipe, out, span)
            found = find_result(place, span.stop, whole=every or (whole and segment.kind == "pretrain"))
            if found is None and whole and (fault := fault_of(place, span.stop)):
                say(f"segment {segment.name} runs again: {fault}")
            is_tail = segment.kind == "tail"
            if found is not None and not (is_tail and missing_variants(variants, found.directory)):
                done[segment.name] = found
            elif place.is_dir():
                begun[segment.name] = place
    missing = [segment for segment in listed if segment.name not in done] if whole else []
    by_name = {segment.name: segment for segment in listed}
    while missing:
        parent = missing.pop().parent
        if parent in done and find_result(done[parent].directory, by_name[parent].stop, whole=True) is None:
            say(f"segment {parent} runs again: {fault_of(done[parent].directory, by_name[parent].stop)}")
            begun[parent] = done.pop(parent).directory
            missing.append(by_name[parent])  # needs its own parent
    return done, begun


def segments_folder(prepared: Prepared, directory: Path) -> Path:
    """The folder of a study's segments: its own directory, or one that several studies share."""
    return directory if prepared.study.runs is None else directory.parent / prepared.study.runs


def default_jobs(prepared: Prepared) -> int:
    """As many segments at a time as there are cores, where the recipe asks for one thread on a CPU; one on a GPU."""
    recipe = prepared.first_recipe
    return usable_cores() if recipe.train.threads == 1 and choose_device(recipe.device).value == "cpu" else 1


def check_threads(prepared: Prepared) -> None:
    """ValueError for recipes on a CPU without a number of threads: the last bits of sums depend on that number."""
    for recipe in prepared.asked.values():
        if recipe.train.threads is None and choose_device(recipe.device).value == "cpu":
            raise ValueError(
                f"study {prepared.study.name}: train.threads of {recipe.name} is null, expected a number such as 1 for "
                "several segments at a time: results depend on it in the last bits"
            )


def refuse_auto(prepared: Prepared) -> None:
    """ValueError for precision `auto`, which each machine of a cluster would settle by its own hardware."""
    for name, recipe in prepared.asked.items():
        if recipe.train.precision == "auto":
            raise ValueError(
                f"study {prepared.study.name}: train.precision of {name} is auto, expected fp32 or bf16 on a cluster: "
                "its machines may differ, and arms must not"
            )


def lock(directory: Path) -> AbstractContextManager[None]:
    """Lock a study for this process; ValueError names the process that runs it. A killed process holds no lock."""
    return locked(directory / "lock", taken="this study is being run")


def _send_progress(segment: Segment, step: int, values: dict[str, Any]) -> None:
    """In a worker: send the progress of a segment to the parent, every few steps."""
    if step % _STRIDE == 0 or step == segment.stop:
        send(segment, step, values)


def _call_here(work: Callable[..., RunResult], *given: Any) -> Future[RunResult]:
    """The result of a call in this process; an error is raised at once."""
    future: Future[RunResult] = Future()
    future.set_result(work(*given))
    return future


def _note(directory: Path, segment: Segment, place: Path, *, finished: bool) -> None:
    with plan_lock(directory):
        note_segment(directory, segment.name, place, finished=finished)


def _update_plan(prepared: Prepared, directory: Path, begun: dict[str, Path]) -> None:
    """Write plan.json from the present files, while other processes run; `begun` adds segments without files yet."""
    if distributed.is_writer():
        done, known = find_segments(prepared, directory)
        _write(prepared, directory, done, begun | known)


def _write(prepared: Prepared, directory: Path, done: Mapping[str, RunResult], begun: Mapping[str, Path]) -> None:
    recipe = prepared.first_recipe
    with plan_lock(directory):
        write_study(
            directory,
            prepared.study.model_dump(mode="json"),
            prepared.plan,
            num_images=prepared.num_images,
            batch=recipe.train.batch,
            differences=prepared.differences,
            data={"val": recipe.data.val, "val_images": getattr(recipe.data, "val_images", None)},
            overrides=prepared.overrides,
            begun=begun,
            finished={name: result.directory for name, result in done.items()},
        )
