"""The verb that audits checkpoints of other trainers."""

from typing import Annotated

import typer

from headstart.cli.console import Json, print_json, say, show


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
        _show_traps(TRAPS, as_json)
        return
    if trainer is None:
        raise ValueError(f"audit: --as is missing, expected one of {', '.join(TRAINERS)}")
    check_trainer(trainer)
    found = audit_checkpoint(file, trainer, start)
    if as_json:
        print_json(found.to_json())
    else:
        header, *rows = found.table()
        show(f"{file}: audit as {trainer}, sha256 {(found.hash or '')[:16]}", list(header), [list(row) for row in rows])
        for line in found.notes:
            say(line)
        for error in found.errors:
            say(f"wrong: {error}")
        for trap in TRAPS:
            if trap.number in TRAINERS[trainer].traps:
                say(f"trap {trap.number}, {trap.trainer}: {trap.setting}: {trap.effect} ({', '.join(trap.threads)})")
    if found.errors:
        raise typer.Exit(1)


def _show_traps(traps: tuple, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json([asdict(trap) for trap in traps])
        return
    for trap in traps:
        say(f"{trap.number:>2}. {trap.trainer}: {trap.setting}")
        say(f"    {trap.effect} ({', '.join(trap.threads)})")
        say(f"    found as: {trap.finding}")
