"""Continue from a trunk that another plan has run: the constant part of a lineage is the same wherever it is cut.

A trunk keeps checkpoints where schedules of a whole number of base lengths would leave it (`Span.marks`). A study that
is planned again with another schedule finds the last one before its own cut, and begins there instead of at the start.
"""

import json
import os
from pathlib import Path
from typing import Any

from headstart.recipe.recipe import AnyRecipe, digest
from headstart.training.lineage import Span, load_identity
from headstart.training.rows import Rows, read_rows
from headstart.weights import checkpoint


def trunk_identity(recipe: AnyRecipe, fingerprint: str, weights: str | None, span: Span) -> list[str]:
    """What two trunks must share to be parts of one: recipe, data, weights and rate; and what the first part continues.

    The second entry, of what it continues, is "" for a lineage that begins at step 0.
    """
    rate = json.dumps([span.schedule.base_rate, span.schedule.warmup, span.schedule.warmup_from])
    own = digest(recipe, fingerprint, str(weights), rate)
    if span.parent is None:
        return [own, ""]
    before = _label(span.parent.parent.parent).get("trunk")
    return [own, before[1] if before and before[0] == own else load_identity(span.parent)]


def adopt(directory: Path, span: Span, identity: list[str], keep: dict[str, Any]) -> None:
    """Give a trunk that has not begun the furthest checkpoint within its span that another run of its lineage kept.

    The rows up to there come with it. Afterwards the run continues as after a kill, and ends the same bit for bit.
    `keep` replaces what the checkpoint says of its run.
    """
    begin = int(span.parent.stem) if span.parent else 0
    for step, donor in _donors(directory, identity, begin, span.stop):
        rows = _rows(donor, begin, step)
        if rows is None:
            continue
        try:
            state = checkpoint.load(checkpoint.path_of(donor, step))
        except ValueError:  # torn: take the one before it
            continue
        source = Path(os.path.relpath(checkpoint.path_of(donor, step), directory)).as_posix()
        file = Rows(directory, after_step=None, tensorboard=False)
        file.write({"kind": "start", "step": begin, "source": "trunk", "path": source, "stop": span.stop})
        for row in rows:
            file.write(row)
        file.close()
        checkpoint.save(checkpoint.path_of(directory, step), state | keep)
        return


def _donors(directory: Path, identity: list[str], begin: int, stop: int) -> list[tuple[int, Path]]:
    """(step, run directory) of all kept checkpoints of the lineage in begin+1..stop, the furthest first."""
    found = []
    for other in sorted(directory.parent.iterdir()):
        if other != directory and _label(other).get("trunk") == identity:
            found += [(step, other) for step in checkpoint.steps_saved(other) if begin < step <= stop]
    return sorted(found, key=lambda pair: -pair[0])


def _rows(donor: Path, begin: int, step: int) -> list[dict[str, Any]] | None:
    """Train and eval rows of the steps begin+1..step, collected along the donor's parents; None where some are gone."""
    rows: list[dict[str, Any]] = []
    while True:
        facts = _label(donor).get("span")
        if facts is None:
            return None
        own = [row for row in read_rows(donor / "rows.jsonl") if row["kind"] in ("train", "eval")]
        rows = [row for row in own if begin < row["step"] <= step] + rows
        parent = facts["parent"]
        if parent is None or int(parent.rsplit("/", 1)[1]) <= begin:
            return rows
        donor = donor.parent / parent.rsplit("/", 1)[0]


def _label(directory: Path) -> dict[str, Any]:
    path = directory / "segment.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
