"""Every shipped recipe: it loads, its net can be built as it is, and a narrow copy of it makes one step."""

import pytest
import torch

from headstart.model.build import build
from headstart.recipe.load import load_recipe, shipped
from headstart.recipe.recipe import ClassifyRecipe, Recipe
from headstart.tasks import TASKS
from headstart.tasks.settle import asks_for_masks
from tiny import CLASSIFIER, DETECTOR, one_step

# Parameters in millions, where their authors publish them: classifiers of 1000 classes, biases included.
MILLIONS = {"paper/imagenet_r50": 25.6, "vgg16_pretrain": 138.4}
NARROW_BACKBONES = {
    "resnet": {"depth": [1, 1, 1, 1], "width": 8},
    "vgg": {"depth": [1, 1, 1, 1, 1], "width": 8},
    "detnet": {"depth": [1, 1, 1, 1, 1], "width": 8},
    # not 8: torch's convolution of 4 channels at the stem breaks memory in its gradient (2.x, AVX2, channels last)
    "hourglass": {"depth": [1, 1, 1], "widths": [16, 16, 24], "stacks": 2},
}


def narrow(name):
    """A recipe's own choices at the sizes of the tiny nets: what is not a size stays as it is."""
    recipe = load_recipe(name)
    kind, is_detector = recipe.model.backbone.kind, isinstance(recipe, Recipe)
    tiny = CLASSIFIER if isinstance(recipe, ClassifyRecipe) else DETECTOR
    kept = ("model.norm_groups", "model.pyramid_channels", "model.rpn", "model.box", "model.mask", "input", "data.mask")
    kept = kept if isinstance(recipe, Recipe | ClassifyRecipe) else (*kept[:2], "input")
    sizes = {key: value for key, value in tiny.items() if key.startswith(kept)}
    sizes |= {f"model.backbone.{key}": value for key, value in NARROW_BACKBONES[kind].items()}
    if kind == "resnet":
        grouped = recipe.model.backbone.groups > 1
        groups = {"groups": 2, "group_width": 4} if grouped else {}
        sizes |= {f"model.backbone.{key}": value for key, value in {"bottleneck": grouped, **groups}.items()}
    if is_detector and recipe.input.crop.enabled:
        sizes |= {"input.crop.size": 64, "model.corners.width": 16}
    if is_detector and recipe.model.keypoint.enabled:
        sizes |= {"model.keypoint.convs": 1, "model.keypoint.conv_channels": 8, "evaluate.keypoint_sigmas": [0.1] * 5}
    if isinstance(recipe, ClassifyRecipe) and recipe.model.hidden:
        sizes |= {"model.hidden": [8, 8]}
    if asks_for_masks(recipe):
        sizes |= {"model.mask.enabled": True}
    return load_recipe(name, sizes)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_recipe_builds_as_it_is_and_makes_one_narrow_step(name, data_root):
    with torch.device("meta"):
        recipe = load_recipe(name)
        if asks_for_masks(recipe):  # the shapes have outlines
            recipe = load_recipe(name, {"model.mask.enabled": True})
        made = build(recipe, TASKS[recipe.task].num_classes, num_keypoints=17)
    millions = sum(parameter.numel() for parameter in made.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS.get(name, millions), abs=0.05)
    one_step(narrow(name), data_root)
