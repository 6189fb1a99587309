"""Checks of a study's arms, schedules, variants, rule and search: what could not run or be decided is refused."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from headstart.recipe.dotted import flatten
from headstart.recipe.recipe import EVALUATION_FIELDS, NOT_IN_DIGEST, TRAINING_FIELDS, AnyRecipe, to_dict
from headstart.recipe.schedule import Schedule, duration, parse_schedule
from headstart.study.sections import MOST, PRETRAIN_PREFIX, Search, check_names
from headstart.tasks import METRIC_KINDS, TASKS
from headstart.verdict.paired import MOST_FLIPPED
from headstart.verdict.rule import Rule, fewest_seeds

# The metrics that evaluation rows hold. A rule that names another would end in "not decidable" after days of runs.
METRICS = (
    "top1",
    *(f"{kind}.{name}" for kind, own in METRIC_KINDS.items() if kind != "class" for name in own.metrics),
)

# Kinds of metrics that are measured only if a field of the recipe is true.
SWITCHES = {"mask": "model.mask.enabled", "keypoints": "model.keypoint.enabled", "voc": "evaluate.voc"}
# Fields of recipes that a study sets for each of its segments, and the key of the study that says how.
OWNED = {"name": "name", "seed": "seeds", "data.fraction": "fractions", "train.schedule": "schedules"}
MOST_CELLS = 20_000  # a plan of so many takes seconds; the paper's largest study has 20
MOST_TRIALS = 10_000
HIGHEST_LEVEL = 0.9999  # of a rule; nearer to 1 no number of seeds decides
BRANCH_KEYS = ("branch_of", "last")  # the keys of an arm that are no fields of a recipe
Arms = Mapping[str, Mapping[str, Any]]


def check_distinct(field: str, values: Collection[object]) -> None:
    """ValueError for a value that is given twice."""
    seen: list[object] = []
    for value in values:
        if value in seen:
            raise ValueError(f"{field}: {value!r} is given twice")
        seen.append(value)


def flat_patch(where: str, patch: Mapping[str, Any], *, allowed: Collection[str] = ()) -> dict[str, Any]:
    """A patch on a recipe by dotted field.

    ValueError, beginning with `where`, for a field that is given twice or that the study itself sets.
    """
    try:
        flat = flatten(dict(patch))
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None
    for field in flat:
        if field in OWNED and field not in allowed:
            raise ValueError(f"{where}{field}: is set by the study for each run, expected {OWNED[field]} in the study")
    return flat


def check_schedules(chosen: Iterable[tuple[str, str, tuple[str, ...]]], num_seeds: int) -> None:
    """ValueError for schedules (arm, amount of data, names) that are missing, unknown, given twice, or too many."""
    num_cells = 0
    for arm, amount, names in chosen:
        if not names:
            raise ValueError(f'schedules: none for arm {arm!r} at {amount}, expected names such as "2x"')
        num_cells += len(names) * num_seeds
        if num_cells > MOST_CELLS:
            raise ValueError(f"seeds: with arms, schedules and fractions over {MOST_CELLS:,} cells, expected fewer")
        lengths = [_length(name, "schedules") for name in names]
        check_distinct("schedules", [f"{float(n):g}x" if unit == "x" else f"{n} steps" for n, unit in lengths])


def _length(name: str, where: str) -> tuple[Fraction, str]:
    """Length and unit of a schedule's name; ValueError, naming `where`, for one of no known form."""
    try:
        return parse_schedule(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_public(weights: Mapping[str, object]) -> None:
    """ValueError for arms with documented public weights whose start.weights are missing or made by the study."""
    for arm, name in weights.items():
        if name is None or str(name).startswith(PRETRAIN_PREFIX):
            raise ValueError(
                f"public_weights.{arm} has no effect: the arm's start.weights is {name!r}, expected a file of weights "
                "made elsewhere (the cost of a pretrain entry is measured, its uses stand there)"
            )


def check_lengths(schedules: Mapping[str, Schedule], source: str) -> None:
    """ValueError for two schedules of equally many steps, such as 2x and 2.01x of a short base."""
    known: dict[int, str] = {}
    for name, schedule in schedules.items():
        if (same := known.setdefault(schedule.total, name)) != name:
            raise ValueError(
                f"{source}: schedules: {same} and {name} are both {schedule.total:,} steps, expected one of them"
            )


def check_arms_differ(recipes: Mapping[str, AnyRecipe], others: Mapping[str, object], source: str) -> None:
    """ValueError for two arms whose results are the same: by their recipes and `others`, branch and schedules."""
    known: dict[str, str] = {}
    for arm, recipe in recipes.items():
        counts = {field: value for field, value in flatten(to_dict(recipe)).items() if field not in NOT_IN_DIGEST}
        same = known.setdefault(f"{counts} {others[arm]!r}", arm)
        if same != arm:
            raise ValueError(
                f"{source}: arms: {same!r} and {arm!r} are the same in all that changes results, expected a field in "
                "which they differ, such as seed in a study of an arm against itself"
            )


def check_measured(metric: str, recipe: AnyRecipe, variants: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """ValueError for a metric that evaluations of a recipe, or of a variant of it, do not measure."""
    variant, _, plain = metric.rpartition(":")
    kind, kinds = "class" if plain == "top1" else plain.partition(".")[0], TASKS[recipe.task].kinds
    if kind not in kinds:
        raise ValueError(
            f"{where} is {metric}, which a {recipe.task} recipe does not measure, expected one of {', '.join(kinds)}"
        )
    values = flatten(to_dict(recipe)) | flatten(dict(variants.get(variant, {})))
    if kind in SWITCHES and not values[SWITCHES[kind]]:
        raise ValueError(f"{where} is {metric}, which {SWITCHES[kind]}=false does not measure")


@dataclass(frozen=True)
class Branch:
    """The arm whose trunk another continues, and for how long: a duration, or "3x" for three times the base."""

    parent: str
    last: str | int


def check_branch(arms: Arms, arm: str, *, share: bool) -> None:
    """ValueError for a branch that could not begin, or that changes nothing of its parent; other arms pass."""
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
    if not isinstance(parent, str):
        raise ValueError(f"arms.{arm}.branch_of: {parent!r}, expected the name of an arm")
    check_names([parent], [name for name in arms if name != arm], f"arms.{arm}.branch_of: arm")
    if "branch_of" in arms[parent]:
        raise ValueError(
            f"arms.{arm}.branch_of: {parent!r} is a branch itself, expected an arm with a start of its own"
        )
    if isinstance(last, str) and last.endswith("x"):
        _length(last, f"arms.{arm}.last")
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
    _length(search.schedule, "search.schedule")
    flat_patch("search.grid.", search.grid)
    if search.fraction is not None and search.images is not None:
        raise ValueError("search: fraction and images are both given, expected one of them")
    trials = 1
    for field, values in search.grid.items():
        if not values:
            raise ValueError(f"search.grid.{field}: no values, expected a list")
        check_distinct(f"search.grid.{field}", values)
        trials *= len(values)
    if trials > MOST_TRIALS:
        raise ValueError(f"search.grid: {trials:,} combinations, expected at most {MOST_TRIALS:,}")
    if trials == 1:
        raise ValueError("search.grid: a single combination is no search, expected at least two")
    if "branch_of" in arms[search.arm]:
        raise ValueError(f"search.arm: {search.arm!r} is a branch, expected an arm with a start of its own")


def check_rule_numbers(rule: Mapping[str, Any]) -> None:
    """ValueError for a number of a rule that is text or not finite, or out of its range."""
    looks = rule.get("looks", [])
    if not isinstance(looks, list | tuple) or not all(type(n) is int and 2 <= n <= MOST for n in looks):
        raise ValueError(
            f"rule.looks: {reprlib.repr(looks)} is not valid: expected a list of numbers of seeds, such as [3, 5, 8]"
        )
    for field, value in rule.items():
        if field not in ("margin", "level", "min_seeds"):
            continue
        kinds, expected = (int, "a whole number") if field == "min_seeds" else (int | float, "a number")
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise ValueError(f"rule.{field}: {value!r} is not valid: expected {expected}")
        most = {"margin": 1, "level": HIGHEST_LEVEL, "min_seeds": MOST}[field]
        if value > most:
            raise ValueError(f"rule.{field}: {value!r} is not valid: expected at most {most}")


def check_rule(rule: Rule, arms: Arms, variants: Collection[str], num_seeds: int) -> None:
    """ValueError for a rule about unknown arms or metrics, or one that so many seeds can never satisfy."""
    variant, _, metric = rule.metric.rpartition(":")
    check_names([metric], METRICS, "rule.metric")
    check_names([variant] if variant else [], variants, "rule.metric: also_evaluate entry")
    for field, arm in (("baseline", rule.baseline), ("candidate", rule.candidate)):
        check_names([arm], arms, f"rule.{field}: arm")
    if rule.baseline == rule.candidate:
        raise ValueError(f"rule.candidate is {rule.candidate!r}, the baseline itself, expected another arm")
    if rule.looks and num_seeds not in rule.looks:
        raise ValueError(
            f"seeds: {num_seeds} of them, expected as many as a look has: rule.looks is {list(rule.looks)}"
        )
    if rule.test == "sign_flip" and rule.looks and rule.looks[-1] > MOST_FLIPPED:
        raise ValueError(f"rule.looks: {list(rule.looks)}, expected at most {MOST_FLIPPED} seeds, or rule.test: t")
    if rule.test == "sign_flip" and num_seeds > MOST_FLIPPED:
        raise ValueError(
            f"seeds: {num_seeds} of them, expected at most {MOST_FLIPPED} with test: sign_flip, or test: t"
        )
    least = fewest_seeds(rule)
    if rule.test == "sign_flip" and rule.looks and rule.looks[0] < least:
        raise ValueError(
            f"rule.looks: {list(rule.looks)}, but rule.test sign_flip decides from {least} seeds on at "
            f"{100 * rule.alpha:g} % each; expected later looks, or test: t"
        )
    if rule.test == "sign_flip" and num_seeds < least:
        raise ValueError(
            f"seeds: {num_seeds} can never satisfy rule.test sign_flip at level {rule.level:g} (its "
            f"p value never falls below 2/2^S two-sided, 1/2^S one-sided), expected at least {least} seeds or test: t"
        )
