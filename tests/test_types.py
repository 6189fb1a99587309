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


def check(*arguments, config="", stubs=None):
    """The lines that mypy prints, with a folder of stubs and this source first."""
    command = [sys.executable, "-m", "mypy", f"--config-file={config}", "--ignore-missing-imports"]
    command += ["--no-error-summary", "--no-color-output", f"--cache-dir={os.devnull}", *map(str, arguments)]
    environment = os.environ | {"MYPYPATH": os.pathsep.join(map(str, filter(None, (stubs, SOURCE.parent))))}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=500)
    assert found.returncode in (0, 1) and found.stderr == "", found.stderr
    return found.stdout.splitlines()


def documented():
    """The Python of the guide and of the package's docstring, by name."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    docstring = (headstart.__doc__ or "").partition("\n\n")[2]
    return {
        f"guide_{number}": text for number, text in enumerate(text for text in blocks if "import headstart" in text)
    } | {"docstring": f"import headstart\n{docstring}"}


# mypy takes long to read these packages. Of torch the documented Python meets one decorator, which changes no type.
UNREAD = """[mypy]
[mypy-filelock.*,huggingface_hub.*,jinja2.*,matplotlib.*,plotly.*,ray.*,rich.*,scipy.*,timm.*,torch.*,torchvision.*]
follow_imports = skip
follow_imports_for_stubs = True
[mypy-torch]
follow_imports = silent
"""
# Of other libraries nothing is asked that one system lacks; reading their stubs takes a sixth of the time.
OURS = """[mypy]
[mypy-matplotlib.*,msgspec.*,numpy.*,orjson.*,safetensors.*,torch.*]
follow_imports_for_stubs = True
"""
TORCH = """from collections.abc import Callable
from typing import Any, TypeVar

Same = TypeVar("Same")

def no_grad() -> Callable[[Same], Same]: ...
def __getattr__(name: str) -> Any: ...
"""


@pytest.mark.slow
def test_documented_python_has_no_type_error(tmp_path):
    """And the checker sees our types: a wrong name and a wrong argument are found in the same way."""
    texts = documented()
    assert len(texts) >= 2 and "headstart.load_trained" in texts["guide_0"]
    assert {line for text in texts.values() for line in text.splitlines() if "import " in line} == {"import headstart"}
    wrong = {
        "score_threshold=0.5": "score_threshold='half'",
        "run.directory)": "run.folder)",
        'evaluation.metrics["box"]': "evaluation.scores",
        "study.plan.steps_shared": "study.plan.steps",
        "headstart.evaluate(trained": "headstart.evaluate(3",
        'headstart.open_dataset("val.json"': "headstart.open_dataset(4",
        "headstart.train(recipe)": "headstart.train(5)",
        "draw_prediction(": "draw_prediction(6, ",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    planted = texts["guide_0"]
    for right, bad in wrong.items():
        assert right in planted
        planted = planted.replace(right, bad)
    (tmp_path / "planted.py").write_text(planted, encoding="utf-8")

    stub = tmp_path / "stubs/torch/__init__.pyi"
    stub.parent.mkdir(parents=True)
    stub.write_text(TORCH, encoding="utf-8")
    config = tmp_path / "mypy.ini"
    config.write_text(UNREAD, encoding="utf-8")
    files = sorted(tmp_path.glob("*.py"))
    found = check("--strict", "--follow-imports=silent", *files, config=config, stubs=tmp_path / "stubs")
    assert [line for line in found if "planted.py" not in line] == []
    text = "\n".join(found)
    parts = ['"score_threshold" to "predict"', 'no attribute "folder"', 'no attribute "scores"', '"steps"']
    parts += ['1 to "evaluate"', '1 to "open_dataset"', '1 to "train"', '"draw_prediction"']
    assert [part for part in parts if part not in text] == [], text


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


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says on each system of the package and of LACKING, each of these lines in a file of its system."""
    fine = "import sys\nif sys.platform == 'linux':\n    import os\n    os.fork(); os.sched_getaffinity(0)\n"
    folder = tmp_path_factory.mktemp("planted")
    planted = [folder / f"lacking_{system}.py" for system in LACKING]
    for path, lines in zip(planted, LACKING.values()):
        path.write_text("\n".join([*lines, fine]), encoding="utf-8")
    (folder / "mypy.ini").write_text(OURS, encoding="utf-8")
    options = ("--check-untyped-defs", "--follow-imports=skip", SOURCE, *planted)
    return {
        system: set(check(f"--platform={system}", *options, config=folder / "mypy.ini"))
        for system in ("linux", *LACKING)
    }


@pytest.mark.slow
@pytest.mark.parametrize("platform", LACKING)
def test_nothing_is_used_that_another_system_lacks(said, platform):
    """Its copy of Python's library knows what each system has, also on paths that no test here can take."""
    assert [line for line in said[platform] - said["linux"] if "lacking_" not in line] == []


@pytest.mark.slow
@pytest.mark.parametrize("platform", LACKING)
def test_what_another_system_lacks_is_found(said, platform):
    """The check itself: it names every one of these lines, and none that asks first."""
    found = [line for line in said[platform] - said["linux"] if f"lacking_{platform}.py" in line]
    assert {int(line.split(":")[1]) for line in found} == set(range(1, len(LACKING[platform]) + 1)), found
