"""Settings of a study from the statistics of its images and boxes, with reasons, and the study file as text."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.read import Source
from headstart.metrics.overlaps import COCO_SIGMAS

# Shorter sides in pixels that are tried. The base recipe's 800 is for GPUs; on a CPU the recipe `small` has 256.
SIDES = (64, 96, 128, 160, 192, 224, 256, 320, 416, 512, 640, 800)
MOST_ON_CPU, MOST_ON_GPU = 256, 800
OBJECT = 32  # pixels: 8 cells of the finest map, stride 4, for nine objects of ten; as in the study bccd
CLASS_SIDES, CLASS_SIDE = (64, 96, 128, 160, 192, 224), 128  # of image folders; on a GPU ImageNet's 224
TALL = 3.0  # ratio of sides from which default anchors (0.5 to 2) overlap a box by less than half
CANONICAL = 0.28  # canonical size as a share of the shorter side: 224 of 800 pixels (FPN)
# Sigma of keypoints for which nobody measured how much annotators differ: the mean of COCO's 17 (0.025 to 0.107).
SIGMA = round(float(np.mean(COCO_SIGMAS)) / 1000, 3)


KEYPOINT_HEAD = {"convs": 2, "conv_channels": 64, "slots": 16}  # the mask head of the recipe `small`
PARTS = ("train", "val")
WIDTH = 100  # characters of a comment line in a study file


@dataclass(frozen=True)
class Setting:
    """One field of the study with its value and reason; an empty reason is stated by the field before."""

    field: str
    value: Any
    reason: str = ""


def data_settings(
    train: Source, val: Source, labels: Sequence[Path] = (), ignored: Sequence[int] = ()
) -> list[Setting]:
    """Places of the data, as absolute paths: the study runs from any folder."""
    found = []
    for part, place in zip(PARTS, (train, val)):
        path = place.path.absolute().as_posix() + (f":{place.split}" if place.split else "")
        reason = "paths are absolute, so that the study runs from any folder" if part == "train" else ""
        found.append(Setting(f"data.{part}", path, reason))
        if place.image_dir is not None:
            found.append(Setting(f"data.{part}_images", place.image_dir.absolute().as_posix()))
    found += [Setting(f"data.{part}_labels", folder.absolute().as_posix()) for part, folder in zip(PARTS, labels)]
    return [*found, Setting("data.ignore", list(ignored), "values of pixels that nobody labelled")] if labels else found


def box_settings(train: Dataset, *, side: int | None = None, on_gpu: bool) -> list[Setting]:
    """Input size, anchors, batch and heads for boxes of a training set; side: a shorter side that is given."""
    plain = ~train.crowd
    if not plain.any():
        raise ValueError(f"{train.path}: every object is a crowd (iscrowd = 1): expected objects to learn from")
    usual = _usual_side(train)
    boxes = train.boxes[plain]
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    small = float(np.quantile(sides, 0.1))
    wanted = OBJECT / small * usual
    most = min(MOST_ON_GPU if on_gpu else MOST_ON_CPU, max(SIDES[0], usual))
    fitting = [size for size in SIDES if size <= most]
    short = side or next((size for size in fitting if size >= wanted), fitting[-1])
    scale = short / usual
    why = f"images have {usual:.0f} px (median); nine objects of ten are at least {small * scale:.0f} px there"
    if side is not None:
        why += "; smaller than the objects ask for, to fit the hours"
    elif short < wanted and short == fitting[-1]:
        why += f"; more is not used on {'a GPU' if on_gpu else 'a CPU'}, or would enlarge the images"
    first = int(min(64, max(6, 2 * round(small * scale / 2))))
    ratios = (boxes[:, 3] - boxes[:, 1]) / np.maximum(boxes[:, 2] - boxes[:, 0], 1e-6)
    low, high = np.quantile(ratios, [0.05, 0.95])
    found = [
        *_input_sizes(train, short, why),
        Setting("model.canonical_size", round(CANONICAL * short), "224 of 800 px, as in FPN"),
        Setting(
            "model.rpn.anchor_sizes",
            [first * 2**level for level in range(5)],
            f"from the small objects up, doubled a level; the median object has {np.median(sides) * scale:.0f} px",
        ),
    ]
    if high > TALL or low < 1 / TALL:
        reason = f"height / width of boxes is {low:.2g} to {high:.2g} (5 to 95 %)"
        found.append(Setting("model.rpn.ratios", [0.25, 0.5, 1.0, 2.0, 4.0], reason))
    found.append(Setting("model.mask.enabled", *train.has_masks()))
    return [*found, *_keypoint_settings(len(train.keypoint_names)), _batch(train)]


def pixel_settings(train: Dataset, *, side: int | None = None, on_gpu: bool) -> list[Setting]:
    """Input size and batch for label maps."""
    usual = _usual_side(train)
    most = min(MOST_ON_GPU if on_gpu else MOST_ON_CPU, max(SIDES[0], usual))
    short = side or max(size for size in SIDES if size <= most)
    return [
        *_input_sizes(train, short, f"images have {usual:.0f} px (median); label maps are compared at their own size"),
        _batch(train),
    ]


def class_settings(train: Dataset, *, side: int | None = None, on_gpu: bool) -> list[Setting]:
    """Input size and batch for image folders."""
    usual = _usual_side(train)
    most = min(CLASS_SIDES[-1] if on_gpu else CLASS_SIDE, max(CLASS_SIDES[0], usual))
    size = side or max(size for size in CLASS_SIDES if size <= most)
    batch = 8 if train.num_images < 200 else 32
    return [
        Setting("input.size", size, f"images have {usual:.0f} px (median shorter side)"),
        Setting("train.batch", batch, "the recipe's" if batch == 32 else "of few images"),
        # The recipe's rate of SGD is for narrow networks; AdamW's is the demo's, with the same network.
        Setting("train.optimizer", "adamw", "as in the study demo, which has the same network"),
        Setting("train.rate", 0.001),
        Setting("train.weight_decay", 0.05),
    ]


def _usual_side(train: Dataset) -> float:
    """The median of the shorter sides, in pixels."""
    return float(np.median(np.minimum(train.heights, train.widths)))


def _batch(train: Dataset) -> Setting:
    """Images in a step for boxes or label maps."""
    if train.num_images < 64:
        return Setting("train.batch", 4, "of few images")
    return Setting("train.batch", 8, "the recipe's; the rate was chosen for it")


def _input_sizes(train: Dataset, short: int, reason: str) -> list[Setting]:
    """Input sizes at a shorter side; the longer side fits nine images of ten, up to twice the shorter."""
    shorter, longer = np.minimum(train.heights, train.widths), np.maximum(train.heights, train.widths)
    long = 32 * ceil(short * min(2.0, float(np.quantile(longer / shorter, 0.9))) / 32)
    return [
        Setting("input.short", [short], reason),
        Setting("input.long", long),
        Setting("input.test_short", short),
        Setting("input.test_long", long),
    ]


def _keypoint_settings(num_keypoints: int) -> list[Setting]:
    if not num_keypoints:
        return []
    found = [
        Setting("model.keypoint.enabled", True, f"the objects have {num_keypoints} keypoints; head as for masks"),
        *(Setting(f"model.keypoint.{field}", value) for field, value in KEYPOINT_HEAD.items()),
    ]
    if num_keypoints == len(COCO_SIGMAS):
        return found
    reason = f"how much annotators differ is not known: {SIGMA:g}, the mean of COCO's 17, for each keypoint"
    return [*found, Setting("evaluate.keypoint_sigmas", [SIGMA] * num_keypoints, reason)]


def study_text(head: Sequence[str], fields: Sequence[Setting], settings: Sequence[Setting]) -> str:
    """YAML of a study: comments at the head, fields of its own, and settings of its recipe below `set`.

    Values are written as JSON, which is YAML on one line.
    """
    lines = [line for text in head for line in _comment(text, "")]
    for field in fields:
        lines += [*_comment(field.reason, ""), f"{field.field}: {_value(field.value)}"]
        if field.field == "recipe":
            lines.append("set:")
            for setting in settings:
                lines += [*_comment(setting.reason, "  "), f"  {setting.field}: {_value(setting.value)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    """Lines of a comment, none for an empty text; words, such as paths of a command, stay whole."""
    if not text:
        return []
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
