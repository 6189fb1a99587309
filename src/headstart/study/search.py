"""A search over a recipe's values on one arm, as the paper tuned its small-data recipes on the pre-trained arm.

Each combination of the grid is one trial: an arm of a separate study. A search is therefore stopped, continued and
extended like any study. The picked values are written with the tuning effort, for the study that uses them.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from headstart.files import json_text, write_whole
from headstart.recipe.dotted import flatten
from headstart.study.results import StudyFolder
from headstart.study.spec import StudySpec, parse_study
from headstart.verdict.numbers import metric_name, score


@dataclass(frozen=True)
class Trial:
    """One combination {dotted field: value}, its steps, and the metric at its end in 0..1 (nan: not measured yet)."""

    name: str
    values: dict[str, Any]
    steps: int
    score: float


def trial_study(study: StudySpec) -> StudySpec:
    """The study of a search: one arm a combination of the grid, at one schedule, amount of data and seed.

    ValueError for a study without `search`.
    """
    search = study.search
    if search is None:
        raise ValueError(f"study {study.name}: has no search, expected a key such as search: {{arm: …, grid: …}}")
    own = flatten(study.arms[search.arm])
    return parse_study(
        {
            "name": f"{study.name}-search",
            "recipe": study.recipe,
            "set": study.set,
            "arms": {name: {**own, **values} for name, values in combinations(study).items()},
            "schedules": [search.schedule],
            "fractions": [{"images": search.images} if search.images else {"fraction": search.fraction or 1.0}],
            "seeds": [search.seed],
            "pretrain": {name: entry.model_dump() for name, entry in study.pretrain.items()},
            "share": study.share,
            "allow_overlap": study.allow_overlap,
        },
        source=f"study {study.name}: search",
    )


def combinations(study: StudySpec) -> dict[str, dict[str, Any]]:
    """{trial name: {dotted field: value}}, the last field's values changing fastest."""
    grid = study.search.grid
    values = [dict(zip(grid, chosen)) for chosen in itertools.product(*grid.values())]
    return {f"trial{number:02d}": chosen for number, chosen in enumerate(values, start=1)}


def trials_of(study: StudySpec, folder: StudyFolder) -> list[Trial]:
    """Trials of a search with their scores so far at its own seed, in the order of the grid.

    The folder also keeps the seeds of earlier searches.
    """
    (fraction,), found, place = folder.fractions, [], folder.seeds.index(study.search.seed)
    for name, values in combinations(study).items():
        reached = folder.scores(study.search.metric, name, study.search.schedule, fraction)[place]
        found.append(Trial(name, values, folder.total(name, study.search.schedule, fraction), float(reached)))
    return found


def best_of(trials: list[Trial]) -> Trial:
    """The trial with the highest score, the first among equals; ValueError unless every trial has a score."""
    for trial in trials:
        if trial.score != trial.score:
            raise ValueError(f"search: {trial.name} {trial.values} has no score, expected every trial to have one")
    return max(trials, key=lambda trial: trial.score)


def write_tuned(study: StudySpec, trials: list[Trial], directory: Path) -> Path:
    """Write search.json (all trials) and tuned.yaml (picked patch and effort, for a study); returns the latter's path.

    ValueError unless every trial has a score.
    """
    picked, search = best_of(trials), study.search
    effort = {
        "trials": len(trials),
        "steps": sum(trial.steps for trial in trials),
        "note": f"all of {', '.join(search.grid)}; {metric_name(search.metric)} up to {score(picked.score)}",
    }
    header = (
        f"# {picked.name}, the best of {len(trials)} trials on arm {search.arm} by {metric_name(search.metric)} on the "
        f"validation images: {score(picked.score)} at {search.schedule}, seed {search.seed}.\n"
        "# Put both keys into the study. Under `set` the values are every arm's, as in the paper.\n"
    )
    tuned = {"set": picked.values, "tuning": {search.arm: effort}}
    write_whole(directory / "search.json", json_text([asdict(trial) for trial in trials], indent=1))
    return write_whole(directory / "tuned.yaml", header + yaml.safe_dump(tuned, sort_keys=False))
