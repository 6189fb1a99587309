"""Memory of a run: its peak and limit on its device, and the C library's reuse of what is freed."""

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

import torch

from headstart import hardware

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_MOST_GROWTH = 2**30  # bytes; returning memory after every batch made an evaluation with masks 1.7 times as long
_STATUS, _STATM, _CLEAR = (Path(f"/proc/self/{name}") for name in ("status", "statm", "clear_refs"))


def keep_freed_memory() -> None:
    """Let this process's C library keep memory that is freed, where it is glibc; nothing happens elsewhere.

    By default each large tensor is a mapping of its own, which the system fills with zeros page by page at every step.
    Keeping them saves a tenth of a step at 800 px, and raises the memory peak by as much (docs/performance.md). Small
    objects between freed tensors fragment the memory that is kept: see `FreedMemory`.
    """
    if mallopt := _of_glibc("mallopt"):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class FreedMemory:
    """Freed memory of this process, returned to the system by `bound` each time the process has grown by a GiB.

    An evaluation keeps small results of each batch between large freed tensors, so the gaps fit no later tensor: the
    process would grow by gigabytes and stay as large. Nothing happens where the C library is not glibc.
    """

    def __init__(self) -> None:
        self._trim = _of_glibc("malloc_trim") if _STATM.exists() else None
        self._before: int | None = None  # resident bytes after the first batch since freed memory was last returned

    def bound(self) -> None:
        """After a batch: return freed memory if the process has grown by more than a GiB over the batches since."""
        if self._trim is None:
            return
        resident = mmap.PAGESIZE * int(_STATM.read_text(encoding="utf-8").split()[1])  # man 5 proc
        if self._before is None:
            self._before = resident
        elif resident - self._before > _MOST_GROWTH:
            self.give_back()

    def give_back(self) -> None:
        """Return freed memory now; later steps fetch it again, which takes a second for each few gigabytes."""
        if self._trim:
            self._trim(0)
            self._before = None


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory of a device; on a CPU without /proc it remains the peak since the process started."""
    if device.type == "cuda":
        torch.cuda.init()  # else torch refuses: a timing asks before anything is on the device
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5", encoding="utf-8")  # man 5 proc: resets the peak resident set size
    except OSError:
        return


def peak(device: torch.device) -> int | None:
    """Peak bytes: allocated tensors on a GPU, all resident memory of the process on a CPU.

    None where the system's C library does not count them, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # getrusage(2): bytes on macOS, kibibytes on Linux


def limit(kind: str) -> int | None:
    """Bytes of the first GPU for the device cuda, else those that this process may fill; None where unknown."""
    found = hardware.gpus() if kind == "cuda" else []
    return found[0]["memory"] if found else hardware.memory()
