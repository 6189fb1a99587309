"""Costs of a study: samples seen, operations and seconds of each segment, cell and pre-training.

Every cell has its cost in four ways. "alone" counts it as if no trunk were shared: compare arms by it. "as_spent"
splits a shared trunk evenly between the cells that used it, so all cells add up to the cost of the study. "whole" and
"whole_as_spent" are the same with the pre-training of the arm's weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import nan
from typing import Any

import numpy as np

from headstart.study.plan import Cell, Plan, Segment
from headstart.study.results import Run, StudyFolder
from headstart.study.spec import WEIGHTS_FIELD
from headstart.training.rows import WORK
from headstart.training.stored import SEGMENT_FILE, RunFacts
from headstart.weights.public import Training, find_training, public_files

WAYS = ("alone", "whole", "as_spent", "whole_as_spent")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Images, instances and pixels trained on, floating-point operations, and seconds by kind; nan: unknown."""

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

    @property
    def without_evaluation(self) -> Cost:
        """Cost of training alone, as along learning curves."""
        return replace(self, seconds_eval=0.0)

    def __add__(self, other: Cost) -> Cost:
        """Sum of two costs; nan in either stays nan."""
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in COUNTERS})

    def __mul__(self, factor: float) -> Cost:
        """Cost multiplied by a factor, such as 1 / number of uses."""
        return Cost(**{name: getattr(self, name) * factor for name in COUNTERS})


COUNTERS = tuple(f.name for f in fields(Cost))
UNKNOWN = Cost(**dict.fromkeys(COUNTERS, nan))


@dataclass(frozen=True)
class CellCost:
    """Cost of one cell. pretraining is the share of one use, pretraining_spent the share that this study paid.

    Pre-training done by the study itself is split between its cells; public weights cost it nothing.
    """

    cell: Cell
    alone: Cost
    as_spent: Cost
    pretraining: Cost
    pretraining_spent: Cost

    @property
    def whole(self) -> Cost:
        """Alone, with the pre-training's share of one use."""
        return self.alone + self.pretraining

    @property
    def whole_as_spent(self) -> Cost:
        """As spent, with the pre-training paid by this study; the sum over cells is the cost of the study."""
        return self.as_spent + self.pretraining_spent


@dataclass(frozen=True)
class StartCost:
    """Pre-training cost of an arm's weights, number of trainings that it is amortised over, and its source.

    public: name of public weights, as declared in the study file; their cost is documented, not measured.
    """

    whole: Cost
    uses: float
    source: str
    public: str | None = None

    @property
    def share(self) -> Cost:
        """Cost of one use."""
        return self.whole * (1 / self.uses)


def seen(images: float, *, instances_per_image: float, pixels_per_image: float) -> Cost:
    """Samples of a training by its recipe; operations and seconds are unknown."""
    samples = {"images": images, "instances": images * instances_per_image, "pixels": images * pixels_per_image}
    return Cost(**dict.fromkeys(COUNTERS, nan) | samples)


def public_cost(training: Training) -> Cost:
    """Samples seen in making public weights, including those of the weights that they started from."""
    own = seen(training.inputs, instances_per_image=training.instances, pixels_per_image=training.pixels)
    return own if training.after is None else own + public_cost(training.after)


def counters(rows: Sequence[Mapping[str, Any]], *, since: Cost | None = None) -> Cost:
    """Cumulative counters at the end of a run's rows: the last value of each.

    A run without counters has those of `since`, the end of the segment that it continues. Operations are those of
    training, gradients included; nan where rows count images but no operations.
    """
    found: dict[str, float] = {}
    for row in reversed(rows):
        if "images" in row:
            found |= (
                {"flops": nan} | {k: row[k] for k in ("images", "instances", "pixels", "flops") if k in row} | found
            )
        if "seconds" in row:
            found |= {f"seconds_{k}": value for k, value in row["seconds"].items() if k in WORK} | found
        if len(found) == len(COUNTERS):
            break
    return Cost(**{name: found.get(name, getattr(since or Cost(), name)) for name in COUNTERS})


def segment_costs(segments: Sequence[Segment], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Cost]:
    """Cost of each segment itself, by name: its counters less those of its parent, which it continues.

    Parents come first; rows are by segment name (none: not begun, costs nothing). Seconds never fall below 0: a parent
    may go on to evaluate after the checkpoint that was continued. ValueError where images, instances or pixels fall.
    """
    reached: dict[str, Cost] = {}
    costs = {}
    for segment in segments:
        name, before = segment.name, reached.get(segment.parent or "", Cost())
        reached[name] = counters(rows.get(name, ()), since=before)
        costs[name] = _added(name, reached[name], before) if rows.get(name) else Cost()
    return costs


def cell_costs(
    plan: Plan,
    costs: Mapping[str, Cost],
    *,
    public: Mapping[str, Cost] | None = None,
    uses: Mapping[str, float] | None = None,
) -> tuple[CellCost, ...]:
    """Costs of all cells, each of a tail and the trunk that it descends from.

    public: cost of public weights by arm; uses: declared number of uses of an arm's pre-training (default 1).
    """
    cells = {cell.segments[-1]: cell for cell in plan.cells}
    tails = [(cells[segment.name], segment.weights_from) for segment in plan.segments if segment.name in cells]
    users = Counter(name for cell in plan.cells for name in cell.segments)
    weight_users = Counter(weights for _, weights in tails)
    made = []
    for cell, weights in tails:
        own = costs[weights] if weights else Cost()
        foreign = (public or {}).get(cell.arm, Cost())
        made.append(
            CellCost(
                cell=cell,
                alone=sum((costs[name] for name in cell.segments), Cost()),
                as_spent=sum((costs[name] * (1 / users[name]) for name in cell.segments), Cost()),
                pretraining=(own + foreign) * (1 / (uses or {}).get(cell.arm, 1)),
                pretraining_spent=own * (1 / weight_users[weights]),
            )
        )
    return tuple(made)


def study_costs(folder: StudyFolder) -> tuple[dict[str, CellCost], dict[str, StartCost]]:
    """Costs of all finished cells by cell, and pre-training costs by arm.

    The cost of pre-training is measured where the study did it, and documented for public weights, also for those that
    a pre-training starts from. For weights of another run of headstart it is what that run counted. Otherwise it is
    unknown.
    """
    segments = folder.plan.segments
    costs = segment_costs(segments, {name: run.rows for name, run in folder.runs.items()})
    made: dict[str, str] = {}  # the first of an arm: those of other fractions and seeds take as many steps
    for segment in segments:
        if segment.kind != "pretrain" and segment.weights_from:
            made.setdefault(segment.arm, segment.weights_from)
    entries = {segment.name: segment.arm for segment in segments if segment.kind == "pretrain"}
    starts, before = {}, {arm: _before(folder.runs[name]) for arm, name in made.items()}
    for arm, name in made.items():
        entry, (weights, cost) = folder.study.pretrain.get(entries[name]), before[arm]
        source = f"measured in {name}{f', which starts from {weights}' if weights else ''}"
        starts[arm] = StartCost(costs[name] + cost, entry.uses if entry else 1.0, source)
    for arm, (name, uses) in _public_weights(folder).items():
        training = find_training(name)
        starts[arm] = StartCost(public_cost(training), uses, training.source, name)
    elsewhere = outside_weights(folder)
    for arm in elsewhere:
        stored = (run.fact(SEGMENT_FILE, RunFacts) for run in folder.runs.values() if run.segment.arm == arm)
        cost = next((own.weights_cost for own in stored if own and own.weights_cost), None)
        if cost:  # of a run of headstart, such as `headstart pretrain`
            starts[arm] = StartCost(Cost(**cost), 1.0, "counted by the run that made the weights")
    public = {arm: start.whole for arm, start in starts.items() if start.public or arm in elsewhere}
    public |= {arm: UNKNOWN for arm in elsewhere if arm not in starts} | {
        arm: cost for arm, (_, cost) in before.items()
    }
    every = cell_costs(folder.plan, costs, public=public, uses={arm: start.uses for arm, start in starts.items()})
    return {cost.cell.name: cost for cost in every if folder.tail(cost.cell).end}, starts


def _before(run: Run) -> tuple[str | None, Cost]:
    """Weights that a pre-training of the study starts from, and their cost; None and nothing for a random start."""
    start = run.recipe.start if run.recipe else None
    if start is None or start.weights is None:
        return None, Cost()
    stored, public = run.fact(SEGMENT_FILE, RunFacts), public_files().get(start.weights)
    if public and public.training.images_seen is not None:
        return start.weights, public_cost(public.training)
    return start.weights, Cost(**stored.weights_cost) if stored and stored.weights_cost else UNKNOWN


def _public_weights(folder: StudyFolder) -> dict[str, tuple[str, float]]:
    """{arm: (weights, uses)} as the study file declares, else the name of public weights from which an arm starts."""
    given = {arm: folder.overrides.get(WEIGHTS_FIELD, folder.study.weights_of(arm)) for arm in folder.arms}
    asked = {arm: weights or _begun_with(folder, arm) for arm, weights in given.items()}
    sheet = asked | next((row["values"] for row in folder.differences if row["field"] == WEIGHTS_FIELD), {})
    public = {name: file.training for name, file in public_files().items()}
    named = {arm: (name, 1.0) for arm, name in sheet.items() if name in public and public[name].images_seen is not None}
    return named | {arm: (entry.name, entry.uses) for arm, entry in folder.study.public_weights.items()}


def outside_weights(folder: StudyFolder) -> tuple[str, ...]:
    """Arms with weights made elsewhere: neither by the study nor declared as public ones."""
    known = {s.arm for s in folder.plan.segments if s.kind != "pretrain" and s.weights_from}
    known |= _public_weights(folder).keys()
    others = (arm for arm in folder.arms if arm not in known)
    return tuple(arm for arm in others if arm not in folder.random_arms or _begun_with(folder, arm))


def _begun_with(folder: StudyFolder, arm: str) -> str | None:
    """Weights in the recipe of an arm's first run: the study's recipe may name them for all arms."""
    runs = (run for run in folder.runs.values() if run.segment.kind != "pretrain" and run.segment.arm == arm)
    return next((run.recipe.start.weights for run in runs if run.recipe), None)


def mean_costs(costs: Sequence[CellCost]) -> dict[str, Cost]:
    """Mean over seeds in all four ways and of both shares of pre-training; nan where any is unknown."""
    ways = {way: [getattr(cost, way) for cost in costs] for way in (*WAYS, "pretraining", "pretraining_spent")}
    return {
        way: Cost(**{name: float(np.mean([getattr(cost, name) for cost in own])) for name in COUNTERS})
        for way, own in ways.items()
    }


def _added(name: str, reached: Cost, before: Cost) -> Cost:
    added = reached + before * -1
    for counter in ("images", "instances", "pixels"):
        if getattr(added, counter) < 0:
            raise ValueError(
                f"segment {name}: {counter} end at {getattr(reached, counter):g}, expected at least the "
                f"{getattr(before, counter):g} of the segment it continues"
            )
    seconds = {f"seconds_{kind}": max(0.0, getattr(added, f"seconds_{kind}")) for kind in WORK}
    return Cost(images=added.images, instances=added.instances, pixels=added.pixels, flops=added.flops, **seconds)
