"""Finished seeds of an earlier run of the same study, which its plan and report keep."""

from __future__ import annotations

import json
from pathlib import Path

from headstart.recipe.yaml_text import read_yaml
from headstart.study.folder import PLAN_FILE, STUDY_FILE, read_plan
from headstart.study.prepare import Prepared, prepare, segment_run
from headstart.study.spec import parse_study
from headstart.training.lineage import Finder


def with_kept_seeds(prepared: Prepared, directory: Path, finder: Finder) -> Prepared:
    """Add the seeds that are finished in a study's directory; returns the study unchanged where there are none.

    Only seeds of the same study count: study.yaml there has the same fields but `seeds`, plan.json the same overrides,
    and its runs are of the present recipe, data and weights.
    ValueError where study.yaml cannot be read.
    """
    study = prepared.study
    if not (directory / PLAN_FILE).exists() or not (directory / STUDY_FILE).exists():
        return prepared
    content = read_yaml(directory / STUDY_FILE)
    try:
        before = parse_study(content, source=str(directory / STUDY_FILE))
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
    if study.rule and study.rule.looks:  # as many as a look has: seeds of an interrupted look wait for that look
        seeds = (*study.seeds, *kept)
        seeds = seeds[: max(count for count in study.rule.looks if count <= len(seeds))]
    more = prepare(study.model_copy(update={"seeds": seeds}), prepared.overrides)
    places = {entry.name: entry.directory for entry in plan.segments if entry.finished}
    for segment in more.plan.segments:
        if segment.name in places and not segment.needs:
            recipe, _, span = segment_run(more, segment, {})
            if finder.place(recipe, directory, span).name != Path(places[segment.name]).name:
                return prepared
    return more
