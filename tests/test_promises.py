"""The promises of SECURITY.md, watched through Python's audit events."""

import json
import os
import pickle
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cli_call import call
from headstart.data.images import FORMATS, load_image
from headstart.weights.files import read_weights
from study_folder import build_study
from tiny import DETECTOR, scene_paths

ROOT = Path(__file__).parents[1]
NETWORK = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
)
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
CODE = ("pickle.find_class", "exec", "marshal.loads", "ctypes.dlopen")
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.utime",
)
_watchers = []


def _hear(event, arguments):
    """An audit hook stays until Python ends: it asks whether anyone listens."""
    if _watchers and not (event == "subprocess.Popen" and _is_importing()):
        _watchers[-1](event, arguments)


def _is_importing():
    """True while a module is imported: torch's libraries then ask `ldconfig` where those of CUDA are."""
    frame = sys._getframe()
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


sys.addaudithook(_hear)


@contextmanager
def watched(*events):
    """The audit events of these names while a block runs, as [(name, arguments)]."""
    found = []

    def listen(event, arguments):
        if event in events:
            found.append((event, arguments))

    _watchers.append(listen)
    try:
        yield found
    finally:
        _watchers.remove(listen)


def written(events):
    """Absolute paths that were opened for writing, made, renamed or removed; where a link leads is not written."""
    found = set()
    for event, arguments in events:
        paths = []
        if event == "open":
            path, mode, flags = arguments
            writes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            paths = [path] if writes else []
        elif event in CHANGES:
            paths = (
                arguments[1:2] if event == "os.symlink" else arguments[: 2 if event in ("os.rename", "os.link") else 1]
            )
        found |= {os.path.abspath(os.fsdecode(path)) for path in paths if isinstance(path, str | bytes | os.PathLike)}
    return found


def test_the_watch_sees_what_it_is_for(tmp_path):
    with watched("open", *CHANGES, *PROGRAMS, *CODE, *NETWORK) as events:
        (tmp_path / "a").write_text("x")
        pickle.loads(b"cos\ngetpid\n.")
        os.system("true")
        with pytest.raises(OSError):
            import socket

            socket.create_connection(("127.0.0.1", 1), timeout=1)
    assert written(events) == {str(tmp_path / "a")}
    assert {"pickle.find_class", "os.system", "socket.connect"} <= {event for event, _ in events}


def test_training_prediction_and_reports_stay_in_their_folder(monkeypatch, capsys, data_root, tmp_path):
    out, cache = tmp_path / "out", Path(os.environ["XDG_CACHE_HOME"])
    monkeypatch.chdir(tmp_path)
    patch = {"name": "tiny", **DETECTOR, **scene_paths(data_root), "train.base": "2 steps", "model.mask.enabled": False}
    overrides = [f"{name}={json.dumps(value)}" for name, value in patch.items()]
    directory = build_study(out, schedules=("1x",), fractions=(1.0,))
    with watched("open", *CHANGES, *PROGRAMS, *NETWORK) as events:
        answers = [call(monkeypatch, capsys, "train", "base", *overrides, "--out", out)]
        (run,) = out.glob("tiny-*")
        answers.append(call(monkeypatch, capsys, "predict", run, data_root / "scenes/val", "--out", out / "seen"))
        answers.append(call(monkeypatch, capsys, "study", "report", directory))
    assert [answer.code for answer in answers] == [0, 0, 0], answers
    assert [event for event in events if event[0] in (*PROGRAMS, *NETWORK)] == []
    own = (out, cache / "headstart", Path(os.devnull), Path("/proc/self"))  # the last: peaks of memory, set back
    elsewhere = [path for path in map(Path, written(events)) if not any(path.is_relative_to(root) for root in own)]
    assert [path for path in elsewhere if path != cache and not of_a_library(path)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def of_a_library(path):
    """True for what Matplotlib and torch keep for themselves, as SECURITY.md says."""
    return "matplotlib" in path.parts or path.name.startswith("torchinductor_")


def images(folder):
    """A picture of each format that is read, and of some that are not, all of them named .jpg."""
    for kind in (*FORMATS, "EPS", "PDF", "PPM", "ICO", "TGA"):
        path = folder / f"{kind}.jpg"
        Image.new("RGB", (8, 6)).save(path, kind)
        yield kind, path


def weights(folder):
    """A weight file of each kind."""
    tensors = {"a": torch.ones(2, 2)}
    save_file(tensors, folder / "a.safetensors")
    torch.save(tensors, folder / "a.pt")
    torch.save(tensors, folder / "a.pth", _use_new_zipfile_serialization=False)
    (folder / "a.pkl").write_bytes(pickle.dumps({"a": np.ones((2, 2), np.float32)}))
    return [folder / name for name in ("a.safetensors", "a.pt", "a.pth", "a.pkl")]


def test_reading_images_and_weights_starts_no_program(tmp_path):
    pictures, files = list(images(tmp_path)), weights(tmp_path)
    with watched(*PROGRAMS, *NETWORK) as events:
        for kind, path in pictures:
            if kind in FORMATS:
                assert load_image(path).shape == (6, 8, 3)
            else:
                with pytest.raises(ValueError, match="not a readable image"):
                    load_image(path)
        for path in files:
            assert read_weights(path).tensors["a"].sum() == 4
    assert events == []


def test_weights_run_no_code(tmp_path):
    """Not one name is looked up: unpicklers that allow some still import what is asked for."""
    files = weights(tmp_path)
    for suffix in (".pkl", ".pth", ".pt"):
        for number, text in enumerate(
            (b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.")
        ):
            files.append(tmp_path / f"evil{number}{suffix}")
            files[-1].write_bytes(text)
    for path in files[:4]:
        read_weights(path)  # what is imported only once is imported now
    with watched(*CODE, *PROGRAMS, "import") as events:
        for path in files:
            if "evil" in path.name:
                with pytest.raises(ValueError, match=r"refused, because it asks for os\.system"):
                    read_weights(path)
            else:
                read_weights(path)
    assert events == []


def test_each_promise_names_tests_that_exist():
    table = [line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")][
        1:
    ]
    assert len(table) == 7
    for line in table:
        file, named = None, 0
        for code in re.findall(r"`([^`]+)`", line.split("|")[2]):
            if code.startswith("test_"):
                assert f"\ndef {code}(" in file, code
            elif code.startswith("tests/"):
                file, named = (ROOT / code).read_text(encoding="utf-8"), named + 1
        assert named, line
