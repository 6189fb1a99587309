"""Partial restore of a checkpoint, for a branch whose model differs from that of the run it continues."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.files import file_digest
from headstart.weights.input import parse_input_spec
from headstart.weights.load import COUNTER
from headstart.weights.mismatch import LoadReport


def partial_restore(
    state: dict[str, Any], path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], LoadReport]:
    """A checkpoint's state made to fit a fresh `model` and `optimizer`, and a report on each tensor.

    Tensors of equal name and shape are restored, with their momentum. All others keep their initial values, with a
    momentum of zero. The optimizer keeps its own settings. Losses that the parent had gathered for its next row are
    dropped: they belong to another model.
    """
    own, theirs = model.state_dict(), state["model"]
    fits = {name: name in theirs and theirs[name].shape == value.shape for name, value in own.items()}
    momentum = _momentum(state["optimizer"])
    kept = {name: value for name, value in momentum.items() if fits.get(name)}
    restored = {
        "model": {name: theirs[name] if fits[name] else value for name, value in own.items()},
        "optimizer": _with_momentum(optimizer.state_dict(), kept, dict(model.named_parameters())),
        "window": {},
    }
    return state | restored, _report(state, path, own, fits)


def _momentum(state: dict[str, Any]) -> dict[str, Tensor]:
    """Momentum by parameter name; empty where the run had none."""
    names = {
        index: name for group in state["param_groups"] for index, name in zip(group["params"], group["param_names"])
    }
    found = {names[index]: entry.get("momentum_buffer") for index, entry in state["state"].items()}
    return {name: value for name, value in found.items() if value is not None}


def _with_momentum(
    state: dict[str, Any], kept: dict[str, Tensor], parameters: dict[str, nn.Parameter]
) -> dict[str, Any]:
    """Optimizer state with the momentum `kept`; fused SGD needs a buffer for all parameters or for none."""
    if not kept:
        return state
    entries = {
        index: {"momentum_buffer": kept[name] if name in kept else torch.zeros_like(parameters[name])}
        for group in state["param_groups"]
        for index, name in zip(group["params"], group["param_names"])
    }
    return state | {"state": entries}


def _report(state: dict[str, Any], path: Path, own: dict[str, Tensor], fits: dict[str, bool]) -> LoadReport:
    theirs = {name: value for name, value in state["model"].items() if not name.endswith(COUNTER)}
    fits = {name: value for name, value in fits.items() if not name.endswith(COUNTER)}
    loaded = {name: name for name, fit in fits.items() if fit}
    new = tuple(name for name in fits if name not in theirs)
    reshaped = {
        name: (tuple(theirs[name].shape), tuple(own[name].shape))
        for name, fit in fits.items()
        if not fit and name in theirs
    }
    left = tuple(name for name in theirs if name not in own)
    return LoadReport(
        path=str(path),
        hash=file_digest(path),
        layout="headstart",
        scope="branch",
        loaded=loaded,
        missing=new,
        mismatched=reshaped,
        left_out=left,
        notes=(
            f"continues {path} at step {state['step']:,}: {len(loaded)} tensors carried over with their momentum, "
            f"{len(new)} new, {len(reshaped)} of another shape, {len(left)} left behind",
        ),
        source_input=parse_input_spec(state["recipe"]["input"]),
    )
