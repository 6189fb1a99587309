"""The model of a checkpoint or export, its recipe and classes, checked against one another before anything is used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.data.dataset import left_right
from headstart.recipe.load import settle, stored_recipe
from headstart.recipe.recipe import AnyRecipe
from headstart.tasks import TASKS
from headstart.tasks.task import make_model
from headstart.typed_json import typed


class StoredClasses(Struct, forbid_unknown_fields=True):
    """Category ids and names of labels 0..C-1; names of keypoints, and the pairs of them that a drawing joins."""

    ids: Annotated[list[int], Meta(min_length=1)]
    names: list[str]
    keypoints: list[str] = []
    skeleton: list[tuple[int, int]] = []


def trained_model(
    state: Mapping[str, Any], path: Path, overrides: dict[str, Any] | None = None
) -> tuple[nn.Module, AnyRecipe, StoredClasses]:
    """The model of a checkpoint's content with its weights, its settled recipe with overrides, and its classes.

    ValueError of one line naming the file for classes, weights or statistics that are not those of the recipe's model,
    and for a value that is not finite.
    """
    values = typed(state.get("recipe"), dict[str, Any], f"{path}: recipe")
    if values.get("task", "detection") not in tuple(TASKS):
        raise ValueError(f"{path}: recipe: task = {values['task']!r}: expected one of {', '.join(TASKS)}")
    recipe, _ = settle(stored_recipe(values, str(path), overrides))
    classes = typed(state.get("classes"), StoredClasses, f"{path}: classes")
    num, points = len(classes.names), len(classes.keypoints)
    if len(set(classes.ids)) != num:
        raise ValueError(f"{path}: classes: {len(set(classes.ids))} different ids, expected {num}, one for each name")
    if not all(0 <= end < points for pair in classes.skeleton for end in pair):
        raise ValueError(
            f"{path}: classes: skeleton = {classes.skeleton}: expected pairs below {points}, the keypoints"
        )
    model = make_model(recipe, num, points, left_right(classes.keypoints))
    _load(model, _tensors(state.get("model"), f"{path}: model"), f"{path}: model", f"for its {num} classes")
    statistics = _tensors(state.get("statistics", {}), f"{path}: statistics")
    allowed = {
        f"{name}.{kind}": getattr(layer, kind)
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        for kind in ("running_mean", "running_var")
    }
    for name in statistics:
        if name not in allowed:
            raise ValueError(f"{path}: statistics: {name!r}: expected only running statistics of BatchNorm layers")
    if statistics:
        own = {name: statistics.get(name, value) for name, value in model.state_dict().items()}
        _load(model, own, f"{path}: statistics", "of its layer")
    return model, recipe, classes


def _tensors(value: Any, where: str) -> dict[str, Tensor]:
    if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ValueError(f"{where}: expected tensors by name")
    return dict(value)


def _load(model: nn.Module, weights: dict[str, Tensor], where: str, why: str) -> None:
    """Put weights into a model; ValueError for the first name, shape, type or value that does not fit."""
    own = model.state_dict()
    for name in own.keys() ^ weights.keys():
        raise ValueError(
            f"{where}: {name!r}: " + ("missing" if name in own else "unknown, no part of the recipe's model")
        )
    for name, value in weights.items():
        if value.shape != own[name].shape or value.dtype != own[name].dtype:
            raise ValueError(f"{where}: {name} is {_short(value)}, expected {_short(own[name])} {why}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{where}: {name} holds values that are not finite; expected a checkpoint before that")
    model.load_state_dict(weights)


def _short(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
