"""Output of the command line: lines, tables, JSON, progress, and the shared reading of arguments."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from headstart.files import json_text, named

out = Console(soft_wrap=True)
OUTPUT = "standard output"
err = Console(stderr=True, soft_wrap=True)
_silent = Console(quiet=True)
# Characters that control a terminal: control codes (ECMA-48), line separators, changes of direction (UAX 9); and
# surrogates, which cannot be encoded.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Messages of torch's allocator (1), the dynamic loader (3), oneDNN (2) and Python's threads (1).
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "cannot map zero-fill pages",
    "could not create a primitive",
    "could not execute a primitive",
    "can't start new thread",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, any number of them", metavar="[KEY=VALUE]...")
]

Rehash = Annotated[
    bool,
    typer.Option(
        "--rehash",
        help="Read every image anew, also where size and times are as they were; and a study's finished checkpoints.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are in the way; inputs never.")]

Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document, messages on the error stream.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors and the result only.")]


def shown(text: str) -> Text:
    """Text without markup or emoji codes; control characters are escaped as in Python."""
    return Text(_OBEYED.sub(lambda match: repr(match[0])[1:-1], text))


def fail(message: str, code: int) -> None:
    """Print `headstart: message` as one line on the error stream and exit."""
    with suppress(OSError):  # a full error stream still gets the exit code
        err.print(shown(f"headstart: {message}"), style="red")
    sys.exit(code)


def warn(message: Warning | str, *where: object) -> None:
    """Print a warning as one line on the error stream, in place of Python's file, line and source."""
    with suppress(OSError):
        err.print(shown(f"headstart: warning: {' '.join(str(message).split())}"))


def open_streams() -> None:
    """Open standard streams that the caller closed on the null device.

    Else the next files opened would get their numbers, and whatever a library prints would be written into them.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number: this one


def cause_of(error: OSError) -> str:
    """File and reason of an error of the operating system, as one line."""
    if error.filename == OUTPUT:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the exit would flush once more, and fail
    if error.errno is None:
        return str(error) or type(error).__name__
    name = "" if error.filename is None else os.fsdecode(error.filename)
    if name and os.path.islink(name) and not os.path.exists(name):
        return f"{name}: {error.strerror}: a link to {Path(name).readlink()}, which is not there"
    return f"{name}: {error.strerror}" if name else f"{error.strerror}"


def lack_of_memory(error: BaseException) -> str:
    """The line of an error of torch, oneDNN, the loader or threads that states a lack of memory; else ""."""
    lines = str(error).splitlines() or [type(error).__name__]
    if type(error).__name__ == "OutOfMemoryError":
        return lines[0]
    found = next((line for line in lines if any(text in line.lower() for text in _NO_MEMORY)), "")
    return found or (lack_of_memory(error.__cause__) if error.__cause__ else "")


def messages(as_json: bool, quiet: bool = False) -> Console:
    """The console for messages: standard output, the error stream beside JSON, none with --quiet."""
    return _silent if quiet else err if as_json else out


def say(text: str, on: Console = out) -> None:
    """Print lines, control characters escaped."""
    with named(OUTPUT) if on is out else suppress(OSError):
        on.print(Text("\n").join(map(shown, text.split("\n"))))


def print_json(value: Any) -> None:
    """Print a result as one JSON document in ASCII; NaN is null."""
    with named(OUTPUT):
        sys.stdout.write(f"{json_text(value, indent=1)}\n")
        sys.stdout.flush()


def answer(as_json: bool, value: Any, *lines: str) -> None:
    """Print a result: `value` as one JSON document, else its lines for people."""
    if as_json:
        print_json(value)
        return
    for line in lines:
        say(line)


def show(title: str, header: list[str], rows: list[list[Any]], on: Console = out) -> None:
    """Print a table: folded to the width of a terminal; elsewhere a row a line, plain and whole.

    Names from users' files are not read as markup.
    """
    cells = [[shown("" if cell is None else str(cell)) for cell in row] for row in (header, *rows)]
    heading = shown(title)
    if not on.is_terminal:
        widths = [max(cell_len(cell.plain) for cell in column) for column in zip(*cells)]
        lines = [
            "  ".join(cell.plain + " " * (width - cell_len(cell.plain)) for cell, width in zip(row, widths)).rstrip()
            for row in cells
        ]
        say("\n".join([heading.plain, *lines]), on)
        return
    heading.stylize("table.title")
    table = Table(title=heading, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for place, name in enumerate(cells[0]):
        table.add_column(name, no_wrap=place == 0, overflow="fold")  # names are to be copied: they stay in one piece
    for row in cells[1:]:
        table.add_row(*row)
    with named(OUTPUT) if on is out else suppress(OSError):
        on.print(table, soft_wrap=False)


def patch_of(overrides: list[str] | None) -> dict[str, Any]:
    """{dotted path: value} of `key.path=value` arguments; ValueError for a key that is given two values."""
    from headstart.recipe.yaml_text import parse_override

    patch: dict[str, Any] = {}
    for text in overrides or []:
        key, value = parse_override(text)
        if key in patch and patch[key] != value:
            raise ValueError(f"override {key}: is given twice, as {patch[key]!r} and {value!r}; expected it once")
        patch[key] = value
    return patch


def resolved(recipe: str, overrides: list[str] | None) -> tuple[Any, Any]:
    """The recipe and the origin of its values."""
    from headstart.recipe.load import resolve

    return resolve(recipe, [("override", patch_of(overrides))])


@contextmanager
def progress(name: str, total: float | None = None, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Yield update(completed, note, found) of a bar with an ETA on the error stream; without a terminal, of lines.

    total: the value of `completed` at the end; None: 100 percent. found: the part of `completed` that was done before.
    """
    if quiet:
        yield lambda completed, note="", found=0.0: None
    elif err.is_terminal:
        with bar() as shown_bar:
            shown_bar.add_task(name, total=total or 100, note="")
            task, known = shown_bar.tasks[0], 0.0

            def show_bar(completed: float, note: str = "", found: float = 0.0) -> None:
                nonlocal known
                task.completed, known = task.completed + found - known, found  # not by update, which takes it for speed
                shown_bar.update(task.id, completed=completed, note=note)

            yield show_bar
    else:
        from headstart.study.forecast import ProgressLines

        lines = ProgressLines(name, lambda text: say(text, err), ends=False)

        def update(completed: float, note: str = "", found: float = 0.0) -> None:
            count = f"{completed:,} of {total:,}" if total else ""
            part = 100 / (total or 100)
            lines(part * completed, ", ".join(filter(None, (count, note))), part * found)

        yield update


def bar() -> Progress:
    """A progress bar for a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(*columns, console=err)


def describe_run(recipe: Any, num_images: int, on: Console) -> int:
    """Print durations in all units and the derivation of the rate; returns the total steps."""
    from headstart.recipe.recipe import rate_text, schedule_of
    from headstart.recipe.schedule import describe

    schedule, part = schedule_of(recipe, num_images), recipe.train
    drops = ", ".join(f"{drop:,}" for drop in schedule.drops) or "none"
    length = describe(schedule.total, part.batch, num_images)
    say(f"{part.schedule}: {length}; drops at {drops}; warm-up {schedule.warmup:,} steps", on)
    say(f"rate {rate_text(recipe)}", on)
    return schedule.total
