"""Kill a study with SIGKILL at random moments, restart it each time, and compare it with an undisturbed one.

python benchmarks/kill.py [number of kills] [study] [key=value ...]   (20 kills of the whole demo without arguments:
about twice as long as the demo itself, after it; `schedules=[1x,2x]` and the like make the study smaller)

Exit code 1 if the weights, rows, predictions or match records of any segment differ, or the plan, or the report's data
(report.json and every table beside it). Only what was read from a clock or of memory is left aside.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from headstart.data.shapes.scenes import Layout
from headstart.data.shapes.write import generate
from headstart.training.rows import read_rows

SEED = 0
DATA = Path("data/demo/three")  # where `make demo` has it, and where the study looks
MEASURED = ("inputs", "seconds", "memory")  # in the name of whatever differs between any two runs


def make_data() -> None:
    """The demo's data; finished sets are found again."""
    generate(DATA, 4_000, 200, 0, 64, layout=Layout(3, 0.3, ("disc", "star", "crescent")))


def start(out: Path, study: list[str], log: Path) -> subprocess.Popen:
    """An attempt at the study in a process group of its own."""
    command = [sys.executable, "-m", "headstart", "study", "run", *study, "--out", str(out)]
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def without_measured(found: Any) -> Any:
    """The same JSON value without every entry whose name says that it was measured."""
    if isinstance(found, dict):
        return {k: without_measured(v) for k, v in found.items() if not any(word in k for word in MEASURED)}
    return [without_measured(value) for value in found] if isinstance(found, list) else found


def report_data(directory: Path) -> dict[str, object]:
    """{file: its content} of report.json and the tables."""
    found = {"report.json": without_measured(json.loads((directory / "report.json").read_text(encoding="utf-8")))}
    for table in sorted((directory / "tables").glob("*.csv")):
        with table.open(newline="", encoding="utf-8") as file:
            found[table.name] = without_measured(list(csv.DictReader(file)))
    return found


def evidence(directory: Path) -> dict[str, object]:
    """{segment: run directory, rows, predictions and records}, the plan, and {file: content} of the report's data."""
    plan = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
    found: dict[str, object] = {"plan": plan} | report_data(directory)
    for segment in plan["segments"]:
        run = directory / segment["directory"]
        rows = without_measured(read_rows(run / "rows.jsonl"))
        files = sorted([*run.glob("predictions-*.json"), *run.glob("records-*.npz"), run / "image_ids.txt"])
        # The start row holds paths.
        found[segment["name"]] = (
            run.name,
            [row for row in rows if row["kind"] != "start"],
            {path.name: path.read_bytes() for path in files},
        )
    return found


def run_undisturbed(out: Path, study: list[str], log: Path) -> float:
    """Seconds of a run that nobody kills."""
    since = time.perf_counter()
    if start(out, study, log).wait() != 0:
        raise SystemExit(f"the undisturbed study failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return time.perf_counter() - since


def expected_time(log: Path) -> str:
    """What the plan said of the time."""
    return next(
        (line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("expected time")),
        "no plan printed",
    )


def run_killed(out: Path, study: list[str], log: Path, num_kills: int, typical: float) -> list[float]:
    """Kill `num_kills` attempts, whole process groups and lone parents in turn, then let one finish.

    Returns the seconds each attempt lived.
    """
    moments, lived = random.Random(SEED), []
    while True:
        since, attempt = time.perf_counter(), start(out, study, log)
        limit = moments.uniform(0.2, 2.0) * typical if len(lived) < num_kills else None
        try:
            code = attempt.wait(limit)
        except subprocess.TimeoutExpired:
            lived.append(time.perf_counter() - since)
            if len(lived) % 2:
                os.killpg(attempt.pid, signal.SIGKILL)
            else:  # its workers must notice by themselves
                attempt.kill()
            attempt.wait()
            continue
        if code != 0:
            raise SystemExit(
                f"attempt {len(lived) + 1} failed with code {code}:\n{log.read_text(encoding='utf-8')[-2000:]}"
            )
        return lived


def main(num_kills: int, study: list[str]) -> int:
    """Print what was done and whether the two studies are the same."""
    if study[0] == "demo":
        make_data()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds = run_undisturbed(root / "undisturbed", study, root / "undisturbed.log")
        print(f"undisturbed: {seconds:.0f} s; {expected_time(root / 'undisturbed.log')}", flush=True)
        # Start-up is lost each time, so an attempt lives a little longer than its share.
        typical = seconds / (num_kills + 1) + 5.0
        lived = run_killed(root / "killed", study, root / "killed.log", num_kills, typical)
        print(f"killed {len(lived)} times, after {', '.join(f'{value:.1f}' for value in lived)} s")
        expected, found = (
            evidence(next((root / name).glob("*/plan.json")).parent) for name in ("undisturbed", "killed")
        )
    odd = sorted({name for name in expected | found if expected.get(name) != found.get(name)})
    files = [name for name in expected if name.endswith((".csv", ".json"))]
    print(f"compared: {len(expected['plan']['segments'])} segments, the plan, {', '.join(files)}")
    print(f"DIFFERENT: {', '.join(odd)}" if odd else "all the same, bit for bit")
    return 1 if odd or len(lived) < num_kills else 0


if __name__ == "__main__":
    given = sys.argv[1:]
    count = int(given.pop(0)) if given and given[0].isdigit() else 20
    sys.exit(main(count, given if given and "=" not in given[0] else ["demo", *given]))
