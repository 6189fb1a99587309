"""Finished seeds of an earlier run of the same study, which its plan and report keep: a report never gets poorer."""

from __future__ import annotations

import json
from pathlib import Path

from headstart.recipe.yaml_text import read_yaml
from headstart.study.folder import PLAN_FILE, STUDY_FILE, read_plan
from headstart.study.prepare import Prepared, prepare
from headstart.study.spec import parse_study


def with_kept_seeds(prepared: Prepared, directory: Path) -> Prepared:
    """The study with the seeds that are finished in its directory added; as it is where there are none.

    Only seeds of the same study count: all fields but `seeds`, and the overrides, must be those of study.yaml there.
    """
    study = prepared.study
    if not (directory / PLAN_FILE).exists() or not (directory / STUDY_FILE).exists():
        return prepared
    try:
        before = parse_study(read_yaml(directory / STUDY_FILE), source=str(directory / STUDY_FILE))
    except ValueError:
        return prepared  # of another version
    plan = read_plan(directory)
    same = json.loads(json.dumps([prepared.overrides, plan.overrides]))
    if before.model_copy(update={"seeds": study.seeds}) != study or same[0] != same[1]:
        return prepared
    finished = {entry.name for entry in plan.segments if entry.finished}
    missing = {cell.seed for cell in plan.cells if not finished.issuperset(cell.segments)}
    kept = tuple(seed for seed in before.seeds if seed not in missing and seed not in study.seeds)
    if not kept:
        return prepared
    seeds = tuple(seed for seed in before.seeds if seed in (*study.seeds, *kept))
    seeds += tuple(seed for seed in study.seeds if seed not in seeds)
    if study.rule and study.rule.looks:  # as many as a look has: those of a look that was interrupted wait for it
        seeds = (*study.seeds, *kept)
        seeds = seeds[: max(count for count in study.rule.looks if count <= len(seeds))]
    return prepare(study.model_copy(update={"seeds": seeds}), prepared.overrides)
