"""Initialisation audit of a live module of any trainer, by the values of its tensors."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headstart.weights.audits.read import read_any
from headstart.weights.audits.record import Audit
from headstart.weights.audits.values import (
    floating,
    is_constant,
    is_same,
    is_untrained,
    model_rows,
    odd_norms,
    pair,
    wrong,
)
from headstart.weights.files import WeightFile, tensor_digest, unwrapped
from headstart.weights.input import input_text
from headstart.weights.names import input_of, layout_of

_MOST_DEPTH = 4  # of names that become parts: "model.model.0" of Ultralytics has three


def audit_module(
    model: nn.Module,
    before: Mapping[str, Tensor] | None = None,
    file: str | Path | WeightFile | None = None,
    *,
    other: Mapping[str, Tensor] | None = None,
) -> Audit:
    """Audit a module before its first step: parts, source of each tensor, what trains, norms and input.

    The module is in its training mode. before: a copy of its state dict right after construction
    (`copy.deepcopy(model.state_dict())`); file: the weights that it should have, None for a random start; other: the
    state dict of the same model constructed with another seed. What is not given is not checked. The audit's errors
    name the trap that they belong to. ValueError for a file that cannot be read.
    """
    own = floating(model.state_dict())
    weights = read_any(file) if isinstance(file, str | Path) else file
    first = None if before is None else floating(before)
    shared = [name for name, value in (first or {}).items() if name in own and value.numel()]
    if any(own[name].data_ptr() == first[name].data_ptr() for name in shared):
        raise ValueError("before: shares its memory with the module, expected a copy (copy.deepcopy)")
    theirs = {} if weights is None else floating(weights.tensors)
    pairs = pair(own, theirs)
    values = {tensor_digest(value.float()) for value in theirs.values() if not is_constant(value)}
    loaded = {name for name, value in own.items() if name in pairs and is_same(value, theirs[pairs[name]])}
    loaded |= {name for name, value in own.items() if not is_constant(value) and tensor_digest(value.float()) in values}
    if weights is None:
        changed = [name for name in own if first and not (name in first and is_same(own[name], first[name]))]
        text = "changed after construction, although no file is named: weights were loaded, or values set (trap 7)"
        errors = wrong(changed, text)
    else:
        errors = _unlike(own, first, theirs, pairs, loaded, weights.path)
        if is_untrained(own[name] for name in loaded):
            text = "never trained: its scales, shifts and statistics are all 0 or 1 (trap 11)"
            errors.append(f"{weights.path} holds a network that was {text}")
    if other is not None:
        errors += _unseeded(first or own, floating(other), loaded)
    frozen = floating({name: value for name, value in model.named_parameters() if not value.requires_grad})
    random = [name for name in frozen if name in own and name not in loaded and not is_constant(own[name])]
    identity, moving = odd_norms(model)
    text = "are frozen with identity statistics (mean 0, variance 1): no normalisation at all (traps 1, 2, 4, 5, 6)"
    errors += [
        *wrong(random, "are random and frozen: they will never be learnt (traps 1 to 6)"),
        *wrong(identity, text, "norm"),
        *wrong(moving, "are frozen, but their statistics follow each batch (trap 9)", "norm"),
    ]
    return Audit(
        start="random" if weights is None else "weights",
        freeze="as the module is",
        file=None if weights is None else weights.path,
        hash=None if weights is None else weights.hash,
        rows=model_rows(
            model,
            own,
            own_name=unwrapped,
            part_of=part_of(own),
            source=lambda part, names: _source(names, own, first, loaded, weights),
        ),
        errors=tuple(errors),
        notes=tuple(_notes(model, weights)),
        left_out=tuple(name for name in theirs if name not in {pairs[own_name] for own_name in loaded & pairs.keys()}),
    )


def _unlike(
    own: Mapping[str, Tensor],
    first: Mapping[str, Tensor] | None,
    theirs: Mapping[str, Tensor],
    pairs: Mapping[str, str],
    loaded: set[str],
    path: str,
) -> list[str]:
    """Tensors that have the file's names and shapes, and not its values; or a file of which nothing is there."""
    if not any(not is_constant(own[name]) for name in loaded):
        return [f"none of the {len(theirs)} tensors of {path} is in the module: nothing was loaded (trap 10)"]
    others = [name for name in pairs if name not in loaded]
    fresh = [name for name in others if first and name in first and is_same(own[name], first[name])]
    changed = [name for name in others if name not in fresh]
    return [
        *wrong(fresh, f"have their initial values, although {path} holds them (trap 10)"),
        *wrong(changed, f"differ from those of {path} (trap 10)"),
    ]


def _unseeded(first: Mapping[str, Tensor], other: Mapping[str, Tensor], loaded: set[str]) -> list[str]:
    found = [
        name
        for name, value in first.items()
        if name not in loaded and name in other and not is_constant(value) and value.dim() > 1
        if is_same(value, other[name])
    ]
    return wrong(found, "leave the constructor the same for every seed: it loads weights by itself (trap 8)")


def part_of(names: Iterable[str]) -> Callable[[str], str]:
    """Function from a tensor's name to its part: the fewest first components that tell at least two parts apart."""
    names = list(names)
    depth = next(
        (
            depth
            for depth in range(1, _MOST_DEPTH)
            if len({tuple(name.split(".")[:-1][:depth]) for name in names}) > 1
        ),
        1,
    )  # fmt: skip
    return lambda name: ".".join(name.split(".")[:-1][:depth]) or name


def _source(
    names: list[str],
    own: Mapping[str, Tensor],
    first: Mapping[str, Tensor] | None,
    loaded: set[str],
    weights: WeightFile | None,
) -> str:
    rest = [name for name in names if name not in loaded]
    if first is None:
        origin = "unknown" if weights is None else "not from the file"
    else:
        fresh = all(name in first and is_same(own[name], first[name]) for name in rest)
        origin = "as constructed" if fresh else "changed after construction"
    if weights is None or len(rest) == len(names):
        return origin
    file = f"{weights.path} (sha256 {weights.hash[:12]})"
    return file if not rest else f"{file}, {len(names) - len(rest)} of {len(names)}; the others {origin}"


def _notes(model: nn.Module, weights: WeightFile | None) -> list[str]:
    notes = [] if model.training else ["the module is in eval mode; expected its training mode, as at step 0"]
    transform, config = getattr(model, "transform", None), getattr(model, "pretrained_cfg", None)
    stated: dict[str, Any] = {}
    if hasattr(model, "pixel_mean") and hasattr(model, "pixel_std"):
        stated = {"mean": model.pixel_mean.flatten().tolist(), "std": model.pixel_std.flatten().tolist()}
    elif hasattr(transform, "image_mean"):
        stated = {"mean": list(transform.image_mean), "std": list(transform.image_std)}
    elif isinstance(config, dict) and "mean" in config:
        stated = {"mean": list(config["mean"]), "std": list(config["std"])}
    notes.append(f"input of the module: {stated or 'not stated in it'}")
    if weights is not None:
        spec = input_of(weights, layout_of(weights))
        notes.append(f"input of {weights.path}: {'not stated in it' if spec is None else input_text(spec)}")
    return notes
