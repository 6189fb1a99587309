"""What two processes do in test_distributed.py. Nothing here imports torch, so that they start at once."""

import os
import signal
import time


def share(send, ending):
    """The second process ends badly, the first would wait for ten minutes."""
    if os.environ["RANK"] == "0":
        send("waiting")
        time.sleep(600)
    time.sleep(0.5)  # the first is heard first
    if ending == "refused":
        raise ValueError("data.train: 'x' is not there")
    if ending == "broken":
        raise KeyError("x")
    os.kill(os.getpid(), signal.SIGKILL)
