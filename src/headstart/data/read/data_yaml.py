"""YOLO's data.yaml, or a list of class names, as a mapping of names and splits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from headstart.data.images import SUFFIXES
from headstart.data.read.coco_records import show
from headstart.data.read.files import SPLITS, read_text, walk

_MOST = 2**20  # bytes of data.yaml: a name a class, and the 1,203 names of LVIS take 30 KB
_DEEPEST = 20  # levels of lists and mappings: names and splits need 2
_LONGEST_NUMBER = 40  # characters: YAML's base 60 takes time that grows with their square
_HIGHEST = 2**63  # larger numbers may all have one hash, and make a mapping slow


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml where PyYAML has it: it is faster
    """YAML without repeated keys and without numbers that take long to read."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key, str | int):
            raise _WrongYaml(f"{line}: {show(key)}: expected a name, or the number of a class")
        if key in found:
            raise _WrongYaml(f"{line}: {show(key)} is given twice: expected once")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    is_whole, found = node.tag.endswith(":int"), None
    if len(node.value) <= _LONGEST_NUMBER:
        found = loader.construct_yaml_int(node) if is_whole else loader.construct_yaml_float(node)
    if found is None or (is_whole and not -_HIGHEST <= found < _HIGHEST):
        raise _WrongYaml(f"line {node.start_mark.line + 1}: {show(node.value)}: expected a number of 64 bits")
    return found


def _plain_only(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    raise _WrongYaml(f"line {node.start_mark.line + 1}: {node.tag}: expected texts, numbers, lists and mappings only")


class _WrongYaml(yaml.YAMLError):
    """A message that is complete but for the file."""


for _tag, _construct in (("map", _mapping), ("int", _number), ("float", _number),
                         ("set", _plain_only), ("omap", _plain_only), ("pairs", _plain_only)):  # fmt: skip
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)


def _refuse_expanding(events: Iterator[yaml.Event]) -> None:
    """Refuse YAML that grows when it is read or shown: aliases, and deep nesting."""
    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            raise _WrongYaml(f"line {line}: alias {show(event.anchor)}: expected the value written out")
        if depth > _DEEPEST:
            raise _WrongYaml(f"line {line}: nested more than {_DEEPEST} levels deep: expected names and paths")


def why_not_yolo(path: Path) -> str | None:
    """The reason why a YAML file is no data.yaml; None for one."""
    try:
        config = load_config(path)
    except ValueError as error:
        return str(error).removeprefix(f"{path}: ")
    lacks = "names" if not config.get("names") else "train or val" if not yolo_splits(config) else None
    return lacks and f"field {lacks!r} is missing: expected a YOLO data.yaml"


def yolo_splits(config: dict[str, Any] | Path) -> tuple[str, ...]:
    """Splits of a data.yaml, or of Darknet's obj.data; none for a list of class names, whose images are not divided."""
    is_yaml = not isinstance(config, Path) or config.suffix.lower() in (".yaml", ".yml")
    config = load_config(config) if isinstance(config, Path) else config
    found = tuple(dict.fromkeys(SPLITS[name] for name in SPLITS if config.get(name)))
    return found if is_yaml or len(found) > 1 else ()


def load_config(path: Path) -> dict[str, Any]:
    """Fields of a data.yaml, or of a list of class names; ValueError naming file and line for what is wrong."""
    if path.suffix.lower() in (".txt", ".names"):
        names = [line.strip() for line in read_text(path, "a class name a line", most=_MOST).splitlines()]
        if len(lists := _darknet_lists(path.parent / "obj.data")) > 1:
            return {"names": [name for name in names if name], **lists}
        inside = path.parent.name != "labels" or any(file.suffix.lower() in SUFFIXES for file in walk(path.parent))
        return {"names": [name for name in names if name], "train": "." if inside else ".."}
    try:
        text = read_text(path, "a YOLO data.yaml", most=_MOST)
        _refuse_expanding(yaml.parse(text, Loader=_Loader))
        config = yaml.load(text, Loader=_Loader)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): expected a YOLO data.yaml") from None
    except _WrongYaml as error:
        raise ValueError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path}: {line}not valid YAML ({reason})") from None
    except (ValueError, LookupError, AttributeError) as error:  # no text; or a value that does not fit its YAML tag
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {reason}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: {show(config)}: expected fields names, train, val")
    # CVAT writes the names of its subsets: Train, Validation
    capitals = {name.lower(): value for name, value in config.items() if str(name).lower() in SPLITS}
    return capitals | config


def _darknet_lists(path: Path) -> dict[str, str]:
    """Lists of pictures by split that Darknet's obj.data names, as CVAT's YOLO 1.1 writes it; none without the file."""
    if not path.is_file():
        return {}
    pairs = (line.partition("=") for line in read_text(path, "lines such as train = data/train.txt").splitlines())
    lists = {name.strip().lower(): value.strip().removeprefix("data/") for name, _, value in pairs}
    return {name: value for name, value in lists.items() if name in SPLITS and (path.parent / value).is_file()}


def class_names(path: Path, config: dict[str, Any]) -> dict[int, str]:
    """Names of classes by their numbers."""
    names = config.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(c) is int and c >= 0 for c in names):
        raise ValueError(f"{path}: names = {show(names)}: expected a list of class names, or numbers with names")
    for number, name in names.items():
        if not isinstance(name, str):  # YAML reads an unquoted no, on or 1 as something else than text
            raise ValueError(f"{path}: names: {number} = {show(name)}: expected text (put it in quotes)")
    if config.get("nc", len(names)) != len(names):
        raise ValueError(f"{path}: nc = {show(config['nc'])}: expected {len(names)}, the number of names")
    return names


def keypoint_numbers(path: Path, config: dict[str, Any]) -> int:
    """Numbers of keypoints that follow the box in each row, by Ultralytics' field kpt_shape; 0 without it."""
    shape = config.get("kpt_shape")
    if shape is None:
        return 0
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(type(n) is int and n >= 0 for n in shape)
        and shape[1] in (2, 3)
    ):
        raise ValueError(
            f"{path}: kpt_shape = {show(shape)}: expected the number of keypoints, and 2 or 3 numbers each"
        )
    return shape[0] * shape[1]
