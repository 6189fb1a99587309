"""What the page's script draws: curves, costs and fractions as plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headstart.report.figures import MARKERS, arm_colours
from headstart.report.findings import settled_schedule
from headstart.report.mistakes import MistakeRow
from headstart.report.series import Stretch, metrics_of, train_metrics_of
from headstart.report.spending import Bills, StartCost, mean_cost
from headstart.report.tables import fraction_table
from headstart.study.cost import Cost
from headstart.study.folder import StudyFolder
from headstart.verdict.numbers import fraction_name, metric_name

# The figures' colours, lightened to the same contrast on a dark page.
DARK = {
    "#8e3b8c": "#d993d7",
    "#d55e00": "#ff8f4d",
    "#009e73": "#35c99b",
    "#0072b2": "#62b4ec",
    "#e69f00": "#f2bd4b",
    "#56b4e9": "#93d0f5",
}
_SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"}
DIGITS = 6  # significant ones of a number in report.json and in the page: more than any metric has
_EFFORTS = ("images", "instances", "pixels", "flops", "seconds")


def page_data(
    folder: StudyFolder,
    stretches: Sequence[Stretch],
    losses: Sequence[Stretch],
    starts: dict[str, StartCost],
    bills: Bills,
    mistakes: dict[str, list[MistakeRow]],
) -> dict[str, Any]:
    """Everything the script needs; scores in points, numbers that are not known as null."""
    names = (*metrics_of(folder), *train_metrics_of(folder))
    return {
        "arms": arms_data(folder),
        "fractions": [{"value": f, "name": fraction_name(f, folder.num_images.get(f))} for f in folder.fractions],
        "metrics": [{"id": name, "name": metric_name(name)} for name in names],
        "metric": metric_name(folder.metric),
        "stretches": [_stretch(stretch, 100) for stretch in stretches],
        "losses": [_stretch(stretch, 1) for stretch in losses],
        "pretraining": {arm: _cost(start.share) for arm, start in starts.items()},
        "costs": [
            {
                "arm": arm,
                "schedule": schedule,
                "fraction": fraction,
                "alone": _cost(mean_cost([bill.alone for bill in cells])),
                "as_spent": _cost(mean_cost([bill.as_spent for bill in cells])),
                "pretraining": _cost(mean_cost([bill.pretraining for bill in cells])),
                "pretraining_spent": _cost(mean_cost([bill.pretraining_spent for bill in cells])),
            }
            for (arm, schedule, fraction), cells in bills.items()
        ],
        "settled": {arm: {f"{f:g}": settled_schedule(folder, arm, f) for f in folder.fractions} for arm in folder.arms},
        "few": _fractions(folder),
        "mistakes": {
            kind: [
                {
                    "type": row.name,
                    "meaning": row.meaning,
                    "gains": {arm: value and 100 * value.mean for arm, value in row.gains.items()},
                    "counts": {arm: value and value.mean for arm, value in row.counts.items()},
                }
                for row in rows
            ]
            for kind, rows in mistakes.items()
        },
    }


def arms_data(folder: StudyFolder) -> list[dict[str, str]]:
    """Name, colours and mark of each arm."""
    colours = arm_colours(folder)
    return [
        {
            "name": arm,
            "light": colours[arm],
            "dark": DARK[colours[arm]],
            "symbol": _SYMBOLS[MARKERS[place % len(MARKERS)]],
        }
        for place, arm in enumerate(folder.arms)
    ]


def _stretch(stretch: Stretch, factor: float) -> dict[str, Any]:
    y = {name: [[factor * value for value in seed] for seed in seeds] for name, seeds in stretch.y.items()}
    return {
        "arm": stretch.arm,
        "fraction": stretch.fraction,
        "schedule": stretch.schedule,
        "start": stretch.start,
        "seeds": stretch.seeds,
        "x": stretch.x,
        "y": y,
    }


def _cost(cost: Cost) -> dict[str, float]:
    return {name: getattr(cost, name) for name in _EFFORTS}


def _fractions(folder: StudyFolder) -> list[dict[str, Any]]:
    rows = []
    for row in fraction_table(folder) if folder.baseline else ():
        for arm, number in row["longest"].items():
            if number and row["images"]:
                rows.append(
                    {
                        "arm": arm,
                        "images": row["images"],
                        "schedule": row["schedule"],
                        "seeds": [100 * v for v in number.seeds],
                    }
                )
    return rows
