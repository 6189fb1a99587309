"""The end of a process in the middle of a run, as tests of resuming need it."""


class Killed(BaseException):
    """Stands for the end of the process: nothing in the product may catch it."""


def kill_at(step):
    """Return a progress callback that dies after the update of `step`, before its row and checkpoint."""

    def progress(now, values):
        if now == step:
            raise Killed

    return progress
