"""What a type checker says: of the documented Python, and of the package on the systems that it was not run on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headstart

SOURCE = Path(headstart.__file__).parent
GUIDE = SOURCE.parent.parent / "docs/guide.md"


def check(cache, *arguments):
    """The lines that mypy prints, without a configuration file, with this source first."""
    command = [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", "--no-error-summary"]
    command += ["--no-color-output", f"--cache-dir={cache}", *map(str, arguments)]
    environment = os.environ | {"MYPYPATH": str(SOURCE.parent)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=500)
    assert found.returncode in (0, 1) and found.stderr == "", found.stderr
    return found.stdout.splitlines()


def documented():
    """The Python of the guide and of the package's docstring, by name."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    docstring = (headstart.__doc__ or "").partition("\n\n")[2]
    return {f"guide_{number}": text for number, text in enumerate(blocks)} | {
        "docstring": f"import headstart\n{docstring}"
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.slow
def test_documented_python_has_no_type_error(cache, tmp_path):
    """And the checker sees our types: a wrong name and a wrong argument are found in the same way."""
    texts = documented()
    assert len(texts) >= 2 and all("headstart.load_trained" in text for text in texts.values())
    wrong = {
        "score_threshold=0.5": "score_threshold='half'",
        "result.directory)": "result.folder)",
        'evaluation.metrics["box"]': "evaluation.scores",
        "study.plan.steps_shared": "study.plan.steps",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    planted = texts["guide_0"]
    for right, bad in wrong.items():
        assert right in planted
        planted = planted.replace(right, bad)
    (tmp_path / "planted.py").write_text(planted, encoding="utf-8")

    found = check(cache, "--strict", "--follow-imports=silent", *sorted(tmp_path.glob("*.py")))
    assert [line for line in found if "planted.py" not in line] == []
    text = "\n".join(found)
    for part in ('"score_threshold" to "predict"', 'no attribute "folder"', 'no attribute "scores"', '"steps"'):
        assert part in text, text


def differences(cache, platform, *paths):
    """What mypy says of files on another platform and not on Linux."""
    said = {
        system: set(check(cache, "--check-untyped-defs", "--follow-imports=skip", f"--platform={system}", *paths))
        for system in ("linux", platform)
    }
    return sorted(said[platform] - said["linux"])


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_nothing_is_used_that_another_system_lacks(cache, platform):
    """Its copy of Python's library knows what each system has, also on paths that no test here can take."""
    assert differences(cache, platform, SOURCE) == []


LACKING = {
    "win32": [
        "import fcntl; fcntl.flock(0, 0)",
        "import os; os.fork()",
        "import os; os.uname()",
        "import resource; resource.getrusage(0)",
        "import signal; signal.SIGKILL",
    ],
    "darwin": ["import os; os.sched_getaffinity(0)", "import os; os.posix_fadvise(0, 0, 0, 0)"],
}


@pytest.mark.slow
@pytest.mark.parametrize("platform", LACKING)
def test_what_another_system_lacks_is_found(cache, tmp_path, platform):
    """The check itself: it names every one of these lines, and none that asks first."""
    fine = "import sys\nif sys.platform == 'linux':\n    import os\n    os.fork(); os.sched_getaffinity(0)\n"
    (tmp_path / "planted.py").write_text("\n".join([*LACKING[platform], fine]), encoding="utf-8")
    found = differences(cache, platform, tmp_path / "planted.py")
    assert {int(line.split(":")[1]) for line in found} == set(range(1, len(LACKING[platform]) + 1)), found
