"""Memory of a run: its peak on the accelerator or else in this process, and the C library's reuse of freed memory."""

import ctypes
import sys
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def keep_freed_memory() -> None:
    """Let this process's C library keep memory that is freed, where it is glibc; nothing happens elsewhere.

    By default each large tensor is a mapping of its own, which the system fills with zeros page by page at every step.
    Keeping them saves a tenth of a step at 800 px, and raises the memory peak by as much (docs/performance.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def reset_peak(device: torch.device) -> None:
    """Reset the peak; where the system cannot, the peak of a process is that since its start."""
    if device.type == "cuda":
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
