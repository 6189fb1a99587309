"""Sections of a study file, and the checks of its arms, variants and search."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator

from headstart.recipe.dotted import flatten
from headstart.recipe.recipe import EVALUATION_FIELDS, TRAINING_FIELDS
from headstart.recipe.schedule import duration, parse_schedule
from headstart.tasks import METRIC_KINDS

# The metrics that evaluation rows hold. A rule that names another would end in "not decidable" after days of runs.
METRICS = (
    "top1",
    *(f"{kind}.{name}" for kind, own in METRIC_KINDS.items() if kind != "class" for name in own.metrics),
)

# The tables of report/paper.py.
PaperTable = Literal[
    "R50", "R101", "Table 2", "scale augmentation", "cascade", "test augmentation", "X152", "keypoints", "VGG-16",
    "35k", "10k", "3.5k", "1k", "VOC",
]  # fmt: skip
BRANCH_KEYS = ("branch_of", "last")  # the keys of an arm that are no fields of a recipe
Arms = Mapping[str, Mapping[str, Any]]


def check_names(given: Collection[object], known: Collection[str], what: str) -> None:
    """Raise a ValueError naming the nearest known name for the first given one that is unknown."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, known)) or 'none'}"
            raise ValueError(f"{what} {name!r} is not known, {hint}")


def check_distinct(field: str, values: Collection[object]) -> None:
    """ValueError for a value that is given twice."""
    twice = [value for value in values if list(values).count(value) > 1]
    if twice:
        raise ValueError(f"{field}: {twice[0]!r} is given twice")


def _none_is_empty(value: object) -> object:
    return {} if value is None else value


def _schedules(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"schedules: {value!r}, expected a list such as [{value}]")
    return value


Patch = Annotated[dict[str, Any], BeforeValidator(_none_is_empty)]
Schedules = Annotated[tuple[str, ...] | dict[str, tuple[str, ...]], BeforeValidator(_schedules)]


class StudySection(BaseModel):
    """A frozen section of a study that refuses unknown keys, naming the nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            check_names(data, cls.model_fields, f"{cls.section} key")
        return data


class DataFraction(StudySection):
    """A share of the training images, or their number; its own schedules, if any, replace the study's.

    Plans know shares only: `StudySpec.on` turns numbers into shares.
    """

    section = "fractions"
    fraction: float | None = Field(default=None, gt=0, le=1)
    images: StrictInt | None = Field(default=None, ge=1)
    schedules: Schedules = ()

    @model_validator(mode="after")
    def _one_amount(self) -> DataFraction:
        if (self.fraction is None) == (self.images is None):
            raise ValueError("fractions: each entry takes one of fraction (0 to 1) and images (a number)")
        return self

    @property
    def amount(self) -> str:
        """The amount of data, in words."""
        return f"{self.images:,} images" if self.fraction is None else f"fraction {self.fraction:g}"


class Pretraining(StudySection):
    """A pre-training of this study; arms take its weights with `start.weights: pretrain:NAME`.

    uses: the number of trainings over which its cost is amortised.
    """

    section = "pretrain"
    recipe: str
    set: Patch = Field(default_factory=dict)
    uses: float = Field(default=1, ge=1)


class PublicStart(StudySection):
    """The documented public weights that an arm starts from (a name in weights/public.yaml), and for how many uses."""

    section = "public_weights"
    name: str
    uses: float = Field(default=1, ge=1)


class Tuning(StudySection):
    """The tuning of an arm before the study: trials, their steps in all, and a note on what was tried."""

    section = "tuning"
    trials: StrictInt | None = Field(default=None, ge=0)
    steps: StrictInt | None = Field(default=None, ge=0)
    note: str = ""


class Account(StudySection):
    """Samples of an image of the training set, for a study that counts what its arms would see and trains nothing."""

    section = "account"
    num_images: StrictInt = Field(ge=1)
    instances_per_image: float = Field(ge=0)
    pixels_per_image: float = Field(gt=0)


class Search(StudySection):
    """Values to be tried on one arm, every combination of the grid {field: values}, before the study itself.

    All trials have one schedule, amount of data (all, if none is given) and seed; the highest metric wins.
    """

    section = "search"
    arm: str
    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)
    schedule: str
    fraction: float | None = Field(default=None, gt=0, le=1)
    images: StrictInt | None = Field(default=None, ge=1)
    seed: StrictInt = Field(default=0, ge=0)
    metric: str = "box.AP"


def _seeds(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"seeds: {value}, expected at least one")
        return tuple(range(value))
    return value


def _fractions(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple({"fraction": v} if isinstance(v, int | float | str) else v for v in value)
    return value


def _tuning(value: object) -> object:
    return {"note": value} if isinstance(value, str) else value


Seeds = Annotated[tuple[StrictInt, ...], BeforeValidator(_seeds)]
Fractions = Annotated[tuple[DataFraction, ...], BeforeValidator(_fractions)]
Tunings = dict[str, Annotated[Tuning, BeforeValidator(_tuning)]]


@dataclass(frozen=True)
class Branch:
    """The arm whose trunk another continues, and for how long: a duration, or "3x" for three times the base."""

    parent: str
    last: str | int


def branch_of(arms: Arms, arm: str) -> Branch | None:
    """The branch that an arm is; None for an arm with a start of its own."""
    return Branch(arms[arm]["branch_of"], arms[arm]["last"]) if "branch_of" in arms[arm] else None


def patch_of(arms: Arms, arm: str) -> dict[str, Any]:
    """An arm's patch on the recipe {dotted field: value}; a branch has the patch of its parent below its own."""
    own = flatten({key: value for key, value in arms[arm].items() if key not in BRANCH_KEYS})
    branch = branch_of(arms, arm)
    return own if branch is None else {**flatten(dict(arms[branch.parent])), **own}


def check_branch(arms: Arms, arm: str, *, share: bool) -> None:
    """ValueError for a branch that could not begin, or that would be its parent; other arms pass."""
    given = [key for key in BRANCH_KEYS if key in arms[arm]]
    if not given:
        return
    if len(given) == 1:
        missing = next(key for key in BRANCH_KEYS if key not in given)
        raise ValueError(
            f"arms.{arm}: {given[0]} is given without {missing}, expected both, "
            "such as {branch_of: scratch, last: 270k steps}"
        )
    parent, last = arms[arm]["branch_of"], arms[arm]["last"]
    check_names([parent], [name for name in arms if name != arm], f"arms.{arm}.branch_of: arm")
    if "branch_of" in arms[parent]:
        raise ValueError(
            f"arms.{arm}.branch_of: {parent!r} is a branch itself, expected an arm with a start of its own"
        )
    if isinstance(last, str) and last.endswith("x"):
        parse_schedule(last)
    elif not duration(last, batch=1, num_images=1, field=f"arms.{arm}.last"):
        raise ValueError(f"arms.{arm}.last is {last!r}, expected more than nothing")
    own = flatten({key: value for key, value in arms[arm].items() if key not in BRANCH_KEYS})
    wrong = next((field for field in own if field.startswith("start.") and field != "start.freeze"), None)
    if wrong is not None:
        raise ValueError(f"arms.{arm}.{wrong}: a branch starts where arm {parent!r} is, expected no start of its own")
    if not own:
        raise ValueError(f"arms.{arm}: changes nothing of arm {parent!r}, expected at least one field of the recipe")
    if not share:
        raise ValueError(f"arms.{arm}.branch_of: share is false, so that {parent!r} has no trunk, expected share: true")


def check_variant(name: str, patch: Mapping[str, Any]) -> None:
    """ValueError for a variant that changes nothing, or anything but an evaluation."""
    if name == "train":
        raise ValueError('also_evaluate.train: "train:METRIC" are the scores on training images, expected another name')
    if not patch:
        raise ValueError(f"also_evaluate.{name}: is empty, expected fields such as evaluate.tta.enabled: true")
    for field in patch:
        if not field.startswith(EVALUATION_FIELDS) or field in TRAINING_FIELDS:
            raise ValueError(
                f"also_evaluate.{name}: {field} is no part of one evaluation, expected evaluate.… or input.test_…"
            )


def check_search(search: Search, arms: Arms) -> None:
    """ValueError for a search of an unknown arm or metric, of a branch, or of fewer than two combinations."""
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
    if branch_of(arms, search.arm):
        raise ValueError(f"search.arm: {search.arm!r} is a branch, expected an arm with a start of its own")
