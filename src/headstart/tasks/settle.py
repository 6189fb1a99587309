"""Recipes with every `auto` replaced: what this machine decides, and what the training data decide."""

from headstart.hardware import Choice
from headstart.recipe import load
from headstart.recipe.load import Provenance
from headstart.recipe.recipe import AnyRecipe, Recipe, to_dict
from headstart.recipe.refusal import validate
from headstart.tasks.detection import training_data

MASKS = "model.mask.enabled"


def settle(recipe: AnyRecipe, origins: Provenance | None = None) -> tuple[AnyRecipe, Provenance]:
    """The recipe with every `auto` replaced by the choice of this machine and these data, and origins that name it.

    All training images decide, whatever the fraction. ValueError for data that cannot be read, and for a recipe that
    needs masks where the data have none.
    """
    recipe, origins = load.settle(recipe, origins)
    if not asks_for_masks(recipe):
        return recipe, origins
    whole = recipe.model_copy(update={"data": recipe.data.model_copy(update={"fraction": 1.0})})
    masked, reason = training_data(whole).has_masks()
    values = to_dict(recipe)
    values["model"]["mask"]["enabled"] = masked
    origins[MASKS] = f"{origins.get(MASKS, 'recipe')}, auto: {reason}"
    return validate(Recipe, values, f"{recipe.name} on {recipe.data.train}"), origins


def asks_for_masks(recipe: AnyRecipe) -> bool:
    """True for a recipe whose training data decide whether masks are trained."""
    return isinstance(recipe, Recipe) and recipe.model.mask.enabled == "auto"


def mask_choice(asked: AnyRecipe, settled: AnyRecipe, origins: Provenance) -> dict[str, Choice]:
    """{field: choice} of the training data for a recipe, with the reason; empty where the recipe does not ask."""
    return {MASKS: Choice(settled.model.mask.enabled, origins[MASKS])} if asks_for_masks(asked) else {}
