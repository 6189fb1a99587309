"""Verbs about studies."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.console import Overrides, Rehash, bar, patch_of, say, show

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A shipped study or a YAML file.")]
Out = Annotated[Path, typer.Option(help="Parent folder of study directories.")]
Jobs = Annotated[
    int | None,
    typer.Option(help="Segments at a time (default: one per CPU core if train.threads is 1, else 1).", min=1),
]


def prepared_study(name: str, overrides: list[str] | None) -> Any:
    """A study with its plan; `seeds=3` and the like change the study, `train.batch=4` and the like every recipe."""
    from headstart.api import Study

    return Study.read(name, patch_of(overrides)).prepared


def prepared_or_account(name: str, overrides: list[str] | None, out: Path | None = None) -> Any:
    """A study with its plan; None for one that only counts samples: these are printed, and written below `out`."""
    from headstart.files import write_csv
    from headstart.report.paper import SAMPLES, account
    from headstart.study.prepare import arm_recipe, prepare
    from headstart.study.spec import define_study

    study, patch = define_study(name, patch_of(overrides))
    if study.account is None:
        return prepare(study, patch)
    rows = account(study, {arm: arm_recipe(study, arm, patch)[0] for arm in study.arms})
    if out is not None:
        (out / study.name).mkdir(parents=True, exist_ok=True)
        write_csv(out / study.name / "account.csv", rows)
    lines = [[r["arm"], r["schedule"], f"{r['steps']:,}", *(f"{r[counted]:.4g}" for counted in SAMPLES)] for r in rows]
    show(f"study {study.name}: seen, pre-training included", ["arm", "schedule", "steps", *SAMPLES], lines)
    first, *others = rows
    for row in others:
        ratios = ", ".join(f"{row[counted] / first[counted]:.3g} times the {counted}" for counted in SAMPLES)
        say(f"{row['arm']} {row['schedule']} sees {ratios} of {first['arm']} {first['schedule']}")
    say("nothing is trained: the counts follow from schedules, batch and the documented cost of public weights")
    return None


@app.command("list")
def list_studies() -> None:
    """List the shipped studies."""
    from headstart.recipe.load import shipped
    from headstart.recipe.reference import first_line

    rows = [[name, first_line(path.read_text(encoding="utf-8"))] for name, path in shipped("studies").items()]
    show("shipped studies", ["name", "what"], rows)


@app.command()
def plan(study: Name, overrides: Overrides = None, jobs: Jobs = None) -> None:
    """Show segments, steps, images, epochs, expected time on this machine, and the saving by shared trunks.

    States device and precision, with the reason. Runs a short timing only.
    """
    from headstart.study.run import default_jobs

    prepared = prepared_or_account(study, overrides)
    if prepared is not None:
        show_plan(prepared, jobs or default_jobs(prepared))


def show_plan(prepared: Any, jobs: int, directory: Path | None = None) -> dict[str, float]:
    """Print the plan of a study and return the expected seconds of each segment; its directory keeps the timing."""
    from headstart.study.forecast import makespan, segment_rows, totals
    from headstart.study.timing import hardware_lines, kept_loads, measure_apart
    from headstart.verdict.history import looks_text

    for line in hardware_lines(prepared):
        say(line)
    loads = kept_loads(directory / "timing.json", prepared, jobs) if directory else measure_apart(prepared, jobs)
    rows = segment_rows(prepared.plan, loads)
    show(
        f"study {prepared.study.name}: segments",
        ["segment", "steps", "images", "epochs", "seconds (expected)"],
        [
            [r["segment"], *(f"{r[n]:,}" for n in ("steps", "images")), f"{r['epochs']:.1f}", f"{r['seconds']:,.0f}"]
            for r in rows
        ],
    )
    found = totals(prepared.plan, loads)
    seconds = makespan(prepared.plan, loads, jobs)
    say(
        f"{found['cells']} cells in {found['segments']} segments: {found['steps_shared']:,} steps instead of "
        f"{found['steps_alone']:,} (shared trunks save {100 * found['saving']:.0f} %), and "
        f"{found['steps_pretrain']:,} of pre-training"
    )
    say(
        f"expected time on this machine, from a few timed steps: {seconds / 60:.1f} minutes "
        f"({seconds / 3600:.2f} hours), {jobs} segment{'s' if jobs > 1 else ''} at a time"
    )
    if (rule := prepared.study.rule) and rule.looks:
        say(f"{len(prepared.study.seeds)} seeds, of {looks_text(rule)}")
    for note in prepared.plan.notes:
        say(f"note: {note}")
    return {row["segment"]: row["seconds"] for row in rows}


@app.command()
def run(
    study: Name,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    jobs: Jobs = None,
    executor: Annotated[
        str,
        typer.Option(help="Where segments run: local, or ray (RAY_ADDRESS selects the cluster; else this machine)."),
    ] = "local",
    cpus: Annotated[int | None, typer.Option(help="On ray: CPUs per segment (default: 1).", min=1)] = None,
    gpus: Annotated[int | None, typer.Option(help="On ray: GPUs per segment (default: 0).", min=0)] = None,
    retries: Annotated[
        int | None, typer.Option(help="On ray: how often a lost worker is replaced (default: 3).", min=0)
    ] = None,
    rehash: Rehash = False,
) -> None:
    """Run every missing segment, look by look, then write the report. Stop it at any time; the same command resumes."""
    from headstart.api import looks_of, report_of
    from headstart.study.prepare import refuse_undeclared
    from headstart.study.prepare import rehash as rehash_data
    from headstart.study.ray import cluster_of

    cluster = cluster_of(executor, jobs, {"cpus": cpus, "gpus": gpus, "retries": retries})
    prepared = prepared_or_account(study, overrides, out)
    if prepared is None:
        return
    refuse_undeclared(prepared)
    if rehash:
        rehash_data(prepared)
    for part in looks_of(prepared, out / prepared.study.name):
        say_verdict(report_of(run_prepared(part, out, jobs, cluster, rehash=rehash)))


@app.command()
def search(
    study: Name,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    jobs: Jobs = None,
) -> None:
    """Try every combination of a study's `search` on its arm; write the best one and the tuning effort."""
    from headstart.study.folder import read_study_folder
    from headstart.study.prepare import prepare
    from headstart.study.search import best_of, trial_study, trials_of, write_tuned
    from headstart.verdict.numbers import score

    asked = prepared_study(study, overrides)
    prepared = prepare(trial_study(asked.study), asked.overrides)
    directory = run_prepared(prepared, out, jobs)
    trials = trials_of(asked.study, read_study_folder(directory))
    best, fields = best_of(trials), list(asked.study.search.grid)
    show(
        f"search of {asked.study.name} on arm {asked.study.search.arm}",
        ["trial", *fields, "steps", asked.study.search.metric],
        [[t.name, *(str(t.values[field]) for field in fields), f"{t.steps:,}", score(t.score)] for t in trials],
    )
    say(f"best: {best.name}, picked on the validation images, by which the study judges too")
    say(f"the picked values, and the effort for the difference sheet: {write_tuned(asked.study, trials, directory)}")


def run_prepared(prepared: Any, out: Path, jobs: int | None, cluster: Any = None, *, rehash: bool = False) -> Path:
    """Print the plan, unless all is done, and run it under a progress bar; the study's directory."""
    from headstart.study.folder import is_finished
    from headstart.study.forecast import WorkDone
    from headstart.study.run import default_jobs, run_study

    jobs = jobs or default_jobs(prepared)
    expected, directory = {segment.name: 1.0 for segment in prepared.plan.segments}, out / prepared.study.name
    if not is_finished(directory, prepared.plan):
        expected = show_plan(prepared, jobs, directory)
    work = WorkDone(expected)
    with bar() as progress:
        whole = progress.add_task(f"study {prepared.study.name}", total=100, note="")

        def update(segment: Any, step: int, values: dict[str, Any]) -> None:
            done = work.update(segment.name, (step - segment.start) / segment.steps)
            progress.update(whole, completed=done, note=f"{segment.name} loss {values['loss']:.3f}")

        def finish(name: str) -> None:
            progress.update(whole, completed=work.update(name, 1.0), note=f"{name} done")

        return run_study(
            prepared, out, jobs=jobs, cluster=cluster, progress=update, finished=finish, say=say, rehash=rehash
        )


@app.command()
def segment(
    study: Name,
    name: Annotated[str, typer.Argument(help="Name of a segment, from `study plan`.")],
    overrides: Overrides = None,
    out: Out = Path("runs"),
) -> None:
    """Run one segment whose trunk and weights are finished, as the tasks of a cluster do."""
    from headstart.ops import processes as distributed
    from headstart.study.prepare import refuse_undeclared
    from headstart.study.run import run_named

    prepared = prepared_study(study, overrides)
    refuse_undeclared(prepared)
    result = run_named(prepared, name, out)
    if distributed.is_writer():
        say(f"{name}: {result.directory}")
    distributed.stop_processes()


@app.command()
def slurm(
    study: Name,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    cpus: Annotated[int, typer.Option(help="CPUs per segment.", min=1)] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs per segment; torchrun starts one process each.", min=0)] = 0,
    time: Annotated[str | None, typer.Option(help="Time limit of a segment, such as 8:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
) -> None:
    """Write Slurm job arrays that run the missing segments, level by level, and then the report."""
    from headstart.study.prepare import refuse_undeclared
    from headstart.study.slurm import Job, write_jobs

    prepared = prepared_study(study, overrides)
    refuse_undeclared(prepared)
    found = write_jobs(prepared, study, overrides or [], out, Job(cpus, gpus, time, partition))
    for number, names in enumerate(found.levels):
        say(f"level {number}: {len(names)} segments, from {names[0]} on")
    say(f"submit with: bash {found.script}")


def say_verdict(page: Path) -> None:
    """Print the verdict sentences of a report and where to look."""
    from headstart.typed_json import read_json

    found = read_json(page.with_name("report.json"), dict[str, Any])
    say(f"{found['title']}. {found['text']}")
    if saved := found["saved_with_seconds"]:
        say(saved["sentence"])
    for step in found["next_with_seconds"]:
        say(f"next: {step['sentence']}\n  {step['command']}")
    for answer in found["answers"]:
        lines = answer["lines"] if isinstance(answer["lines"], list) else [answer["lines"]]
        say(f"{answer['question']} {' '.join(lines)}")
    say(f"report: {page}")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="A study's directory, such as runs/demo.")],
    live: Annotated[
        bool,
        typer.Option("--live", help="Keep live.html up to date while the study runs; write the report at its end."),
    ] = False,
    every: Annotated[float, typer.Option(help="With --live: seconds between updates.", min=1.0)] = 10.0,
) -> None:
    """Write the report of a study, finished or not; with --live keep live.html up to date until it is finished."""
    from headstart.report.build import build_report
    from headstart.report.live import PAGE, watch

    if live:
        say(f"open {(directory / PAGE).absolute().as_uri()} in a browser: it reloads itself every {every:g} s")
        say("this ends with the study, or with Ctrl-C")
    say_verdict(watch(directory, every=every) if live else build_report(directory))
