"""Verbs about studies, and `ask`, which designs, shows and runs a study for a data set."""

import shlex
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.console import Json, Overrides, Quiet, Rehash, answer, messages, print_json, say, show
from headstart.cli.recipes import list_shipped
from headstart.cli.study_runs import (
    plan_facts,
    prepared_or_account,
    prepared_study,
    run_looks,
    run_prepared,
    say_verdict,
    show_plan,
)

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A shipped study or a YAML file.")]
Out = Annotated[Path, typer.Option(help="Parent folder of study directories.")]
Jobs = Annotated[
    int | None,
    typer.Option(help="Segments at a time (default: one per CPU core on a CPU if train.threads is 1, else 1).", min=1),
]


@app.command("list")
def list_studies(as_json: Json = False) -> None:
    """List the shipped studies."""
    list_shipped("studies", as_json)


@app.command()
def plan(
    study: Name, overrides: Overrides = None, out: Out = Path("runs"), jobs: Jobs = None, as_json: Json = False
) -> None:
    """Show segments, steps, images, epochs, expected time on this machine, and the saving by shared trunks.

    States device and precision, with the reason, and the free disk space at --out. Runs a short timing only.
    """
    from headstart.study.run import default_jobs

    prepared = prepared_or_account(study, overrides, as_json)
    if prepared is None:
        return
    facts = plan_facts(prepared, jobs or default_jobs(prepared), out / prepared.study.name, keep=False)
    if as_json:
        print_json(facts)
    else:
        show_plan(facts, messages(as_json))


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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run every missing segment, look by look, then write the report. Stop it at any time; the same command resumes."""
    from headstart.study.prepare import refuse_undeclared
    from headstart.study.prepare import rehash as rehash_data
    from headstart.study.ray import cluster_of

    cluster = cluster_of(executor, jobs, {"cpus": cpus, "gpus": gpus, "retries": retries})
    prepared = prepared_or_account(study, overrides, as_json, out)
    if prepared is None:
        return
    refuse_undeclared(prepared)
    if rehash:
        rehash_data(prepared)
    run_looks(prepared, out, jobs, cluster, as_json=as_json, quiet=quiet, rehash=rehash)


@app.command()
def search(
    study: Name,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try every combination of a study's `search` on its arm; write the best one and the tuning effort."""
    from headstart.study.folder import read_study_folder
    from headstart.study.prepare import prepare
    from headstart.study.search import best_of, trial_study, trials_of, write_tuned
    from headstart.verdict.numbers import score

    asked = prepared_study(study, overrides)
    prepared = prepare(trial_study(asked.study), asked.overrides)
    directory = run_prepared(prepared, out, jobs, on=messages(as_json, quiet), quiet=quiet)
    trials = trials_of(asked.study, read_study_folder(directory))
    best, fields = best_of(trials), list(asked.study.search.grid)
    tuned = write_tuned(asked.study, trials, directory)
    if as_json:
        print_json({"best": best.name, "trials": [asdict(trial) for trial in trials], "file": str(tuned)})
        return
    show(
        f"search of {asked.study.name} on arm {asked.study.search.arm}",
        ["trial", *fields, "steps", asked.study.search.metric],
        [[t.name, *(str(t.values[field]) for field in fields), f"{t.steps:,}", score(t.score)] for t in trials],
    )
    say(f"best: {best.name}, picked on the validation images, by which the study judges too")
    say(f"the picked values, and the effort for the difference sheet: {tuned}")


@app.command()
def segment(
    study: Name,
    name: Annotated[str, typer.Argument(help="Name of a segment, from `study plan`.")],
    overrides: Overrides = None,
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """Run one segment whose trunk and weights are finished, as the tasks of a cluster do."""
    from headstart.ops import processes as distributed
    from headstart.study.prepare import refuse_undeclared
    from headstart.study.run import run_named

    prepared = prepared_study(study, overrides)
    refuse_undeclared(prepared)
    result = run_named(prepared, name, out)
    if distributed.is_writer():
        answer(as_json, {"segment": name, "run": str(result.directory)}, f"{name}: {result.directory}")
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
    as_json: Json = False,
) -> None:
    """Write Slurm job arrays that run the missing segments, level by level, and then the report."""
    from headstart.study.prepare import refuse_undeclared
    from headstart.study.slurm import Job, write_jobs

    prepared = prepared_study(study, overrides)
    refuse_undeclared(prepared)
    found = write_jobs(prepared, study, overrides or [], out, Job(cpus, gpus, time, partition))
    told = [f"level {n}: {len(names)} segments, from {names[0]} on" for n, names in enumerate(found.levels)]
    facts = {"levels": found.levels, "script": str(found.script)}
    answer(as_json, facts, *told, f"submit with: bash {found.script}")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="A study's directory, such as runs/demo.")],
    live: Annotated[
        bool,
        typer.Option("--live", help="Keep live.html up to date while the study runs; write the report at its end."),
    ] = False,
    every: Annotated[float, typer.Option(help="With --live: seconds between updates.", min=1.0)] = 10.0,
    as_json: Json = False,
) -> None:
    """Write the report of a study, finished or not; with --live keep live.html up to date until it is finished."""
    from headstart.report.build import build_report
    from headstart.report.live import PAGE, watch

    on = messages(as_json)
    if live:
        say(f"open {(directory / PAGE).absolute().as_uri()} in a browser: it reloads itself every {every:g} s", on)
        say("this ends with the study, or with Ctrl-C", on)
    say_verdict(watch(directory, every=every) if live else build_report(directory), as_json=as_json)


def ask(
    data: Annotated[
        list[str],
        typer.Argument(help="Data set of any format, or training and validation set; PATH or PATH:SPLIT."),
    ],
    hours: Annotated[float, typer.Option(help="Time for all of it on this machine.")],
    images: Annotated[list[Path] | None, typer.Option(help="Folder of the pictures of each, if elsewhere.")] = None,
    labels: Annotated[
        list[Path] | None, typer.Option(help="Folder of label maps of each: PNGs named as the pictures.")
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(help="Weights to compare with random values: a name of `weights list` or a file; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study (default: ask- and that of the data).")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Go on with a clean copy of data that have errors.")] = False,
    groups: Annotated[
        str | None, typer.Option(help="Regular expression: pictures whose names share its text are not divided.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Write and show the study, run nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Run it without asking.")] = False,
    out: Out = Path("runs"),
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is a pre-trained start worth it on these data? From a folder to a report in so many hours.

    Finds the format, checks the data, divides them where there is no split, chooses settings and writes a study file
    with the reason of each choice. Stop it at any time; the same command resumes.
    """
    from headstart.design.propose import Question, is_begun, propose, study_name, summary
    from headstart.study.folder import STUDY_FILE
    from headstart.study.prepare import refuse_undeclared

    question = Question(tuple(data), hours, tuple(images or ()), tuple(start or ()), groups, fix, tuple(labels or ()))
    directory = out / (name or study_name(question))
    file = directory / STUDY_FILE
    on = messages(as_json, quiet)

    def tell(text: str) -> None:
        """Print a sentence in lines of 80 characters."""
        say(textwrap.fill(text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False), on)

    said: list[str] = []
    if is_begun(question, directory):
        tell(f"continues {file}; another --name designs a new study")
        prepared = prepared_study(str(file), None)
    else:
        proposal = propose(question, directory, jobs=jobs, say=tell)
        prepared, said = proposal.prepared, summary(proposal)
    for line in said:
        tell(line)
    where = [] if out == Path("runs") else ["--out", str(out)]
    command = shlex.join(
        ["headstart", "study", "run", str(file), *where, *([] if jobs is None else ["--jobs", str(jobs)])]
    )
    if plan or not (yes or (sys.stdin.isatty() and typer.confirm("Run it now?", default=True, err=as_json))):
        answer(as_json, {"study": str(file), "plan": said, "command": command}, f"to run it: {command}")
        return
    refuse_undeclared(prepared)
    run_looks(prepared, out, jobs, as_json=as_json, quiet=quiet)
