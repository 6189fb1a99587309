"""Input normalisation that weights were trained with: known projects' values, reading, writing, comparing."""

import json
from dataclasses import asdict
from typing import Any

from headstart.batch import InputSpec

# One pixel value of 255: Detectron's mean and Detectron2's differ by up to 0.9 and are used for the same weights.
MEAN_TOLERANCE = 1.0
STD_TOLERANCE = 0.02  # relative; torchvision's and others' roundings of the same ImageNet statistics stay within it


def input_differences(ours: InputSpec, theirs: InputSpec) -> list[str]:
    """Fields in which a recipe's normalisation differs from that of the weights, as "field value, expected value"."""
    found = [] if ours.order == theirs.order else [f"input.order is {ours.order}, expected {theirs.order}"]
    if not _near(ours.mean, theirs.mean, [MEAN_TOLERANCE] * len(theirs.mean)):
        found.append(f"input.mean is {_short(ours.mean)}, expected {_short(theirs.mean)}")
    if not _near(ours.std, theirs.std, [STD_TOLERANCE * value for value in theirs.std]):
        found.append(f"input.std is {_short(ours.std)}, expected {_short(theirs.std)}")
    return found


def input_text(spec: InputSpec) -> str:
    """One line of JSON, as it is kept beside weights."""
    return json.dumps(asdict(spec))


def stated_input(mean: str | None, std: str | None, order: str | None) -> InputSpec | None:
    """InputSpec of command line options ("123.7,116.3,103.5" and so on), None without any; ValueError otherwise."""
    if mean is std is order is None:
        return None
    values = {}
    for name, text in (("mean", mean), ("std", std)):
        try:
            values[name] = tuple(float(part) for part in (text or "").split(","))
        except ValueError:
            raise ValueError(f"--{name}: {text!r}, expected a number a channel, such as 123.7,116.3,103.5") from None
    if len(values["mean"]) != len(values["std"]):
        raise ValueError(f"--std: {len(values['std'])} numbers, expected {len(values['mean'])}, as many as --mean has")
    if order not in ("rgb", "bgr"):
        raise ValueError(f"--order: {order!r}, expected rgb or bgr")
    return InputSpec(values["mean"], values["std"], order)


def parse_input_spec(value: Any) -> InputSpec | None:
    """An InputSpec from a mapping or its JSON text; None where it is neither or lacks a field."""
    try:
        fields = json.loads(value) if isinstance(value, str) else value
        mean, std = tuple(map(float, fields["mean"])), tuple(map(float, fields["std"]))
        return InputSpec(mean, std, fields["order"].lower())
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError):
        return None


def _near(values: tuple[float, ...], expected: tuple[float, ...], tolerances: list[float]) -> bool:
    if len(values) != len(expected):
        return False
    return all(abs(a - b) <= limit for a, b, limit in zip(values, expected, tolerances, strict=True))


def _short(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


# torchvision's ImageNet classifiers and its detectors: 255 times (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
IMAGENET = InputSpec((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "rgb")
# Detectron's config.py PIXEL_MEANS; its weights see no division by a deviation.
DETECTRON = InputSpec((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), "bgr")
# Detectron2's defaults: MODEL.PIXEL_MEAN, PIXEL_STD, INPUT.FORMAT.
DETECTRON2 = InputSpec((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr")
# Values of Detectron2 for its ResNeXts (MODEL.PIXEL_STD of the X_101_32x8d configurations): their first convolution has
# not taken the deviations in.
DETECTRON2_GROUPED = InputSpec(DETECTRON2.mean, (57.375, 57.12, 58.395), "bgr")
