"""This machine: the cores that this process may use."""

import os


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine's under an affinity mask, at least 1."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
