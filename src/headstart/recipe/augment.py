"""Sections of detection recipes on random changes of training images."""

from typing import Annotated

from pydantic import Field, model_validator

from headstart.recipe.fields import BelowOne, Factor, Flag, Part, Side


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

    @property
    def enabled(self) -> bool:
        """True if any of it changes an image."""
        return any(self.model_dump().values())
