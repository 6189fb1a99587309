"""A study as a user writes it: what is compared, on how much data, for how long, and the rule that decides.

Everything a plan needs is checked here, before anything runs; no model is imported.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictInt, model_validator

from headstart.files import is_file_name
from headstart.recipe.load import find, read_yaml, validate
from headstart.recipe.recipe import flatten
from headstart.recipe.schedule import parse_schedule
from headstart.study.branches import Branch, branch_of, check_branch, patch_of
from headstart.study.checks import (
    METRICS,
    Account,
    PaperTable,
    Part,
    Search,
    check_distinct,
    check_names,
    check_search,
    check_variant,
)
from headstart.study.study_file import changed, sized
from headstart.verdict.verdict import Rule, fewest_seeds

PRETRAIN_PREFIX = "pretrain:"  # "start.weights: pretrain:NAME" means the result of this study's own pre-training
WEIGHTS_FIELD = "start.weights"
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


class DataFraction(Part):
    """A share of the training images, or their number; its own schedules, if any, replace the study's.

    Plans know shares only: `Study.on` turns numbers into shares.
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
        """How much data this is, in words."""
        return f"{self.images:,} images" if self.fraction is None else f"fraction {self.fraction:g}"


class Pretraining(Part):
    """A run of this study that makes weights; arms take them with `start.weights: pretrain:NAME`.

    uses: for how many trainings these weights are meant to serve; the "whole" cost of one counts that share of them.
    """

    section = "pretrain"
    recipe: str
    set: Patch = Field(default_factory=dict)
    uses: float = Field(default=1, ge=1)


class PublicStart(Part):
    """Which documented public weights an arm starts from (a name in weights/public.yaml), and for how many uses."""

    section = "public_weights"
    name: str
    uses: float = Field(default=1, ge=1)


class Tuning(Part):
    """How much an arm was tuned before the study: trials, their steps in all, what was tried; a text is the note."""

    section = "tuning"
    trials: StrictInt | None = Field(default=None, ge=0)
    steps: StrictInt | None = Field(default=None, ge=0)
    note: str = ""


class Study(Part):
    """Arms, schedules, fractions and seeds of one paired comparison, and the rule written before the first run.

    arms are patches on the recipe, by dotted field. An arm with `branch_of: ARM` and `last: DURATION` is that arm until
    so long before the end of each schedule, and has its own patch on top of that arm's from there. schedules are names
    such as "2x", the same for all arms or a list an arm. fractions keep the given order. seeds N means 0..N-1.
    `share: false` runs every cell from its own start.
    also_evaluate {variant: patch} judges the end of every schedule once more under each patch; "VARIANT:METRIC" is then
    a metric. search is what `headstart study search` tries.
    public_weights says, by arm, what weights made elsewhere have cost; tuning, by arm, what was spent on finding its
    settings (shown, never judged). `runs` names a folder beside the study's own for its segments: studies that share it
    share what is equal. `small` replaces whole fields where the study is asked for at size small (`sized`).
    `paper` puts that table of the paper into the report's schedule table. A study with `account` trains nothing: it
    counts what its arms would see.
    Raises ValueError (one line of it through `parse_study`) for anything that could not run or not be decided.
    """

    section = "study"
    name: str
    recipe: str
    set: Patch = Field(default_factory=dict)
    arms: dict[str, Patch] = Field(min_length=1)
    schedules: Schedules = ()
    fractions: Annotated[tuple[DataFraction, ...], BeforeValidator(_fractions)] = (DataFraction(fraction=1.0),)
    seeds: Annotated[tuple[StrictInt, ...], BeforeValidator(_seeds)] = (0,)
    pretrain: dict[str, Pretraining] = Field(default_factory=dict)
    public_weights: dict[str, PublicStart] = Field(default_factory=dict)
    tuning: dict[str, Annotated[Tuning, BeforeValidator(_tuning)]] = Field(default_factory=dict)
    rule: Rule | None = None
    also_evaluate: dict[str, Patch] = Field(default_factory=dict)
    search: Search | None = None
    share: bool = True
    runs: str | None = None
    small: Patch = Field(default_factory=dict)
    paper: PaperTable | None = None
    account: Account | None = None

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
        named = {"runs": runs, "arms": self.arms, "pretrain": self.pretrain, "also_evaluate": self.also_evaluate}
        for field, names in {"name": [self.name], **named}.items():
            for name in names:
                if not _NAME.fullmatch(name) or not is_file_name(name):
                    raise ValueError(
                        f"{field}: {reprlib.repr(name)} is not a name: letters, digits, _ . + - and at most 64 of "
                        "them, no dot at the end, nor a name that Windows keeps for itself, such as con"
                    )
        check_distinct("seeds", self.seeds)
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds: {list(self.seeds)}, expected at least one, none negative")
        if not self.fractions:
            raise ValueError("fractions: none given, expected at least one between 0 and 1")
        check_distinct("fractions", [entry.fraction or entry.amount for entry in self.fractions])
        for entry in self.fractions:
            for arm in self.arms:
                _check_schedules(self.schedules_of(arm, entry), arm, entry.amount)
        for arm in self.arms:
            check_branch(self.arms, arm, share=self.share)
            self.pretraining_of(arm)
        check_names(self.tuning, self.arms, "tuning: arm")
        _check_public(self)
        for name, patch in self.also_evaluate.items():
            check_variant(name, flatten(patch))
        if self.search is not None:
            check_search(self.search, self.arms)
            if self.branch_of(self.search.arm):
                raise ValueError(
                    f"search.arm: {self.search.arm!r} is a branch, expected an arm with a start of its own"
                )
        _check_rule(self)
        return self

    def on(self, num_images: int) -> Study:
        """The study on a training set of so many images: every number of images becomes the share that it is.

        ValueError for more images than there are, and for two equal shares.
        """
        entries = []
        for entry in self.fractions:
            if entry.images is not None and entry.images > num_images:
                raise ValueError(f"fractions: {entry.images:,} images, but the training set has {num_images:,}")
            share = entry.images / num_images if entry.fraction is None else entry.fraction
            entries.append({"fraction": share, "schedules": entry.schedules})
        return parse_study({**self.model_dump(), "fractions": entries}, source=f"study {self.name}")

    def schedules_of(self, arm: str, entry: DataFraction) -> tuple[str, ...]:
        """Names of the schedules of one arm at one amount of data, in the order given."""
        chosen = entry.schedules or self.schedules
        if not isinstance(chosen, dict):
            return chosen
        check_names(chosen, self.arms, "schedules: arm")
        return chosen.get(arm, ())

    def branch_of(self, arm: str) -> Branch | None:
        """Where an arm leaves another one's trunk; None for an arm with a start of its own."""
        return branch_of(self.arms, arm)

    def patch_of(self, arm: str) -> dict[str, Any]:
        """An arm's patch on the recipe {dotted field: value}; a branch has the patch of its parent below its own."""
        return patch_of(self.arms, arm)

    def weights_of(self, arm: str) -> object:
        """What the study file says of an arm's weights; None where it says nothing."""
        return {**flatten(self.set), **self.patch_of(arm)}.get(WEIGHTS_FIELD)

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


def read_study(name: str | Path, *, size: object = None, changes: Mapping[str, Any] | None = None) -> Study:
    """The study of a shipped name or a YAML file, at a size (`sized`) and with fields changed (`changed`).

    Raises ValueError, naming the file, for what cannot be read, a key given twice, or a study that could not run.
    """
    source = str(find(str(name), "studies"))
    data = sized(read_yaml(source), size, source=source)
    return parse_study(changed(data, changes or {}, source=source), source=source)


def _check_schedules(names: tuple[str, ...], arm: str, amount: str) -> None:
    if not names:
        raise ValueError(f'schedules: none for arm {arm!r} at {amount}, expected names such as "2x"')
    lengths = [parse_schedule(name) for name in names]
    check_distinct("schedules", [f"{float(n):g}x" if unit == "x" else f"{n} steps" for n, unit in lengths])


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
    variant, _, metric = study.rule.metric.rpartition(":")
    check_names([metric], METRICS, "rule.metric")
    check_names([variant] if variant else [], study.also_evaluate, "rule.metric: also_evaluate entry")
    check_names([study.rule.baseline, study.rule.candidate], study.arms, "rule: arm")
    if study.rule.baseline == study.rule.candidate:
        raise ValueError(f"rule.candidate is {study.rule.candidate!r}, the baseline itself, expected another arm")
    least = fewest_seeds(study.rule)
    if study.rule.test == "sign_flip" and len(study.seeds) < least:
        raise ValueError(
            f"seeds: {len(study.seeds)} can never satisfy rule.test sign_flip at level {study.rule.level:g} (its "
            f"p value never falls below 2/2^S two-sided, 1/2^S one-sided), expected at least {least} seeds or test: t"
        )
