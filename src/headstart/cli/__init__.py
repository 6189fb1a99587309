"""The verbs of the command line: the one place that prints for people and exits.

Each error is one line. Exit codes: 2 for input, 3 for a loss that is not finite, 1 for what the system refused.
"""

import logging
import sys
import threading
import warnings
from io import TextIOWrapper
from typing import Annotated

import typer

from headstart.cli import data, data_sets, recipes, runs, studies, weights
from headstart.cli.console import cause_of, fail, lack_of_memory, open_streams, say, warn
from headstart.version import __version__

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
FIRST_STEPS = """\
headstart trains the same detector from scratch and from pre-trained weights, and reports which start to use.

  headstart ask my_data/ --hours 2     from a folder of images and boxes to a report
  headstart data check my_data/        every problem of a data set, by file and id
  headstart train small data.train=…   one model; `recipe list` names the recipes
  headstart study run demo             a shipped comparison; `study list` names them
  headstart -h                         all commands; `headstart COMMAND -h` their options\
"""


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"headstart {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train the same detector from scratch and from pre-trained weights, and report which start to use."""
    if context.invoked_subcommand is None:
        say(FIRST_STEPS)


app.command("ask")(studies.ask)
app.command("train")(runs.train)
app.command("pretrain")(runs.pretrain)
app.command("eval")(runs.evaluate)
app.command("predict")(runs.predict)
app.command("export")(runs.export)
app.command("verify")(runs.verify)
app.command("audit")(weights.audit)
app.command("env")(recipes.env)
for verb in (data_sets.convert, data_sets.rename, data_sets.merge):
    data.app.command()(verb)
app.add_typer(data.app, name="data", help="Generate, check, count, divide, convert, rename and merge data sets.")
app.add_typer(recipes.app, name="recipe", help="List and show recipes, with the origin of each value.")
app.add_typer(weights.app, name="weights", help="List, inspect, import, convert and download weights.")
app.add_typer(studies.app, name="study", help="Compare starts: plan, run and report.")


def main() -> None:
    """Entry point of `headstart` and `python -m headstart`."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a pipe on Windows may not know "−" or "α": then a "?" is written
            stream.reconfigure(errors="replace")
    threading.excepthook, warnings.showwarning = _one_line, warn
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where there is no home for its cache
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
    except OSError as error:
        fail(cause_of(error), 1)
    except MemoryError:
        fail("memory: the system gives no more", 1)
    except (RuntimeError, ImportError) as error:
        line = lack_of_memory(error)
        if not line:
            raise
        fail(f"memory: {line}", 1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of Ctrl-C
            fail("stopped; runs and studies continue with the same command", INTERRUPTED)
        raise


def _one_line(found: threading.ExceptHookArgs) -> None:
    """Ignore a disk error of a thread: TensorBoard's writer raises it in the main thread too."""
    if not isinstance(found.exc_value, OSError):
        threading.__excepthook__(found)
