"""A study for a data set and a number of hours: data, settings, schedule and seeds chosen, with the reasons."""

import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headstart.data.read import Source
from headstart.design.budget import LEAST_STEPS, RESERVE, Budget, fit, limits, schedule_fields
from headstart.design.data import Found, find_data
from headstart.design.settings import (
    CLASS_SIDES,
    SIDES,
    Setting,
    box_settings,
    class_settings,
    data_settings,
    pixel_settings,
    study_text,
)
from headstart.design.starts import RANDOM, Starts, choose_starts
from headstart.files import file_digest, json_text, write_whole
from headstart.hardware import choose_device, usable_cores
from headstart.recipe.schedule import duration
from headstart.recipe.yaml_text import parse_yaml
from headstart.study.folder import PLAN_FILE, STUDY_FILE
from headstart.study.forecast import Load
from headstart.study.plan import Plan
from headstart.study.prepare import Prepared, prepare
from headstart.study.results import QUESTION_FILE
from headstart.study.sections import check_name
from headstart.study.spec import parse_study
from headstart.study.timing import keep_loads, measure_apart
from headstart.typed_json import read_json
from headstart.verdict.numbers import counted, span
from headstart.verdict.rule import Rule

TIMED_STEPS = 300  # at 2x, of the study whose steps are timed, and the least of three seeds (budget.TRIED)
SMALLER = 3  # of the sides tried, by which the input may be smaller than the objects need
FEWEST_SEEDS = 3
MARGIN = 0.02  # two points: single studies on real images do not resolve less (docs/results.md)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """A question as it was asked: data, folders of images and label maps, hours, starts, grouping of names."""

    data: tuple[str, ...]
    hours: float
    images: tuple[Path, ...] = ()
    starts: tuple[str, ...] = ()
    groups: str | None = None
    fix: bool = False
    labels: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Design:
    """The task of a kind of data: its recipe, the metric of the rule, and how settings are chosen."""

    recipe: str
    metric: str
    choose: Callable[..., list[Setting]]
    sides: tuple[int, ...] = SIDES


def _design_of(found: Found) -> _Design:
    if found.kind == "folders":
        return _Design("small_pretrain", "top1", class_settings, CLASS_SIDES)
    if found.kind == "pixels":
        return _Design("small_segment", "semantic.mIoU", pixel_settings)
    return _Design("small", "keypoints.AP" if found.train.keypoint_names else "box.AP", box_settings)


@dataclass(frozen=True)
class Proposal:
    """A study file that was written, the study prepared, expected seconds, and what it can and cannot answer."""

    file: Path
    prepared: Prepared
    seconds: float
    limits: tuple[str, ...]


def study_name(question: Question) -> str:
    """Name of the study of a question: "ask-" and the name of its folder or file."""
    first = Path(os.path.abspath(Source.parse(question.data[0]).path))
    stem = first.stem if first.is_file() else first.name
    return f"ask-{re.sub(r'[^A-Za-z0-9_.+-]', '-', stem)[:40].strip('-') or 'data'}"


def is_begun(question: Question, directory: Path) -> bool:
    """True if the study of this question has begun in `directory` and can be continued; hours may differ.

    ValueError if a study of other data, starts or groups has begun there, and if a new design would replace a study
    file that was changed by hand.
    """
    asked, study = directory / QUESTION_FILE, directory / STUDY_FILE
    before = read_json(asked, dict[str, Any]) if asked.is_file() else {}
    if not (directory / PLAN_FILE).exists() or not study.exists():
        if "study" in before and study.exists() and file_digest(study) != before["study"]:
            raise ValueError(
                f"{study}: was changed after `ask` wrote it: expected `study run` of it, or another --name"
            )
        return False
    if before.get("data") != _absolute(question):
        raise ValueError(f"{directory}: holds a study of other data, {before.get('data')}: expected another --name")
    words = before.get("words")
    if words and words != _words(replace(question, hours=before["hours"], fix="--fix" in words)):
        raise ValueError(
            f"{directory}: holds the study of `headstart ask {shlex.join(words)}`: expected its --start, --images, "
            "--labels and --groups, or another --name"
        )
    return True


def _words(question: Question) -> list[str]:
    """The words of the command that asks a question, paths absolute."""
    starts = [str(Path(start).absolute()) if Path(start).is_file() else start for start in question.starts]
    several = {"--images": question.images, "--labels": question.labels}
    words = [*_absolute(question), "--hours", f"{question.hours:g}", *(["--fix"] if question.fix else [])]
    words += [word for name, own in several.items() for path in own for word in (name, path.absolute().as_posix())]
    words += [word for start in starts for word in ("--start", start)]
    return [*words, *(["--groups", question.groups] if question.groups else [])]


def _absolute(question: Question) -> list[str]:
    return [Path(os.path.abspath(path)).as_posix() for path in question.data]


def propose(question: Question, directory: Path, *, jobs: int | None = None, say: Say) -> Proposal:
    """Design a study and write it to study.yaml in `directory`, whose name is the study's; nothing is trained.

    ValueError for data with errors, weights that are not here, and hours in which nothing can be learnt.
    """
    since = time.perf_counter()
    check_name("name", directory.name)
    if not 0 < question.hours <= 10_000:
        raise ValueError(f"hours = {question.hours:g}: expected more than 0 and at most 10,000")
    options: dict[str, Any] = {"images": question.images, "labels": question.labels, "groups": question.groups}
    found = find_data(question.data, directory, **options, fix=question.fix, say=say)
    design = _design_of(found)
    starts = choose_starts(list(question.starts), design.recipe)
    on_gpu = choose_device("auto").value != "cpu"
    jobs = jobs or (1 if on_gpu else usable_cores())
    objects = "pixels" if found.kind == "pixels" else f"{found.train.num_annotations:,} objects"
    say(
        f"{found.train.num_images} training and {found.val.num_images} validation images, "
        f"{objects} of {found.train.num_classes} classes to learn from"
    )
    rule = Rule(metric=design.metric, baseline=starts.baseline, candidate=RANDOM, margin=MARGIN)

    def text_of(settings: Sequence[Setting], steps: int, seeds: int, quarter: bool, head: Sequence[str]) -> str:
        batch = next(setting.value for setting in settings if setting.field == "train.batch")
        schedule = schedule_fields(steps, batch, found.train.num_images)
        network = {setting.field for setting in starts.network}
        own = [
            *data_settings(*found.places, found.labels, found.ignored),
            *(setting for setting in settings if setting.field not in network),
            *starts.network,
            *(Setting(field, value, reason) for field, (value, reason) in schedule.items()),
            *([] if on_gpu else [Setting("train.threads", 1, "small steps: one segment a core is faster")]),
        ]
        return study_text(head, _fields(directory.name, design.recipe, starts, rule, seeds, quarter), own)

    def prepared_of(*arguments: Any) -> tuple[str, Prepared]:
        text = text_of(*arguments)
        return text, prepare(parse_study(parse_yaml(text, "study"), source=f"the study of {question.data[0]}"))

    settings = design.choose(found.train, on_gpu=on_gpu)
    for is_last in (False, True):
        say(f"timing steps at {_side(settings)} px on this machine, a minute or so ...")
        _, prepared = prepared_of(settings, TIMED_STEPS, FEWEST_SEEDS, False, ())
        loads = measure_apart(prepared, jobs)
        left = 3600 * question.hours - (time.perf_counter() - since)

        def plan_of(seeds: int, quarter: bool, settings: Sequence[Setting] = tuple(settings)) -> Plan:
            return prepared_of(settings, TIMED_STEPS, seeds, quarter, ())[1].plan

        budget = fit(plan_of, _with_quarter(loads), steps=TIMED_STEPS, seconds=left, jobs=jobs)
        smaller = _smaller(_side(settings), design.sides, budget.steps / FEWEST_SEEDS)
        if is_last or budget.seeds >= FEWEST_SEEDS or smaller is None:
            break
        settings = design.choose(found.train, side=smaller, on_gpu=on_gpu)
    if budget.steps < LEAST_STEPS:
        rate = max(load.seconds_per_step for load in loads.values())
        raise ValueError(
            f"hours = {question.hours:g}: {budget.steps} steps of {counted(len(starts.arms), 'start')} fit, and "
            f"nothing is learnt in fewer than {LEAST_STEPS} (a step takes {rate:.2g} s here): expected more hours"
        )
    said = limits(rule, budget.seeds, found.val.num_images, found.train.num_images + found.val.num_images)
    head = _head(question, budget, jobs, said)
    text, prepared = prepared_of(settings, budget.steps, budget.seeds, budget.quarter, head)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / STUDY_FILE
    write_whole(file, text)
    asked = {"data": _absolute(question), "hours": question.hours, "words": _words(question)}
    write_whole(directory / QUESTION_FILE, json_text(asked | {"study": file_digest(file)}, indent=1))
    every = duration(prepared.first_recipe.evaluate.every, batch=1, num_images=1, field="evaluate.every")
    kept = {name: replace(load, eval_every=every) for name, load in _with_quarter(loads).items()}
    keep_loads(directory / "timing.json", prepared, jobs, kept)
    return Proposal(file, prepared, budget.seconds, tuple(said))


def _fields(name: str, recipe: str, starts: Starts, rule: Rule, seeds: int, quarter: bool) -> list[Setting]:
    """Fields of the study itself."""
    fractions: list[Any] = [1.0, {"fraction": 0.25, "schedules": ["2x"]}] if quarter else [1.0]
    held = {field: getattr(rule, field) for field in ("metric", "baseline", "candidate", "margin", "level", "test")}
    return [
        Setting("name", name),
        Setting("recipe", recipe, "the shipped recipe for data of one's own; `headstart recipe show` prints it"),
        Setting("arms", starts.arms, "the starts to compare, all else equal"),
        *([Setting("public_weights", starts.costs, "what they cost to make")] if starts.costs else []),
        Setting("schedules", ["1x", "2x"], "whether more training would change the answer; both share their beginning"),
        Setting("fractions", fractions, "a quarter of the images says what the start is worth" if quarter else ""),
        Setting("seeds", seeds, "3 are the least for a decision; more find smaller differences"),
        Setting(
            "rule",
            {**held, "min_seeds": rule.min_seeds, "kind": rule.kind},
            f"fixed before the first run: {100 * rule.margin:g} points are the least that matters",
        ),
    ]


def _head(question: Question, budget: Budget, jobs: int, said: Sequence[str]) -> list[str]:
    return [
        f"Made by `headstart ask {shlex.join(_words(question))}`: is a pre-trained start worth it on these data?",
        f"Expected: {span(budget.seconds)} with {jobs} segments at a time; {100 * RESERVE:.0f} % of the hours are kept "
        "for the report and slower steps.",
        *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in said),
        "An ordinary study: change what you like, then `headstart study run FILE`.",
    ]


def _with_quarter(loads: dict[str, Load]) -> dict[str, Load]:
    """Loads with a quarter of the images added to num_images: a step takes as long."""
    return {
        name: replace(load, num_images={0.25: round(load.num_images[1.0] / 4), **load.num_images})
        for name, load in loads.items()
    }


def _side(settings: Sequence[Setting]) -> int:
    found = next(setting.value for setting in settings if setting.field in ("input.short", "input.size"))
    return found[0] if isinstance(found, list) else found


def _smaller(side: int, sides: Sequence[int], steps: float) -> int | None:
    """A shorter side, at most SMALLER below, at which a seed's steps suffice if time is proportional to pixels."""
    lower = sorted((one for one in sides if one < side), reverse=True)[:SMALLER]
    enough = [one for one in lower if steps * (side / one) ** 2 >= TIMED_STEPS]
    return next(iter(enough or lower[-1:]), None)


def summary(proposal: Proposal) -> list[str]:
    """The plan in lines for people: arms, seeds, steps, time, limits."""
    study = proposal.prepared.study
    steps = max(cell.total for cell in proposal.prepared.plan.cells)
    return [
        f"plan: {' and '.join(study.arms)}, {counted(len(study.seeds), 'seed')}, {steps:,} steps each at 2x; expected "
        f"{span(proposal.seconds)}",
        *proposal.limits,
        f"every choice with its reason: {proposal.file}",
    ]
