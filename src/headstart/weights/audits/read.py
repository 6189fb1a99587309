"""Checkpoints of any trainer read as tensors; a pickled module is walked as data, and nothing in it is called."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from headstart.files import file_digest
from headstart.weights.files import NESTS, RefusedError, WeightFile, read_weights
from headstart.weights.formats.pickles import PickleReader, RefusedNameError
from headstart.weights.formats.torch_files import read_torch
from headstart.weights.public import locate

_MOST_DEPTH = 100  # of modules in one another; the deepest nets have about ten levels


class StandIn(dict):
    """An object of a class that is never looked up: its arguments, and its attributes or items."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(named)
        self.arguments = arguments

    def keep_state(self, state: Any) -> None:
        """The attributes that the pickle gives it."""
        if isinstance(state, dict):
            self.update(state)


class StandInReader(PickleReader):
    """A reader in which every foreign name, and every class of a module, makes a stand-in."""

    def __init__(self, most: int, names: Mapping[tuple[str, str], Any], storage: Callable[[tuple], Any]):
        super().__init__(most, names, lambda found: StandIn if found[0] in ("module", b"module") else storage(found))

    def _named(self, module: Any, name: Any) -> Any:
        try:
            return super()._named(module, name)
        except RefusedNameError:
            return StandIn


def read_any(name: str | Path) -> WeightFile:
    """Read a weight file, `package:NAME`, or a torch file with whole modules in it, as Ultralytics writes them.

    `author` of a file with modules is "pickled modules". ValueError in one line: as `read_weights`, and for one that
    holds no module.
    """
    path = locate(name)
    try:
        return replace(read_weights(path), path=str(name))
    except RefusedError as refused:
        if path.suffix == ".pkl":
            raise
        first = refused
    try:
        content = read_torch(path, StandInReader)
    except Exception:  # damaged, or calls a stand-in with what it cannot take
        raise first from None
    roots = [content, *(content[key] for key in ("ema", *NESTS) if key in content)] if isinstance(content, dict) else []
    for root in roots:
        tensors = dict(_tensors(root, "", 0)) if isinstance(root, StandIn) else {}
        if tensors:
            return WeightFile(str(name), file_digest(path), tensors, author="pickled modules")
    raise first


def _tensors(module: StandIn, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module and those in it, by the names of its state dict."""
    for kind in ("_parameters", "_buffers"):
        own = module.get(kind)
        for name, value in own.items() if isinstance(own, dict) else ():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    inner = module.get("_modules")
    if depth < _MOST_DEPTH and isinstance(inner, dict):
        for name, child in inner.items():
            if isinstance(child, StandIn):
                yield from _tensors(child, f"{prefix}{name}.", depth + 1)
