"""Verbs about studies."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.console import Overrides, bar, patch_of, say, show

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A shipped study or a YAML file.")]
Out = Annotated[Path, typer.Option(help="Where study directories go.")]


def prepared_study(name: str, overrides: list[str] | None) -> Any:
    """A study with its plan; `seeds=3` and the like change the study, `train.batch=4` and the like every recipe."""
    from headstart.api import Study

    return Study.read(name, patch_of(overrides)).prepared


@app.command("list")
def list_studies() -> None:
    """Shipped studies and the first line of each."""
    from headstart.reference import first_line
    from headstart.resolve import shipped

    rows = [[name, first_line(path.read_text())] for name, path in shipped("studies").items()]
    show("shipped studies", ["name", "what"], rows)


@app.command()
def plan(study: Name, overrides: Overrides = None) -> None:
    """Cells, segments, steps, images, epochs, expected time here, and what sharing trunks saves.

    Runs nothing but a short timing.
    """
    show_plan(prepared_study(study, overrides))


def show_plan(prepared: Any) -> dict[str, Any]:
    """Print the plan of a study and return its totals."""
    from headstart.study.forecast import segment_rows, totals
    from headstart.study.timing import measure_loads

    loads = measure_loads(prepared)
    rows = [
        [row["segment"], f"{row['steps']:,}", f"{row['images']:,}", f"{row['epochs']:.1f}", f"{row['seconds']:,.0f}"]
        for row in segment_rows(prepared.plan, loads)
    ]
    show(f"study {prepared.study.name}: segments", ["segment", "steps", "images", "epochs", "seconds (expected)"], rows)
    found = totals(prepared.plan, loads)
    seconds = found["seconds_shared"] + found["seconds_pretrain"]
    say(
        f"{found['cells']} cells in {found['segments']} segments: {found['steps_shared']:,} steps instead of "
        f"{found['steps_alone']:,} (shared trunks save {100 * found['saving']:.0f} %), and "
        f"{found['steps_pretrain']:,} of pre-training"
    )
    say(
        f"expected time on this machine, from a few timed steps: {seconds / 60:.1f} minutes "
        f"({seconds / 3600:.2f} hours)"
    )
    for note in prepared.plan.notes:
        say(f"note: {note}")
    return found


@app.command()
def run(
    study: Name,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Segments at a time, one thread each; by default one a CPU core when train.threads is 1, else 1.",
            min=1,
        ),
    ] = None,
) -> None:
    """Run every segment that is missing, then write the report. Stop it anywhere; the same command continues."""
    from headstart.study.execute import run_study
    from headstart.study.report import build_report
    from headstart.study.run import refuse_undeclared

    prepared = prepared_study(study, overrides)
    refuse_undeclared(prepared)
    segments = {segment.name: segment for segment in prepared.plan.segments}
    with bar() as progress:
        whole = progress.add_task(
            f"study {prepared.study.name}", total=sum(segment.steps for segment in segments.values()), note=""
        )
        finished: dict[str, int] = {}

        def update(segment: Any, step: int, values: dict[str, Any]) -> None:
            finished[segment.name] = step - segment.start
            progress.update(whole, completed=sum(finished.values()), note=f"{segment.name} loss {values['loss']:.3f}")

        def reuse(name: str) -> None:
            finished[name] = segments[name].steps
            progress.update(whole, completed=sum(finished.values()))

        directory = run_study(prepared, out, jobs=jobs or default_jobs(prepared), progress=update, finished=reuse)
    say_verdict(build_report(directory))


def default_jobs(prepared: Any) -> int:
    """As many segments at a time as there are cores, where the recipe asks for one thread."""
    import os

    from headstart.study.run import arm_recipe

    recipe = arm_recipe(prepared.study, next(iter(prepared.study.arms)), prepared.overrides)[0]
    return len(os.sched_getaffinity(0)) if recipe.train.threads == 1 else 1


def say_verdict(page: Path) -> None:
    """Print the verdict sentences of a report and where to look."""
    import json

    found = json.loads(page.with_name("report.json").read_text())
    say(f"{found['title']}. {found['text']}")
    for answer in found["answers"]:
        lines = answer["lines"] if isinstance(answer["lines"], list) else [answer["lines"]]
        say(f"{answer['question']} {' '.join(lines)}")
    say(f"report: {page}")


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A study's directory, such as runs/demo.")]) -> None:
    """Write the report of a study, finished or not."""
    from headstart.study.report import build_report

    say_verdict(build_report(directory))
