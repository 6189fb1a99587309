"""Run a command as on a slower processor: all its processes are stopped for most of the time.

    python benchmarks/slower.py 2.7 python benchmarks/run.py

Of every FACTOR x 30 ms the command's process group runs 30 ms and is stopped for the rest (SIGSTOP, SIGCONT), so that
threads which wait for one another stay together. Everything takes FACTOR times as long by the wall clock; shares and
ratios hardly change. Prints the seconds in all; the exit code is the command's. POSIX only.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

RUNS = 0.03  # seconds of a period: long beside a switch of processes, short beside what is timed


def main() -> int:
    factor, command = float(sys.argv[1]), sys.argv[2:]
    if not (factor >= 1 and command):
        sys.exit("slower.py: expected a factor of 1 or more and a command")
    began = time.perf_counter()
    with subprocess.Popen(command, start_new_session=True) as process, suppress(ProcessLookupError):
        try:
            while process.poll() is None:
                time.sleep(RUNS)
                os.killpg(process.pid, signal.SIGSTOP)
                time.sleep(RUNS * (factor - 1))
                os.killpg(process.pid, signal.SIGCONT)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    print(f"\nslower by {factor:g}: {time.perf_counter() - began:.0f} s", flush=True)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
