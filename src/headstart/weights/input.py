"""Input that weights were trained with: its normalisation, and the first convolution for another input."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from headstart.batch import InputSpec

# One pixel value of 255: Detectron's mean and Detectron2's differ by up to 0.9 and are used for the same weights.
MEAN_TOLERANCE = 1.0
STD_TOLERANCE = 0.02  # relative; torchvision's and others' roundings of the same ImageNet statistics stay within it


def input_differences(ours: InputSpec, theirs: InputSpec) -> list[str]:
    """Fields in which a recipe's normalisation differs from that of the weights, as "field value, expected value"."""
    found = [] if ours.order == theirs.order else [f"input.order is {ours.order}, expected {theirs.order}"]
    if not _near(ours.mean, theirs.mean, [MEAN_TOLERANCE] * len(theirs.mean)):
        found.append(f"input.mean is {short(ours.mean)}, expected {short(theirs.mean)}")
    if not _near(ours.std, theirs.std, [STD_TOLERANCE * value for value in theirs.std]):
        found.append(f"input.std is {short(ours.std)}, expected {short(theirs.std)}")
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


def convert_input(
    tensors: dict[str, Tensor], first: str, source: InputSpec | None, input: InputSpec | None
) -> tuple[InputSpec | None, tuple[str, ...]]:
    """Convert the convolution `first` from the source's channel order and deviations to ours; its new normalisation.

    (p - m) / s_source = (p - m) / s_ours * (s_ours / s_source), so that the factor moves into the weights.
    """
    weight = tensors.get(first)
    if source is None or input is None or weight is None or not weight.shape[1] == len(input.std) == len(source.std):
        return source, ()
    notes = []
    if source.order != input.order and len(source.std) == 3:
        weight, source = weight.flip(1), source.in_order(input.order)
        notes.append(f"first convolution turned to {input.order} input")
    if source.std != input.std:
        weight = weight * (torch.tensor(input.std) / torch.tensor(source.std)).view(1, -1, 1, 1)
        source = replace(source, std=input.std)
        notes.append("first convolution scaled to this recipe's input.std")
    tensors[first] = weight
    return source, tuple(notes)


def adapt_stem(
    how: str, path: str, tensors: dict[str, Tensor], own: Mapping[str, Tensor], first: str, source: InputSpec | None
) -> dict[str, str]:
    """Adapt the convolution `first` of RGB weights to the model's number of channels C, in `tensors`; what was done.

    mean: each channel gets the mean over RGB times 3 / C, so that a normalised image whose channels are all equal has
    the same response as before; weights that include the deviations (std 1) are first scaled to ImageNet's.
    random: the convolution keeps its initial values. Returns {our name: description}. ValueError for weights that are
    not RGB, and for a backbone without a single first convolution.
    """
    if not first:
        raise ValueError(f"start.stem: {how!r}, but this backbone has no plain first convolution; expected null")
    weight = tensors.get(first)
    if weight is None or weight.dim() != 4 or weight.shape[1] != 3:
        found = "is not there" if weight is None else f"has the shape {list(weight.shape)}"
        raise ValueError(
            f"{path}: start.stem: {how!r} is for RGB weights, but {first} {found}; expected weights of 3 channels, "
            "or start.stem null"
        )
    if how == "random":
        names = (first, f"{first.removesuffix('weight')}bias")
        return {name: "random" for name in names if name in own}
    if source is not None and set(source.std) == {1.0}:
        weight = weight * torch.tensor(IMAGENET.in_order(source.order).std).view(1, -1, 1, 1)
    channels = own[first].shape[1]
    tensors[first] = weight.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (3 / channels)
    return {first: f"mean of the RGB weights times 3 / {channels}"}


def _near(values: tuple[float, ...], expected: tuple[float, ...], tolerances: list[float]) -> bool:
    if len(values) != len(expected):
        return False
    return all(abs(a - b) <= limit for a, b, limit in zip(values, expected, tolerances, strict=True))


def short(values: tuple[float, ...]) -> str:
    """Numbers in brackets, with at most six digits."""
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


# torchvision's ImageNet classifiers and its detectors: 255 times (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
IMAGENET = InputSpec((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "rgb")
# Detectron's config.py PIXEL_MEANS; its weights see no division by a deviation.
DETECTRON = InputSpec((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), "bgr")
# Detectron2's defaults: MODEL.PIXEL_MEAN, PIXEL_STD, INPUT.FORMAT.
DETECTRON2 = InputSpec((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr")
# Values of Detectron2 for its ResNeXts (MODEL.PIXEL_STD of the X_101_32x8d configurations): their first convolution
# does not include the deviations.
DETECTRON2_GROUPED = InputSpec(DETECTRON2.mean, (57.375, 57.12, 58.395), "bgr")
