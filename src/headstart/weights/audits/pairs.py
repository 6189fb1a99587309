"""Tensors of two state dicts paired by name, whatever prefix one of them has."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from headstart.weights.files import WRAPPERS, tensor_digest
from headstart.weights.load import COUNTER

_MOST_PARTS = 4  # of a prefix: "model.model.backbone.body" is a long one


def floating(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors by name, counters and wrappers' prefixes left out."""
    return {
        plain(name): value for name, value in state.items() if value.is_floating_point() and not name.endswith(COUNTER)
    }


def plain(name: str) -> str:
    """A name without the prefixes of DistributedDataParallel and torch.compile."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def pair(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """{own name: their name} of tensors of equal shape, under the one prefix of either that pairs most of them."""
    best: dict[str, str] = {}
    for prefix, is_own in [(prefix, True) for prefix in _prefixes(own)] + [(p, False) for p in _prefixes(theirs)]:
        names = ((prefix + name, name) if is_own else (name, prefix + name) for name in (theirs if is_own else own))
        found = {a: b for a, b in names if a in own and b in theirs and own[a].shape == theirs[b].shape}
        if len(found) > len(best):
            best = found
    return best


def is_same(own: Tensor, theirs: Tensor) -> bool:
    """True if two tensors are equal in the type of the first: a half-precision copy equals its original."""
    return own.shape == theirs.shape and tensor_digest(own) == tensor_digest(theirs.to(own.dtype))


def correlation(a: Tensor, b: Tensor) -> float:
    """Correlation of two tensors' elements, -1 to 1; 0 where one is constant."""
    a, b = (value.double().flatten() - value.double().mean() for value in (a, b))
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0


def _prefixes(names: Mapping[str, Tensor]) -> Iterator[str]:
    """The empty prefix, and each beginning of a name up to a dot."""
    found = {"": None}
    for name in names:
        parts = name.split(".")[:-1]
        found |= dict.fromkeys(".".join(parts[:count]) + "." for count in range(1, min(len(parts), _MOST_PARTS) + 1))
    yield from found
