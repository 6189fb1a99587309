"""Sizes of the package, and the calls from a command to the box loss: python benchmarks/house.py

Calls are counted in real runs: `headstart train small` and `headstart study run`, on small images and narrow nets, stop
where the box head calls smooth_l1_loss, and the functions of this package on the stack are counted. With two jobs the
stack of the worker follows that of the command. Exit code 1 where a bound is exceeded.
"""

import ast
import contextlib
import io
import sys
import tempfile
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch.nn.functional as F
import yaml

import headstart
from headstart.cli import main
from headstart.data.shapes.write import generate
from headstart.study import run as study_run

ROOT = Path(headstart.__file__).parent
MOST_LINES, MOST_FILES = 270, 15  # of a file; in a folder
MOST_CALLS = {"headstart train": 8, "headstart study run": 12, "headstart study run --jobs 2": 12}
NARROW = {
    "data.num_workers": 0,
    "input.short": [64],
    "input.test_short": 64,
    "model.backbone.depth": [1, 1, 1, 1],
    "model.backbone.bottleneck": False,
    "model.backbone.width": 8,
    "train.batch": 2,
    "train.threads": 1,
    "train.warmup": "0 steps",
    "train.base": "4 steps",
}


class Reached(BaseException):
    """The box loss; args[0] are the functions of this package that led to it, outermost first."""


def package_calls() -> list[str]:
    """Functions of this package on the stack, outermost first, each once: "cli/runs.py train"."""
    frames = (frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT))
    return list(dict.fromkeys(f"{Path(frame.filename).relative_to(ROOT)} {frame.name}" for frame in frames))


def stop_at_box_loss() -> mock._patch:
    """A patch under which the first loss of the box head raises `Reached`."""
    honest = F.smooth_l1_loss

    def loss(*given, **named):
        calls = package_calls()
        if "box_head.py" in calls[-1]:
            raise Reached(calls)
        return honest(*given, **named)

    return mock.patch.object(F, "smooth_l1_loss", loss)


run_segment = study_run.run_segment


def run_segment_to_box_loss(*given):
    """`run_segment` in whichever process it is called."""
    with stop_at_box_loss():
        return run_segment(*given)


def calls_of(*arguments: str) -> list[str]:
    """The functions of this package between a command and the box loss, outermost first."""
    submitted: list[str] = []
    submit = ProcessPoolExecutor.submit

    def recorded(pool, work, *given):
        if work is run_segment_to_box_loss:
            submitted[:] = package_calls()
        return submit(pool, work, *given)

    with (
        stop_at_box_loss(),
        mock.patch.object(study_run, "run_segment", run_segment_to_box_loss),
        mock.patch.object(ProcessPoolExecutor, "submit", recorded),
        mock.patch.object(sys, "argv", ["headstart", *arguments]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            main()
        except Reached as reached:
            return submitted + reached.args[0]
    raise AssertionError(f"{' '.join(arguments)} ended before the box loss")


def commands(folder: Path) -> dict[str, list[str]]:
    """The functions called by each command of MOST_CALLS; data and runs lie in a folder."""
    train, val = generate(folder, 4, 2, seed=0, size=64, processes=1)
    data = {"data.train": str(train), "data.train_images": str(folder / "train")}
    data |= {"data.val": str(val), "data.val_images": str(folder / "val")}
    words = [f"{key}={value}" for key, value in (NARROW | data | {"train.schedule": "1x"}).items()]
    study = {"name": "hops", "recipe": "small", "set": NARROW | data, "arms": {"one": {}}, "schedules": ["1x"]}
    file = folder / "hops.yaml"
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    out = ["--out", str(folder / "runs")]
    return {
        "headstart train": calls_of("train", "small", *words, *out),
        "headstart study run": calls_of("study", "run", str(file), *out, "--jobs", "1"),
        "headstart study run --jobs 2": calls_of("study", "run", str(file), *out, "--jobs", "2"),
    }


def sizes(root: Path) -> dict[Path, int]:
    """{path below root: lines} of all Python files that are not empty."""
    lines = {
        path.relative_to(root): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(root.rglob("*.py"))
    }
    return {path: number for path, number in lines.items() if number}


def composition(text: str) -> Counter[str]:
    """Lines of a file by what is on them: docstrings, imports, blank, comments, and the rest, which is code."""
    lines, kinds = text.splitlines(), {}
    for node in ast.walk(ast.parse(text)):
        kind = "imports" if isinstance(node, ast.Import | ast.ImportFrom) else ""
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False):
            kind, node = "docstrings", node.body[0]
        if kind:
            kinds |= dict.fromkeys(range(node.lineno, node.end_lineno + 1), kind)
    for number, line in enumerate(lines, start=1):
        kinds.setdefault(number, "comments" if line.lstrip().startswith("#") else "code" if line.strip() else "blank")
    return Counter(kinds.values())


def print_sizes() -> bool:
    """Print files, lines and folders; whether all are within bounds."""
    found = sizes(ROOT)
    folders = Counter(path.parent for path in (path.relative_to(ROOT) for path in ROOT.rglob("*.py")))
    longest = sorted(found, key=found.get, reverse=True)
    print(f"src/headstart: {len(found)} files, {sum(found.values()):,} lines; a file at most {MOST_LINES}")
    kinds = sum((composition((ROOT / path).read_text(encoding="utf-8")) for path in found), Counter())
    print(f"  of them {', '.join(f'{number:,} {kind}' for kind, number in kinds.most_common())}")
    for path in [path for path in longest if found[path] > MOST_LINES] or longest[:5]:
        print(f"  {found[path]:4} {path}{' (too long)' if found[path] > MOST_LINES else ''}")
    print(f"folders: files ({MOST_FILES} at most) and lines")
    for folder, number in sorted(folders.items()):
        lines = sum(size for path, size in found.items() if path.parent == folder)
        print(f"  {number:3} {lines:6,} {folder}{' (too many)' if number > MOST_FILES else ''}")
    for name in ("tests", "benchmarks"):
        if (ROOT.parents[1] / name).is_dir():
            other = sizes(ROOT.parents[1] / name)
            print(f"{name}: {len(other)} files, {sum(other.values()):,} lines")
    return max(found.values()) <= MOST_LINES and max(folders.values()) <= MOST_FILES


def print_calls() -> bool:
    """Print the calls of each command; whether all are within bounds."""
    with tempfile.TemporaryDirectory() as folder:
        found = commands(Path(folder))
    for command, calls in found.items():
        print(f"{command}: {len(calls)} calls to the box loss (at most {MOST_CALLS[command]})")
        for number, call in enumerate(calls, start=1):
            print(f"  {number:2} {call}")
    return all(len(calls) <= MOST_CALLS[command] for command, calls in found.items())


if __name__ == "__main__":
    sys.exit(int(not all([print_sizes(), print_calls()])))
