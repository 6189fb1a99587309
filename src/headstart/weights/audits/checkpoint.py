"""Audit of a checkpoint of any trainer: its parts, and what of it comes from the weights that it should start from."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from headstart.weights.audits.module import part_of
from headstart.weights.audits.read import read_any
from headstart.weights.audits.record import Audit, AuditRow
from headstart.weights.audits.traps import TRAINERS
from headstart.weights.audits.values import correlation, floating, is_constant, is_same, is_untrained, pair, wrong
from headstart.weights.input import input_text
from headstart.weights.names import input_of, layout_of

# Weights of n elements that have nothing in common correlate by about 1 / sqrt(n): five times that, and at least 0.1,
# as trained kernels of equal shape share some structure.
_DEVIATIONS, _LEAST = 5.0, 0.1
_FEWEST = 100  # elements of a tensor from which on its correlation means something
_MEAN, _VARIANCE = re.compile(r".*running_mean"), re.compile(r".*running_var")


def audit_checkpoint(file: str | Path, trainer: str, start: str | Path | None = None) -> Audit:
    """Audit a checkpoint: parts, norms, input; and against `start`, the weights that its training began with.

    A tensor equal to that of `start` did not train; one that correlates with it was tuned from it; any other was not
    loaded. ValueError for a file that cannot be read. Nothing in the files is executed.
    """
    weights, first = read_any(file), None if start is None else read_any(start)
    own, theirs = floating(weights.tensors), {} if first is None else floating(first.tensors)
    sources = {name: _source(own[name], theirs[theirs_name]) for name, theirs_name in pair(own, theirs).items()}
    errors = list(_identity(own))
    if is_untrained(own.values()):
        errors.append(
            f"{weights.path} holds a network that was never trained: its scales, shifts and statistics are all 0 or 1 "
            "(trap 11)"
        )
    if first is not None:
        errors += _strangers(sources, weights.path, first.path)
    spec = input_of(weights, layout_of(weights))
    stated = input_text(spec) if spec else f"not stated in the file; of {trainer}: {TRAINERS[trainer].input}"
    notes = [f"input: {stated}"]
    notes += [] if first else ["the weights that the training began with, as --from FILE, tell the source of each part"]
    if weights.author == "pickled objects":
        notes.append("the file holds pickled objects, read as data: nothing of them was executed")
    return Audit(
        start="unknown" if first is None else "weights",
        freeze="unknown",
        file=weights.path,
        hash=weights.hash,
        rows=tuple(_rows(own, sources, None if first is None else first.path)),
        errors=tuple(errors),
        notes=tuple(notes),
        left_out=weights.left_out,
    )


def _source(own: Tensor, theirs: Tensor) -> str:
    """ "equal", "tuned", "other", or "" where the values tell nothing."""
    if is_same(own, theirs):
        return "equal"
    if own.dim() < 2 or own.numel() < _FEWEST or is_constant(own) or is_constant(theirs):
        return ""
    least = max(_LEAST, _DEVIATIONS / own.numel() ** 0.5)
    return "tuned" if correlation(own, theirs) > least else "other"


def _strangers(sources: Mapping[str, str], path: str, start: str) -> list[str]:
    told = [name for name, source in sources.items() if source]
    others = [name for name in told if sources[name] == "other"]
    if not told:
        return [f"no tensor of {path} has the name and shape of one of {start}: nothing was loaded from it (trap 11)"]
    return wrong(others, f"of {path} have nothing in common with {start}: they were not loaded (trap 10)")


def _identity(own: Mapping[str, Tensor]) -> list[str]:
    """Norms whose statistics never moved, beside others or alone."""
    found = [
        name.removesuffix(".running_mean")
        for name, value in own.items()
        if _MEAN.fullmatch(name) and not value.any()
        if bool((own.get(name.replace("running_mean", "running_var"), value) == 1).all())
    ]
    text = "have identity statistics (mean 0, variance 1): frozen, they are no normalisation (traps 1, 2, 4, 5, 6)"
    return wrong(found, text, "norm")


def _rows(own: Mapping[str, Tensor], sources: Mapping[str, str], start: str | None) -> list[AuditRow]:
    part, groups = part_of(own), {}
    for name in own:
        groups.setdefault(part(name), []).append(name)
    return [
        AuditRow(
            group=group,
            source=_text([sources.get(name) for name in names], start),
            num_tensors=len(names),
            num_params=sum(own[name].numel() for name in names),
            training="unknown" if start is None else _trained([sources.get(name) for name in names]),
            norm="batch statistics" if any(_VARIANCE.fullmatch(name) for name in names) else "without statistics",
        )
        for group, names in groups.items()
    ]


def _text(sources: list[str | None], start: str | None) -> str:
    """The source of a part's tensors, by what their values tell."""
    if start is None:
        return "unknown"
    words = {"equal": f"equal to {start}", "tuned": f"tuned from {start}", "other": f"not from {start}"}
    counts = {word: sources.count(source) for source, word in words.items() if source in sources}
    counts |= {"too small to tell": sources.count("")} if "" in sources else {}
    counts |= {f"not in {start}": sources.count(None)} if None in sources else {}
    return "; ".join(word if len(counts) == 1 else f"{count} {word}" for word, count in counts.items())


def _trained(sources: list[str | None]) -> str:
    num = sources.count("equal")
    return "trained" if not num else "unchanged" if num == len(sources) else f"{num} of {len(sources)} unchanged"
