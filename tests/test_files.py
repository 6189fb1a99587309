"""Files: whole or not there, one holder of a lock at a time, JSON without NaN, known digests, and one place for all."""

import ast
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import headstart
from headstart import files

ROOT = Path(headstart.__file__).parent


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def python(tmp_path):
    """Start Python in another process and wait until it says that it is there."""
    started = []

    def start(code):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, cwd=tmp_path)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_text_is_utf8_with_plain_line_ends_and_bytes_are_as_given(tmp_path):
    assert files.write_whole(tmp_path / "a.txt", "α\nβ\r\n") == tmp_path / "a.txt"
    assert (tmp_path / "a.txt").read_bytes() == "α\nβ\r\n".encode()
    files.write_whole(str(tmp_path / "b"), b"\r\n\0")
    assert (tmp_path / "b").read_bytes() == b"\r\n\0"
    assert names(tmp_path) == ["a.txt", "b"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    files.write_whole(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a") as temporary:
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    files.write_whole(tmp_path / "whole", "x")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def write_often(path, letter):
    for _ in range(100):
        files.write_whole(path, letter * 10_000)
        assert path.read_text() in ("a" * 10_000, "b" * 10_000)


def test_two_processes_may_write_one_file(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        for future in [pool.submit(write_often, tmp_path / "page", letter) for letter in "ab"]:
            future.result()
    assert names(tmp_path) == ["page"]


def test_what_a_killed_writer_leaves_is_no_file_of_that_name_and_can_be_cleared(tmp_path, python):
    process = python(
        "from headstart.files import replacing\n"
        "with replacing('rows.jsonl') as temporary:\n"
        "    temporary.write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    input()\n"
    )
    process.kill()
    process.wait()
    (left,) = names(tmp_path)
    assert re.fullmatch(r"\.rows\.jsonl\.[0-9a-f]{8}\.part", left)
    (tmp_path / "part").touch()
    files.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["part"]
    files.remove_unfinished(tmp_path / "nowhere")


@pytest.mark.parametrize(("refusals", "patience"), [(3, 60.0), (1, -1.0)], ids=["a reader leaves", "a reader stays"])
def test_a_rename_is_tried_again_while_a_reader_has_the_file_open(tmp_path, monkeypatch, refusals, patience):
    honest, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) <= refusals:
            raise PermissionError(13, "The process cannot access the file")  # what Windows says
        honest(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(files, "PATIENCE", patience)
    if patience > 0:
        files.write_whole(tmp_path / "a", "new")
        assert len(calls) == refusals + 1 and (tmp_path / "a").read_text() == "new"
    else:
        with pytest.raises(PermissionError):
            files.write_whole(tmp_path / "a", "new")
        assert len(calls) == 1 and names(tmp_path) == []


HOLD = (
    "import os\nfrom pathlib import Path\nfrom headstart.files import locked\n"
    "with locked(Path('deep/lock'), taken='in use'):\n    print('ready', flush=True)\n    input()\n"
)


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path, python):
    process = python(HOLD)
    path = tmp_path / "deep/lock"
    expected = rf"^{re.escape(str(path.parent))}: in use by process {process.pid} on \S+$"
    for wait in (0.0, 0.2):
        with pytest.raises(ValueError, match=expected), files.locked(path, taken="in use", wait=wait):
            pass
    path.unlink()
    with pytest.raises(ValueError, match=r"in use by another process$"), files.locked(path, taken="in use"):
        pass


def test_a_lock_taken_twice_by_one_process_is_refused_too(tmp_path):
    with files.locked(tmp_path / "lock", taken="in use"):
        with (
            pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "),
            files.locked(tmp_path / "lock", taken="in use"),
        ):
            pass
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("wait", [30.0, math.inf])
def test_who_waits_gets_the_lock_of_a_killed_process(tmp_path, python, wait):
    process = python(HOLD)
    os.kill(process.pid, signal.SIGKILL)
    with files.locked(tmp_path / "deep/lock", taken="in use", wait=wait):
        assert f"process {os.getpid()} on " in (tmp_path / "deep/lock").read_text()


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), files.locked(tmp_path / "lock", taken="in use"):
        raise ZeroDivisionError
    with files.locked(tmp_path / "lock", taken="in use"):
        pass


def test_a_child_that_outlives_its_parent_does_not_hold_its_lock(tmp_path, python):
    process = python(
        "import subprocess, sys\nfrom pathlib import Path\nfrom headstart.files import locked\n"
        "with locked(Path('deep/lock'), taken='in use'):\n"
        "    command = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)\n"
        "    Path('child').write_text(str(child.pid))\n"
        "    print('ready', flush=True)\n    input()\n"
    )
    process.kill()
    process.wait()
    try:
        with files.locked(tmp_path / "deep/lock", taken="in use"):
            pass
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_plain_values():
    value = {
        1: (math.nan, -math.inf, 0.1 + 0.2), "n": np.float64("nan"), "i": np.int64(3), "b": np.bool_(True),
        "t": torch.tensor(0.5), "s": "nan", "o": None, "l": [True, 7],
    }  # fmt: skip
    expected = {
        "1": [None, None, 0.1 + 0.2],
        "n": None,
        "i": 3,
        "b": True,
        "t": 0.5,
        "s": "nan",
        "o": None,
        "l": [True, 7],
    }
    assert files.plain(value) == expected
    assert type(files.plain(value)["b"]) is bool and type(files.plain(value)["i"]) is int
    assert json.loads(files.json_text(value)) == expected
    assert files.plain([1 / 3, 123_456_789.0, 123_456_789, math.inf], digits=6) == [
        0.333333,
        123_457_000.0,
        123_456_789,
        None,
    ]
    assert files.json_text({"a": math.nan}, indent=1) == '{\n "a": null\n}'
    assert files.json_text([2 / 3], digits=2) == "[0.67]"


def test_file_digest_is_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert files.file_digest(tmp_path / "a") == expected
    assert files.file_digest(tmp_path / "a", "md5") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, appendix A.5


ONLY_HERE = {"os.replace", "os.rename", "hashlib.file_digest", "tempfile.mkstemp", "tempfile.NamedTemporaryFile"}


def doubles(path):
    """Calls in a source file that files.py makes for all."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in ONLY_HERE:
            yield name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("write_text", "write_bytes", "rename"):
                yield f".{node.func.attr}"
            if node.func.attr == "replace" and len(node.args) == 1:  # Path.replace; that of a string takes two
                yield ".replace"


def test_files_are_replaced_and_hashed_in_one_place():
    allowed = {"files.py", "data/shapes/write.py", "ops/memory.py"}  # pictures of an unfinished set; /proc
    found = {path.relative_to(ROOT).as_posix(): sorted(doubles(path)) for path in ROOT.rglob("*.py")}
    assert {name: calls for name, calls in found.items() if calls and name not in allowed} == {}
    assert found["files.py"] == [".write_bytes", "hashlib.file_digest", "os.replace"]
    assert set(found["data/shapes/write.py"]) == {".write_bytes"} and set(found["ops/memory.py"]) == {".write_text"}


def test_a_class_name_is_no_formula_in_a_spreadsheet_and_a_number_stays_one(tmp_path):
    signs = ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
    names = [*(f"{sign}1+A1" for sign in signs), "c=at", "'cat", ""]
    numbers = [-0.25, 3, -7, 1e-9, float("nan"), None, float("-inf"), True]
    rows = [{"class": name, "-AP": 1} for name in names] + [{"class": number} for number in numbers]
    files.write_csv(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        header, *found = csv.reader(file)
    assert header == ["class", "'-AP"]
    assert [row[0] for row in found[:14]] == [f"'{name}" for name in names[:11]] + names[11:]
    assert [row[0] for row in found[14:]] == ["-0.25", "3", "-7", "1e-09", "", "", "-inf", "True"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_read_is_never_written_over(tmp_path, force):
    """By its own name, by a link of either kind, in another spelling, and as a further input."""
    own, other = tmp_path / "own", tmp_path / "other"
    own.write_text("own")
    other.write_text("other")
    os.link(own, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(own)
    (tmp_path / "folder").mkdir()
    for target in (own, tmp_path / "hard", tmp_path / "soft", tmp_path / "folder/../own", other):
        with pytest.raises(ValueError, match=rf"^{target}: is read here .*, and is never replaced"):
            files.refuse_overwrite([(target, own)], inputs=iter([other]), force=force)
        with pytest.raises(ValueError, match=rf"^{target}: is read here .*, and is never replaced"):
            files.refuse_overwrite([(tmp_path / "new", own), (target, other)], force=force)
    files.refuse_overwrite([(tmp_path / "new", own), (tmp_path / "newer", tmp_path)], inputs=[tmp_path], force=force)


def test_what_is_there_is_replaced_by_force_alone(tmp_path):
    made, source = tmp_path / "made", tmp_path / "source"
    made.write_text("made")
    with pytest.raises(ValueError, match=r"made: exists already; expected the name of a new file, or --force"):
        files.refuse_overwrite([(made, source)])
    files.refuse_overwrite([(made, source)], force=True)
    (tmp_path / "link").symlink_to(made)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "folder"):
        with pytest.raises(ValueError, match=rf"{name}: exists already"):
            files.refuse_overwrite([(tmp_path / name, source)])
        with pytest.raises(ValueError, match=rf"{name}: is a link or no file, which --force does not replace"):
            files.refuse_overwrite([(tmp_path / name, source)], force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["1.png", "1.PNG"])
def test_two_files_of_one_name_are_refused_with_both_sources(tmp_path, name, force):
    pairs = [
        (tmp_path / "1.png", Path("a/1.jpg")),
        (tmp_path / "2.png", Path("a/2.jpg")),
        (tmp_path / name, Path("b/1.jpg")),
    ]
    with pytest.raises(ValueError, match=rf"{name}: would be written for a/1\.jpg and again for b/1\.jpg"):
        files.refuse_overwrite(pairs, force=force)
    files.refuse_overwrite(pairs[:2], force=force)
