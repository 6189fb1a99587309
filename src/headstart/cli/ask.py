"""The verb that goes from a data set to a report: it designs a study, shows it, and runs it."""

import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.console import Json, Quiet, messages, print_json, say
from headstart.cli.studies import Jobs, Out
from headstart.cli.study_runs import prepared_study, run_prepared, say_verdict


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
    from headstart.report.build import build_report
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
    command = f"headstart study run {file}" + ("" if out == Path("runs") else f" --out {out}")
    if plan or not (yes or (sys.stdin.isatty() and typer.confirm("Run it now?", default=True, err=as_json))):
        if as_json:
            print_json({"study": str(file), "plan": said, "command": command})
        else:
            say(f"to run it: {command}")
        return
    refuse_undeclared(prepared)
    page = build_report(run_prepared(prepared, out, jobs, on=on, quiet=quiet))
    say_verdict(page, as_json=as_json)
