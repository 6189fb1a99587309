"""What was seen and spent: each cell alone and as spent, with the pre-training left out and included.

"Alone" is a cell as if no trunk were shared: use it to compare arms. "As spent" splits a shared trunk evenly between
the cells that used it, so that all cells together make what the study really cost. "Pocket" leaves pre-training out,
"whole" includes it. Dicts in (segment.json and rows.jsonl as they are), plain numbers out; no model is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from headstart.study.plan import lineage_name
from headstart.training.rows import COUNTERS, WORK, Row


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Images, instances and pixels trained on, floating-point operations, and seconds by kind; nan means not known."""

    images: float = 0.0
    instances: float = 0.0
    pixels: float = 0.0
    flops: float = 0.0
    seconds_train: float = 0.0
    seconds_eval: float = 0.0
    seconds_other: float = 0.0

    @property
    def seconds(self) -> float:
        return self.seconds_train + self.seconds_eval + self.seconds_other

    def plus(self, other: Cost) -> Cost:
        """The sum of two costs; nan in either stays nan."""
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def times(self, factor: float) -> Cost:
        """The cost multiplied by a factor, such as 1 / number of uses."""
        return Cost(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


@dataclass(frozen=True)
class CellCost:
    """The cost of one cell. pretraining is the share of one use, pretraining_spent what this study paid for it.

    Weights made by the study itself are split between its cells; nothing is paid for public ones.
    """

    cell: str
    arm: str
    schedule: str
    fraction: float
    seed: int
    alone: Cost
    as_spent: Cost
    pretraining: Cost
    pretraining_spent: Cost

    @property
    def whole(self) -> Cost:
        """Alone, with the pre-training's share of one use."""
        return self.alone.plus(self.pretraining)

    @property
    def whole_as_spent(self) -> Cost:
        """As spent, with what this study paid for pre-training; summed over cells this is the study's bill."""
        return self.as_spent.plus(self.pretraining_spent)


def counters(rows: Iterable[Row], *, since: Cost | None = None) -> Cost:
    """Cumulative counters at the last of a run's rows that has each; rows without counters are passed over.

    A run that has written none yet is where it began, at `since`, the counters of what it continues. The operations are
    those of training, gradients included; nan where rows count images but no operations.
    """
    last = {name: getattr(since or Cost(), name) for name in COUNTERS}
    for row in rows:
        if "images" in row:
            last |= {"flops": float("nan")} | {name: row[name] for name in COUNTERS if name in row}
        last |= {f"seconds_{kind}": value for kind, value in row.get("seconds", {}).items() if kind in WORK}
    return Cost(**last)


def segment_costs(
    segments: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Sequence[Row]],
) -> dict[str, Cost]:
    """What each segment itself added, by name: its counters less its parent's, which it continues.

    Segments are dicts with name, kind, arm and parent; rows are by segment name (none: not begun, costs nothing).
    Seconds never fall below 0: a parent may go on to evaluate after the checkpoint that was continued. Raises
    ValueError where images, instances or pixels fall.
    """
    reached: dict[str, Cost] = {}
    costs = {}
    for segment in segments:  # parents come first
        name, before = segment["name"], reached.get(segment["parent"], Cost())
        reached[name] = counters(rows.get(name, ()), since=before)
        costs[name] = _added(name, reached[name], before) if rows.get(name) else Cost()
    return costs


def cell_costs(
    segments: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Cost],
    *,
    public: Mapping[str, Cost] | None = None,
    uses: Mapping[str, float] | None = None,
) -> tuple[CellCost, ...]:
    """The costs of all cells: every tail is one, made of itself and the trunk that it descends from.

    public gives the whole cost of public weights by arm, uses the declared number of uses of an arm's pre-training (1
    where none is declared).
    """
    by_name = {segment["name"]: segment for segment in segments}
    tails = [segment for segment in segments if segment["kind"] == "tail"]
    chains = {tail["name"]: _chain(tail, by_name) for tail in tails}
    users = Counter(name for chain in chains.values() for name in chain)
    weight_users = Counter(tail["weights_from"] for tail in tails)
    made = []
    for tail in tails:
        chain, arm, weights = chains[tail["name"]], tail["arm"], tail.get("weights_from")
        own = costs[weights] if weights else Cost()
        foreign = (public or {}).get(arm, Cost())
        made.append(
            CellCost(
                cell=f"{lineage_name(arm, tail['fraction'], tail['seed'])}-{tail['schedule']}",
                arm=arm,
                schedule=tail["schedule"],
                fraction=tail["fraction"],
                seed=tail["seed"],
                alone=_total(costs[name] for name in chain),
                as_spent=_total(costs[name].times(1 / users[name]) for name in chain),
                pretraining=own.plus(foreign).times(1 / (uses or {}).get(arm, 1)),
                pretraining_spent=own.times(1 / weight_users[weights]),
            )
        )
    return tuple(made)


def seen(images: float, *, instances_per_image: float, pixels_per_image: float) -> Cost:
    """The samples of a run by its recipe; operations and seconds are not known from that."""
    unknown = float("nan")
    return Cost(
        images=images,
        instances=images * instances_per_image,
        pixels=images * pixels_per_image,
        flops=unknown,
        seconds_train=unknown,
        seconds_eval=unknown,
        seconds_other=unknown,
    )


def _chain(tail: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = [tail["name"]]
    while (parent := by_name[names[-1]]["parent"]) is not None:
        names.append(parent)
    return names


def _total(costs: Iterable[Cost]) -> Cost:
    total = Cost()
    for cost in costs:
        total = total.plus(cost)
    return total


def _added(name: str, reached: Cost, before: Cost) -> Cost:
    added = reached.plus(before.times(-1))
    for counter in ("images", "instances", "pixels"):
        if getattr(added, counter) < 0:
            raise ValueError(
                f"segment {name}: {counter} end at {getattr(reached, counter):g}, expected at least the "
                f"{getattr(before, counter):g} of the segment it continues"
            )
    seconds = {f"seconds_{kind}": max(0.0, getattr(added, f"seconds_{kind}")) for kind in WORK}
    return Cost(images=added.images, instances=added.instances, pixels=added.pixels, flops=added.flops, **seconds)
