"""A study as a user writes it: arms, amounts of data, schedules, seeds, and the rule that decides.

Everything that a plan needs is checked here, before anything runs; no model is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from headstart.recipe.dotted import flatten
from headstart.recipe.fields import Flag, Text
from headstart.recipe.load import find
from headstart.recipe.refusal import validate
from headstart.recipe.yaml_text import read_yaml
from headstart.study import checks
from headstart.study.sections import (
    MOST,
    PRETRAIN_PREFIX,
    Account,
    DataFraction,
    EarlierStudy,
    Fractions,
    PaperTable,
    Patch,
    Pretraining,
    PublicStart,
    Schedules,
    Search,
    Seeds,
    StudySection,
    Tunings,
    check_name,
    check_names,
    with_places,
)
from headstart.verdict.rule import Rule

WEIGHTS_FIELD = "start.weights"
SMALL = "small"  # the one size besides a study as written, and the folder that the segments of all small twins share
BY_ARM = ("arms", "schedules", "fractions", "tuning", "public_weights")  # fields that are given by arm, or may be
# Overrides of these fields, and of those in arms., pretrain. and rule., change the study; all others its recipes.
STUDY_FIELDS = ("seeds", "fractions", "schedules", "name")


class StudySpec(StudySection):
    """A paired comparison: arms, schedules, fractions and seeds, and the rule written before the first run.

    arms are patches on the recipe, by dotted field. An arm with `branch_of: ARM` and `last: DURATION` is a branch: it
    continues that arm's trunk for the last DURATION of each schedule, with its own patch on top. schedules are names
    such as "2x", the same for all arms or a list an arm. fractions keep the given order. seeds N means 0..N-1; under a
    rule with looks they are those of one look, the last by default. `share: false` runs every cell from its own start.
    also_evaluate {variant: patch} evaluates every final checkpoint again under each patch; "VARIANT:METRIC" is then a
    metric. search is the grid of `headstart study search`.
    public_weights gives, by arm, the documented cost of weights made elsewhere. tuning gives, by arm, the effort spent
    on its settings, which is reported and no part of the verdict. `runs` names a folder beside the study's own for its
    segments: studies with the same folder share equal segments. `small` replaces whole fields at size small (`sized`).
    `paper` adds that table of the paper to the report's schedule table. `beside` shows the curves of an earlier study
    below the study's own. A study with `account` trains nothing: the samples that its arms would see are counted.
    allow_overlap accepts validation images that are training images.
    Raises ValueError (one line of it through `parse_study`) for anything that could not run or not be decided.
    """

    section = "study"
    name: str
    recipe: Text
    set: Patch = Field(default_factory=dict)
    arms: dict[str, Patch] = Field(min_length=1, max_length=MOST)
    schedules: Schedules = ()
    fractions: Fractions = (DataFraction(fraction=1.0),)
    seeds: Seeds = (0,)
    pretrain: dict[str, Pretraining] = Field(default_factory=dict)
    public_weights: dict[str, PublicStart] = Field(default_factory=dict)
    tuning: Tunings = Field(default_factory=dict)
    rule: Rule | None = None
    also_evaluate: dict[str, Patch] = Field(default_factory=dict)
    search: Search | None = None
    share: Flag = True
    runs: str | None = None
    small: Patch = Field(default_factory=dict)
    paper: PaperTable | None = None
    beside: EarlierStudy | None = None
    account: Account | None = None
    allow_overlap: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _rule_keys(cls, data: object) -> object:
        if isinstance(data, Mapping) and isinstance(data.get("rule"), Mapping):
            check_names(data["rule"], Rule.__dataclass_fields__, "rule key")
            checks.check_rule_numbers(data["rule"])
            if looks := data["rule"].get("looks"):
                return {"seeds": looks[-1], **data}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        check_names(
            self.small, [name for name in StudySpec.model_fields if name not in ("name", "small")], "small: key"
        )
        named = {"arms": self.arms, "pretrain": self.pretrain, "also_evaluate": self.also_evaluate}
        for field, names in {"name": (self.name,), "runs": () if self.runs is None else (self.runs,), **named}.items():
            for name in names:
                check_name(field, name)
        checks.check_distinct("seeds", self.seeds)
        if not self.seeds:
            raise ValueError("seeds: none given, expected at least one")
        if not self.fractions:
            raise ValueError("fractions: none given, expected at least one between 0 and 1")
        checks.check_distinct("fractions", [entry.rounded for entry in self.fractions])
        chosen = ((arm, entry.amount, self.schedules_of(arm, entry)) for entry in self.fractions for arm in self.arms)
        checks.check_schedules(chosen, len(self.seeds))
        checks.flat_patch("set.", self.set)
        for arm, patch in self.arms.items():
            checks.flat_patch(f"arms.{arm}.", patch, allowed=("seed",))  # added to the study's: an A/A study needs two
            checks.check_branch(self.arms, arm, share=self.share)
            self.pretraining_of(arm)
        for name, entry in self.pretrain.items():
            checks.flat_patch(f"pretrain.{name}.set.", entry.set, allowed=checks.OWNED.keys() - {"name"})
        check_names(self.tuning, self.arms, "tuning: arm")
        check_names(self.public_weights, self.arms, "public_weights: arm")
        checks.check_public({arm: self.weights_of(arm) for arm in self.public_weights})
        for name, patch in self.also_evaluate.items():
            checks.check_variant(name, checks.flat_patch(f"also_evaluate.{name}.", patch))
        if self.search is not None:
            checks.check_search(self.search, self.arms)
        if self.rule is not None:
            checks.check_rule(self.rule, self.arms, self.also_evaluate, len(self.seeds))
        return self

    def on(self, num_images: int) -> StudySpec:
        """The study on a training set of `num_images`: numbers of images become shares.

        ValueError for more images than there are, and for two equal shares.
        """
        shares = []
        for entry in self.fractions:
            if entry.images is not None:
                if entry.images > num_images:
                    raise ValueError(f"fractions: {entry.images:,} images, but the training set has {num_images:,}")
                entry = DataFraction(fraction=entry.images / num_images, schedules=entry.schedules)
            shares.append(entry)
        checks.check_distinct(f"study {self.name}: fractions", [entry.rounded for entry in shares])
        return self.model_copy(update={"fractions": tuple(shares)})

    def schedules_of(self, arm: str, entry: DataFraction) -> tuple[str, ...]:
        """Names of the schedules of one arm at one amount of data, in the order given."""
        chosen = entry.schedules or self.schedules
        if not isinstance(chosen, dict):
            return chosen
        check_names(chosen, self.arms, "schedules: arm")
        return chosen.get(arm, ())

    def branch_of(self, arm: str) -> checks.Branch | None:
        """The branch that an arm is; None for an arm with a start of its own."""
        own = self.arms[arm]
        return checks.Branch(own["branch_of"], own["last"]) if "branch_of" in own else None

    def patch_of(self, arm: str) -> dict[str, Any]:
        """An arm's patch on the recipe {dotted field: value}; a branch has the patch of its parent below its own."""
        own = flatten({key: value for key, value in self.arms[arm].items() if key not in checks.BRANCH_KEYS})
        branch = self.branch_of(arm)
        return own if branch is None else {**flatten(self.arms[branch.parent]), **own}

    def weights_of(self, arm: str) -> object:
        """The weights of an arm in the study file; None where it gives none."""
        return {**flatten(self.set), **self.patch_of(arm)}.get(WEIGHTS_FIELD)

    def pretraining_of(self, arm: str) -> str | None:
        """The entry of `pretrain` whose weights an arm starts from; None for any other start."""
        weights = self.weights_of(arm)
        if not isinstance(weights, str) or not weights.startswith(PRETRAIN_PREFIX):
            return None
        name = weights.removeprefix(PRETRAIN_PREFIX)
        check_names([name], self.pretrain, f"arms.{arm}.{WEIGHTS_FIELD}: pretrain entry")
        return name

    def pretrain_place(self, arm: str, fraction: float, seed: int) -> tuple[str | None, float, int]:
        """Segment name, fraction and seed of an arm's pre-training (`Pretraining.place`); None for any other start."""
        name = self.pretraining_of(arm)
        own = seed + self.patch_of(arm).get("seed", 0)
        return self.pretrain[name].place(name, fraction, own) if name else (None, fraction, own)


def parse_study(data: Mapping[str, Any], *, source: str) -> StudySpec:
    """The study of a mapping; a ValueError is one line: source, field, value, what was expected."""
    return validate(StudySpec, dict(data), source)


def read_study(name: str | Path, *, size: object = None, changes: Mapping[str, Any] | None = None) -> StudySpec:
    """The study of a shipped name or a YAML file, at a size (`sized`) and with fields changed (`changed`).

    ValueError, naming the file, for what cannot be read, a key given twice, or a study that could not run.
    """
    source = str(find(str(name), "studies"))
    data = sized(with_places(read_yaml(source), Path(source).parent), size, source=source)
    return parse_study(changed(data, changes or {}, source=source), source=source)


def define_study(name: str | Path, overrides: Mapping[str, Any] | None = None) -> tuple[StudySpec, dict[str, Any]]:
    """The study with its own overrides applied, and the overrides left for its recipes; no data is read.

    Its own overrides are `size`, STUDY_FIELDS, fields of its arms, its pre-trainings and its rule, and arms left out.
    """
    patch = dict(overrides or {})
    own = {
        key: patch.pop(key)
        for key in list(patch)
        if key in STUDY_FIELDS or key.startswith(("arms.", "pretrain.", "rule."))
    }
    checks.flat_patch("override ", {key: value for key, value in patch.items() if key != "size"})
    return read_study(name, size=patch.pop("size", None), changes=own), patch


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


def without(arm: str, value: object) -> object:
    """A value of a study file without its entry for an arm; in a list, each of its mappings so."""
    if isinstance(value, list):
        return [
            {k: without(arm, v) for k, v in entry.items()} if isinstance(entry, Mapping) else entry for entry in value
        ]
    return {key: entry for key, entry in value.items() if key != arm} if isinstance(value, Mapping) else value


def changed(data: Mapping[str, Any], changes: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """A study's mapping with fields of its own changed: "seeds", "arms.NAME.FIELD", "pretrain.NAME.FIELD".

    {"arms.NAME": None} leaves the arm out. ValueError for an unknown NAME or a missing FIELD.
    """
    data = dict(data)
    for key, value in changes.items():
        section, _, field = key.partition(".")
        if section in ("arms", "pretrain"):
            (name, _, field), entries = field.partition("."), data.get(section) or {}
            known, kind = entries if isinstance(entries, Mapping) else (), section.removesuffix("s")
            check_names([name], known, f"{source}: {key}: {kind}")
            if (section, field, value) == ("arms", "", None):
                data = {key: without(name, entry) if key in BY_ARM else entry for key, entry in data.items()}
                continue
            entry = entries[name] or {}
            own = entry.get("set") or {} if section == "pretrain" and isinstance(entry, Mapping) else entry
            if not field or not isinstance(own, Mapping):
                raise ValueError(f"{source}: {key}: expected {section}.NAME.FIELD, of a NAME that has fields")
            patch = {**flatten(dict(own)), **flatten({field: value})}
            data[section] = {**entries, name: {**entry, "set": patch} if section == "pretrain" else patch}
        elif field and isinstance(data.get(section) or {}, Mapping):
            data[section] = {**(data.get(section) or {}), field: value}
        elif not field:
            data[section] = value
    return data
