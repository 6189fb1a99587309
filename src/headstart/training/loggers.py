"""Rows of a run sent to TensorBoard, MLflow and Weights & Biases as well (`train.loggers`); nothing comes back."""

import importlib.util
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.recipe.dotted import flatten
from headstart.training.rows import Row

Send = Callable[[dict[str, float], int], None]  # numbers by name, and their step
PROJECT = "headstart"  # experiment of MLflow, project of Weights & Biases
MOST_PARAMS, MOST_TEXT = 100, 500  # of one request to MLflow: parameters, and characters of a value


@dataclass(frozen=True)
class Logged:
    """A run as loggers know it: its directory, its recipe, and the step it resumes after (None: it begins)."""

    directory: Path
    recipe: dict[str, Any]
    after_step: int | None


def refuse_missing(names: Sequence[str]) -> None:
    """ValueError for a logger whose package is not installed, with the extra to install."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            extra = "tensorboard" if name == "tensorboard" else "loggers"
            raise ValueError(f"train.loggers: {name!r} is not installed; expected pip install 'headstart[{extra}]'")


@contextmanager
def open_loggers(names: Sequence[str], run: Logged) -> Iterator[Callable[[Row], None]]:
    """A function that sends a row to all loggers; a logger that fails is named in a warning and gets no more.

    ValueError for a logger that cannot be opened.
    """
    with ExitStack() as stack:
        sends = {}
        for name in names:
            try:
                sends[name] = stack.enter_context(_LOGGERS[name](run))
            except Exception as error:
                raise ValueError(f"train.loggers: {name}: {_line(error)}") from None

        def log(row: Row) -> None:
            values = scalars(row)
            for name in list(sends) if values else ():
                try:
                    sends[name](values, row["step"])
                except Exception as error:
                    warnings.warn(f"train.loggers: {name}: {_line(error)}; it gets no more rows", stacklevel=2)
                    del sends[name]

        yield log


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by name; those that are undefined are left out."""
    if row["kind"] == "train":
        found = {"loss/total": row["loss"], "rate": row["rate"], "grad_norm": row["grad_norm"]}
        found |= {f"loss/{name}": value for name, value in row["losses"].items()}
    elif row["kind"] == "eval":
        split = row.get("split", "val")
        prefix = "ema/" if row.get("weights") == "ema" else "" if split == "val" else f"{split}/"
        tree = row["metrics"]
        found = {f"{prefix}{kind}/{name}": value for kind, own in tree.items() for name, value in own.items()}
    else:
        found = {}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


@contextmanager
def _tensorboard(run: Logged) -> Iterator[Send]:
    """Files in `tensorboard/` of the run's directory."""
    from torch.utils.tensorboard import SummaryWriter  # here: it takes a second to import

    purge = None if run.after_step is None else run.after_step + 1
    with SummaryWriter(str(run.directory / "tensorboard"), purge_step=purge) as writer:

        def send(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield send


@contextmanager
def _mlflow(run: Logged) -> Iterator[Send]:
    """A run of the experiment `headstart` where MLFLOW_TRACKING_URI says; a resumed run continues its own."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else the import reports its use
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client, name = MlflowClient(), run.directory.name
    tag, digest = "headstart.run", name.rpartition("-")[2]
    known = client.get_experiment_by_name(PROJECT)
    experiment = known.experiment_id if known else client.create_experiment(PROJECT)
    begun = client.search_runs([experiment], f"tags.`{tag}` = '{digest}'", max_results=1)
    if begun:
        own = begun[0].info.run_id
        client.update_run(own, status="RUNNING")
    else:
        own = client.create_run(experiment, run_name=name, tags={tag: digest}).info.run_id
        params = [Param(field, str(value)[:MOST_TEXT]) for field, value in flatten(run.recipe).items()]
        for first in range(0, len(params), MOST_PARAMS):
            client.log_batch(own, params=params[first : first + MOST_PARAMS])

    def send(values: dict[str, float], step: int) -> None:
        now = round(1000 * time.time())
        client.log_batch(own, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    status = "FAILED"
    try:
        yield send
        status = "FINISHED"
    finally:
        client.set_terminated(own, status)


@contextmanager
def _wandb(run: Logged) -> Iterator[Send]:
    """A run of the project `headstart`, as WANDB_MODE and the like say; a resumed run continues its own."""
    import wandb

    name, code = run.directory.name, 1
    found = wandb.init(
        project=PROJECT,
        id=name.rpartition("-")[2],
        name=name,
        resume="allow",
        dir=run.directory,
        config=flatten(run.recipe),
        settings=wandb.Settings(silent=True),
    )
    try:
        yield lambda values, step: found.log(values, step=step)
        code = 0
    finally:
        found.finish(exit_code=code)


_LOGGERS: dict[str, Callable[[Logged], AbstractContextManager[Send]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
