"""A study as a user writes it: what is compared, on how much data, for how long, and the rule that decides.

Everything a plan needs is checked here, before anything runs; no model is imported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator

from headstart.recipe import flatten
from headstart.resolve import find, read_yaml, validate
from headstart.schedule import parse_schedule
from headstart.study.verdict import Rule, fewest_seeds

PRETRAIN_PREFIX = "pretrain:"  # "start.weights: pretrain:NAME" means the result of this study's own pre-training
WEIGHTS_FIELD = "start.weights"
SMALL = "small"  # the one size besides a study as written, and the folder that the segments of all small twins share
# The metrics that evaluation rows hold. A rule that names another would end in "not decidable" after days of runs.
METRICS = (
    *(
        f"{kind}.{name}"
        for kind in ("box", "mask", "keypoints")
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
    ),
    "top1",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # names become parts of folder names


def _none_is_empty(value: object) -> object:
    return {} if value is None else value


def _seeds(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"seeds: {value}, expected at least one")
        return tuple(range(value))
    return value


def _schedules(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"schedules: {value!r}, expected a list such as [{value}]")
    return value


def _tuning(value: object) -> object:
    return {"note": value} if isinstance(value, str) else value


def _fractions(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple({"fraction": v} if isinstance(v, int | float | str) else v for v in value)
    return value


Patch = Annotated[dict[str, Any], BeforeValidator(_none_is_empty)]
Schedules = Annotated[tuple[str, ...] | dict[str, tuple[str, ...]], BeforeValidator(_schedules)]


def check_names(given: Collection[object], known: Collection[str], what: str) -> None:
    """Raise a ValueError naming the nearest known name for the first given one that is unknown."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, known)) or 'none'}"
            raise ValueError(f"{what} {name!r} is not known, {hint}")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            check_names(data, cls.model_fields, f"{cls.section} key")
        return data


class DataFraction(_Part):
    """A share of the training images; its own schedules, if any, replace the study's."""

    section = "fractions"
    fraction: float = Field(gt=0, le=1)
    schedules: Schedules = ()


class Pretraining(_Part):
    """A run of this study that makes weights; arms take them with `start.weights: pretrain:NAME`.

    uses: for how many trainings these weights are meant to serve; the "whole" cost of one counts that share of them.
    """

    section = "pretrain"
    recipe: str
    set: Patch = {}
    uses: float = Field(default=1, ge=1)


class PublicStart(_Part):
    """Which documented public weights an arm starts from (a name in public_weights.py), and for how many uses."""

    section = "public_weights"
    name: str
    uses: float = Field(default=1, ge=1)


class Tuning(_Part):
    """How much an arm was tuned before the study: trials, their steps in all, what was tried; a text is the note."""

    section = "tuning"
    trials: StrictInt | None = Field(default=None, ge=0)
    steps: StrictInt | None = Field(default=None, ge=0)
    note: str = ""


class Study(_Part):
    """Arms, schedules, fractions and seeds of one paired comparison, and the rule written before the first run.

    arms are patches on the recipe, by dotted field. schedules are names such as "2x", the same for all arms or a list
    an arm. fractions keep the given order. seeds N means 0..N-1. `share: false` runs every cell from its own start.
    public_weights says, by arm, what weights made elsewhere have cost; tuning, by arm, what was spent on finding its
    settings (shown, never judged). `runs` names a folder beside the study's own for its segments: studies that share it
    share what is equal. `small` replaces whole fields where the study is asked for at size small (`sized`).
    `paper` puts that table of the paper into the report's schedule table.
    Raises ValueError (one line of it through `parse_study`) for anything that could not run or not be decided.
    """

    section = "study"
    name: str
    recipe: str
    set: Patch = {}
    arms: dict[str, Patch] = Field(min_length=1)
    schedules: Schedules = ()
    fractions: Annotated[tuple[DataFraction, ...], BeforeValidator(_fractions)] = (DataFraction(fraction=1.0),)
    seeds: Annotated[tuple[StrictInt, ...], BeforeValidator(_seeds)] = (0,)
    pretrain: dict[str, Pretraining] = {}
    public_weights: dict[str, PublicStart] = {}
    tuning: dict[str, Annotated[Tuning, BeforeValidator(_tuning)]] = {}
    rule: Rule | None = None
    share: bool = True
    runs: str | None = None
    small: Patch = {}
    paper: Literal["R50", "R101"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _rule_keys(cls, data: object) -> object:
        if isinstance(data, Mapping) and isinstance(data.get("rule"), Mapping):
            check_names(data["rule"], Rule.__dataclass_fields__, "rule key")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        check_names(self.small, [name for name in Study.model_fields if name not in ("name", "small")], "small: key")
        runs = [] if self.runs is None else [self.runs]
        for field, names in (("name", [self.name]), ("runs", runs), ("arms", self.arms), ("pretrain", self.pretrain)):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{field}: {name!r} is not a name: letters, digits, _ . + - and at most 64 of them"
                    )
        _check_distinct("seeds", self.seeds)
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds: {list(self.seeds)}, expected at least one, none negative")
        if not self.fractions:
            raise ValueError("fractions: none given, expected at least one between 0 and 1")
        _check_distinct("fractions", [entry.fraction for entry in self.fractions])
        for entry in self.fractions:
            for arm in self.arms:
                _check_schedules(self.schedules_of(arm, entry.fraction), arm, entry.fraction)
        for arm in self.arms:
            self.pretraining_of(arm)
        check_names(self.tuning, self.arms, "tuning: arm")
        _check_public(self)
        _check_rule(self)
        return self

    def schedules_of(self, arm: str, fraction: float) -> tuple[str, ...]:
        """Names of the schedules of one arm at one fraction, in the order given."""
        entry = next(entry for entry in self.fractions if entry.fraction == fraction)
        chosen = entry.schedules or self.schedules
        if not isinstance(chosen, dict):
            return chosen
        check_names(chosen, self.arms, "schedules: arm")
        return chosen.get(arm, ())

    def weights_of(self, arm: str) -> object:
        """What the study file says of an arm's weights; None where it says nothing."""
        return {**flatten(self.set), **flatten(self.arms[arm])}.get(WEIGHTS_FIELD)

    def pretraining_of(self, arm: str) -> str | None:
        """The entry of `pretrain` whose weights an arm starts from; None for any other start."""
        weights = self.weights_of(arm)
        if not isinstance(weights, str) or not weights.startswith(PRETRAIN_PREFIX):
            return None
        name = weights.removeprefix(PRETRAIN_PREFIX)
        check_names([name], self.pretrain, f"arms.{arm}.{WEIGHTS_FIELD}: pretrain entry")
        return name


def parse_study(data: Mapping[str, Any], *, source: str) -> Study:
    """The study of a mapping; a ValueError is one line: source, field, value, what was expected."""
    return validate(Study, dict(data), source)


def sized(data: Mapping[str, Any], size: object, *, source: str) -> dict[str, Any]:
    """A study's mapping at a size: None as written; "small" its small twin, named NAME-small.

    The section `small` replaces whole fields. ValueError for another size, and for a study without that section.
    """
    if size is None:
        return dict(data)
    if size != SMALL:
        raise ValueError(f"{source}: size: {size!r} is not known, expected {SMALL!r}, or none for the study as written")
    twin = data.get(SMALL)
    if not isinstance(twin, Mapping) or not twin:
        raise ValueError(f"{source}: size: this study has no small twin, expected a section {SMALL!r} in the file")
    own = {key: value for key, value in data.items() if key != SMALL}
    return {**own, "runs": SMALL, **twin, "name": f"{data.get('name')}-{SMALL}"}


def changed(data: Mapping[str, Any], changes: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """A study's mapping with fields of its own changed: "seeds", "arms.NAME.FIELD", "rule.FIELD" and the like."""
    data = dict(data)
    for key, value in changes.items():
        section, _, field = key.partition(".")
        if section == "arms":
            arm, _, field = field.partition(".")
            check_names([arm], data.get("arms") or {}, f"{source}: {key}: arm")
            data["arms"] = {**data["arms"], arm: {**flatten(data["arms"][arm] or {}), field: value}}
        else:
            data[section] = {**(data.get(section) or {}), field: value} if field else value
    return data


def read_study(name: str | Path, *, size: object = None, changes: Mapping[str, Any] | None = None) -> Study:
    """The study of a shipped name or a YAML file, at a size (`sized`) and with fields changed (`changed`).

    Raises ValueError, naming the file, for what cannot be read, a key given twice, or a study that could not run.
    """
    source = str(find(str(name), "studies"))
    data = sized(read_yaml(source), size, source=source)
    return parse_study(changed(data, changes or {}, source=source), source=source)


def _check_distinct(field: str, values: Collection[object]) -> None:
    twice = [value for value in values if list(values).count(value) > 1]
    if twice:
        raise ValueError(f"{field}: {twice[0]!r} is given twice")


def _check_schedules(names: tuple[str, ...], arm: str, fraction: float) -> None:
    if not names:
        raise ValueError(f'schedules: none for arm {arm!r} at fraction {fraction:g}, expected names such as "2x"')
    lengths = [parse_schedule(name) for name in names]
    _check_distinct("schedules", [f"{float(n):g}x" if unit == "x" else f"{n} steps" for n, unit in lengths])


def _check_public(study: Study) -> None:
    check_names(study.public_weights, study.arms, "public_weights: arm")
    for arm in study.public_weights:
        if study.weights_of(arm) is None or study.pretraining_of(arm):
            raise ValueError(
                f"public_weights.{arm} has no effect: the arm's start.weights is {study.weights_of(arm)!r}, expected "
                "a file of weights made elsewhere (the cost of a pretrain entry is measured, its uses stand there)"
            )


def _check_rule(study: Study) -> None:
    if study.rule is None:
        return
    check_names([study.rule.metric], METRICS, "rule.metric")
    check_names([study.rule.baseline, study.rule.candidate], study.arms, "rule: arm")
    if study.rule.baseline == study.rule.candidate:
        raise ValueError(f"rule.candidate is {study.rule.candidate!r}, the baseline itself, expected another arm")
    least = fewest_seeds(study.rule)
    if study.rule.test == "sign_flip" and len(study.seeds) < least:
        raise ValueError(
            f"seeds: {len(study.seeds)} can never satisfy rule.test sign_flip at level {study.rule.level:g} (its "
            f"p value never falls below 2/2^S two-sided, 1/2^S one-sided), expected at least {least} seeds or test: t"
        )
