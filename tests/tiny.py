"""Recipes, data and a study so small that a step takes milliseconds: 64-px scenes, a net of width 8."""

import hashlib
import json
from pathlib import Path

import torch
import yaml

from headstart.data.shapes.write import generate, generate_classes
from headstart.recipe.load import load_recipe
from headstart.recipe.recipe import ClassifyRecipe, Recipe
from headstart.tasks import make_task
from headstart.training.rows import read_rows

SIDE = 64
NET = {
    "model.backbone.depth": [1, 1, 1, 1],
    "model.backbone.bottleneck": False,
    "model.backbone.width": 8,
    "model.norm_groups": 4,
}
DETECTOR = {
    **NET,
    "data.mask_frame": 16,
    "data.num_workers": 0,
    "input.short": [SIDE],
    "input.long": SIDE,
    "input.test_short": SIDE,
    "input.test_long": SIDE,
    "model.pyramid_channels": 16,
    "model.canonical_size": 32,
    "model.rpn.anchor_sizes": [8, 16, 32, 48, 64],
    "model.rpn.num_samples": 16,
    "model.rpn.train_before_nms": 32,
    "model.rpn.train_after_nms": 16,
    "model.rpn.test_before_nms": 16,
    "model.rpn.test_after_nms": 8,
    "model.box.convs": 0,
    "model.box.fc_width": 16,
    "model.box.num_regions": 16,
    "model.box.pool": 4,
    "model.mask.convs": 1,
    "model.mask.conv_channels": 8,
    "model.mask.slots": 4,
    "model.mask.pool": 4,
    "train.batch": 2,
    "train.reference_batch": 2,
    "train.rate": 0.01,
    "train.warmup": "2 steps",
    "train.base": "4 steps",
    "train.threads": 1,
    "train.log_every": 3,
    "evaluate.every": "4 steps",
    "evaluate.batch": 4,
    "evaluate.detections": 10,
    "checkpoint.every": "3 steps",
}
ONCE = {"seed": 0, "data.fraction": 1.0}  # a pre-training that follows neither the fraction nor the seed of its arms
CLASSIFIER = {
    **NET,
    "data.num_workers": 0,
    "input.size": 32,
    "train.batch": 4,
    "train.reference_batch": 4,
    "train.rate": 0.02,
    "train.warmup": "1 steps",
    "train.base": "4 steps",
    "train.threads": 1,
    "train.log_every": 2,
    "evaluate.every": "0 steps",
    "checkpoint.every": "2 steps",
}
SEGMENTER = {
    **NET,
    "data.num_workers": 0,
    "input.short": [48, SIDE],
    "input.long": SIDE,
    "input.test_short": 48,
    "input.test_long": 48,
    "model.pyramid_channels": 16,
    "model.semantic.channels": 16,
    "train.batch": 4,
    "train.reference_batch": 4,
    "train.rate": 0.02,
    "train.warmup": "1 steps",
    "train.base": "4 steps",
    "train.threads": 1,
    "train.log_every": 2,
    "evaluate.every": "0 steps",
    "evaluate.batch": 4,
    "checkpoint.every": "2 steps",
}


def write_data(root: Path) -> Path:
    """Six training and three validation scenes in root/scenes; eight single objects of 2 classes in root/classes.

    root/keypoints holds scenes with keypoints."""
    generate(root / "scenes", 6, 3, 0, SIDE, processes=1)
    generate(root / "keypoints", 8, 8, 0, SIDE, keypoints=True, processes=1)
    generate_classes(root / "classes", 8, 4, 0, 32, num_classes=2, processes=1)
    return root


def scene_paths(root: Path, name: str = "scenes") -> dict[str, str]:
    """The data fields of a detection recipe on `write_data`'s scenes."""
    scenes = root / name
    return {
        "data.train": str(scenes / "train.json"),
        "data.train_images": str(scenes / "train"),
        "data.val": str(scenes / "val.json"),
        "data.val_images": str(scenes / "val"),
    }


def class_paths(root: Path) -> dict[str, str]:
    """The data fields of a classification recipe on `write_data`'s folders."""
    return {"data.train": str(root / "classes/train"), "data.val": str(root / "classes/val")}


def patched(base: dict, changes: dict) -> dict:
    """Overrides with others in their place: one that is a section takes the place of all its fields."""
    sections = tuple(f"{name}." for name in changes)
    return {name: value for name, value in base.items() if not name.startswith(sections)} | changes


def tiny_recipe(root: Path, **changes):
    """The tiny detector's recipe; `changes` are overrides with "__" for the dots."""
    patch = {name.replace("__", "."): value for name, value in changes.items()}
    return load_recipe("base", patched({"name": "tiny", **DETECTOR, **scene_paths(root)}, patch))


def tiny_classifier(root: Path, **changes):
    """The tiny classifier's recipe; `changes` as in `tiny_recipe`."""
    patch = {name.replace("__", "."): value for name, value in changes.items()}
    return load_recipe("base_classify", patched({"name": "tiny-pretrain", **CLASSIFIER, **class_paths(root)}, patch))


def pixel_paths(root: Path, *, maps: bool = True) -> dict[str, str]:
    """The data fields of a segmentation recipe on `generate(..., semantic=True)`: label maps, or else instances."""
    names = {split: f"{split}_labels.json" if maps else f"{split}.json" for split in ("train", "val")}
    found = {f"data.{split}": str(root / name) for split, name in names.items()}
    found |= {f"data.{split}_images": str(root / split) for split in names}
    return found | ({f"data.{split}_labels": str(root / f"{split}_labels") for split in names} if maps else {})


def tiny_segmenter(root: Path, *, maps: bool = True, **changes):
    """The tiny segmentation model's recipe; `changes` as in `tiny_recipe`."""
    patch = {name.replace("__", "."): value for name, value in changes.items()}
    return load_recipe(
        "base_segment", patched({"name": "tiny-segment", **SEGMENTER, **pixel_paths(root, maps=maps)}, patch)
    )


def tiny_study(root: Path, **changes) -> dict:
    """A study as its YAML holds it: two arms, 2x and 3x, one of them from a tiny pre-training."""
    return {
        "name": "tiny",
        "recipe": "base",
        "set": {**DETECTOR, **scene_paths(root)},
        "arms": {
            "scratch": {"start.kind": "random"},
            "pretrained": {"start.kind": "backbone", "start.weights": "pretrain:forms"},
        },
        "schedules": ["2x", "3x"],
        "seeds": 1,
        "pretrain": {"forms": {"recipe": "base_classify", "set": {**CLASSIFIER, **class_paths(root), **ONCE}}},
        **changes,
    }


def write_study(path: Path, study: dict) -> Path:
    """A study file."""
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def without_clock(rows: list[dict]) -> list[dict]:
    """Rows apart from what only the clock decides."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "memory")} for row in rows]


def outcome(directory):
    """{segment: its directory, the hash of its weights, its rows without clock and start} from plan.json."""
    plan = json.loads((directory / "plan.json").read_text())
    found = {}
    for segment in plan["segments"]:
        rows = without_clock(read_rows(directory / segment["directory"] / "rows.jsonl"))
        found[segment["name"]] = (segment["directory"], rows[-1]["hash"], [r for r in rows if r["kind"] != "start"])
    return found


def tree_digest(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def one_step(recipe, root: Path):
    """The first step of a recipe on `write_data`'s data from a random start: finite losses, a gradient everywhere."""
    with_keypoints = isinstance(recipe, Recipe) and recipe.model.keypoint.enabled
    scenes = scene_paths(root, "keypoints" if with_keypoints else "scenes")
    paths = class_paths(root) if isinstance(recipe, ClassifyRecipe) else scenes
    data = {key.removeprefix("data."): value for key, value in paths.items()} | {"num_workers": 0, "fraction": 1.0}
    if isinstance(recipe, Recipe):
        data |= {"train_split": None, "val_split": None}
    changes = {
        "data": recipe.data.model_copy(update=data),
        "train": recipe.train.model_copy(update={"batch": 2, "threads": None}),
    }
    task = make_task(recipe.model_copy(update=changes))
    losses = task.losses(task.model, next(iter(task.batches(0, 1, torch.device("cpu")))))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(parameter.grad is not None for parameter in task.model.parameters()), recipe.name
