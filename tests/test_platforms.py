"""macOS and Windows by construction: the package without what only POSIX has, and UTF-8 on every system."""

import ast
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import headstart
from headstart.ops import memory
from headstart.study.prepare import prepare
from headstart.study.run import run_study
from headstart.study.spec import parse_study
from headstart.training.rows import read_rows
from headstart.training.run import train
from tiny import outcome, tiny_recipe, tiny_study, without_clock
from without_posix.drive import CHANGES, TWO_STEPS

SOURCE = Path(headstart.__file__).parent
TESTS = Path(__file__).parent


def run_python(*arguments, without_posix=None, **environment):
    """Run Python on this source; `without_posix` is a folder where each process that had no POSIX leaves its number."""
    folders = [SOURCE.parent, TESTS]
    if without_posix is not None:
        folders.insert(0, TESTS / "without_posix")
        environment |= {"WITHOUT_POSIX": str(without_posix), "PYTHONWARNDEFAULTENCODING": "1"}
    paths = os.pathsep.join(map(str, folders))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, encoding="utf-8",
        errors="surrogateescape", timeout=300,
    )  # fmt: skip


PLANTED = [
    "import fcntl",
    "import resource",
    "import os; os.fork()",
    "import os; os.sched_getaffinity(0)",
    "from os import uname",
    "import os; os.killpg(0, 0)",
    "import signal; signal.SIGKILL",
    "from signal import SIGKILL",
    "import multiprocessing; multiprocessing.get_context('fork')",
    "import multiprocessing; multiprocessing.get_context('forkserver')",
    "open('/proc/self/status', encoding='utf-8')",
    "import os; os.stat('/proc/self')",
    "from pathlib import Path; Path('/proc/self/status').read_text(encoding='utf-8')",
    "from pathlib import Path; Path('text').write_text('default encoding')",
]


def test_what_windows_lacks_is_refused(tmp_path):
    """The block itself: it stops each of these, and lets pass what every platform has."""
    code = (
        "import sys\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n"
        "        exec(line, {'__name__': 'headstart.planted'})\n"
        "        print('ran')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
    )
    fine = [
        "import os; os.getpid(); os.path.join('a', 'b')",
        "from signal import SIGINT, SIGTERM",
        "import sys; assert sys.platform == 'win32' and sys.path",
        "import multiprocessing; assert multiprocessing.get_context().get_start_method() == 'spawn'",
    ]
    found = run_python("-c", code, *PLANTED, *fine, without_posix=tmp_path)
    answers = found.stdout.split()
    assert answers[len(PLANTED) :] == ["ran"] * len(fine), found.stderr
    assert len(answers[: len(PLANTED)]) == len(PLANTED) and "ran" not in answers[: len(PLANTED)]


@pytest.mark.slow
def test_the_package_works_without_posix(data_root, tmp_path):
    """Every module is imported; runs of one and of two processes and a study with two workers end as here."""
    log, out = tmp_path / "log", tmp_path / "out"
    log.mkdir()
    found = run_python(TESTS / "without_posix/drive.py", data_root, out, without_posix=log)
    assert found.returncode == 0, found.stderr
    count, alone, both = found.stdout.split()[-3:]
    assert int(count) == sum(1 for path in SOURCE.rglob("*.py")) - 1  # all but the package itself
    assert len(list(log.iterdir())) >= 1 + 4 + 2 + 2  # this one; two pools that draw; a run of two; two workers

    ends = [read_rows(Path(run) / "rows.jsonl")[-1] for run in (alone, both)]
    assert [(end["kind"], end["step"], end["memory"]) for end in ends] == [("end", 2, None)] * 2
    assert ends[0]["checkpoint"] == "checkpoints/00000002.pt"
    assert len(list((out / "scenes/train").iterdir())) == 51 and (out / "tiny/report.html").exists()

    here = train(tiny_recipe(data_root, **TWO_STEPS), tmp_path / "here").directory
    ours, theirs = (without_clock(read_rows(run / "rows.jsonl")) for run in (here, Path(alone)))
    assert here.name == Path(alone).name and ours == theirs
    study = run_study(prepare(parse_study(tiny_study(data_root, **CHANGES), source="tiny")), tmp_path / "here")
    assert outcome(out / "tiny") == outcome(study) and len(outcome(study)) == 2


def unspecified(path):
    """Calls of a source file that read or write text as the system happens to encode it, as "line: call"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg for keyword in node.keywords}
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = {value.value for value in values if isinstance(value, ast.Constant)} & MODES
        is_other = ast.unparse(node.func) in ("Image.open", "os.open", "self.open")  # `self.open` is told its encoding
        is_method = isinstance(node.func, ast.Attribute)
        reads_text = (is_method and name in ("read_text", "write_text")) or (
            name in ("open", "fdopen") and not is_other and not any("b" in mode for mode in modes)
        )
        hears_text = name in ("run", "Popen", "check_output") and "text" in given
        if (reads_text or hears_text) and "encoding" not in given:
            yield f"{node.lineno}: {ast.unparse(node)}"


MODES = {kind + rest for kind in "rwax" for rest in ("", "b", "+", "b+", "+b")}


def test_text_is_utf8_on_every_system(tmp_path):
    folders = (SOURCE, SOURCE.parent.parent / "benchmarks")
    found = {path.name: list(unspecified(path)) for folder in folders for path in folder.rglob("*.py")}
    assert len(found) > 100 and {name: calls for name, calls in found.items() if calls} == {}

    bad = ["open('a')", "open('a', 'w')", "path.open()", "path.open('a+')", "path.read_text()", "path.write_text('b')",
           "subprocess.run(['a'], text=True)"]  # fmt: skip
    good = [
        "open('a', 'rb')",
        "path.open('w+b')",
        "path.open('w', encoding='utf-8')",
        "Image.open('a')",
        "os.open('a', 0)",
    ]
    (tmp_path / "planted.py").write_text("\n".join(bad + good), encoding="utf-8")
    assert [line.partition(": ")[2] for line in unspecified(tmp_path / "planted.py")] == bad


def test_output_that_a_pipe_cannot_encode_is_replaced():
    found = run_python("-m", "headstart", "recipe", "explain", "demo", "name=αβ", PYTHONIOENCODING="ascii")
    assert found.returncode == 0, found.stderr
    assert [line for line in found.stdout.splitlines() if "name" in line and "??" in line]


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_is_in_the_unit_of_the_system(monkeypatch, tmp_path, platform, unit):
    """getrusage(2) counts kibibytes on Linux and bytes on macOS, which has no /proc."""
    usage = types.SimpleNamespace(ru_maxrss=5000)
    fake = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: usage)
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "none/clear_refs")
    monkeypatch.setattr(sys, "platform", platform)
    memory.reset_peak(torch.device("cpu"))
    assert memory.peak(torch.device("cpu")) == 5000 * unit


def test_memory_is_unknown_where_nothing_counts_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert memory.peak(torch.device("cpu")) is None


def test_the_module_is_the_script():
    """Both end in one function; tests/test_wheel.py runs the two."""
    import tomllib

    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"headstart": "headstart.cli:main"}
    module = ast.parse((SOURCE / "__main__.py").read_text(encoding="utf-8"))
    assert [ast.unparse(node) for node in module.body[1:]] == [
        "from headstart.cli import main",
        "if __name__ == '__main__':\n    main()",
    ]
