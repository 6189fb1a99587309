"""Verbs about weights, and the one that audits checkpoints of other trainers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.console import Force, Json, Overrides, answer, messages, print_json, resolved, say, show
from headstart.files import refuse_overwrite

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_weights(as_json: Json = False) -> None:
    """List public weights: which are installed, which are on disk, and which `download` fetches."""
    from headstart.weights.describe import listing

    facts = listing()
    if as_json:
        print_json(facts)
        return
    seen = ["unknown" if row["images_seen"] is None else f"{row['images_seen'] / 1e6:,.0f} M" for row in facts]
    rows = [[row["name"], row["state"], images] for row, images in zip(facts, seen)]
    show("public weights", ["name", "where", "images seen"], rows)
    say("licence, source, norm and recipe of one: headstart weights show NAME")


@app.command("show")
def show_weights(
    name: Annotated[str, typer.Argument(help="Name from `weights list`, or a weight file.")],
    as_json: Json = False,
) -> None:
    """Describe weights: layout, input, classes, norm, tensors, and what they can start."""
    from headstart.weights.describe import describe_file, describe_public
    from headstart.weights.files import SUFFIXES, read_weights
    from headstart.weights.load import open_weights
    from headstart.weights.public import find_file, find_on_disk, public_files

    rows: dict[str, str] = {}
    if name in public_files() or not (Path(name).exists() or Path(name).suffix in SUFFIXES):
        known = find_file(name)
        rows = dict(describe_public(known))
        path = find_on_disk(known)
        file = None if path is None else open_weights(name) if known.hash else read_weights(path)
    else:
        file = read_weights(name)
    rows |= {} if file is None else dict(describe_file(file))  # what its tensors say goes before what the table says
    answer(as_json, rows, *(f"{label + ':':<13}{text}" for label, text in rows.items()))


@app.command()
def inspect(path: Annotated[str, typer.Argument(help="Weight file, or package:NAME.")], as_json: Json = False) -> None:
    """List the tensors of a weight file, without executing code in it."""
    from headstart.weights.load import open_weights

    file = open_weights(path)
    rows = [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in file.tensors.items()]
    header = ["tensor", "shape", "type"]
    if as_json:
        print_json({"file": path, "sha256": file.hash, "tensors": [dict(zip(header, row)) for row in rows]})
    else:
        show(f"{path}, sha256 {file.hash[:16]}", header, rows)


@app.command("import")
def import_weights(
    path: Annotated[str, typer.Argument(help="torchvision, timm, Detectron2 or headstart weights, or package:NAME.")],
    recipe: Annotated[str, typer.Argument(help="Recipe that starts from them.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Load weights into the model of a recipe and print the initialisation audit and what was left out."""
    from headstart.tasks import TASKS, make_task
    from headstart.tasks.settle import settle
    from headstart.tasks.task import make_model
    from headstart.training.start import prepare_start

    found, _ = resolved(
        recipe,
        [
            *(overrides or []),
            f"start.weights={json.dumps(path, ensure_ascii=False)}",  # a name such as "a #1.pth" is no YAML
            *([] if any(text.startswith("start.kind=") for text in overrides or []) else ["start.kind=backbone"]),
        ],
    )
    places = [found.data.train, found.data.train.rpartition(":")[0]]  # PATH or PATH:SPLIT
    asked = any(text.startswith("data.train=") for text in overrides or [])
    if asked or any(Path(place).exists() for place in places if place):
        found, _ = settle(found)
        task = make_task(found)
        result = prepare_start(task.model, found, task.classes)
    else:
        num = TASKS[found.task].num_classes
        say(f"{found.data.train} is not there: {num} classes are taken", messages(as_json))
        result = prepare_start(make_model(found, num), found, {"names": range(num)})
    left_out = [f"left out: {name}" for name in result.left_out]
    _show_audit(result, as_json, f"{path}: initialisation audit of {found.name}", *left_out)


@app.command()
def convert(
    path: Annotated[str, typer.Argument(help="torchvision, timm, Detectron2 or headstart weights, or package:NAME.")],
    out: Annotated[Path, typer.Argument(help="Output file, .safetensors.")],
    mean: Annotated[
        str | None, typer.Option(help="Mean of the input, one number per channel: 123.7,116.3,103.5.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation of the input, one number per channel.")] = None,
    order: Annotated[str | None, typer.Option(help="Channel order of the input: rgb or bgr.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write weights under headstart's names, with their input normalisation: that of the file, or as stated."""
    from headstart.weights.input import stated_input
    from headstart.weights.load import convert_weights, open_weights
    from headstart.weights.public import locate

    refuse_overwrite([(out, locate(path))], force=force)
    names = convert_weights(open_weights(path), out, input=stated_input(mean, std, order))
    left_out = [*names.left_out, *names.unknown]
    told = [f"{out}: {len(names.found)} tensors", *(f"left out: {name}" for name in left_out)]
    answer(as_json, {"file": str(out), "tensors": len(names.found), "left_out": left_out}, *told)


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="Name from `weights list`.")],
    out: Annotated[
        Path | None, typer.Argument(help="Output file; by default a cache, from which recipes take them by name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download public weights; the only command that uses the network."""
    from headstart.weights.public.fetch import download as fetch

    found = fetch(name, out)
    facts = {"file": str(found.path), "sha256": found.hash, "verified": found.verified}
    answer(as_json, facts, str(found))


def audit(
    file: Annotated[str | None, typer.Argument(help="Checkpoint; without one, the traps are listed.")] = None,
    trainer: Annotated[
        str | None, typer.Option("--as", help="Its trainer: torchvision, timm, detectron2, ultralytics, hf …")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="Weights that its training began with.")] = None,
    as_json: Json = False,
) -> None:
    """Audit a checkpoint of any trainer, without executing code in it; exit code 1 if it is not what it should be."""
    from headstart.weights.audits.checkpoint import audit_checkpoint
    from headstart.weights.audits.traps import TRAINERS, TRAPS, check_trainer

    if file is None:
        if trainer or start:
            raise ValueError("audit: --as and --from are given without a file; expected headstart audit FILE")
        lines = [
            f"{trap.number:>2}. {trap.trainer}: {trap.setting}\n    {trap.effect} ({', '.join(trap.threads)})\n"
            f"    found as: {trap.finding}"
            for trap in TRAPS
        ]
        answer(as_json, [asdict(trap) for trap in TRAPS], *lines)
        return
    if trainer is None:
        raise ValueError(f"audit: --as is missing, expected one of {', '.join(TRAINERS)}")
    check_trainer(trainer)
    found = audit_checkpoint(file, trainer, start)
    wrong = [f"wrong: {error}" for error in found.errors]
    own = [trap for trap in TRAPS if trap.number in TRAINERS[trainer].traps]
    traps = [f"trap {t.number}, {t.trainer}: {t.setting}: {t.effect} ({', '.join(t.threads)})" for t in own]
    _show_audit(found, as_json, f"{file}: audit as {trainer}, sha256 {(found.hash or '')[:16]}", *wrong, *traps)
    if found.errors:
        raise typer.Exit(1)


def _show_audit(found: Any, as_json: bool, title: str, *lines: str) -> None:
    """Print an audit as JSON, else as a table, its notes and these lines."""
    if as_json:
        print_json(found.to_json())
        return
    header, *rows = found.table()
    show(title, list(header), [list(row) for row in rows])
    for line in (*found.notes, *lines):
        say(line)
