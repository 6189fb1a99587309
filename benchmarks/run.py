"""The benchmarks, one after another: `make bench`. Each is a script of its own and prints its own table.

The steps' numbers are kept as JSON below runs/. Apart, because they take their own minutes: `step.py r50-800-gn`,
`evaluation.py` with its 5,000 images, `coco_load.py`, `gpu.py` and `kill.py`.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("step.py", "demo", "r50-800", "--repeats", "2", "--json", "runs/bench-steps.json"),
    ("step.py", "r18-256", "r50-256", "--repeats", "2", "--train-only", "--json", "runs/bench-train-steps.json"),
    ("loader.py", "--steps", "4"),
    ("evaluation.py", "--images", "500", "--resamples", "50"),
    ("reporting.py",),
    ("calibration.py", "500"),
)


def main() -> int:
    """Run every script in a process of its own; the exit code is the number that failed."""
    failed = 0
    for script, *arguments in RUNS:
        print(f"\n== {script} {' '.join(arguments)}", flush=True)
        failed += subprocess.run([sys.executable, str(HERE / script), *arguments]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
