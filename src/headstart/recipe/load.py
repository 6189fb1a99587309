"""Recipes resolved from files, arms and overrides, with the origin of each value.

A recipe file is a patch on the base recipe of its task, an arm of a study a patch on a recipe, and `key.path=value` on
the command line the last patch. Unknown keys are errors that name the nearest field.
"""

import re
from collections.abc import Hashable
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from headstart.hardware import Choice, choices, choose_device, choose_precision
from headstart.recipe.dotted import flatten, unflatten
from headstart.recipe.recipe import AnyRecipe, ClassifyRecipe, Recipe, SegmentRecipe

# The model and the base recipe of each task.
KINDS: dict[str, tuple[type[AnyRecipe], str]] = {
    "detection": (Recipe, "base"),
    "classification": (ClassifyRecipe, "base_classify"),
    "segmentation": (SegmentRecipe, "base_segment"),
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml where PyYAML has it: it is faster
    """YAML in which 1e-4 is a number: YAML 1.1 reads it as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _WrongKey(yaml.YAMLError):
    """A key that repeats another of its mapping, or that is no plain value."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """The mapping of a node; refuses a repeated key, of which YAML would keep the last."""
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise _WrongKey(f"line {key_node.start_mark.line + 1}: {key!r} cannot be a key")
        if key in seen:
            raise _WrongKey(f"line {key_node.start_mark.line + 1}: {key!r} is given twice")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: Path | str, text: str | None = None) -> dict[str, Any]:
    """A YAML mapping; ValueError names the file and the line of a syntax error."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8") if text is None else text, Loader=_Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a text file, expected YAML") from None
    except _WrongKey as error:
        raise ValueError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(
            f"{path}: not valid YAML" + (f" at line {mark.line + 1}: {error.problem}" if mark else "")
        ) from None
    if not isinstance(content or {}, dict):
        raise ValueError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content or {}


def shipped(folder: str = "recipes") -> dict[str, Path]:
    """{name: file} of all YAML files shipped in a folder of the package."""
    root = Path(str(files("headstart"))) / folder
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find(name: str, folder: str = "recipes") -> Path:
    """The file of a shipped name, or the path itself; ValueError with the nearest shipped name."""
    known = shipped(folder)
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    near = get_close_matches(name, known, n=1)
    hint = f"; the nearest shipped name is {near[0]!r}" if near else f"; shipped: {', '.join(known)}"
    raise ValueError(f"{folder[:-1] if folder != 'studies' else 'study'} {name!r}: no such file or shipped name{hint}")


def parse_override(text: str) -> tuple[str, Any]:
    """`key.path=value` with the value read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"override {text!r}: expected key.path=value")
    return key.strip(), yaml.load(value, Loader=_Loader)


class Provenance(dict[str, str]):
    """The origin of each value of a recipe: {dotted path: "base.yaml" | file | "override" | ...}."""

    def beyond_base(self) -> dict[str, str]:
        """Origins of the values that do not come from the base recipe of any task."""
        bases = {shipped()[base].name for _, base in KINDS.values()}
        return {path: origin for path, origin in self.items() if origin not in bases}


def load_recipe(name: str | Path, overrides: dict[str, Any] | None = None) -> AnyRecipe:
    """A recipe by shipped name or path, with overrides {dotted path: value}."""
    return resolve(str(name), [("override", overrides or {})])[0]


def resolve(name: str, patches: list[tuple[str, dict[str, Any]]]) -> tuple[AnyRecipe, Provenance]:
    """A recipe and the origin of each value; later patches win. A file may build on one other with `extends: NAME`."""
    path = find(name)
    layers = [(path.name, read_yaml(path))]
    if "extends" in layers[0][1]:
        try:
            parent = find(str(layers[0][1].pop("extends")))
        except ValueError as error:
            raise ValueError(f"{path}: extends: {error}") from None
        layers.insert(0, (parent.name, read_yaml(parent)))
        if "extends" in layers[0][1]:
            raise ValueError(
                f"{parent}: extends: {layers[0][1]['extends']!r} is a second level; "
                "a recipe may extend only one that extends nothing"
            )
    layers += [(origin, unflatten(patch)) for origin, patch in patches]
    task = next((layer["task"] for _, layer in reversed(layers) if "task" in layer), "detection")
    if task not in KINDS:
        raise ValueError(f"{path}: task: {task!r} is unknown, expected one of {', '.join(KINDS)}")
    base = shipped()[KINDS[task][1]]
    values: dict[str, Any] = {}
    origins = Provenance()
    for origin, layer in [(base.name, read_yaml(base)), *layers]:
        flat = flatten(layer)
        _replace_backbone(values, origins, flat)
        values |= flat
        origins |= dict.fromkeys(flat, origin)
    return validate(KINDS[task][0], unflatten(values), str(path), origins), origins


def settle(recipe: AnyRecipe, origins: Provenance | None = None) -> tuple[AnyRecipe, Provenance]:
    """The recipe with `train.precision: auto` replaced by what it is on this machine, and origins that say so.

    Digests, rows and comparisons are of settled recipes. ValueError where `auto` hangs on a device that is not there.
    """
    origins = Provenance(origins or {})
    if recipe.train.precision != "auto":
        return recipe, origins
    chosen = choose_precision("auto", choose_device(recipe.device).value)
    origins["train.precision"] = f"{origins.get('train.precision', 'recipe')}, {chosen.reason}"
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": chosen.value})}), origins


def choices_of(recipe: AnyRecipe) -> dict[str, Choice]:
    """Choices on this machine for the fields of a recipe that depend on it, with reasons: {dotted field: Choice}."""
    part = recipe.train
    return choices(
        device=recipe.device,
        precision=part.precision,
        threads=part.threads,
        compile=part.compile,
        processes=recipe.processes,
    )


def stored_recipe(values: dict[str, Any], source: str, overrides: dict[str, Any] | None = None) -> AnyRecipe:
    """The recipe that a checkpoint holds, with overrides {dotted path: value}.

    A field that did not exist when the checkpoint was written has the base recipe's value: new fields come with the
    base value that changes nothing. A field that no longer exists is an error.
    """
    kind, base = KINDS[values.get("task", "detection")]
    known, stored = flatten(read_yaml(shipped()[base])), flatten(values)
    _replace_backbone(known, Provenance(dict.fromkeys(known, base)), stored)
    return validate(kind, unflatten(known | stored | flatten(overrides or {})), source)


def _replace_backbone(values: dict[str, Any], origins: Provenance, patch: dict[str, Any]) -> None:
    """A patch that names another kind of backbone replaces the whole section, not just the fields it shares."""
    kind = patch.get("model.backbone.kind")
    if kind is not None and kind != values.get("model.backbone.kind"):
        for key in [key for key in values if key.startswith("model.backbone.")]:
            del values[key]
            del origins[key]


def validate(model: type[BaseModel], values: dict[str, Any], source: str, origins: Provenance | None = None) -> Any:
    """A pydantic model of plain values.

    ValueError for the first problem, in one line: source, the patch that gave the value where `origins` has one, field,
    value and the nearest valid name.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = _path_of(first["loc"], values)
        layer = (origins or {}).get(path)
        if layer is not None and not layer.endswith(".yaml"):
            source = f"{source} ({layer})"
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{source}: {path}: unknown field{_nearest(model, path, values)}") from None
        if first["type"] == "missing":
            raise ValueError(f"{source}: {path}: missing") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise ValueError(f"{source}: {message}") from None
        raise ValueError(
            f"{source}: {path}: {first['input']!r} is not valid: {message[0].lower()}{message[1:]}"
        ) from None


def _path_of(location: tuple[str | int, ...], values: Any) -> str:
    """The dotted path of a pydantic error: its location without the tags of unions, which are no keys of the values."""
    path: list[str] = []
    for place, key in enumerate(location, start=1):
        if isinstance(values, dict) and key not in values and place < len(location):
            continue
        path.append(str(key))
        values = values.get(key) if isinstance(values, dict) else None
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


def _nearest(model: type[BaseModel], path: str, values: dict[str, Any]) -> str:
    names = field_names(model)
    near = get_close_matches(path, names, n=1, cutoff=0.6)
    if not near:  # the right leaf in the wrong section is the second most common slip
        leaf = path.rsplit(".", 1)[-1]
        near = [name for name in names if name.rsplit(".", 1)[-1] == leaf][:1]
    return (
        f"; the nearest name is {near[0]!r}" if near else f"; known here: {', '.join(sorted(type_fields(model, path)))}"
    )


def type_fields(model: type[BaseModel], path: str) -> list[str]:
    """The names of the section that `path` belongs to."""
    parent = path.rpartition(".")[0]
    return [name for name in field_names(model) if name.rpartition(".")[0] == parent]
