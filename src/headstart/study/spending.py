"""The bill of a study's folder: cost.py applied to its segments, finished cells only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from headstart.study.cost import CellCost, Cost, cell_costs, segment_costs
from headstart.study.read import StudyFolder

Bills = dict[tuple[str, str, float], list[CellCost]]  # by arm, schedule and fraction; one entry a finished seed


def segment_bills(folder: StudyFolder) -> dict[str, Cost]:
    """What each segment itself added, by name."""
    return segment_costs([vars(s) for s in folder.plan.segments], {name: run.rows for name, run in folder.runs.items()})


def cell_bills(folder: StudyFolder, costs: dict[str, Cost]) -> Bills:
    """The costs of all finished cells."""
    finished = {cell.name for cell in folder.plan.cells if folder.tail(cell).end}
    bills: Bills = {}
    for bill in cell_costs([vars(s) for s in folder.plan.segments], costs):
        if bill.cell in finished:
            bills.setdefault((bill.arm, bill.schedule, bill.fraction), []).append(bill)
    return bills


def pretraining_bills(folder: StudyFolder, costs: dict[str, Cost]) -> dict[str, Cost]:
    """What the pre-training of each arm cost, by arm; arms whose weights this study did not make are absent."""
    used = {s.arm: s.weights_from for s in folder.plan.segments if s.kind != "pretrain" and s.weights_from}
    return {arm: costs[name] for arm, name in used.items()}


def outside_weights(folder: StudyFolder) -> tuple[str, ...]:
    """Arms that start from weights which this study did not make, so that their cost is not in its bill."""
    own = {s.arm for s in folder.plan.segments if s.kind != "pretrain" and s.weights_from}
    return tuple(arm for arm in folder.arms if arm not in folder.random_arms and arm not in own)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean over seeds; nan where any is not known."""
    return Cost(**{f.name: float(np.mean([getattr(cost, f.name) for cost in costs])) for f in fields(Cost)})
