"""Run the benchmarks one after another: `make bench`. Each is a script of its own and prints its own table.

Figures are kept as JSON in runs/bench; `benchmarks/performance.py` makes the tables of docs/performance.md of them.
On a slow processor steps are repeated less often, so that the whole ends within ten minutes.
Apart, because each takes minutes: `step.py r18-256`, `evaluation.py` with its 5,000 images, `coco_load.py`, `gpu.py`,
`kill.py` and `faults.py`.
"""

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
KEPT = Path("runs/bench")
LIMIT = 600.0  # seconds of the whole
SHARE = 0.1  # of what is left of them: a case's training steps, its inference, and the loader's steps
STEP = "times, ratios and shares depend on the processor"
RUNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("demo", STEP, ("step.py", "demo", "--repeats", "3")),
    ("r50-800", STEP, ("step.py", "r50-800", "--repeats", "2")),
    ("r50-256", STEP, ("step.py", "r50-256", "--repeats", "2", "--train-only")),
    ("lite0-192", STEP, ("step.py", "lite0-192", "--repeats", "2", "--threads", "1")),
    ("convolution", "times and ratios depend on the processor", ("convolution.py", "--repeats", "2")),
    ("loader", "images per second depend on the processor, the ratio hardly", ("loader.py", "--steps", "2")),
    (
        "evaluation",
        "times depend on the processor, the ratio hardly",
        ("evaluation.py", "--images", "500", "--resamples", "50"),
    ),
    ("reporting", "times depend on the processor", ("reporting.py",)),
    ("calibration", "nothing depends on the processor but the time", ("calibration.py", "500")),
)


def main() -> int:
    """Run every script in a process of its own; the exit code is the number that failed."""
    failed, started = 0, time.perf_counter()
    for name, depends, (script, *arguments) in RUNS:
        if script != "calibration.py":
            arguments += ["--json", str(KEPT / f"{name}.json")]
        if script in ("step.py", "loader.py"):
            left = LIMIT - (time.perf_counter() - started)
            arguments += ["--seconds", f"{SHARE * left:.0f}"]
        print(f"\n== {script} {' '.join(arguments)}: {depends}", flush=True)
        began = time.perf_counter()
        failed += subprocess.run([sys.executable, str(HERE / script), *arguments]).returncode != 0
        print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\nall benchmarks: {(time.perf_counter() - started) / 60:.1f} min")
    return failed


if __name__ == "__main__":
    sys.exit(main())
