"""Findings of an initialisation audit, as audit.json holds them. Imports no torch: reports read them."""

from typing import Any

from msgspec import Struct, to_builtins


class AuditRow(Struct, frozen=True, forbid_unknown_fields=True):
    """One group of tensors. `num_tensors` and `num_params` count parameters and buffers, counters left out."""

    group: str
    source: str
    num_tensors: int
    num_params: int
    training: str
    norm: str


class Audit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Start of a run, tensor by tensor. `errors` is empty where it is the declared one.

    A branch also has `new` tensors, and `reshaped` ones {name: (shape in the parent, shape here)}; both keep their
    initial values.
    """

    start: str
    freeze: str
    file: str | None
    hash: str | None
    rows: tuple[AuditRow, ...]
    errors: tuple[str, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it is written to a run's audit.json."""
        return to_builtins(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and rows of text, to be printed."""
        header = ("part", "source", "tensors", "parameters", "trains", "norm")
        rows = [(r.group, r.source, str(r.num_tensors), f"{r.num_params:,}", r.training, r.norm) for r in self.rows]
        return [header, *rows]

    def check(self) -> None:
        """Raise ValueError with every error, one a line."""
        if self.errors:
            raise ValueError("\n".join(f"initialisation audit: {error}" for error in self.errors))
