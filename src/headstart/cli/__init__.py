"""The verbs of the command line: the one place that prints for people and exits.

What a user gave wrong ends as one clear line and exit code 2, a loss that is not finite as one line and exit code 3.
"""

import sys
import warnings
from io import TextIOWrapper

import typer

from headstart.cli import data, env, recipes, runs, studies, weights
from headstart.cli.console import fail

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train the same detector from scratch and from pre-trained weights, and report which start to use.",
)
app.command("train")(runs.train)
app.command("pretrain")(runs.pretrain)
app.command("eval")(runs.evaluate)
app.command("predict")(runs.predict)
app.command("export")(runs.export)
app.command("verify")(runs.verify)
app.command("env")(env.env)
app.add_typer(data.app, name="data", help="Generate, convert, check and count data sets.")
app.add_typer(recipes.app, name="recipe", help="List and show recipes, with the origin of each value.")
app.add_typer(weights.app, name="weights", help="List, inspect, import, convert and download weights.")
app.add_typer(studies.app, name="study", help="Compare starts: plan, run and report.")


def main() -> None:
    """Entry point of `headstart` and `python -m headstart`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a pipe on Windows may not know "−" or "α": then a "?" is written
            stream.reconfigure(errors="replace")
    # Pillow warns where `load_image` refuses: one line is enough.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    try:
        app()
    except ValueError as error:
        fail(str(error), 2)
    except FloatingPointError as error:
        fail(str(error), 3)
    except ChildProcessError as error:
        fail(str(error), 1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of Ctrl-C
            fail("stopped; the same command continues at the last checkpoint", INTERRUPTED)
        raise
