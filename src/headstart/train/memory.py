"""The largest memory that a run took: of the accelerator where there is one, else of this process."""

import resource
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Begin to watch; where the system cannot, a process's peak is that since it began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")  # man 5 proc: resets the peak resident set size
    except OSError:
        return


def peak(device: torch.device) -> int:
    """Bytes at the highest point: allocated tensors on a GPU, all resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kibibytes, on Linux
