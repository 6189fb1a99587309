"""A study's folder: study.yaml and plan.json, written and read here, and its results as one object.

plan.json holds cells, segments, each with its directory and whether it is finished, and the looks that were made.
A running study appends changes of segments to segments.jsonl. Readers apply them to plan.json, and the next write of
plan.json replaces the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from headstart.files import json_text, locked, named, write_whole
from headstart.recipe.dotted import flatten
from headstart.recipe.yaml_text import read_yaml
from headstart.study.plan import Cell, Plan, Segment
from headstart.study.results import VARIANTS_FILE, Run, StudyFolder, read_variants
from headstart.study.spec import check_names, parse_study
from headstart.training.rows import read_rows
from headstart.training.stored import AUDIT_FILE, ENVIRONMENT_FILE, SEGMENT_FILE
from headstart.typed_json import read_json, read_lines
from headstart.verdict.looks import Look, dated
from headstart.version import __version__

STUDY_FILE, PLAN_FILE, CHANGES_FILE = "study.yaml", "plan.json", "segments.jsonl"
FORMAT = 2  # of a study's folder, stated by plan.json; a plan.json without it is of format 1, which had no looks
OPEN = ("open", "spread")  # obstacles to a conclusion that more seeds may remove


class PlannedSegment(Segment, frozen=True, kw_only=True):
    """A segment with the directory of its run, None before it has begun."""

    directory: str | None
    finished: bool


class Change(Struct, forbid_unknown_fields=True):
    """A line of segments.jsonl: a segment that has begun or is finished."""

    name: str
    directory: str
    finished: bool


class Difference(Struct, forbid_unknown_fields=True):
    """A row of the difference sheet."""

    field: str
    values: dict[str, Any]
    declared: bool


class PlanFile(Struct, forbid_unknown_fields=True, kw_only=True):
    """The content of plan.json."""

    format: Annotated[int, Meta(ge=1, le=FORMAT)] = 1
    cells: list[Cell]
    segments: list[PlannedSegment]
    notes: list[str]
    num_images: dict[float, int]
    batch: int
    differences: list[Difference]
    data: dict[str, str | None] | None
    overrides: dict[str, Any] = {}
    looks: Annotated[list[Look], Meta(max_length=1000)] = []

    @property
    def is_open(self) -> bool:
        """True if the latest look at the plan's seeds reached no conclusion and more seeds may change that."""
        seeds = {cell.seed for cell in self.cells}
        own = [look for look in self.looks if seeds == set(look.seeds)]
        return bool(own) and own[-1].obstacle in OPEN


class _Made(Struct):
    """The part of report.json that says what it was made from."""

    inputs: str


def read_study_folder(path: str | Path) -> StudyFolder:
    """Read study.yaml, plan.json and all rows of a study.

    A study of which nothing has run yet is fine. ValueError naming file and field for what is missing or otherwise
    wrong.
    """
    path = Path(path)
    study, plan = parse_study(read_yaml(path / STUDY_FILE), source=str(path / STUDY_FILE)), read_plan(path)
    stated = {"arms": {*study.arms}, "fractions": {entry.fraction for entry in study.fractions}}
    planned = {"arms": {cell.arm for cell in plan.cells}, "fractions": {cell.fraction for cell in plan.cells}}
    for field in (name for name in stated if stated[name] != planned[name]):
        own, run = sorted(stated[field]), sorted(planned[field])
        raise ValueError(f"{path / STUDY_FILE}: {field} = {own}: expected {run} as in {PLAN_FILE}, or a new run of it")
    asked = {name: flatten(patch) for name, patch in study.also_evaluate.items()}
    runs = {}
    for entry in plan.segments:
        segment = Segment(*(getattr(entry, name) for name in Segment.__struct_fields__))
        runs[entry.name] = read_run(segment, path / entry.directory if entry.directory else None, asked)
    for run in runs.values():
        check_names(sorted(run.segment.needs), runs, f"{path / PLAN_FILE}: segment")
    for cell in plan.cells:
        check_names(cell.segments, runs, f"{path / PLAN_FILE}: cell {cell.name}: segment")
    return StudyFolder(
        path=path,
        study=study,
        plan=Plan(tuple(run.segment for run in runs.values()), tuple(plan.cells), tuple(plan.notes)),
        runs=runs,
        num_images=plan.num_images,
        batch=plan.batch,
        differences=tuple(asdict(row) for row in plan.differences),
        overrides=plan.overrides,
        looks=tuple(plan.looks),
    )


def read_run(segment: Segment, directory: Path | None, asked: Mapping[str, Mapping[str, Any]]) -> Run:
    """The results of a segment in its directory; of its variants those that are asked for as {name: flat patch}."""
    if directory is None or not directory.is_dir():
        return Run(segment, None, ())
    rows = read_variants(directory)  # of other studies too, where runs are shared
    variants = {row["variant"]: row for row in rows if row["patch"] == asked.get(row["variant"])}
    return Run(segment, directory, tuple(read_rows(directory / "rows.jsonl")), variants)


def read_plan(directory: Path) -> PlanFile:
    """The content of plan.json with the segments as they are now; ValueError where there is none."""
    plan = read_json(directory / PLAN_FILE, PlanFile)
    changes = {change.name: change for change in read_lines(directory / CHANGES_FILE, Change)}
    for place, entry in enumerate(plan.segments if changes else ()):
        if change := changes.get(entry.name):
            plan.segments[place] = replace(entry, directory=change.directory, finished=change.finished)
    return plan


def is_finished(directory: Path, plan: Plan) -> bool:
    """True if every segment of a plan has been run, by plan.json."""
    if not (directory / PLAN_FILE).exists():
        return False
    known = {entry.name for entry in read_plan(directory).segments if entry.finished}
    return all(segment.name in known for segment in plan.segments)


def inputs_digest(directory: Path) -> str:
    """SHA-256 of what a report is made of: version, study.yaml, plan, and files of all runs that have begun."""
    study, plan = read_yaml(directory / STUDY_FILE), read_plan(directory)
    plan.looks.clear()  # reports make them from all the rest
    digest = hashlib.sha256(f"{__version__} {study}".encode() + msgspec.json.encode(plan))
    names = ("rows.jsonl", VARIANTS_FILE, SEGMENT_FILE, ENVIRONMENT_FILE, AUDIT_FILE, "recipe.yaml")
    begun = [(directory / entry.directory, entry.stop) for entry in plan.segments if entry.directory]
    for path in (place / name for place, stop in begun for name in (*names, f"errors-{stop}.json")):
        try:
            with named(path):
                content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        digest.update(b"%d " % len(content))
        digest.update(content)
    return digest.hexdigest()


def is_current(directory: Path) -> bool:
    """True if the report in a study's folder was made from its present content; file times do not count."""
    summary = directory / "report.json"
    if not summary.exists() or not (directory / "report.html").exists() or not (directory / PLAN_FILE).exists():
        return False
    try:
        made = read_json(summary, _Made).inputs
    except ValueError:
        return False  # torn, or written before reports stated their inputs
    return made == inputs_digest(directory)


def write_study(
    directory: Path,
    settings: Mapping[str, Any],
    plan: Plan,
    *,
    num_images: Mapping[float, int],
    batch: int,
    differences: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    begun: Mapping[str, Path] | None = None,
    finished: Mapping[str, Path] | None = None,
) -> None:
    """Write plan.json and study.yaml whole; a file with the same content keeps its time.

    A study.yaml of the same study stays, with its comments. ValueError for the study.yaml of another study without a
    plan.json beside it, which no study wrote. The looks of an earlier plan.json are kept.
    settings are the study's fields, data the paths of the validation data, overrides the patch on every recipe. begun
    and finished give the directories of segments by name; other segments have none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = {**(begun or {}), **(finished or {})}
    places = {name: Path(os.path.relpath(place, directory)).as_posix() for name, place in found.items()}
    content = {
        "format": FORMAT,
        "cells": [asdict(cell) for cell in plan.cells],
        "segments": [
            asdict(s) | {"directory": places.get(s.name), "finished": s.name in (finished or {})} for s in plan.segments
        ],
        "notes": list(plan.notes),
        "num_images": {str(fraction): count for fraction, count in num_images.items()},
        "batch": batch,
        "differences": list(differences),
        "data": data,
        "overrides": dict(overrides or {}),
        "looks": msgspec.to_builtins(read_plan(directory).looks) if (directory / PLAN_FILE).exists() else [],
    }
    study = yaml.safe_dump(dict(settings), sort_keys=False)
    is_same = (directory / STUDY_FILE).exists() and _holds(directory / STUDY_FILE, study)
    if (directory / STUDY_FILE).exists() and not (directory / PLAN_FILE).exists() and not is_same:
        raise ValueError(
            f"{directory / STUDY_FILE}: was not written by a study, as no {PLAN_FILE} is beside it; expected another "
            "--out, or another name of the study"
        )
    (directory / CHANGES_FILE).unlink(missing_ok=True)
    texts = {directory / PLAN_FILE: json_text(content, indent=1)}
    if not is_same:
        texts[directory / STUDY_FILE] = study
    for path, text in texts.items():
        with named(path):
            if not path.exists() or path.read_bytes() != text.encode():
                write_whole(path, text)


def _holds(path: Path, study: str) -> bool:
    """True if a study file describes the same study as this text."""
    with named(path):
        content = path.read_bytes()  # read once: an unreadable file must not count as another study
    if content == study.encode():
        return True
    try:
        found = parse_study(read_yaml(path, content.decode()), source=str(path)).model_dump(mode="json")
    except ValueError:
        return False
    return yaml.safe_dump(found, sort_keys=False) == study


def note_segment(directory: Path, name: str, place: Path, *, finished: bool) -> None:
    """Append to segments.jsonl that a segment has begun in a directory, or is finished there."""
    change = {"name": name, "directory": Path(os.path.relpath(place, directory)).as_posix(), "finished": finished}
    path = directory / CHANGES_FILE
    with named(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json_text(change) + "\n")


def note_look(directory: Path, look: Look) -> None:
    """Add a look to plan.json, unless the latest one there at its seeds is equal but for the date."""
    with plan_lock(directory):
        plan = read_plan(directory)
        if dated(plan.looks, look) is look:
            content = read_json(directory / PLAN_FILE, dict[str, Any])
            content |= {"format": FORMAT, "looks": msgspec.to_builtins([*plan.looks, look])}
            write_whole(directory / PLAN_FILE, json_text(content, indent=1))


def plan_lock(directory: Path) -> AbstractContextManager[None]:
    """Lock for writing plan.json, waiting for its turn: tasks of a cluster may end at the same time."""
    return locked(directory / "plan.lock", taken="the plan is being written", wait=inf)
