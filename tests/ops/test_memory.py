"""Freed memory goes back to the system where small objects lie between what was freed, and only then."""

import subprocess
import sys

import pytest
import torch

from headstart.ops import memory

# Tensors of 8 MiB, every second one freed, as an evaluation leaves them; in a process of its own: its settings stay.
CODE = """
from pathlib import Path
import torch
from headstart.ops import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

memory.keep_freed_memory()
freed = memory.FreedMemory()
blocks = [torch.ones(2**21) for _ in range(64)]
before = resident()
freed.bound()
del blocks[::2]
print(before - resident())
more = [torch.ones(2**22) for _ in range(SIZE)]
grown = resident()
freed.bound()
print(grown - resident())
freed.give_back()
print(grown - resident())
"""


def returned(num):
    """Blocks of 8 MiB given back: by freeing 32 of 64, `bound` after `num` more of twice the size, and in the end."""
    command = [sys.executable, "-c", CODE.replace("SIZE", str(num))]
    return [round(int(line) / 2**23) for line in subprocess.check_output(command, text=True).split()]


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps and returns freed memory on request")
def test_kept_memory_is_returned_after_growth_and_on_request():
    assert returned(8) == [0, 0, 32]  # 128 MiB more: too little growth
    assert returned(80) == [0, 32, 32]  # 1.25 GiB more


def test_the_peak_of_a_gpu_is_reset_before_anything_is_on_it(monkeypatch):
    """Torch answers "did you call init?" otherwise, and a timing asks first."""
    calls = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device))
    memory.reset_peak(torch.device("cuda", 1))
    assert calls == ["init", torch.device("cuda", 1)]
