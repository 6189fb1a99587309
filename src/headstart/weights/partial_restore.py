"""Partial restore of a checkpoint, for a branch whose model differs from that of the run it continues."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.files import file_digest
from headstart.weights.input import parse_input_spec
from headstart.weights.load import COUNTER
from headstart.weights.mismatch import LoadReport

MOMENTUM = ("momentum_buffer",)  # state of torch's SGD, by parameter
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of Adam and AdamW


def partial_restore(
    state: dict[str, Any], path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], LoadReport]:
    """A checkpoint's state made to fit a fresh `model` and `optimizer`, and a report on each tensor.

    Tensors of equal name and shape are restored, with their momentum (of Adam: both moments and the step). All others
    keep their initial values, with a momentum of zero; all of them after another kind of optimizer. The optimizer keeps
    its own settings. Losses that the parent had gathered for its next row are dropped: they belong to another model.
    """
    own, theirs = model.state_dict(), state["model"]
    fits = {name: name in theirs and theirs[name].shape == value.shape for name, value in own.items()}
    kept = _kept_state(state["optimizer"], fits, optimizer)
    restored = {
        "model": {name: theirs[name] if fits[name] else value for name, value in own.items()},
        "optimizer": _with_state(optimizer, kept, dict(model.named_parameters())),
        "window": {},
    }
    return state | restored, _report(state, path, own, fits, "their" if kept else "no")


def _kept_state(
    state: dict[str, Any], fits: dict[str, bool], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """State of the parameters that fit, by name; empty where the run had none, or another kind of optimizer's."""
    slots = MOMENTUM if isinstance(optimizer, torch.optim.SGD) else MOMENTS
    names = {
        index: name for group in state["param_groups"] for index, name in zip(group["params"], group["param_names"])
    }
    found = {names[index]: {slot: entry.get(slot) for slot in slots} for index, entry in state["state"].items()}
    return {
        name: entry for name, entry in found.items() if fits.get(name) and all(v is not None for v in entry.values())
    }


def _with_state(
    optimizer: torch.optim.Optimizer, kept: dict[str, dict[str, Tensor]], parameters: dict[str, nn.Parameter]
) -> dict[str, Any]:
    """State of an optimizer with the entries `kept`.

    Fused SGD needs a momentum for all parameters or for none. Adam begins afresh with a parameter that has no entry.
    """
    state = optimizer.state_dict()
    places = {
        name: index for group in state["param_groups"] for index, name in zip(group["params"], group["param_names"])
    }
    entries = {places[name]: entry for name, entry in kept.items() if name in places}
    if entries and isinstance(optimizer, torch.optim.SGD):
        new = {index: name for name, index in places.items() if index not in entries}
        entries |= {index: {"momentum_buffer": torch.zeros_like(parameters[name])} for index, name in new.items()}
    return state | {"state": {index: entries[index] for index in sorted(entries)}}


def _report(
    state: dict[str, Any], path: Path, own: dict[str, Tensor], fits: dict[str, bool], momentum: str
) -> LoadReport:
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
            f"continues {path} at step {state['step']:,}: {len(loaded)} tensors carried over with {momentum} momentum, "
            f"{len(new)} new, {len(reshaped)} of another shape, {len(left)} left behind",
        ),
        source_input=parse_input_spec(state["recipe"]["input"]),
    )
