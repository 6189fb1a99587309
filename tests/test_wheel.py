"""The wheel: it holds the package whole, and runs where the source is not."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import headstart
from headstart.training.rows import read_rows
from tiny import outcome, tiny_study, write_study

ROOT = Path(headstart.__file__).parent.parent.parent


def pip(*arguments, cwd):
    """Run pip offline; its output where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the source tree; no network, setuptools is here already."""
    folder = tmp_path_factory.mktemp("wheel")
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "copy/src", ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy")
    pip("wheel", ".", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, cwd=folder / "copy")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that runs a command with the wheel installed and the source nowhere; it returns what was printed."""
    site, place = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", site, wheel, cwd=place)

    def run(*command, expected=0):
        environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        found = subprocess.run(
            list(map(str, command)), cwd=place, env=environment, capture_output=True, text=True, encoding="utf-8",
            timeout=300,
        )  # fmt: skip
        assert found.returncode == expected, found.stdout + found.stderr
        return found.stdout

    run.site, run.place = site, place
    return run


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    inside = zipfile.ZipFile(wheel)
    ours = {name for name in inside.namelist() if ".dist-info/" not in name}
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/headstart").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert ours == source and "headstart/py.typed" in ours
    (metadata,) = (name for name in inside.namelist() if name.endswith(".dist-info/METADATA"))
    facts = email.message_from_bytes(inside.read(metadata))
    assert facts["Version"] == headstart.__version__ and facts["License-Expression"] == "Apache-2.0"
    assert any(line.startswith("filelock") for line in facts.get_all("Requires-Dist"))


@pytest.mark.slow
def test_the_script_and_the_module_are_one_command(installed):
    """`headstart` and `python -m headstart`: the same output and exit codes, from the wheel's own files."""
    where = installed(sys.executable, "-c", "import headstart; print(headstart.__file__)")
    assert Path(where.strip()).is_relative_to(installed.site)
    script = installed.site / "bin/headstart"
    for arguments in (["study", "list"], ["recipe", "show", "demo"], ["recipe", "list"]):
        said = [installed(*start, *arguments) for start in ([script], [sys.executable, "-m", "headstart"])]
        assert said[0] == said[1] and "demo" in said[0]
    for start in ([script], [sys.executable, "-m", "headstart"]):
        installed(*start, "recipe", "show", "demmo", expected=2)


@pytest.mark.slow
def test_a_study_of_two_steps_and_its_report(installed):
    data = installed.place / "scenes"
    installed(sys.executable, "-m", "headstart", "data", "shapes", data, "--images", 6, "--val", 3, "--size", 64)
    study = tiny_study(
        installed.place, arms={"scratch": {"start.kind": "random"}}, schedules=["1x"], pretrain={}, share=False
    )
    study["set"] |= {"train.base": "2 steps", "train.warmup": "0 steps"}
    write_study(installed.place / "tiny.yaml", study)
    said = installed(sys.executable, "-m", "headstart", "study", "run", "tiny.yaml", "--jobs", 1)
    folder = installed.place / "runs/tiny"
    assert "report.html" in said
    ((directory, _, _),) = outcome(folder).values()
    assert read_rows(folder / directory / "rows.jsonl")[-1]["step"] == 2

    (folder / "report.html").unlink()
    installed(sys.executable, "-m", "headstart", "study", "report", "runs/tiny")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"headstart {headstart.__version__}" in page and "scratch" in page
    assert (folder / "tables/cells.csv").is_file() and (folder / "figures").is_dir()
