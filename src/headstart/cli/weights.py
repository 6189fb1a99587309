"""Verbs about weights."""

from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.console import Overrides, resolved, say, show

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_weights() -> None:
    """List public weights for `download`, with source, licence and documented cost."""
    from headstart.weights.public import list_weights as known

    header, *rows = known()
    show("public weights", list(header), [list(row) for row in rows])


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="Weight file.")]) -> None:
    """List the tensors of a weight file, without executing code in it."""
    from headstart.weights.files import read_weights

    file = read_weights(path)
    show(
        f"{path}, sha256 {file.hash[:16]}",
        ["tensor", "shape", "type"],
        [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in file.tensors.items()],
    )


@app.command("import")
def import_weights(
    path: Annotated[Path, typer.Argument(help="torchvision, timm, Detectron2 or headstart weights.")],
    recipe: Annotated[str, typer.Argument(help="Recipe that starts from them.")],
    overrides: Overrides = None,
) -> None:
    """Load weights into the model of a recipe and print the initialisation audit and what was left out."""
    from headstart.recipe.load import settle
    from headstart.tasks import make_task
    from headstart.training.start import prepare_start

    found, _ = resolved(
        recipe,
        [
            *(overrides or []),
            f"start.weights={path}",
            *([] if any(text.startswith("start.kind=") for text in overrides or []) else ["start.kind=backbone"]),
        ],
    )
    found, _ = settle(found)
    result = prepare_start(make_task(found), found)
    header, *rows = result.table()
    show(f"{path}: initialisation audit of {found.name}", list(header), [list(row) for row in rows])
    for line in (*result.notes, *(f"left out: {name}" for name in result.left_out)):
        say(line)


@app.command()
def convert(
    path: Annotated[Path, typer.Argument(help="torchvision, timm, Detectron2 or headstart weights.")],
    out: Annotated[Path, typer.Argument(help="Output file, .safetensors.")],
    mean: Annotated[
        str | None, typer.Option(help="Mean of the input, one number per channel: 123.7,116.3,103.5.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation of the input, one number per channel.")] = None,
    order: Annotated[str | None, typer.Option(help="Channel order of the input: rgb or bgr.")] = None,
) -> None:
    """Write weights under headstart's names, with their input normalisation: that of the file, or as stated."""
    from headstart.weights.files import read_weights
    from headstart.weights.input import stated_input
    from headstart.weights.load import convert_weights

    names = convert_weights(read_weights(path), out, input=stated_input(mean, std, order))
    say(f"{out}: {len(names.found)} tensors")
    for name in (*names.left_out, *names.unknown):
        say(f"left out: {name}")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="Name from `weights list`.")],
    out: Annotated[Path, typer.Argument(help="Output file.")],
) -> None:
    """Download public weights; the only command that uses the network."""
    from headstart.weights.public import download as fetch

    say(f"{fetch(name, out)}")
