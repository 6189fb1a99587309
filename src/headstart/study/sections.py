"""Sections of a study file, the types of its fields, and its paths."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from headstart.files import is_file_name
from headstart.recipe.dotted import flatten
from headstart.recipe.fields import DataShare, Seed, Text, real, whole
from headstart.recipe.load import shipped
from headstart.recipe.recipe import Recipe
from headstart.recipe.refusal import OTHER_NAMES, field_names
from headstart.recipe.schedule import parse_schedule

# The tables of report/paper.yaml, and the studies of report/earlier.yaml.
PaperTable = Literal[
    "R50", "R101", "Table 2", "scale augmentation", "cascade", "test augmentation", "X152", "keypoints", "VGG-16",
    "35k", "10k", "3.5k", "1k", "VOC",
]  # fmt: skip
EarlierStudy = Literal["bccd", "bccd_more"]
PRETRAIN_PREFIX = "pretrain:"  # "start.weights: pretrain:NAME" means the result of this study's own pre-training
MOST = 1000  # arms, schedules, fractions and seeds each: verdicts advise no more seeds either (rule.MOST_SEEDS)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # names become parts of folder names


def check_names(given: Collection[object], known: Collection[str], what: str) -> None:
    """Raise a ValueError naming the nearest known name for the first given one that is unknown."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:100], known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, known)) or 'none'}"
            raise ValueError(f"{what} {reprlib.repr(name)} is not known, {hint}")


def check_name(field: str, name: str) -> None:
    """Refuse a name that cannot be part of the name of a folder."""
    if not _NAME.fullmatch(name) or not is_file_name(name):
        raise ValueError(
            f"{field}: {reprlib.repr(name)} is not a name: letters, digits, _ . + - and at most 64 of them, no dot at "
            "the end, nor a name that Windows keeps for itself, such as con"
        )


def _schedules(value: object) -> object:
    if isinstance(value, str):
        try:
            parse_schedule(value)
        except ValueError as error:
            raise ValueError(f"schedules: {error}") from None
        raise ValueError(f"schedules: {value!r}, expected a list such as [{value}]")
    return value


def _seeds(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"seeds: {value}, expected at least one")
        if value > MOST:
            raise ValueError(
                f"seeds: {value} is a count of seeds, expected at most {MOST:,}; the seed {value} alone is [{value}]"
            )
        return tuple(range(value))
    if not isinstance(value, list | tuple):
        raise ValueError(f"seeds: {reprlib.repr(value)}, expected their number, or a list such as [0, 1, 2]")
    return value


def _fractions(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple({"fraction": v} if isinstance(v, int | float | str) else v for v in value)
    return value


Patch = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
Names = Annotated[tuple[str, ...], Field(max_length=MOST)]
Schedules = Annotated[Names | dict[str, Names], BeforeValidator(_schedules)]
Images = Annotated[int, whole(1, 10**9)]
Uses = Annotated[float, real(ge=1, le=10**9)]
Amount = Annotated[float, real(gt=0, le=10**9)]


class StudySection(BaseModel):
    """A frozen section of a study that refuses unknown keys, naming the nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for name in data if cls.section == "study" else ():
                _refuse_recipe_field(str(name))
            check_names(data, cls.model_fields, f"{cls.section} key")
        return data


def _refuse_recipe_field(name: str) -> None:
    """ValueError for a key that belongs to a study's recipe, also by a name that other trainers have."""
    section = name.partition(".")[0]
    fields = OTHER_NAMES[name][1] if name in OTHER_NAMES else (name,)
    if name in OTHER_NAMES or any(field.startswith(f"{section}.") for field in field_names(Recipe)):
        raise ValueError(f"study key {name!r} is not known: fields of the recipe stand below set, as {fields[0]} there")


class DataFraction(StudySection):
    """A share of the training images, or their number; its own schedules, if any, replace the study's.

    Plans know shares only: `StudySpec.on` turns numbers into shares.
    """

    section = "fractions"
    fraction: DataShare | None = None
    images: Images | None = None
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

    @property
    def rounded(self) -> float | str:
        """The amount with the digits of `plan.lineage_name`: runs of equal rounded amounts would share a name."""
        return self.amount if self.fraction is None else float(f"{self.fraction:.6g}")


class Pretraining(StudySection):
    """A pre-training of this study; arms take its weights with `start.weights: pretrain:NAME`.

    recipe: any recipe; by default the study's own with its `set` and the command line's overrides. The pre-training is
    repeated for each fraction and seed of its arms, unless `set` states them (`data.fraction`, `seed`).
    uses: the number of trainings over which its cost is amortised.
    """

    section = "pretrain"
    recipe: Text | None = None
    set: Patch = Field(default_factory=dict)
    uses: Uses = 1

    @property
    def follows(self) -> frozenset[str]:
        """The fields that follow the arm: `data.fraction` and `seed`, unless `set` states them."""
        return frozenset(("data.fraction", "seed")) - flatten(self.set).keys()

    def place(self, name: str, fraction: float, seed: int) -> tuple[str, float, int]:
        """Name, fraction and seed of the segment for an arm's fraction and seed; 1 and 0 for those not followed."""
        parts, follows = [f"pretrain-{name}"], self.follows
        parts += [f"f{fraction:.6g}"] if "data.fraction" in follows else []
        parts += [f"s{seed}"] if "seed" in follows else []
        return "-".join(parts), fraction if "data.fraction" in follows else 1.0, seed if "seed" in follows else 0


class PublicStart(StudySection):
    """Documented public weights of an arm: a name in weights/public.yaml, and the uses that share their cost."""

    section = "public_weights"
    name: Text
    uses: Uses = 1


class Tuning(StudySection):
    """The tuning of an arm before the study: trials, their steps in all, and a note on what was tried."""

    section = "tuning"
    trials: Annotated[int, whole(0, 10**9)] | None = None
    steps: Annotated[int, whole(0, 10**12)] | None = None
    note: Text = ""


class Account(StudySection):
    """Size and averages of the training set, for a study that counts samples and trains nothing."""

    section = "account"
    num_images: Images
    instances_per_image: Annotated[float, real(ge=0, le=10**9)]
    pixels_per_image: Amount


class Search(StudySection):
    """Values to be tried on one arm, every combination of the grid {field: values}, before the study itself.

    All trials have one schedule, amount of data (all, if none is given) and seed; the highest metric wins.
    """

    section = "search"
    arm: str
    grid: dict[str, Annotated[tuple[Any, ...], Field(max_length=MOST)]] = Field(min_length=1, max_length=20)
    schedule: str
    fraction: DataShare | None = None
    images: Images | None = None
    seed: Seed = 0
    metric: str = "box.AP"


Seeds = Annotated[tuple[Seed, ...], Field(max_length=MOST), BeforeValidator(_seeds)]
Fractions = Annotated[tuple[DataFraction, ...], Field(max_length=MOST), BeforeValidator(_fractions)]
Note = BeforeValidator(lambda value: {"note": value} if isinstance(value, str) else value)
Tunings = dict[str, Annotated[Tuning, Note]]

_SETS = [f".data.{split}{part}" for split in ("train", "val") for part in ("", "_images", "_labels")]
_PATHS = (*_SETS, ".start.weights")


def with_places(patch: Mapping[str, Any], folder: Path, prefix: str = "") -> dict[str, Any]:
    """A study's mapping in which paths absent from the working directory but present in `folder` point there."""
    made: dict[str, Any] = {}
    for key, value in patch.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            made[key] = with_places(value, folder, name)
        elif isinstance(value, str) and name.endswith(_PATHS) and not _is_there(Path(), value):
            made[key] = str(folder / value) if _is_there(folder, value) else value
        else:
            made[key] = value
    return made


def _is_there(folder: Path, value: str) -> bool:
    """True if PATH, or the path of PATH:SPLIT, exists; False for a name that no file can have."""
    try:
        return any((folder / part).exists() for part in (value, value.rpartition(":")[0]) if part)
    except (OSError, ValueError):
        return False


def refuse_missing_data(name: str, train: str) -> None:
    """ValueError for a shipped study whose data are not there, with the commands of its header that make them."""
    files = {shown.rpartition("/")[2]: file for shown, file in shipped("studies").items()}
    file = files.get(name.removesuffix("-small"))
    if file is None or not train.startswith("data/") or _is_there(Path(), train):
        return
    header = [line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    made = [line for line in header if line.startswith("headstart data shapes ")]
    how = f"make it with: {' && '.join(made)}" if made else f"the header of {file} says where it is from"
    raise ValueError(f"study {name}: data.train = {train!r}: no such file or folder; {how}")
