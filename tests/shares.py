"""Work of processes in test_distributed.py and test_faults.py. Nothing imports torch, so that they start at once."""

import errno
import os
import signal
import time


def share(send, ending):
    """The last process ends badly, the others would wait for ten minutes."""
    if int(os.environ["RANK"]) < int(os.environ["WORLD_SIZE"]) - 1:
        send("waiting")
        time.sleep(600)
    time.sleep(0.5)  # the first is heard first
    if ending == "refused":
        raise ValueError("data.train: 'x' is not there")
    if ending == "broken":
        raise KeyError("x")
    if ending == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.jsonl")
    if ending == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)


def pause(send, seconds):
    """The second process is stopped for a while by the first; each returns its rank."""
    if os.environ["RANK"] == "1":
        send("number", os.getpid())
        time.sleep(seconds)
    return os.environ["RANK"]


def lost(send, stopped, seconds):
    """The second process stops answering; the first fails on it some seconds later."""
    if os.environ["RANK"] == "1":
        stopped.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    while not stopped.exists():
        time.sleep(0.01)
    time.sleep(seconds)
    raise RuntimeError("Timed out waiting for recv operation to complete")
