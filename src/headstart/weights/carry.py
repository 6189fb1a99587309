"""What a branch with a model of its own takes over from the run that it continues, tensor by tensor."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.files import file_digest
from headstart.weights.input import parse_input_spec
from headstart.weights.load import COUNTER
from headstart.weights.mismatch import LoadReport


def carry(
    state: dict[str, Any], path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], LoadReport]:
    """A checkpoint's content as one of `model` and `optimizer`, which are fresh, and the account of what was taken.

    A tensor of the same name and shape is carried over, with its momentum. Every other stays as it was built, with a
    momentum of zero, which is how any tensor begins. Settings of the optimizer are its own. Losses that the parent had
    gathered for its next row are left behind: they are of another model.
    """
    own, theirs = model.state_dict(), state["model"]
    fits = {name: name in theirs and theirs[name].shape == value.shape for name, value in own.items()}
    momentum = _momentum(state["optimizer"])
    kept = {name: value for name, value in momentum.items() if fits.get(name)}
    carried = {
        "model": {name: theirs[name] if fits[name] else value for name, value in own.items()},
        "optimizer": _with_momentum(optimizer.state_dict(), kept, dict(model.named_parameters())),
        "window": {},
    }
    return state | carried, _report(state, path, own, fits)


def _momentum(state: dict[str, Any]) -> dict[str, Tensor]:
    """Momentum by parameter name; nothing where the run had none."""
    names = {
        index: name for group in state["param_groups"] for index, name in zip(group["params"], group["param_names"])
    }
    found = {names[index]: entry.get("momentum_buffer") for index, entry in state["state"].items()}
    return {name: value for name, value in found.items() if value is not None}


def _with_momentum(
    state: dict[str, Any], kept: dict[str, Tensor], parameters: dict[str, nn.Parameter]
) -> dict[str, Any]:
    """The state of an optimizer that goes on with `kept`; fused SGD wants a buffer for all parameters or for none."""
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
