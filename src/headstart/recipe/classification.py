"""Sections of classification recipes."""

from typing import Annotated

from pydantic import Field

from headstart.recipe.fields import (
    BelowOne,
    DataShare,
    Flag,
    FractionSeed,
    InputPart,
    Part,
    Pool,
    Share,
    Side,
    Text,
    Width,
    Workers,
)
from headstart.recipe.net import Net


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
