"""Rules of the audit about values: loaded tensors against the file's and the initial ones, and untrained files."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from headstart.weights.mismatch import LoadReport


def unlike_file(report: LoadReport, now: Mapping[str, str], initial: Mapping[str, str]) -> list[str]:
    """Errors about tensors that count as loaded and do not have the file's values.

    now, initial: digests of the model's tensors by name, as it is and right after construction.
    """
    others = [name for name, digest in report.digests.items() if now[name] != digest]
    fresh = [name for name in others if now[name] == initial.get(name)]
    changed = [name for name in others if name not in fresh]
    errors = []
    if fresh:
        errors.append(
            f"{listed(fresh)} count as loaded from {report.path}, but still have their initial values; "
            "let nothing initialise the model after loading"
        )
    if changed:
        errors.append(
            f"{listed(changed)} count as loaded from {report.path}, but differ from it; "
            "let nothing change them between loading and step 0"
        )
    return errors


def untrained_file(report: LoadReport, own: Mapping[str, Tensor], now: Mapping[str, str]) -> list[str]:
    """The error about a file whose network was never trained; own, now: the model's tensors and their digests."""
    if not is_untrained(own[name] for name, digest in report.digests.items() if now[name] == digest):
        return []
    return [
        f"{report.path} holds a network that was never trained: its scales, shifts and statistics are all 0 or 1; "
        "start from trained weights, or set start.kind to random"
    ]


def is_untrained(tensors: Iterable[Tensor]) -> bool:
    """True if all vectors among the tensors are zeros or ones, and there is one: training moves all of them."""
    vectors = [value for value in tensors if value.dim() == 1 and value.numel()]
    return bool(vectors) and all(is_constant(value) and float(value[0]) in (0.0, 1.0) for value in vectors)


def is_constant(value: Tensor) -> bool:
    """True if all elements are equal, as initialisers leave scales and shifts: such values tell no origin."""
    return not value.numel() or bool((value == value.flatten()[0]).all())


def listed(names: Iterable[str], noun: str = "tensor", num: int = 3) -> str:
    """ "4 tensors (a, b, c, …)"."""
    names = list(names)
    shown = ", ".join(names[:num]) + (", …" if len(names) > num else "")
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({shown})"
