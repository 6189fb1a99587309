"""Skipped tests are named at the end with the way to get them, and are failures with --no-skips."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PASSES = "def test_passes():\n    pass\n"
SKIPPED = (
    "import pytest\n\n\n@pytest.mark.skip(reason='needs Ray: make test extras=cluster')\ndef test_it():\n    pass\n"
)


@pytest.mark.parametrize(
    ("text", "options", "code", "told"),
    [
        (SKIPPED, [], 0, ["SKIPPED [1]", "needs Ray: make test extras=cluster"]),
        (SKIPPED, ["--no-skips", "--numprocesses=2"], 1, ["SKIPPED [1]", "FAILED: 1 skipped, and --no-skips"]),
        (PASSES, ["--no-skips"], 0, []),
    ],
    ids=["named", "not allowed", "nothing skipped"],
)
def test_what_is_skipped_is_told(request, tmp_path, text, options, code, told):
    (tmp_path / "test_one.py").write_text(text)
    assert request.config.pluginmanager.has_plugin("no_skips")  # here; it alone there, which imports no torch
    settings = [
        "-c",
        TESTS.parent / "pyproject.toml",
        "--rootdir",
        tmp_path,
        "-p",
        "no_skips",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, *options, "test_one.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert all(words in result.stdout for words in told) and ("skip" in result.stdout.lower()) == bool(told)
