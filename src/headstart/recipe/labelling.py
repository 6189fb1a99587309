"""Sections of recipes that label whole images or each pixel: classification and segmentation."""

from typing import Annotated

from pydantic import Field, model_validator

from headstart.recipe.fields import (
    BelowOne,
    DataShare,
    Factor,
    Flag,
    FractionSeed,
    InputPart,
    Part,
    Pool,
    Share,
    Side,
    Sizes,
    Stride,
    Text,
    Width,
    Workers,
    check_sides,
    whole,
)
from headstart.recipe.net import DetNetPart, Net, ResNetPart, TimmPart


class ClassifyData(Part):
    train: Text
    val: Text
    fraction: DataShare
    fraction_seed: FractionSeed
    num_workers: Workers
    cache: Flag
    cache_features: Flag


class ClassifyInput(InputPart):
    size: Side
    min_area: DataShare
    flip: Share


class ClassifyModel(Net):
    pool: Pool
    hidden: Annotated[tuple[Width, ...], Field(max_length=16)]
    dropout: BelowOne


class SegmentData(Part):
    train: Text
    train_images: Text | None
    train_labels: Text | None
    val: Text
    val_images: Text | None
    val_labels: Text | None
    ignore: Annotated[tuple[Annotated[int, whole(0, 255)], ...], Field(max_length=256)]
    fraction: DataShare
    fraction_seed: FractionSeed
    num_workers: Workers
    cache: Flag

    @model_validator(mode="after")
    def _same_kind_of_labels(self) -> "SegmentData":
        if (self.train_labels is None) != (self.val_labels is None):
            name, other = ("train", "val") if self.train_labels is None else ("val", "train")
            raise ValueError(f"data.{name}_labels: missing, but data.{other}_labels is given; expected both or neither")
        return self


class SegmentInput(InputPart):
    short: Sizes
    long: Side
    test_short: Side
    test_long: Side
    flip: Share

    @model_validator(mode="after")
    def _ordered(self) -> "SegmentInput":
        check_sides("input.short", self.short, "input.long", self.long)
        check_sides("input.test_short", (self.test_short,), "input.test_long", self.test_long)
        return self


class SemanticPart(Part):
    channels: Width
    norm: Flag
    loss_stride: Stride
    weight: Factor


class SegmentModel(Net):
    backbone: Annotated[ResNetPart | TimmPart | DetNetPart, Field(discriminator="kind")]
    pyramid_channels: Width
    pyramid_norm: Flag
    semantic: SemanticPart

    @model_validator(mode="after")
    def _groups_fit(self) -> "SegmentModel":
        if self.pyramid_norm:
            self.require_groups("model.pyramid_channels", self.pyramid_channels)
        if self.semantic.norm:
            self.require_groups("model.semantic.channels", self.semantic.channels)
        return self
