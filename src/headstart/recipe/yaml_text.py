"""YAML of recipes, studies and overrides as plain values: bounded in size, without tags, every key once."""

import os
import re
import reprlib
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**20  # of a file: the names of 20,000 classes take half of it
MOST_VALUES = 100_000  # with every alias written out
MOST_LEVELS = 50  # recipes have four
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which no file can hold


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml where PyYAML has it: it is faster
    """YAML with the numbers of its version 1.2: 1e-4 is one, while 1:30, 010 and dates are text."""


_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in known if entry[0].rpartition(":")[2] not in ("int", "float", "timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FIRST = list("-+0123456789.")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]{0,30})$"), _FIRST)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    _FIRST,
)


class _Refused(yaml.YAMLError):
    """YAML that is valid and yet refused, with a message that is complete."""


def _refused(mark: yaml.Mark, message: str) -> _Refused:
    return _Refused(f"line {mark.line + 1}: {message}")


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """The mapping of a node; refuses a repeated key, of which YAML would keep the last.

    Its own keys replace those that "<<" merges.
    """
    own = {id(key_node) for key_node, _ in node.value}
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    given: set[Any] = set()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        # Larger numbers can be made to share one hash, so that a mapping takes minutes.
        if not isinstance(key, Hashable) or isinstance(key, float) or (isinstance(key, int) and abs(key) >= 2**60):
            raise _refused(key_node.start_mark, f"{reprlib.repr(key)} cannot be a key")
        if key in given:
            raise _refused(key_node.start_mark, f"{reprlib.repr(key)} is given twice")
        if id(key_node) in own:
            given.add(key)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: Path | str, text: str | None = None) -> dict[str, Any]:
    """A YAML mapping; ValueError names the file and the line of what is wrong.

    Only regular files are opened, and at most MOST_BYTES of one read.
    """
    content = parse_yaml(_text_of(path) if text is None else text, str(path))
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content or {}


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; ValueError, naming the source, for text that is not YAML or too large."""
    try:
        _check(text)
        return yaml.load(text, Loader=_Loader)
    except _Refused as error:
        raise ValueError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(
            f"{source}: not valid YAML" + (f" at line {mark.line + 1}: {error.problem}" if mark else "")
        ) from None
    except ValueError:  # of a character or a number that Python cannot hold
        raise ValueError(f"{source}: not valid YAML: a character or number that cannot be read") from None


def parse_override(text: str) -> tuple[str, Any]:
    """`key.path=value` with the value read as YAML."""
    key, separator, value = text.partition("=")
    shown = repr(text if len(text) <= 100 else f"{text[:100]}…")
    if not separator or not key.strip():
        raise ValueError(f"override {shown}: expected key.path=value")
    return key.strip(), parse_yaml(value, f"override {shown}")


def _check(text: str) -> None:
    """Refuse tags, lone surrogates, and too many or too deep values, before any of them is made."""
    sizes: dict[str, tuple[int, int]] = {}  # of anchors: values, levels
    inside = [(None, 0, 0)]  # what is open around the place: anchor, values and levels within so far
    for event in yaml.parse(text, Loader=_Loader):
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {reprlib.repr(event.tag)}, expected plain values", problem_mark=event.start_mark
            )
        if isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, 1, 1))
            levels = 0
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values, levels = inside.pop()
            inside[-1] = _with(inside[-1], values, levels)
            if anchor is not None:
                sizes[anchor] = values, levels
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _refused(event.start_mark, f"*{event.anchor} stands for nothing that ends before it")
            values, levels = sizes[event.anchor]
            inside[-1] = _with(inside[-1], values, levels)
        elif isinstance(event, yaml.ScalarEvent):
            if _SURROGATE.search(event.value):
                raise _refused(event.start_mark, "half of a surrogate pair, expected whole characters")
            levels = 0
            inside[-1] = _with(inside[-1], 1, 0)
            if event.anchor is not None:
                sizes[event.anchor] = 1, 0
        else:
            continue
        if inside[-1][1] > MOST_VALUES:
            raise _refused(event.start_mark, f"more than {MOST_VALUES:,} values, aliases written out")
        if len(inside) + levels > MOST_LEVELS:
            raise _refused(event.start_mark, f"nested more than {MOST_LEVELS} levels deep")


def _with(around: tuple[str | None, int, int], values: int, levels: int) -> tuple[str | None, int, int]:
    """An open collection (anchor, values, levels) with a value added that has `values` and `levels` of its own."""
    return around[0], around[1] + values, max(around[2], levels + 1)


def _text_of(path: Path | str) -> str:
    try:
        is_regular = stat.S_ISREG(os.stat(path).st_mode)
        content = b""
        if is_regular:
            with open(path, "rb") as file:
                content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if not is_regular:
        raise ValueError(f"{path}: is a folder or a device, expected a YAML file")
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path}: has more than {MOST_BYTES:,} bytes, expected a YAML file of at most these")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a text file, expected YAML") from None
