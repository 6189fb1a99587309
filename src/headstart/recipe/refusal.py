"""Values checked by a pydantic model: what is wrong in one line, with the nearest valid name."""

import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

# Names that other trainers have for fields: in words what they mean, and the fields; the first that the model has is
# named.
_RATE = ("the learning rate is", ("train.rate",))
_LENGTH = ("the length of training is", ("train.base",))
_BATCH = ("the images of a step are", ("train.batch",))
_SIZE = ("the size of images is", ("input.short", "input.size"))
_WORKERS = ("the threads that load images are", ("data.num_workers",))
_CLASSES = ("the classes are those of", ("data.train",))
OTHER_NAMES = {
    **dict.fromkeys(("lr", "lr0", "learning_rate", "base_lr"), _RATE),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "max_iter", "max_steps", "iterations"), _LENGTH),
    **dict.fromkeys(("batch", "batch_size", "bs"), _BATCH),
    **dict.fromkeys(("imgsz", "img_size", "image_size", "resolution"), _SIZE),
    **dict.fromkeys(("workers", "num_workers"), _WORKERS),
    **dict.fromkeys(("nc", "classes", "num_classes", "names"), _CLASSES),
    "gpus": ("the number of processes, one a GPU, is", ("processes",)),
    "amp": ("the precision is", ("train.precision",)),
    **dict.fromkeys(("pretrained", "weights"), ("the weights to start from are", ("start.weights",))),
    "wd": ("the weight decay is", ("train.weight_decay",)),
}
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60


class NotValid(ValueError):
    """A value that a field cannot have, in words that follow the field and the value."""


def validate(
    model: type[BaseModel], values: dict[str, Any], source: str, origins: Mapping[str, str] | None = None
) -> Any:
    """A pydantic model of plain values.

    ValueError for the first problem, in one line: source, the patch that gave the value where `origins` has one, field,
    value and the nearest valid name.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first, path = _problem(error, values)
        layer = (origins or {}).get(path)
        if layer is not None and not layer.endswith(".yaml"):
            source = f"{source} ({layer})"
        shown = path if path.isprintable() and len(path) <= 200 else _SHOWN.repr(path)
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{source}: {shown}: {_unknown(model, path)}") from None
        if first["type"] == "missing":
            raise ValueError(f"{source}: {shown}: missing") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error" and not isinstance(first["ctx"]["error"], NotValid):
            raise ValueError(f"{source}: {message}") from None
        given = first["input"]
        if first["type"].startswith("union_tag") and isinstance(given, dict):
            shown, given = f"{shown}.kind", given.get("kind")
        value = _SHOWN.repr(given)
        if first["type"] == "model_type":
            fields = ", ".join(type_fields(model, f"{path}.")[:3])
            raise ValueError(
                f"{source}: {shown}: {value} is not valid: expected its fields, such as {fields}"
            ) from None
        raise ValueError(f"{source}: {shown}: {value} is not valid: {message[0].lower()}{message[1:]}") from None


def _problem(error: ValidationError, values: dict[str, Any]) -> tuple[Any, str]:
    """The first problem and the dotted path of its value; of a choice of types, the problem that lies deepest."""
    found = error.errors(include_url=False)
    first = _path_of(found[0]["loc"], values, found[0]["type"])
    paths = [(each, _path_of(each["loc"], values, each["type"])) for each in found]
    return max((pair for pair in paths if f"{pair[1]}.".startswith(f"{first}.")), key=lambda pair: pair[1].count("."))


def _path_of(location: tuple[str | int, ...], values: Any, kind: str) -> str:
    """The dotted path of a pydantic error: its location without the tags of unions, which are no keys of the values."""
    path: list[str] = []
    for place, key in enumerate(location, start=1):
        is_there = (
            key in values
            if isinstance(values, dict)
            else isinstance(values, list | tuple) and key in range(len(values))
        )
        if is_there:
            values = values[key]
        elif place < len(location) or kind not in ("missing", "extra_forbidden"):
            continue
        path.append(str(key))
    return ".".join(path)


def field_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted field names of a model, sections included."""
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                names += field_names(option, f"{prefix}{name}.")
    return names


def _unknown(model: type[BaseModel], path: str) -> str:
    """The end of a refusal of an unknown field: the field that is meant, else the nearest name."""
    names, leaf = field_names(model), path.rpartition(".")[2]
    meaning, fields = OTHER_NAMES.get(leaf, ("", ()))
    if meant := [name for name in fields if name in names]:
        return f"no such field; {meaning} {meant[0]}"
    near = get_close_matches(path[:200], names, n=1, cutoff=0.6)
    if not near:  # the right leaf in the wrong section is the second most common slip
        near = [name for name in names if name.rpartition(".")[2] == leaf][:1]
    known = f"known here: {', '.join(sorted(type_fields(model, path)))}"
    return f"unknown field; {f'the nearest name is {near[0]!r}' if near else known}"


def type_fields(model: type[BaseModel], path: str) -> list[str]:
    """The names of the section that `path` belongs to."""
    parent = path.rpartition(".")[0]
    return [name for name in field_names(model) if name.rpartition(".")[0] == parent]
