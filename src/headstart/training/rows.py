"""Rows of a run, one JSON line an event in rows.jsonl, and the clock of their seconds.

Everything shown to a person is derived from rows and the recipe.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Required, TypedDict, get_type_hints

from msgspec import UNSET, UnsetType, defstruct

from headstart.files import json_text, named, sync_folders, write_whole
from headstart.typed_json import read_lines

COUNTERS = ("images", "instances", "pixels", "flops")  # of training, in every row and checkpoint
WORK = ("train", "eval", "other")  # kinds of work that a clock tells apart


class Row(TypedDict, total=False):
    """One event of a run; which fields it has depends on its kind.

    All but "start" have the counters of training up to `step` and the seconds up to it by kind of work. metrics are
    {kind: {name: 0..1}}, per_class {kind: {class: {name: 0..1}}}; what is undefined is NaN, in the file null.
    """

    kind: Required[Literal["start", "train", "eval", "end"]]
    # eval of a variant, in variants.jsonl only
    variant: str
    patch: dict[str, Any]
    step: Required[int]  # finished updates
    # start: what the run begins from, the length of its schedule, the step at which it ends, and what it computes on
    source: str
    path: str | None
    total: int
    stop: int
    device: str
    precision: Literal["fp32", "bf16"]
    # eval: validation or training images; "ema" for averaged weights, absent for the live ones
    split: Literal["val", "train"]
    weights: Literal["ema"]
    images: int
    instances: int
    pixels: int
    flops: int  # floating-point operations, gradients included
    # train: means since the row before
    rate: float
    loss: float
    losses: dict[str, float]
    grad_norm: float | None
    # eval
    metrics: dict[str, dict[str, float | None]]
    per_class: dict[str, dict[str, dict[str, float | None]]]
    # end: the final checkpoint below the run directory, the SHA-256 of its weights, and peak memory in bytes
    checkpoint: str
    hash: str
    memory: int | None
    seconds: dict[str, float]


OnRow = Callable[[Row], None]

# A row as it is read; fields in the order in which they are written, so that a row read and written again is the same.
_Record = defstruct(
    "_Record",
    [
        (name, hint) if name in Row.__required_keys__ else (name, hint | UnsetType, UNSET)
        for name, hint in get_type_hints(Row).items()
    ],
    forbid_unknown_fields=True,
    kw_only=True,
    gc=False,
)
_FIELDS = _Record.__struct_fields__
_NEEDED = {"start": (), "train": ("rate", "loss", "losses"), "eval": ("metrics",), "end": ("checkpoint", "hash")}


def training_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows with training losses, in order of steps."""
    return [row for row in rows if row["kind"] == "train"]


def evaluations(rows: Iterable[Row], split: str = "val", weights: str = "live") -> list[Row]:
    """Rows with metrics on validation or training images, of the live or the averaged ("ema") weights, by step."""
    kind = ("eval", split, weights)
    return [row for row in rows if (row["kind"], row.get("split", "val"), row.get("weights", "live")) == kind]


def judged_weights(rows: Iterable[Row]) -> Literal["live", "ema"]:
    """The weights by which studies judge a run: the averages of `train.ema` where it evaluated them, else the live."""
    return "ema" if evaluations(rows, weights="ema") else "live"


def work_rows(rows: Iterable[Row], after: int, until: int | None = None) -> list[Row]:
    """Training and evaluation rows of the steps after+1..until, without an upper bound for None."""
    return [
        row
        for row in rows
        if row["kind"] in ("train", "eval") and after < row["step"] and (until is None or row["step"] <= until)
    ]


def end_row(rows: Iterable[Row], stop: int | None = None) -> Row | None:
    """The last row of a run that reached its end, at step `stop` if given; None for a run that has not."""
    ends = [row for row in rows if row["kind"] == "end" and stop in (None, row["step"])]
    return ends[-1] if ends else None


def steps_of(rows: Iterable[Row]) -> dict[str, list[int]]:
    """Steps of rows by kind, as a checkpoint keeps them; "eval train" of training images, "eval ema" of averages."""
    steps: dict[str, list[int]] = {}
    for row in rows:
        steps.setdefault(_kind(row), []).append(row["step"])
    return steps


def missing_rows(rows: Iterable[Row], state: Mapping[str, Any]) -> str:
    """Rows that a checkpoint's content counts on and that are not there, by kind and step; "" where all are there.

    A row of the checkpoint's own step must also have its counters. Checkpoints of format 1 count on no rows.
    """
    there: dict[str, set[int]] = {}
    for row in rows:
        is_earlier = row["step"] != state["step"] or row["kind"] not in ("train", "eval")
        if is_earlier or all(row.get(name) == state["counters"][name] for name in COUNTERS):
            there.setdefault(_kind(row), set()).add(row["step"])
    gone = {kind: sorted(set(steps) - there.get(kind, set())) for kind, steps in state.get("rows", {}).items()}
    return " and ".join(f"{kind} rows of {_listed(steps)}" for kind, steps in gone.items() if steps)


def _kind(row: Row) -> str:
    if row["kind"] != "eval":
        return row["kind"]
    return "eval train" if row.get("split") == "train" else "eval ema" if "weights" in row else "eval"


def _listed(steps: list[int]) -> str:
    """Up to three steps, or the number of them with the first and the last."""
    if len(steps) > 3:
        return f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


class Clock:
    """Seconds by kind of work, continued across restarts; one kind at a time."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds = dict.fromkeys(WORK, 0.0) | (seconds or {})
        self._kind, self._since = "other", time.perf_counter()

    def switch(self, kind: str) -> None:
        """Count the time from now on for `kind`."""
        assert kind in WORK
        now = time.perf_counter()
        self.seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now

    def read(self) -> dict[str, float]:
        """Seconds so far, rounded to milliseconds."""
        self.switch(self._kind)
        return {kind: round(value, 3) for kind, value in self.seconds.items()}


class Rows:
    """Writer of a run's rows, appended as they happen; `after_step` is the step at which a resumed run continues.

    Rows of later steps come from a process that was killed before its checkpoint: they are cut off, as is a torn last
    line, so that the file of a resumed run equals that of an uninterrupted one. `steps` are those of the rows in the
    file by kind (see `steps_of`). `on_row` gets a copy of each row that is written.
    """

    def __init__(self, directory: Path, *, after_step: int | None, on_row: OnRow | None = None):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "rows.jsonl"
        kept = (
            []
            if after_step is None
            else [row for row in read_rows(self.path) if row["step"] <= after_step and row["kind"] != "end"]
        )
        write_whole(self.path, "".join(line_of(row) for row in kept))
        self._file = self.path.open("a", encoding="utf-8", newline="\n")
        self._synced = False
        self.steps = steps_of(kept)
        self._on_row = on_row

    def write(self, row: Row) -> None:
        """Append one row and hand it to the operating system at once."""
        with named(self.path):
            self._file.write(line_of(row))
            self._file.flush()
        self.steps.setdefault(_kind(row), []).append(row["step"])
        if self._on_row is not None:
            self._on_row(deepcopy(row))  # a listener's changes are its own

    def sync(self) -> None:
        """Write all rows down to the disk, before a checkpoint counts on them."""
        with named(self.path):
            os.fsync(self._file.fileno())
        if not self._synced:  # the file's own entry: once is enough
            sync_folders(self.path)
            self._synced = True

    def close(self) -> None:
        """Write everything down to the disk."""
        self.sync()
        self._file.close()


def line_of(row: Row) -> str:
    """A row as a line of JSON; what is undefined (the AP of a class without objects) is null."""
    return json_text(row) + "\n"


def read_rows(path: Path, *needed: str) -> list[Row]:
    """All whole rows of a file; a torn last line is left out, an absent file has none.

    ValueError naming line and field for a line that is no row, or without a field of its kind or of `needed`.
    """
    rows = []
    for number, record in enumerate(read_lines(path, _Record), start=1):
        row = {name: value for name in _FIELDS if (value := getattr(record, name)) is not UNSET}
        for name in (*_NEEDED[row["kind"]], *needed):
            if name not in row:
                raise ValueError(f"{path}: line {number}: {name}: missing")
        rows.append(row)
    return rows
