"""headstart: do you need pre-training, or can you train from scratch?

recipe = headstart.load_recipe("small", {"data.train": "train.json", "data.val": "val.json"})
result = headstart.train(recipe)
trained = headstart.load_trained(result.directory)
headstart.predict(trained, "photo.jpg")

study = headstart.Study.read("demo")
study.run()
study.report()
"""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING, Any

# Two functions share their names with rooms of the house. The import system sets such a name once, when the (empty)
# package is first imported: let that happen now, so that from here on the names are the functions'.
for _room in ("evaluate", "train"):
    importlib.import_module(f"headstart.{_room}")
    del globals()[_room]

if TYPE_CHECKING:
    from headstart.api import Study, draw_prediction
    from headstart.data.formats import open_dataset
    from headstart.inference import evaluate, load_trained, predict
    from headstart.inference_pixels import evaluate_labels, predict_labels
    from headstart.recipe import ClassifyRecipe, Recipe
    from headstart.recipe_segment import SegmentRecipe
    from headstart.resolve import load_recipe
    from headstart.train.run import train

_HOMES = {
    "ClassifyRecipe": "headstart.recipe",
    "Recipe": "headstart.recipe",
    "SegmentRecipe": "headstart.recipe_segment",
    "Study": "headstart.api",
    "draw_prediction": "headstart.api",
    "evaluate": "headstart.inference",
    "evaluate_labels": "headstart.inference_pixels",
    "load_recipe": "headstart.resolve",
    "load_trained": "headstart.inference",
    "open_dataset": "headstart.data.formats",
    "predict": "headstart.inference",
    "predict_labels": "headstart.inference_pixels",
    "train": "headstart.train.run",
}

__all__ = [
    "ClassifyRecipe",
    "Recipe",
    "SegmentRecipe",
    "Study",
    "draw_prediction",
    "evaluate",
    "evaluate_labels",
    "load_recipe",
    "load_trained",
    "open_dataset",
    "predict",
    "predict_labels",
    "train",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `headstart --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
