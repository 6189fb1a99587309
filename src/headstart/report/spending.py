"""The bill of a study's folder: cost.py applied to its segments, finished cells only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from headstart.study.cost import CellCost, Cost, cell_costs, public_cost, segment_costs
from headstart.study.folder import StudyFolder
from headstart.weights.public import find_training

Bills = dict[tuple[str, str, float], list[CellCost]]  # by arm, schedule and fraction; one entry a finished seed


@dataclass(frozen=True)
class StartCost:
    """What the weights of an arm cost until they were there, how many trainings share that, and how it is known.

    public is their name where the study file says that they are public ones, documented by others.
    """

    whole: Cost
    uses: float
    source: str
    public: str | None = None

    @property
    def share(self) -> Cost:
        """Of one use."""
        return self.whole.times(1 / self.uses)


def segment_bills(folder: StudyFolder) -> dict[str, Cost]:
    """What each segment itself added, by name."""
    return segment_costs([vars(s) for s in folder.plan.segments], {name: run.rows for name, run in folder.runs.items()})


def cell_bills(folder: StudyFolder, costs: dict[str, Cost]) -> Bills:
    """The costs of all finished cells."""
    finished = {cell.name for cell in folder.plan.cells if folder.tail(cell).end}
    starts, bills = start_costs(folder, costs), {}
    public = {arm: start.whole for arm, start in starts.items() if start.public}
    uses = {arm: start.uses for arm, start in starts.items()}
    for bill in cell_costs([vars(s) for s in folder.plan.segments], costs, public=public, uses=uses):
        if bill.cell in finished:
            bills.setdefault((bill.arm, bill.schedule, bill.fraction), []).append(bill)
    return bills


def start_costs(folder: StudyFolder, costs: dict[str, Cost]) -> dict[str, StartCost]:
    """The cost of each arm's weights: measured where this study made them, documented where it says which they are."""
    made = {s.arm: s.weights_from for s in folder.plan.segments if s.kind != "pretrain" and s.weights_from}
    entries = folder.settings.get("pretrain") or {}
    found = {}
    for arm, name in made.items():
        entry = entries.get(name.removeprefix("pretrain-")) or {}
        found[arm] = StartCost(costs[name], float(entry.get("uses", 1)), f"measured in {name}")
    for arm, entry in (folder.settings.get("public_weights") or {}).items():
        known = find_training(entry["name"])
        found[arm] = StartCost(public_cost(known), float(entry.get("uses", 1)), known.source, entry["name"])
    return found


def outside_weights(folder: StudyFolder) -> tuple[str, ...]:
    """Arms that start from weights of which nothing is known: not made here, and not declared as public ones."""
    known = {s.arm for s in folder.plan.segments if s.kind != "pretrain" and s.weights_from}
    known |= set(folder.settings.get("public_weights") or {})
    return tuple(arm for arm in folder.arms if arm not in folder.random_arms and arm not in known)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean over seeds; nan where any is not known."""
    return Cost(**{f.name: float(np.mean([getattr(cost, f.name) for cost in costs])) for f in fields(Cost)})
