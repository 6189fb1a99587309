"""Values, names and layers as the audits judge them: tensors paired by name, constants, untrained files, odd norms."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor, nn

from headstart.model.norm import FrozenBatchNorm, GroupNorm, SyncBatchNorm
from headstart.weights.audits.record import AuditRow
from headstart.weights.files import COUNTER, tensor_digest, unwrapped

_MOST_PARTS = 4  # of a prefix: "model.model.backbone.body" is a long one


def floating(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors by name, counters and wrappers' prefixes left out."""
    return {
        unwrapped(name): value
        for name, value in state.items()
        if value.is_floating_point() and not name.endswith(COUNTER)
    }


def pair(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """{own name: their name} of tensors of equal shape, under the one prefix of either that pairs most of them."""
    best: dict[str, str] = {}
    for prefix, is_own in [(prefix, True) for prefix in _prefixes(own)] + [(p, False) for p in _prefixes(theirs)]:
        names = ((prefix + name, name) if is_own else (name, prefix + name) for name in (theirs if is_own else own))
        found = {a: b for a, b in names if a in own and b in theirs and own[a].shape == theirs[b].shape}
        if len(found) > len(best):
            best = found
    return best


def _prefixes(names: Mapping[str, Tensor]) -> Iterator[str]:
    """The empty prefix, and each beginning of a name up to a dot."""
    found = {"": None}
    for name in names:
        parts = name.split(".")[:-1]
        found |= dict.fromkeys(".".join(parts[:count]) + "." for count in range(1, min(len(parts), _MOST_PARTS) + 1))
    yield from found


def is_same(own: Tensor, theirs: Tensor) -> bool:
    """True if two tensors are equal in the type of the first: a half-precision copy equals its original."""
    return own.shape == theirs.shape and tensor_digest(own) == tensor_digest(theirs.to(own.dtype))


def correlation(a: Tensor, b: Tensor) -> float:
    """Correlation of two tensors' elements, -1 to 1; 0 where one is constant."""
    a, b = (value.double().flatten() - value.double().mean() for value in (a, b))
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0


def is_untrained(tensors: Iterable[Tensor]) -> bool:
    """True if all vectors among the tensors are zeros or ones, and there is one: training moves all of them."""
    vectors = [value for value in tensors if value.dim() == 1 and value.numel()]
    return bool(vectors) and all(is_constant(value) and float(value[0]) in (0.0, 1.0) for value in vectors)


def is_constant(value: Tensor) -> bool:
    """True if all elements are equal, as initialisers leave scales and shifts: such values tell no origin."""
    return not value.numel() or bool((value == value.flatten()[0]).all())


def wrong(names: Iterable[str], text: str, noun: str = "tensor") -> list[str]:
    """An error about tensors, "4 tensors (a, b, c, …) TEXT"; none without names."""
    names = list(names)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({shown}) {text}"] if names else []


def odd_norms(model: nn.Module, prefix: str = "") -> tuple[list[str], list[str]]:
    """Norms that use identity statistics (mean 0, variance 1), and frozen ones whose statistics follow the batches."""
    norms = {prefix + name: module for name, module in model.named_modules() if _has_statistics(module)}
    identity, moving = [], []
    for name, norm in norms.items():
        own = list(norm.parameters(recurse=False))
        if _is_fixed(norm):
            if bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all()):
                identity.append(name)
        elif own and not any(parameter.requires_grad for parameter in own):
            moving.append(name)
    return identity, moving


def model_rows(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    own_name: Callable[[str], str],
    part_of: Callable[[str], str],
    source: Callable[[str, list[str]], str],
) -> tuple[AuditRow, ...]:
    """One row a part of a model, in the order of its `tensors`: their source, what trains, and the kinds of norms.

    own_name: the name among the tensors of the model's own; part_of: of a tensor's name; source: of (part, names).
    """
    names: dict[str, list[str]] = {}
    trains: dict[str, list[bool]] = {}
    norms: dict[str, list[str]] = {}
    for name in tensors:
        names.setdefault(part_of(name), []).append(name)
    for name, value in model.named_parameters():
        trains.setdefault(part_of(own_name(name)), []).append(value.requires_grad)
    for name, module in model.named_modules():
        if kind := _norm_kind(module):
            norms.setdefault(part_of(own_name(f"{name}.weight")), []).append(kind)
    return tuple(
        AuditRow(
            group=part,
            source=source(part, own),
            num_tensors=len(own),
            num_params=sum(tensors[name].numel() for name in own),
            training=_training_text(trains.get(part, [])),
            norm=", ".join(dict.fromkeys(norms.get(part, ["none"]))),
        )
        for part, own in names.items()
    )


def _norm_kind(module: nn.Module) -> str:
    """Kind and mode of a normalisation layer; "" for any other module."""
    package = type(module).__module__.partition(".")[0]
    if isinstance(module, nn.GroupNorm):
        own = isinstance(module, GroupNorm)
        return f"group ({module.num_groups})" if own else f"group ({module.num_groups}, {package})"
    if isinstance(module, nn.LayerNorm):
        return "layer"
    if not _has_statistics(module):
        return ""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "frozen_batch" if isinstance(module, FrozenBatchNorm) else f"frozen_batch ({package})"
    kind = "sync_batch" if isinstance(module, SyncBatchNorm | nn.SyncBatchNorm) else "batch"
    return f"{kind}, {'fixed statistics' if _is_fixed(module) else 'live'}"


def _has_statistics(module: nn.Module) -> bool:
    """True if a module is a norm with stored statistics: a BatchNorm of any kind and project."""
    return {"running_mean", "running_var"} <= {name for name, value in module.named_buffers(recurse=False)}


def _is_fixed(module: nn.Module) -> bool:
    """True if a norm with statistics uses the stored ones: every frozen kind, and BatchNorm in eval mode."""
    return not isinstance(module, nn.modules.batchnorm._BatchNorm) or not module.training


def _training_text(flags: list[bool]) -> str:
    """The share of a part's parameters that train, in words."""
    if not any(flags):
        return "frozen"
    return "trains" if all(flags) else f"{flags.count(False)} of {len(flags)} frozen"
