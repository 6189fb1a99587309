"""What a run says of itself: one JSON row an event in rows.jsonl, and a clock that knows what the time went on.

Everything shown to a person is derived from rows and the recipe. TensorBoard, where installed, gets the same numbers.
"""

import math
import time
from pathlib import Path
from typing import Any

import orjson

from headstart.files import json_text, write_whole

KINDS = ("train", "eval", "other")


class Clock:
    """Seconds by kind of work, continued across restarts: `with`-free, one kind at a time."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds = dict.fromkeys(KINDS, 0.0) | (seconds or {})
        self._kind, self._since = "other", time.perf_counter()

    def switch(self, kind: str) -> None:
        """From now on the time goes to `kind`."""
        assert kind in KINDS
        now = time.perf_counter()
        self.seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now

    def read(self) -> dict[str, float]:
        """Seconds so far, rounded to milliseconds."""
        self.switch(self._kind)
        return {kind: round(value, 3) for kind, value in self.seconds.items()}


class Rows:
    """The rows of a run directory, appended as they happen; `after_step` is where a resumed run continues.

    Rows of later steps were written by a process that was killed before it could save: they are cut off, as is a torn
    last line, so that the file ends up as if nothing had happened.
    """

    def __init__(self, directory: Path, *, after_step: int | None, tensorboard: bool = True):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "rows.jsonl"
        kept = (
            []
            if after_step is None
            else [row for row in read_rows(self.path) if row["step"] <= after_step and row["kind"] != "end"]
        )
        write_whole(self.path, "".join(line_of(row) for row in kept))
        self._file = self.path.open("a", encoding="utf-8", newline="\n")
        self._board = _board(directory, after_step) if tensorboard else None

    def write(self, row: dict[str, Any]) -> None:
        """Append one row and hand it to the operating system at once."""
        self._file.write(line_of(row))
        self._file.flush()
        if self._board is not None:
            for name, value in _scalars(row):
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def line_of(row: dict[str, Any]) -> str:
    """A row as a line of JSON; what is undefined (the AP of a class without objects) is null."""
    return json_text(row) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a file; a torn last line is left out, an absent file has none.

    ValueError for a line in the middle that is not JSON: then somebody edited the file.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            if number >= len(lines) - 1:
                break
            raise ValueError(f"{path}: line {number} is not JSON, expected one row a line") from None
    return rows


def _board(directory: Path, after_step: int | None) -> Any:
    """TensorBoard's writer; None where the extra `tensorboard` is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # here: it takes a second to import
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=None if after_step is None else after_step + 1)


def _scalars(row: dict[str, Any]) -> list[tuple[str, float]]:
    """The numbers of a row that TensorBoard shows."""
    if row["kind"] == "train":
        losses = [(f"loss/{name}", value) for name, value in row["losses"].items()]
        return [("loss/total", row["loss"]), ("rate", row["rate"]), ("grad_norm", row["grad_norm"]), *losses]
    if row["kind"] == "eval":
        tree, split = row["metrics"], row.get("split", "val")
        prefix = "" if split == "val" else f"{split}/"
        return [
            (f"{prefix}{kind}/{name}", value)
            for kind, values in tree.items()
            for name, value in values.items()
            if math.isfinite(value)
        ]
    return []
