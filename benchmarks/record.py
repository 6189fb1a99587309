"""Keep a benchmark's figures as JSON with what they depend on: command, commit, date, processor and versions."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from headstart.hardware import VARIABLES, features, memory, processor, usable_cores, version

ROOT = Path(__file__).parent.parent


def made_by() -> dict[str, Any]:
    """Provenance of figures that are made now; a commit with `+` had changes that were not committed."""
    arguments = [Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]
    if "--json" in arguments:
        place = arguments.index("--json")
        del arguments[place : place + 2]
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {
        "command": " ".join(["python", *arguments]),
        "date": datetime.now().date().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD") + "+" * changed,
        "processor": processor(),
        "features": list(features()),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "cores": usable_cores(),
        "memory_gib": round((memory() or 0) / 2**30),
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy")},
    }


def git(*arguments: str) -> str:
    """Output of a git command in this repository; empty where there is none."""
    found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, encoding="utf-8")
    return found.stdout.strip()


def keep(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures and their provenance to a JSON file; nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made": made_by(), "figures": figures}, indent=1) + "\n", encoding="utf-8")


def source(kept: dict[str, Any]) -> str:
    """Command, date, commit and processor of kept figures, for the head of their tables."""
    made = kept["made"]
    return f"`{made['command']}`, {made['date']}, commit {made['commit']}, {made['processor']}"


def rewritten(page: str, begin: str, end: str, text: str) -> str:
    """The page with this text between two marks."""
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"
