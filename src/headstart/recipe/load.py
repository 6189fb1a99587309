"""Recipes resolved from files, arms and overrides, with the origin of each value.

A recipe file is a patch on the base recipe of its task, an arm of a study a patch on a recipe, and `key.path=value` on
the command line the last patch. Unknown keys are errors that name the nearest field.
"""

import os
import reprlib
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from headstart.hardware import Choice, choices, choose_device, choose_precision
from headstart.recipe.augment import SIZE, rung
from headstart.recipe.dotted import flatten, unflatten
from headstart.recipe.recipe import AnyRecipe, ClassifyRecipe, Recipe, SegmentRecipe
from headstart.recipe.refusal import validate
from headstart.recipe.yaml_text import read_yaml

# The model and the base recipe of each task.
KINDS: dict[str, tuple[type[AnyRecipe], str]] = {
    "detection": (Recipe, "base"),
    "classification": (ClassifyRecipe, "base_classify"),
    "segmentation": (SegmentRecipe, "base_segment"),
}


def shipped(folder: str = "recipes") -> dict[str, Path]:
    """{name: file} of all YAML files shipped in a folder of the package."""
    root = Path(str(files("headstart"))) / folder
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find(name: str, folder: str = "recipes") -> Path:
    """The file of a shipped name, or the path itself; ValueError with the nearest shipped name."""
    known = shipped(folder)
    if name in known:
        return known[name]
    if os.path.isfile(name):
        return Path(name)
    near = get_close_matches(name[:100], known, n=1)
    hint = f"; the nearest shipped name is {near[0]!r}" if near else f"; shipped: {', '.join(known)}"
    what, shown = folder[:-1] if folder != "studies" else "study", repr(name if len(name) <= 100 else f"{name[:100]}…")
    if os.path.exists(name):
        raise ValueError(f"{what} {shown}: is a folder or a device, expected a YAML file or a shipped name")
    raise ValueError(f"{what} {shown}: no such file or shipped name{hint}")


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
    layers = [(origin, _plain(layer, f"{path} ({origin})")) for origin, layer in [*layers, *patches]]
    task = next((layer["task"] for _, layer in reversed(layers) if "task" in layer), "detection")
    if not isinstance(task, str) or task not in KINDS:
        raise ValueError(f"{path}: task: {reprlib.repr(task)} is unknown, expected one of {', '.join(KINDS)}")
    base = shipped()[KINDS[task][1]]
    values: dict[str, Any] = {}
    origins = Provenance()
    rungs: list[tuple[str, object]] = []  # the last `augment` alone
    beside: dict[str, Any] = {}  # fields of its layer and of later ones
    for origin, layer in [(base.name, read_yaml(base)), *layers]:
        flat = flatten(layer)
        _replace_backbone(values, origins, flat)
        _leave_images(values, origins, flat, base.name)
        if "augment" in flat:
            rungs, beside = [(origin, flat.pop("augment"))], {}
        values |= flat
        beside |= flat
        origins |= dict.fromkeys(flat, origin)
    for origin, name in rungs:
        if task != "detection":
            raise ValueError(f"{path}: augment: {reprlib.repr(name)} is of detection recipes, this one is of {task}")
        try:
            found = rung(name, values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found = {field: value for field, value in found.items() if field not in beside or field == SIZE}
        values |= found
        origins |= dict.fromkeys(found, f"{origin}, augment {name}")
    return validate(KINDS[task][0], _plain(values, str(path)), str(path), origins), origins


def _plain(patch: dict[str, Any], source: str) -> dict[str, Any]:
    """A patch as nested sections; ValueError, naming the source, for a field that is given twice."""
    try:
        return unflatten(patch)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def settle(recipe: AnyRecipe, origins: Provenance | None = None) -> tuple[AnyRecipe, Provenance]:
    """The recipe with `train.precision: auto` replaced by this machine's choice, and origins that name the reason.

    Digests, rows and comparisons are of settled recipes. ValueError where `auto` needs a device that is not there.
    """
    origins = Provenance(origins or {})
    if recipe.train.precision != "auto":
        return recipe, origins
    chosen = choose_precision("auto", choose_device(recipe.device).value)
    origins["train.precision"] = f"{origins.get('train.precision', 'recipe')}, {chosen.reason}"
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": chosen.value})}), origins


def choices_of(recipe: AnyRecipe) -> dict[str, Choice]:
    """Choices on this machine for the fields of a recipe that depend on it, with reasons: {dotted field: Choice}."""
    part, processes = recipe.train, recipe.processes
    return choices(recipe.device, part.precision, part.threads, compile=part.compile, processes=processes)


def stored_recipe(values: dict[str, Any], source: str, overrides: dict[str, Any] | None = None) -> AnyRecipe:
    """The recipe that a checkpoint holds, with overrides {dotted path: value}.

    A field that did not exist when the checkpoint was written has the base recipe's value: new fields come with the
    base value that changes nothing. A field that no longer exists is an error.
    """
    kind, base = KINDS[values.get("task", "detection")]
    known, stored = flatten(read_yaml(shipped()[base])), flatten(values)
    _replace_backbone(known, Provenance(dict.fromkeys(known, base)), stored)
    return validate(kind, unflatten(known | stored | flatten(overrides or {})), source)


def _leave_images(values: dict[str, Any], origins: Provenance, patch: dict[str, Any], base: str) -> None:
    """Clear the base recipe's image folder where a patch has data of its own."""
    for field in ("data.train", "data.val"):
        if field in patch and origins.get(f"{field}_images") == base:
            values[f"{field}_images"] = None


def _replace_backbone(values: dict[str, Any], origins: Provenance, patch: dict[str, Any]) -> None:
    """Remove all backbone fields where a patch names another kind of backbone, not only those that it sets."""
    kind = patch.get("model.backbone.kind")
    if kind is not None and kind != values.get("model.backbone.kind"):
        for key in [key for key in values if key.startswith("model.backbone.")]:
            del values[key]
            del origins[key]
