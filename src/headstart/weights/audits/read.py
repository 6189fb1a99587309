"""Checkpoints of any trainer read as tensors; a pickled module is walked as data, and nothing in it is called."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from headstart.files import file_digest
from headstart.weights.files import NESTS, RefusedError, WeightFile, read_weights
from headstart.weights.pickles import PickleReader, RefusedNameError
from headstart.weights.public import locate
from headstart.weights.torch_files import read_torch

# Of modules in one another, and in all: the deepest nets have about ten levels, and the largest some thousands.
_MOST_DEPTH, _MOST_MODULES = 100, 100_000


class StandIn(dict):
    """An object of a class that is never looked up: its arguments, and its attributes or items."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(named)
        self.arguments = arguments

    def keep_state(self, state: Any) -> None:
        """Keep the attributes that the pickle gives the object."""
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
    """Read a weight file, `package:NAME`, or a torch file with objects in it, such as the whole modules of Ultralytics.

    `author` of a file with such objects is "pickled objects". ValueError in one line: as `read_weights`, and for one
    that holds no tensors.
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
    nests = [content[key] for key in ("ema", *NESTS) if key in content] if isinstance(content, dict) else []
    for root in (*nests, content):
        tensors = _tensors(str(name), root) if isinstance(root, StandIn) else {}
        if not tensors and isinstance(root, dict):  # tensors beside objects of the trainer's own
            tensors = {str(key): value for key, value in root.items() if isinstance(value, Tensor)}
        if tensors:
            return WeightFile(str(name), file_digest(path), tensors, author="pickled objects")
    raise first


def _tensors(path: str, root: StandIn) -> dict[str, Tensor]:
    """Parameters and buffers of a module and those in it, by the names of its state dict."""
    found: dict[str, Tensor] = {}
    waiting, num = [("", root, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        num += 1
        if num > _MOST_MODULES:
            raise ValueError(f"{path}: holds more than {_MOST_MODULES:,} modules")
        own = [values for kind in ("_parameters", "_buffers") if isinstance(values := module.get(kind), dict)]
        found |= {
            f"{prefix}{name}": value for values in own for name, value in values.items() if isinstance(value, Tensor)
        }
        inner = module.get("_modules")
        if depth < _MOST_DEPTH and isinstance(inner, dict):
            children = [(f"{prefix}{name}.", child, depth + 1) for name, child in inner.items()]
            waiting += [entry for entry in reversed(children) if isinstance(entry[1], StandIn)]
    return found
