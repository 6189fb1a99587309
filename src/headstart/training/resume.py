"""Choice of a run's starting point, and what must hold of a checkpoint before a run continues from it."""

from pathlib import Path
from typing import Any

from headstart.training.rows import end_row, missing_rows, read_rows
from headstart.weights import checkpoint
from headstart.weights.checkpoint import StartPoint
from headstart.weights.files import tensors_digest
from headstart.weights.seal import DamagedError


def start_point(directory: Path, *, branch: Path | None, weights: str | None) -> StartPoint:
    """Own checkpoint > given branch point > given weights > random, in that order.

    A damaged checkpoint, and one that counts on rows that are missing, give way to the one before; `note` says so.
    ValueError where all are damaged, and where one cannot be read now or is of a newer format: then nothing changes.
    """
    problems, damaged, steps = [], 0, checkpoint.steps_saved(directory)
    for step in reversed(steps):
        path = checkpoint.path_of(directory, step)
        try:
            state = load_checked(path)
        except DamagedError as error:
            problems.append(str(error))
            damaged += 1
            continue
        missing = missing_rows(read_rows(directory / "rows.jsonl"), state)
        if not missing:
            return StartPoint("checkpoint", path, step, state, _note(problems, step))
        problems.append(f"{directory / 'rows.jsonl'}: lacks {missing}, on which {path.name} counts")
    if steps and damaged == len(steps):
        raise ValueError(
            f"{problems[0]}, and no older checkpoint of this run is whole; nothing was changed: expected one to "
            "continue from, or no checkpoints at all for a new start"
        )
    if branch is not None:
        state = load_checked(branch)
        return StartPoint("branch", Path(branch), state["step"], state, _note(problems, state["step"]))
    if weights is not None:
        return StartPoint("weights", Path(weights), 0, None, _note(problems, 0))
    return StartPoint("random", None, 0, None, _note(problems, 0))


def load_checked(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; DamagedError where its run's end row names other weights."""
    state = checkpoint.load(path)
    check_end(path, state["model"])
    return state


def check_end(path: Path, weights: dict[str, Any]) -> None:
    """DamagedError where the end row of a checkpoint's run has another hash than these weights of it.

    Nothing is asked of a checkpoint that no end row names, nor of weights outside a run directory.
    """
    path = path.absolute()
    run = path.parent.parent
    end = end_row(read_rows(run / "rows.jsonl")) if path.parent.name == "checkpoints" else None
    if end is None or path != run / end.get("checkpoint", ""):
        return
    if tensors_digest(weights) != end.get("hash"):
        raise DamagedError(f"{path}: its weights are not those that its run ended with (the hash in rows.jsonl)")


def _note(problems: list[str], step: int) -> str:
    return f"{'; '.join(problems)}; the run continues at step {step}" if problems else ""
