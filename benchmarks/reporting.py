"""Report of a large study, and planning of a larger one: python benchmarks/reporting.py [--json FILE]

A made-up study of 64 cells (two arms, four schedules, two fractions, four seeds) with over 10,000 rows is written as
`study run` writes one, and its report is made; the image bootstrap has no records to work on and is left aside. Then
a study of 1,000 cells is planned. Exit code 1 where the report takes 5 s or more, or the plan 2 s.
"""

import argparse
import json
import sys
import tempfile
import time
from math import exp
from pathlib import Path

from msgspec.structs import asdict
from record import keep

from headstart.recipe.schedule import Schedule, multiple_of
from headstart.report.build import build_report
from headstart.study.folder import write_study
from headstart.study.forecast import Load, totals
from headstart.study.plan import Plan, Segment, expand, schedule_names
from headstart.study.spec import StudySpec, parse_study

BASE, BATCH, LOG_EVERY, EVAL_EVERY = 900, 16, 10, 100
REPORT_SECONDS, PLAN_SECONDS = 5.0, 2.0
RULE = {"metric": "box.AP", "baseline": "tuned", "candidate": "scratch", "margin": 0.01}
CLASSES = [f"class {c}" for c in range(80)]
LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box_delta", "mask")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")


def plan_of(study: StudySpec) -> Plan:
    """The plan of a study at a base of 900 steps."""
    options = {"base_rate": 0.02, "warmup": 50, "warmup_from": 0.1}
    schedules = {name: Schedule.nx(multiple_of(name, BASE), BASE, **options) for name in schedule_names(study)}
    return expand(study, schedules)


def large_study() -> StudySpec:
    """64 cells."""
    return parse_study(
        {
            "name": "large",
            "recipe": "demo",
            "arms": {"tuned": {"start.kind": "backbone", "start.weights": "w.pth"}, "scratch": {}},
            "schedules": ["1x", "2x", "3x", "6x"],
            "fractions": [1.0, 0.1],
            "seeds": 4,
            "rule": RULE,
        },
        source="benchmark",
    )


def write(study: StudySpec, path: Path) -> int:
    """The study's folder as a finished run leaves it; returns the number of rows."""
    plan, num_rows = plan_of(study), 0
    places = {segment.name: path / f"{segment.name}-0123456789ab" for segment in plan.segments}
    images = {1.0: 8000, 0.1: 800}
    write_study(path, study.model_dump(mode="json"), plan, num_images=images, batch=BATCH, finished=places)
    for segment in plan.segments:
        directory = places[segment.name]
        directory.mkdir()
        rows = rows_of(segment)
        (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        facts = asdict(segment) | {"num_images": images[segment.fraction], "classes": {}, "fingerprint": ""}
        (directory / "segment.json").write_text(json.dumps(facts), encoding="utf-8")
        (directory / "environment.json").write_text(json.dumps({"headstart": "0", "cpus": 2}), encoding="utf-8")
        num_rows += len(rows)
    return num_rows


def rows_of(segment: Segment) -> list[dict]:
    """Rows of a plausible run: every evaluation has 80 classes, boxes and masks."""
    rows: list[dict] = [{"kind": "start", "step": segment.start}]
    for step in range(segment.start + 1, segment.stop + 1):
        last = step == segment.stop and segment.kind == "tail"
        if step % LOG_EVERY == 0 or last:
            loss = exp(-step / 900)
            losses = dict.fromkeys(LOSSES, loss)
            rows.append({"kind": "train", **counters(step), "rate": 0.02, "loss": 5 * loss, "losses": losses})
        if step % EVAL_EVERY == 0 or last:
            rows.append({"kind": "eval", "split": "val", **counters(step), **scores(segment.seed, step)})
    end = {"checkpoint": "checkpoints/x.pt", "hash": "0" * 64, "memory": 10**9}
    return [*rows, {"kind": "end", **counters(segment.stop), **end}]


def counters(step: int) -> dict:
    """What every row tells of a step."""
    seen = {
        "step": step,
        "images": BATCH * step,
        "instances": 100 * step,
        "pixels": 9 * 10**6 * step,
        "flops": 10**12 * step,
    }
    return seen | {"seconds": {"train": 0.2 * step, "eval": 0.02 * step, "other": 0.01 * step}}


def scores(seed: int, step: int) -> dict:
    """An evaluation of a step."""
    ap = 0.4 * (1 - exp(-step / 900)) + 0.002 * seed + 0.001 * (step % 7)
    metrics, classes = dict.fromkeys(METRICS, ap), {name: {"AP": ap, "AP50": ap, "AP75": ap} for name in CLASSES}
    return {"metrics": {"box": metrics, "mask": metrics}, "per_class": {"box": classes, "mask": classes}}


def time_report() -> dict[str, float]:
    """Size of a report and the seconds of one core that it takes, after one that pays for imports and fonts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large"
        study = large_study()
        num_rows, num_cells = write(study, path), len(plan_of(study).cells)
        build_report(path)
        since, wall = time.process_time(), time.perf_counter()
        size = build_report(path).stat().st_size / 2**20
        seconds, wall = time.process_time() - since, time.perf_counter() - wall
    told = f"{seconds:.2f} s of one core ({wall:.2f} s by the clock), {size:.1f} MiB (below {REPORT_SECONDS:g} s)"
    print(f"report: {num_rows:,} rows, {num_cells} cells: {told}")
    return {"rows": num_rows, "cells": num_cells, "seconds": seconds, "wall seconds": wall, "MiB": size}


def time_plan() -> dict[str, float]:
    """Seconds of planning 1,000 cells and what they cost."""
    since = time.process_time()
    fractions = (1.0, 0.5, 0.1, 0.01)
    study = parse_study(
        {
            "name": "thousand",
            "recipe": "demo",
            "arms": {f"arm{i}": {} for i in range(10)},
            "schedules": ["2x", "3x", "4x", "5x", "6x"],
            "fractions": list(fractions),
            "seeds": 5,
        },
        source="benchmark",
    )
    plan = plan_of(study)
    load = Load(batch=BATCH, num_images=dict.fromkeys(fractions, 100), seconds_per_step=1.0)
    found = totals(plan, dict.fromkeys(study.arms, load))
    seconds = time.process_time() - since
    cells, segments = found["cells"], found["segments"]
    print(f"plan: {cells:,} cells in {segments:,} segments: {seconds:.2f} s (below {PLAN_SECONDS:g} s)")
    return {"cells": cells, "segments": segments, "seconds": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="keep the figures here")
    options = parser.parse_args()
    report, plan = time_report(), time_plan()
    keep(options.json, {"report": report, "plan": plan})
    sys.exit(int(report["seconds"] >= REPORT_SECONDS or plan["seconds"] >= PLAN_SECONDS))
