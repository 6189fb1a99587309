"""Sections of detection recipes on random changes of training images, and the ladder of their strength."""

import reprlib
from collections.abc import Mapping
from math import isqrt
from typing import Annotated, Any

from pydantic import Field, model_validator

from headstart.recipe.fields import BelowOne, Factor, Flag, Part, Side, real


class JitterPart(Part):
    enabled: Flag
    low: Factor
    high: Factor
    crop: Annotated[int, Field(strict=True, ge=32, le=16_384, multiple_of=32)]

    @model_validator(mode="after")
    def _ordered(self) -> "JitterPart":
        if self.low > self.high:
            raise ValueError(f"input.jitter.low: {self.low:g} is above input.jitter.high, {self.high:g}")
        return self


class CropPart(Part):
    enabled: Flag
    size: Annotated[int, Field(strict=True, ge=32, le=16_384, multiple_of=32)]
    scales: tuple[Factor, ...] = Field(min_length=1, max_length=100)
    border: Side


class ColourPart(Part):
    brightness: BelowOne
    contrast: BelowOne
    saturation: BelowOne
    lighting: BelowOne
    hue: Annotated[float, real(ge=0, le=0.5)]  # half a turn reaches every hue

    @property
    def enabled(self) -> bool:
        """True if any of it changes an image."""
        return any(self.model_dump().values())


NO_COLOUR = {f"input.colour.{name}": 0.0 for name in ColourPart.model_fields}
# The ladder `augment`: what each rung switches on. All other fields of NONE are off; sizes follow from the recipe's own
# (`rung`). Strengths of jitter stay the recipe's: 0.1 to 2.0 in the base recipe (Ghiasi et al. 2021).
NONE: dict[str, Any] = {
    "input.flip": 0.0,
    "input.flip_vertical": 0.0,
    "input.quarter_turns": False,
    "input.jitter.enabled": False,
    "input.crop.enabled": False,
    **NO_COLOUR,
    "input.copy_paste": False,
    "input.mosaic": 0.0,
}
FLIP: dict[str, Any] = {"input.flip": 0.5}
STRONG: dict[str, Any] = {**FLIP, "input.jitter.enabled": True}
# Colours: factors of CornerNet, hue of SSD (18 degrees; Liu et al. 2016). Every second image is a mosaic: our choice.
COLOURS = {f"input.colour.{name}": 0.4 for name in ("brightness", "contrast", "saturation")}
LADDER: dict[str, dict[str, Any]] = {
    "none": {},
    "flip": FLIP,
    "scale": FLIP,  # and several sizes
    "strong": STRONG,
    "strongest": {**STRONG, **COLOURS, "input.colour.hue": 0.05, "input.mosaic": 0.5},
}
SCALES = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)  # of input.short: the paper's 640 to 800 pixels
_FIXED = {"input.jitter.enabled": "input.jitter.crop", "input.crop.enabled": "input.crop.size"}
SIZE = "input.short"  # what stands there is the recipe's size, whatever the rung makes of it
RUNG_FIELDS = frozenset({*NONE, SIZE, "input.jitter.crop"})


def rung(name: object, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields {dotted name: value} that a rung of the ladder sets; `values` are the recipe's fields without a rung.

    input.short is the largest size in `values`, or shares of it under `scale`. The fixed crop is the recipe's own, or
    has the area of short x long pixels (1024 for 800 x 1333). ValueError for a name that is no rung. Invalid sizes are
    left to the recipe's own check.
    """
    if not isinstance(name, str) or name not in LADDER:
        raise ValueError(f"augment: {reprlib.repr(name)} is unknown, expected one of {', '.join(LADDER)}")
    found = {**NONE, **LADDER[name]}
    shorts, long = values[SIZE], values["input.long"]
    sides = [*shorts, long] if isinstance(shorts, list) and shorts else [None]
    if not all(type(side) is int and 0 < side <= 16_384 for side in sides):  # `Side` of recipe.fields
        return found
    fixed = [values[field] for switch, field in _FIXED.items() if values[switch]]
    side = fixed[0] if fixed else max((isqrt(max(shorts) * long) + 16) // 32, 1) * 32
    scales = SCALES if name == "scale" else (1.0,)
    return found | {SIZE: [round(max(shorts) * share) for share in scales], "input.jitter.crop": side}
