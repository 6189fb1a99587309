"""The recipe reference, made from models and base recipes: `python -m headstart.recipe.reference`."""

import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headstart.recipe.dotted import flatten
from headstart.recipe.load import KINDS, shipped
from headstart.recipe.yaml_text import read_yaml

_LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#\s?(?P<comment>.*))?$")


def reference() -> str:
    """docs/recipes.md: every field of all kinds of recipe, its type, base value and meaning."""
    parts = [
        "# Recipe reference",
        "",
        "Made by `make docs` from the models in `src/headstart/recipe/` and the comments in "
        "`src/headstart/recipes/`; a test keeps it in step. A recipe file is a patch on the base recipe of its task, "
        "and `key.path=value` on the command line is a patch on the recipe. "
        "Durations carry a unit: `500 steps`, `12 epochs`, `90k images`.",
        "",
    ]
    for task, (model, name) in KINDS.items():
        parts += [
            f"## {task.capitalize()} (`{name}.yaml`)",
            "",
            "| field | type | base value | meaning |",
            "|---|---|---|---|",
        ]
        comments = comments_of(shipped()[name].read_text(encoding="utf-8"))
        for field, value in flatten(read_yaml(shipped()[name])).items():
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            text = comments.get(field, "").replace("|", "\\|")
            parts.append(f"| `{field}` | {type_of(model, field)} | `{shown}` | {text} |")
        parts.append("")
    parts += ["## Shipped recipes", "", "| name | what |", "|---|---|"]
    parts += [f"| `{name}` | {first_line(path.read_text(encoding='utf-8'))} |" for name, path in shipped().items()]
    return "\n".join(parts) + "\n"


def first_line(text: str) -> str:
    """The first sentence of a shipped file's header."""
    header = " ".join(
        line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("# ")
    )
    return header.split(". ")[0].rstrip(".:").replace("|", "\\|")


def comments_of(text: str) -> dict[str, str]:
    """{dotted field: comment} of a YAML file with one field a line."""
    comments: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        indent = len(found["indent"])
        path = [(depth, key) for depth, key in path if depth < indent] + [(indent, found["key"])]
        if found["comment"]:
            comments[".".join(key for _, key in path)] = found["comment"].strip()
    return comments


def type_of(model: type[BaseModel], path: str) -> str:
    """The type and range of a dotted field in words."""
    name, _, rest = path.partition(".")
    field = model.model_fields[name]
    annotation: Any = field.annotation
    if not rest:
        return _words(annotation, field.metadata)
    options = [
        option
        for option in (annotation, *typing.get_args(annotation))
        if isinstance(option, type) and issubclass(option, BaseModel)
    ]
    return next(type_of(option, rest) for option in options if rest.split(".")[0] in option.model_fields)


def _words(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        given = (each.metadata if isinstance(each, FieldInfo) else [each] for each in arguments[1:])
        return _words(arguments[0], [bound for own in given for bound in own])
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is tuple:
        return "list of " + " and ".join(
            dict.fromkeys(_words(argument) for argument in arguments if argument is not Ellipsis)
        )
    kind = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "NoneType": "null"}
    return kind[annotation.__name__] + (_range(bounds) if annotation in (int, float) else "")


def _range(bounds: Sequence[Any]) -> str:
    """Bounds in words, such as " from 1 to 128" and " above 0, at most 1"."""
    found = {
        name: getattr(bound, name)
        for name in ("ge", "gt", "le", "lt", "multiple_of")
        for bound in bounds
        if getattr(bound, name, None) is not None
    }
    words = {"ge": " from {:,}", "gt": " above {:,}", "le": ", at most {:,}", "lt": ", below {:,}"}
    if "ge" in found:
        words["le"] = " to {:,}"
    return "".join((words | {"multiple_of": " in steps of {}"})[name].format(value) for name, value in found.items())


if __name__ == "__main__":
    print(reference(), end="")
