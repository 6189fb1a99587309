"""What the parts of a study file have in common, and those that say what is measured and searched."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from headstart.recipe.recipe import EVALUATION_FIELDS, TRAINING_FIELDS
from headstart.recipe.schedule import parse_schedule
from headstart.tasks import METRIC_KINDS

# The metrics that evaluation rows hold. A rule that names another would end in "not decidable" after days of runs.
METRICS = (
    "top1",
    *(f"{kind}.{name}" for kind, own in METRIC_KINDS.items() if kind != "class" for name in own.metrics),
)

# The tables of study/paper.py.
PaperTable = Literal[
    "R50", "R101", "Table 2", "scale augmentation", "cascade", "test augmentation", "X152", "keypoints", "VGG-16",
    "35k", "10k", "3.5k", "1k", "VOC",
]  # fmt: skip


def check_names(given: Collection[object], known: Collection[str], what: str) -> None:
    """Raise a ValueError naming the nearest known name for the first given one that is unknown."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, known)) or 'none'}"
            raise ValueError(f"{what} {name!r} is not known, {hint}")


class Part(BaseModel):
    """A frozen section of a study that refuses unknown keys, naming the nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            check_names(data, cls.model_fields, f"{cls.section} key")
        return data


class Account(Part):
    """What an image of the training set counts for, for a study that is only an account of what its arms would see."""

    section = "account"
    num_images: StrictInt = Field(ge=1)
    instances_per_image: float = Field(ge=0)
    pixels_per_image: float = Field(gt=0)


class Search(Part):
    """Values to be tried on one arm, every combination of the grid {field: values}, before the study itself.

    All trials are of one schedule, amount of data (all, if none is given) and seed; the highest metric wins.
    """

    section = "search"
    arm: str
    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)
    schedule: str
    fraction: float | None = Field(default=None, gt=0, le=1)
    images: StrictInt | None = Field(default=None, ge=1)
    seed: StrictInt = Field(default=0, ge=0)
    metric: str = "box.AP"


def check_distinct(field: str, values: Collection[object]) -> None:
    """ValueError for a value that is given twice."""
    twice = [value for value in values if list(values).count(value) > 1]
    if twice:
        raise ValueError(f"{field}: {twice[0]!r} is given twice")


def check_variant(name: str, patch: Mapping[str, Any]) -> None:
    """Only what changes an evaluation, and changes it: the checkpoint stays the same."""
    if name == "train":
        raise ValueError('also_evaluate.train: "train:METRIC" are the scores on training images, expected another name')
    if not patch:
        raise ValueError(f"also_evaluate.{name}: is empty, expected fields such as evaluate.tta.enabled: true")
    for field in patch:
        if not field.startswith(EVALUATION_FIELDS) or field in TRAINING_FIELDS:
            raise ValueError(
                f"also_evaluate.{name}: {field} is no part of one evaluation, expected evaluate.… or input.test_…"
            )


def check_search(search: Search, arms: Collection[str]) -> None:
    """ValueError for a search of an unknown arm or metric, or of fewer than two combinations."""
    check_names([search.arm], arms, "search.arm: arm")
    check_names([search.metric], METRICS, "search.metric")
    parse_schedule(search.schedule)
    if search.fraction is not None and search.images is not None:
        raise ValueError("search: fraction and images are both given, expected one of them")
    trials = 1
    for field, values in search.grid.items():
        if not values:
            raise ValueError(f"search.grid.{field}: no values, expected a list")
        check_distinct(f"search.grid.{field}", values)
        trials *= len(values)
    if trials == 1:
        raise ValueError("search.grid: a single combination is no search, expected at least two")
