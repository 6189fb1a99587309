"""Plan, run and verdict of a study on the screen, for the verbs `study` and `ask`."""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from headstart.cli.console import answer, messages, patch_of, print_json, progress, say, show


def prepared_study(name: str, overrides: list[str] | None) -> Any:
    """A study with its plan; `seeds=3` and the like change the study, `train.batch=4` and the like every recipe."""
    from headstart.api import Study

    return Study.read(name, patch_of(overrides)).prepared


def prepared_or_account(name: str, overrides: list[str] | None, as_json: bool, out: Path | None = None) -> Any:
    """A study with its plan; None for a study that only counts samples, which are printed and written below `out`."""
    from headstart.files import write_csv
    from headstart.report.references import SAMPLES, account
    from headstart.study.prepare import arm_recipe, prepare
    from headstart.study.spec import define_study

    study, patch = define_study(name, patch_of(overrides))
    if study.account is None:
        return prepare(study, patch)
    rows = account(study, {arm: arm_recipe(study, arm, patch)[0] for arm in study.arms})
    if out is not None:
        (out / study.name).mkdir(parents=True, exist_ok=True)
        write_csv(out / study.name / "account.csv", rows)
    if as_json:
        print_json({"study": study.name, "account": rows})
        return None
    lines = [[r["arm"], r["schedule"], f"{r['steps']:,}", *(f"{r[counted]:.4g}" for counted in SAMPLES)] for r in rows]
    show(f"study {study.name}: seen, pre-training included", ["arm", "schedule", "steps", *SAMPLES], lines)
    first, *others = rows
    for row in others:
        ratios = ", ".join(f"{row[counted] / first[counted]:.3g} times the {counted}" for counted in SAMPLES)
        say(f"{row['arm']} {row['schedule']} sees {ratios} of {first['arm']} {first['schedule']}")
    say("nothing is trained: the counts follow from schedules, batch and the documented cost of public weights")
    return None


def plan_facts(prepared: Any, jobs: int, directory: Path, *, keep: bool) -> dict[str, Any]:
    """Segments, totals and expected times of a study, from a few timed steps; `keep` stores these in `directory`.

    Segments that are finished there count in all figures but those named "left".
    """
    from headstart.study.forecast import segment_rows, time_to_finish, totals
    from headstart.study.run import find_segments, segments_folder
    from headstart.study.timing import disk_need, hardware_lines, kept_loads, measure_apart, memory_need
    from headstart.verdict.rule import looks_text

    loads = kept_loads(directory / "timing.json", prepared, jobs) if keep else measure_apart(prepared, jobs)
    finished = find_segments(prepared, directory)[0] if segments_folder(prepared, directory).is_dir() else {}
    study, (files, need, need_left) = prepared.study, disk_need(prepared, loads, finished)
    rows, (peak, most) = segment_rows(prepared.plan, loads), memory_need(prepared, loads)
    whole = {row["segment"]: row["seconds"] for row in rows}
    left = whole | dict.fromkeys(finished, 0.0)
    place = directory.absolute()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.is_dir())).free
    return {
        "study": study.name,
        "machine": hardware_lines(prepared),
        "segments": rows,
        "totals": totals(prepared.plan, loads),
        "jobs": jobs,
        "seconds": time_to_finish(prepared.plan, whole, jobs),
        "finished": len(finished),
        "seconds_left": time_to_finish(prepared.plan, left, jobs),
        "seeds": len(study.seeds),
        "checkpoints": files,
        "checkpoint_bytes": need,
        "checkpoint_bytes_left": need_left,
        "free_bytes": free,
        "segment_bytes": peak,
        "memory_bytes": most,
        "starts": {arm: prepared.recipes[arm][0].start.weights for arm in study.arms if not study.branch_of(arm)},
        "looks": looks_text(study.rule) if study.rule and study.rule.looks else None,
        "notes": prepared.plan.notes,
    }


def show_plan(facts: dict[str, Any], on: Console) -> None:
    """Print what `plan_facts` found."""
    from headstart.verdict.numbers import counted, memory, span

    for line in facts["machine"]:
        say(line, on)
    rows = facts["segments"]
    show(
        f"study {facts['study']}: segments",
        ["segment", "steps", "images", "epochs", "seconds (expected)"],
        [
            [r["segment"], *(f"{r[n]:,}" for n in ("steps", "images")), f"{r['epochs']:.1f}", f"{r['seconds']:,.0f}"]
            for r in rows
        ],
        on,
    )
    found, seconds, jobs = facts["totals"], facts["seconds"], facts["jobs"]
    say(
        f"{found['cells']} cells in {found['segments']} segments: {found['steps_shared']:,} steps instead of "
        f"{found['steps_alone']:,} (shared trunks save {100 * found['saving']:.0f} %), and "
        f"{found['steps_pretrain']:,} of pre-training",
        on,
    )
    say(
        f"expected time on this machine, from a few timed steps: {seconds / 60:.1f} minutes "
        f"({seconds / 3600:.2f} hours), {jobs} segment{'s' if jobs > 1 else ''} at a time",
        on,
    )
    if facts["finished"]:
        say(f"{facts['finished']} segments are finished: about {span(facts['seconds_left'])} left", on)
    names = ("checkpoints", "checkpoint_bytes", "checkpoint_bytes_left", "free_bytes")
    files, need, need_left, free = (facts[name] for name in names)
    lacks = "" if need_left < free else ": NOT enough"
    written = f", {memory(need_left)} of it not yet written" if 0 < need_left < need else ""
    say(f"{files} checkpoints take {memory(need)} in the end{written}; {memory(free)} are free{lacks}", on)
    peak, most = facts["segment_bytes"], facts["memory_bytes"]
    if peak and most:
        lacks = "" if jobs * peak < most else ": NOT enough, expected fewer --jobs or a smaller batch"
        say(
            f"memory: {memory(peak)} in the timed steps and evaluation, {counted(jobs, 'segment')} at a time; "
            f"this machine has {memory(most)}{lacks}",
            on,
        )
    starts = (f"{arm} from {weights or 'random values'}" for arm, weights in facts["starts"].items())
    say(f"starts that fit their networks: {', '.join(starts)}", on)
    if facts["looks"]:
        say(f"{facts['seeds']} seeds, of {facts['looks']}", on)
    for note in facts["notes"]:
        say(f"note: {note}", on)


def run_prepared(
    prepared: Any, out: Path, jobs: int | None, cluster: Any = None, *, on: Console, quiet: bool, rehash: bool = False
) -> Path:
    """Print the plan, unless all is done, and run it under a progress bar; returns the study's directory."""
    from headstart.study.folder import is_finished
    from headstart.study.forecast import WorkDone
    from headstart.study.run import default_jobs, run_study

    jobs = jobs or default_jobs(prepared)
    expected, directory = {segment.name: 1.0 for segment in prepared.plan.segments}, out / prepared.study.name
    if not is_finished(directory, prepared.plan):
        facts = plan_facts(prepared, jobs, directory, keep=True)
        show_plan(facts, on)
        expected = {row["segment"]: row["seconds"] for row in facts["segments"]}
    work = WorkDone(expected)
    with progress(f"study {prepared.study.name}", quiet=quiet) as bar:

        def update(segment: Any, step: int, values: dict[str, Any]) -> None:
            done, before = work.update(segment.name, (step - segment.start) / segment.steps)
            bar(done, f"{segment.name} step {step:,} loss {values['loss']:.3f}", before)

        def finish(name: str, found: bool) -> None:
            done, before = work.update(name, 1.0, found=found)
            bar(done, f"{name} done", before)

        return run_study(
            prepared,
            out,
            jobs=jobs,
            cluster=cluster,
            progress=update,
            finished=finish,
            say=lambda line: say(line, on),
            rehash=rehash,
        )


def run_looks(
    prepared: Any,
    out: Path,
    jobs: int | None,
    cluster: Any = None,
    *,
    as_json: bool,
    quiet: bool,
    rehash: bool = False,
) -> None:
    """Run a study look by look, write its report after each, and print the verdict: as JSON of the last look alone."""
    from headstart.api import looks_of, report_of

    for part in looks_of(prepared, out / prepared.study.name):
        on = messages(as_json, quiet)
        page = report_of(run_prepared(part, out, jobs, cluster, on=on, quiet=quiet, rehash=rehash))
        if not as_json:
            say_verdict(page)
    if as_json:
        say_verdict(page, as_json=True)


def say_verdict(page: Path, *, as_json: bool = False) -> None:
    """Print the verdict sentences of a report and where to look; as JSON all of report.json and the page's path."""
    from headstart.typed_json import read_json

    found = read_json(page.with_name("report.json"), dict[str, Any])
    lines = [f"{found['title']}. {found['text']}"]
    if saved := found["saved_with_seconds"]:
        lines.append(saved["sentence"])
    lines += [f"next: {step['sentence']}\n  {step['command']}" for step in found["next_with_seconds"]]
    lines += [f"{own['question']} {' '.join(own['lines'])}" for own in found["answers"]]
    answer(as_json, {**found, "report": str(page)}, *lines, f"report: {page}")
