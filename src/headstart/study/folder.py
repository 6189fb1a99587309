"""A study's folder: study.yaml and plan.json, written and read here, and its results as one object.

plan.json holds cells and segments, each with its directory and whether it is finished. While a study runs, changes of
segments are appended to segments.jsonl, which readers put on top and the next whole plan.json replaces.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from headstart.files import json_text, named, write_whole
from headstart.recipe.dotted import flatten
from headstart.recipe.yaml_text import read_yaml
from headstart.study.plan import Cell, Plan, Segment
from headstart.study.results import NAN, TRAIN, VARIANTS_FILE, Run, StudyFolder, final_row, metric_of, read_json
from headstart.study.spec import check_names
from headstart.training.rows import read_rows
from headstart.verdict.verdict import Rule

STUDY_FILE, PLAN_FILE, CHANGES_FILE = "study.yaml", "plan.json", "segments.jsonl"

__all__ = [
    "NAN",
    "TRAIN",
    "VARIANTS_FILE",
    "Run",
    "StudyFolder",
    "final_row",
    "is_current",
    "is_finished",
    "metric_of",
    "note_segment",
    "read_plan",
    "read_study_folder",
    "write_study",
]


def read_study_folder(path: str | Path) -> StudyFolder:
    """Read study.yaml, plan.json and all rows of a study.

    A study of which nothing has run yet is fine. ValueError naming the file for what is missing or otherwise wrong.
    """
    path = Path(path)
    settings, plan = read_yaml(path / STUDY_FILE), read_plan(path)
    try:
        segments = [Segment(**{f.name: entry[f.name] for f in fields(Segment)}) for entry in plan["segments"]]
        cells = tuple(
            Cell(**{f.name: entry[f.name] for f in fields(Cell)} | {"segments": tuple(entry["segments"])})
            for entry in plan["cells"]
        )
        places = {
            entry["name"]: path / entry["directory"] if entry.get("directory") else None for entry in plan["segments"]
        }
        num_images = {float(key): int(value) for key, value in (plan.get("num_images") or {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path / PLAN_FILE}: {error!s} is missing or not what a plan holds; plan the study again"
        ) from None
    asked = {name: flatten(patch) for name, patch in (settings.get("also_evaluate") or {}).items()}
    runs = {segment.name: read_run(segment, places[segment.name], asked) for segment in segments}
    for cell in cells:
        check_names(cell.segments, runs, f"{path / PLAN_FILE}: cell {cell.name}: segment")
    if settings.get("rule"):
        check_names(settings["rule"], Rule.__dataclass_fields__, f"{path / STUDY_FILE}: rule key")
    return StudyFolder(
        path=path,
        settings=settings,
        rule=Rule(**settings["rule"]) if settings.get("rule") else None,
        plan=Plan(tuple(segments), cells, tuple(plan.get("notes") or ())),
        runs=runs,
        num_images=num_images,
        batch=plan.get("batch"),
        differences=tuple(plan.get("differences") or ()),
    )


def read_run(segment: Segment, directory: Path | None, asked: Mapping[str, Mapping[str, Any]]) -> Run:
    """The results of a segment in its directory; of its variants those that are asked for as {name: flat patch}."""
    if directory is None or not directory.is_dir():
        return Run(segment, None, ())
    rows = read_rows(directory / VARIANTS_FILE)  # of other studies too, where runs are shared
    variants = {row["variant"]: row for row in rows if row["patch"] == asked.get(row["variant"])}
    return Run(segment, directory, tuple(read_rows(directory / "rows.jsonl")), variants)


def read_plan(directory: Path) -> dict[str, Any]:
    """The content of plan.json with the segments as they are now; ValueError where there is none."""
    plan = read_json(directory / PLAN_FILE)
    changes = {change["name"]: change for change in read_rows(directory / CHANGES_FILE)}
    if changes and isinstance(plan, dict):
        plan["segments"] = [entry | changes.get(entry["name"], {}) for entry in plan["segments"]]
    return plan


def is_finished(directory: Path, plan: Plan) -> bool:
    """True if every segment of a plan has been run, by plan.json."""
    if not (directory / PLAN_FILE).exists():
        return False
    known = {entry["name"] for entry in read_plan(directory)["segments"] if entry.get("finished")}
    return all(segment.name in known for segment in plan.segments)


def is_current(directory: Path, page: str = "report.html") -> bool:
    """True if a page in a study's folder is younger than everything it was made from."""
    made = directory / page
    if not made.exists() or not (directory / PLAN_FILE).exists():
        return False
    runs = [entry["directory"] for entry in read_plan(directory)["segments"] if entry["directory"]]
    rows = [directory / run / name for run in runs for name in ("rows.jsonl", VARIANTS_FILE)]
    sources = [directory / name for name in (STUDY_FILE, PLAN_FILE, CHANGES_FILE)] + rows
    return all(made.stat().st_mtime_ns >= source.stat().st_mtime_ns for source in sources if source.exists())


def write_study(
    directory: Path,
    settings: Mapping[str, Any],
    plan: Plan,
    *,
    num_images: Mapping[float, int],
    batch: int,
    differences: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, Any] | None = None,
    begun: Mapping[str, Path] | None = None,
    finished: Mapping[str, Path] | None = None,
) -> None:
    """Write plan.json and study.yaml whole; a file with the same content keeps its time.

    ValueError for a study.yaml without a plan.json beside it, which was not written here and stays as it is.
    settings are the study's fields, data the paths of the validation data; begun and finished are the directories of
    segments by name. A segment that has not begun has none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = {**(begun or {}), **(finished or {})}
    places = {name: Path(os.path.relpath(place, directory)).as_posix() for name, place in found.items()}
    content = {
        "cells": [asdict(cell) for cell in plan.cells],
        "segments": [
            asdict(s) | {"directory": places.get(s.name), "finished": s.name in (finished or {})} for s in plan.segments
        ],
        "notes": list(plan.notes),
        "num_images": {str(fraction): count for fraction, count in num_images.items()},
        "batch": batch,
        "differences": list(differences),
        "data": data,
    }
    if (directory / STUDY_FILE).exists() and not (directory / PLAN_FILE).exists():
        raise ValueError(
            f"{directory / STUDY_FILE}: was not written by a study, as no {PLAN_FILE} is beside it; expected another "
            "--out, or another name of the study"
        )
    (directory / CHANGES_FILE).unlink(missing_ok=True)
    study = yaml.safe_dump(dict(settings), sort_keys=False)
    for path, text in {directory / PLAN_FILE: json_text(content, indent=1), directory / STUDY_FILE: study}.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # else it keeps its time: see is_current
            write_whole(path, text)


def note_segment(directory: Path, name: str, place: Path, *, finished: bool) -> None:
    """Append that a segment has begun in a directory, or is finished there: readers see it at once."""
    change = {"name": name, "directory": Path(os.path.relpath(place, directory)).as_posix(), "finished": finished}
    path = directory / CHANGES_FILE
    with named(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json_text(change) + "\n")
