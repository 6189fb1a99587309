"""headstart: do you need pre-training, or can you train from scratch?

recipe = headstart.load_recipe("small", {"data.train": "train.json", "data.val": "val.json"})
run = headstart.train(recipe)
trained = headstart.load_trained(run.directory)
headstart.predict(trained, "photo.jpg")

headstart.ask("my_data/", hours=1)

study = headstart.Study.read("demo")
result = study.run()
result.headline, result.is_decided, result.difference, result.report
"""

import importlib
from typing import TYPE_CHECKING, Any

from headstart.version import __version__

if TYPE_CHECKING:
    from headstart.api import Study, ask, train
    from headstart.api.outcome import StudyResult
    from headstart.data.read import open_dataset
    from headstart.recipe.load import load_recipe
    from headstart.recipe.recipe import ClassifyRecipe, Recipe, SegmentRecipe
    from headstart.tasks.predict import draw_prediction, evaluate, load_trained, predict
    from headstart.tasks.segmentation import evaluate_labels, predict_labels
    from headstart.weights.audits.module import audit_module

_HOMES = {
    "headstart.api": ("Study", "ask", "train"),
    "headstart.api.outcome": ("StudyResult",),
    "headstart.data.read": ("open_dataset",),
    "headstart.recipe.load": ("load_recipe",),
    "headstart.recipe.recipe": ("ClassifyRecipe", "Recipe", "SegmentRecipe"),
    "headstart.tasks.predict": ("draw_prediction", "evaluate", "load_trained", "predict"),
    "headstart.tasks.segmentation": ("evaluate_labels", "predict_labels"),
    "headstart.weights.audits.module": ("audit_module",),
}

__all__ = [
    "ClassifyRecipe",
    "Recipe",
    "SegmentRecipe",
    "Study",
    "StudyResult",
    "__version__",
    "ask",
    "audit_module",
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
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
