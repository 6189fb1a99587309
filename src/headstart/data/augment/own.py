"""User-defined transform of training images: a pure function MODULE:FUNCTION of pixels and a random generator."""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.digests import Content, file_content

FIELD = "input.transform"


def source_of(name: str) -> Path:
    """The source file of MODULE:FUNCTION, in the current folder or where Python finds modules; nothing is imported.

    ValueError for a module that is not there or has no source.
    """
    places: Any = [os.getcwd(), *sys.path]
    spec = None
    for part in name.partition(":")[0].split("."):
        spec = None if places is None else PathFinder.find_spec(part, places)
        if spec is None:
            raise ValueError(
                f"{FIELD}: {name!r}: there is no module {name.partition(':')[0]!r}, expected one in the current folder "
                "or installed"
            )
        places = spec.submodule_search_locations
    if spec is None or not str(spec.origin).endswith(".py"):
        raise ValueError(f"{FIELD}: {name!r}: its module has no source file, expected one that ends in .py")
    return Path(str(spec.origin))


def source_content(name: str) -> Content:
    """Content of the source of MODULE:FUNCTION: a part of what the training images are."""
    path = source_of(name)
    found = file_content(path.parent, [path.name], [])
    return Content(found.digest, {}, found.files)


@dataclass(frozen=True)
class Transform:
    """function(image, generator) -> image, called with a copy of [h,w,C] pixels in 0..255, by several threads at once.

    name: MODULE:FUNCTION, for messages. The image that it returns has the same shape and dtype.
    """

    name: str
    function: Callable[[np.ndarray, np.random.Generator], Any]

    def __call__(self, image: np.ndarray, generator: np.random.Generator, path: Path) -> np.ndarray:
        """The changed image; ValueError naming function and `path` for an error in it, or another shape or dtype."""
        try:
            found = self.function(image.copy(), generator)
        except Exception as error:  # foreign code raises anything
            reason = " ".join(str(error).split())
            raise ValueError(f"{FIELD}: {self.name} on {path}: {type(error).__name__}: {reason}") from error
        if not isinstance(found, np.ndarray) or found.shape != image.shape or found.dtype != image.dtype:
            what = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
            raise ValueError(
                f"{FIELD}: {self.name} on {path}: returned {what}, expected an array {image.dtype} {list(image.shape)}"
            )
        return np.ascontiguousarray(found)


def load_transform(name: str) -> Transform:
    """Import MODULE:FUNCTION, which runs the module's code; ValueError naming MODULE:FUNCTION if that fails."""
    path, (module_name, _, function_name) = source_of(name), name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it, for the module and for those beside it
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # foreign code raises anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{FIELD}: {name!r}: {path} cannot be imported: {type(error).__name__}: {reason}") from error
    if not module.__file__ or not path.samefile(module.__file__):
        raise ValueError(f"{FIELD}: {name!r}: {module_name} is {module.__file__}, expected {path}: choose another name")
    function = getattr(module, function_name, None)
    if not callable(function):
        near = get_close_matches(function_name, [each for each in vars(module) if callable(getattr(module, each))], 1)
        hint = f"; the nearest name is {near[0]!r}" if near else ""
        raise ValueError(f"{FIELD}: {name!r}: {path} has no function {function_name!r}{hint}")
    return Transform(name, function)
