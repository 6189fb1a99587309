"""The next step towards an answer: what to change, the command, and its time by measured costs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from msgspec import Struct

from headstart.recipe.schedule import parse_schedule
from headstart.report.facts import Facts
from headstart.report.headline.obstacles import starts_of_arm
from headstart.study.folder import OPEN, STUDY_FILE
from headstart.study.results import QUESTION_FILE, StudyFolder
from headstart.typed_json import read_json
from headstart.verdict.earned import ImageCounts, Obstacle
from headstart.verdict.numbers import counted, span
from headstart.verdict.rule import History
from headstart.verdict.verdict import Verdict


@dataclass(frozen=True)
class NextStep:
    """Next step towards an answer: words, changes of the study, command, and seconds (nan: unknown)."""

    what: str
    changes: tuple[str, ...]
    command: str
    seconds: float

    @property
    def sentence(self) -> str:
        """Words and expected time; the command stands apart, to be copied."""
        time = f", about {span(self.seconds)} of computation" if isfinite(self.seconds) else ""
        return f"{self.what[0].upper()}{self.what[1:]}{time}."


def next_step(facts: Facts, verdict: Verdict | None, obstacle: Obstacle) -> NextStep | None:
    """The step that would remove an obstacle, with its command.

    None without a rule or a second arm, for too few images, without scores, and where more seeds will not decide or
    the test takes no more.
    """
    folder, every = facts.folder, _seconds(facts)
    if folder.rule is None or folder.headline_cell is None or obstacle.code in ("images", "scores"):
        return None
    if obstacle.code == "unfinished":
        return _run(facts, "run the missing segments", (), _missing_seconds(facts))
    longer, seconds = _longer(facts) if obstacle.code in ("floor", "rising", "seeds and rising") else ("", 0.0)
    if obstacle.code in ("floor", "rising"):
        return _run(facts, "train twice as long", (longer,), seconds)
    if obstacle.code in ("seeds", "seeds and rising", "open", "spread"):
        have, most = len(folder.seeds), folder.rule.most_seeds
        if have >= most or (obstacle.code == "open" and verdict and verdict.seeds_to_decide is None):
            return None
        ahead = [count for count in folder.rule.looks if count > have]
        left_out = verdict.num_left_out if verdict else 0  # seeds without a score, which do not count
        wanted = max(((verdict and verdict.seeds_to_decide) or folder.rule.min_seeds) + left_out, have + 1)
        wanted = min(wanted, most)
        changes = [longer] if longer else []
        if ahead:
            wanted, last = ahead[0], ahead[-1]
            what = f"go on to the look at {wanted} seeds"
        else:
            last, what = wanted, f"add {counted(wanted - have, 'seed')}"
            history = history_of(folder, wanted)
            if obstacle.code in OPEN and not history.is_planned and not history.is_changed:
                what += f" (a {history.name.lower()}, at which the true level is about {history.level})"
            if folder.rule.looks:
                changes.append(f"rule.looks={_inline([*folder.rule.looks, wanted])}")
        what += " and train twice as long" if longer else ""
        change = f"seeds={last if folder.seeds == tuple(range(have)) else _seeds(folder.seeds, last)}"
        time = every / have * (wanted - have) + seconds / have * wanted
        return _run(facts, what, (change, *changes), time)
    run = next((run for arm in folder.arms for run in starts_of_arm(folder, arm) if run.recipe), None)
    if obstacle.code == "collapsed" and run is not None:
        return _run(facts, "train at half the learning rate", _half_rates(folder), every)
    if obstacle.code == "overlap" and run is not None:
        data = run.recipe.data
        words = ["headstart", "data", "check"]
        for part in ("train", "val"):
            split = getattr(data, f"{part}_split", None)
            words.append(f"{getattr(data, part)}" + (f":{split}" if split else ""))
        for kind in ("images", "labels"):
            folders = [getattr(data, f"{part}_{kind}", None) for part in ("train", "val")]
            words += [word for place in folders if place for word in (f"--{kind}", str(place))]
        return NextStep(
            "remove the shared pictures from one of the two sets and run the study again", (), shlex.join(words), every
        )
    what = "declare the fields in an arm, or set them alike" if obstacle.code == "undeclared" else "run the study again"
    return _run(facts, what, (), every)


def further_steps(facts: Facts, verdict: Verdict | None, images: ImageCounts | None) -> tuple[NextStep, ...]:
    """Steps beside the first: more images where their number limits the answer, longer training of a worse arm."""
    steps = []
    if images and images.are_few:
        steps.append(_label(facts, images.more))
    elif verdict and verdict.images and (wanted := verdict.images_to_decide):
        steps.append(_label(facts, f"about {counted(wanted - verdict.images.num_images, 'more validation image')}"))
    if verdict and verdict.outcome == "worse":
        change, seconds = _longer(facts)
        steps.append(
            _run(facts, f"train twice as long, to see whether {facts.folder.candidate} catches up", (change,), seconds)
        )
    return tuple(steps)


def _label(facts: Facts, more: str) -> NextStep:
    """Label more images and ask again: a study of `headstart ask` under a new name, any other as it is."""
    folder, asked = facts.folder, facts.folder.path / QUESTION_FILE
    again = _run(facts, f"label {more} and ask again", (), _seconds(facts))
    if not asked.is_file():
        return again
    words = ["headstart", "ask", *read_json(asked, _Asked).words, "--name", f"{folder.path.name}-2", *_out(folder)]
    return replace(again, command=shlex.join(words))


class _Asked(Struct):
    """The words of the command in question.json."""

    words: list[str]


def history_of(folder: StudyFolder, num_seeds: int) -> History:
    """History of the looks at the headline's cell, the present one included, up to a look at `num_seeds` seeds."""
    own = [look for look in folder.looks if (look.schedule, look.fraction) == folder.headline_cell]
    made = [(len(look.seeds), look.alpha) for look in own]
    is_changed = any(look.rule not in (None, folder.rule.claim) for look in own)
    return History.of(folder.rule, [*made, (len(folder.seeds), folder.rule.alpha)], num_seeds, is_changed=is_changed)


def seconds_of_seeds(facts: Facts, count: int) -> float:
    """Seconds of `count` further seeds, at the mean cost of those that were run."""
    return _seconds(facts) / len(facts.folder.seeds) * count


def _run(facts: Facts, what: str, changes: tuple[str, ...], seconds: float) -> NextStep:
    """A step that runs the study as its folder holds it, with changes."""
    folder = facts.folder
    kept = [f"{key}={_inline(value)}" for key, value in folder.overrides.items()]
    kept = [word for word in kept if word.partition("=")[0] not in {change.partition("=")[0] for change in changes}]
    words = ["headstart", "study", "run", (folder.path / STUDY_FILE).as_posix(), *kept, *changes, *_out(folder)]
    return NextStep(what, changes, shlex.join(words), seconds)


def _out(folder: StudyFolder) -> list[str]:
    return [] if folder.path.parent == Path("runs") else ["--out", folder.path.parent.as_posix()]


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _seeds(seeds: Sequence[int], wanted: int) -> str:
    """The seeds that are there, and the smallest new ones."""
    new = [seed for seed in range(max(seeds) + wanted + 1) if seed not in seeds]
    return _inline([*seeds, *new[: wanted - len(seeds)]])


def _half_rates(folder: StudyFolder) -> tuple[str, ...]:
    """The changes that halve the learning rate of every arm, in each arm where one has a rate of its own."""
    runs = {arm: next((run for run in starts_of_arm(folder, arm) if run.recipe), None) for arm in folder.arms}
    rates = {arm: run.recipe.train.rate / 2 for arm, run in runs.items() if run}
    if "train.rate" in folder.overrides or not any("train.rate" in folder.study.patch_of(arm) for arm in folder.arms):
        return (f"train.rate={next(iter(rates.values())):g}",)
    return tuple(f"arms.{arm}.train.rate={rate:g}" for arm, rate in rates.items())


def _longer(facts: Facts) -> tuple[str, float]:
    """The change that adds schedules of twice those compared to the largest amount of data, and its seconds."""
    folder, fraction = facts.folder, facts.folder.fractions[0]
    entries = [entry.model_dump(mode="json") for entry in folder.study.fractions]
    largest = next(entry for entry in entries if entry["fraction"] == fraction)
    chosen = largest["schedules"] or folder.study.schedules
    shared = folder.schedules(fraction, folder.baseline, folder.candidate)
    own = {arm: folder.schedules(fraction, arm) for arm in folder.arms}
    # Without a common schedule the longest of each are compared; a common one would be compared instead.
    ends = {arm: shared[-1] if shared else names[-1] for arm, names in own.items() if not shared or shared[-1] in names}
    longer = {arm: _twice(name) for arm, name in ends.items()}
    if isinstance(chosen, dict):
        left_out = set() if shared else set(longer.values())
        kept = {arm: [name for name in names if name not in left_out] for arm, names in chosen.items()}
        value: Any = {arm: list(dict.fromkeys([*kept[arm], *([longer[arm]] if arm in longer else [])])) for arm in kept}
    else:
        value = [*chosen, longer[folder.baseline]]
    change = f"schedules={_inline(value)}"
    if largest["schedules"] or len(entries) > 1:  # other amounts of data keep their schedules
        largest["schedules"] = value
        plain = [{key: own for key, own in entry.items() if own} for entry in entries]
        change = f"fractions={_inline(plain)}"
    seconds = 0.0
    for cell in folder.plan.cells:
        is_new = cell.arm in longer and longer[cell.arm] not in own[cell.arm]
        if is_new and cell.fraction == fraction and cell.schedule == ends[cell.arm]:
            begin = folder.tail(cell).segment.start  # up to there the longer schedule has the same trunk
            seconds += (2 * cell.total - begin) * _seconds_per_step(facts, cell.arm)
    return change, seconds


def _twice(name: str) -> str:
    length, unit = parse_schedule(name)
    return f"{float(2 * length):g}x" if unit == "x" else f"{Fraction(2 * length)} steps"


def _seconds(facts: Facts) -> float:
    """Seconds of all finished cells as spent, pre-training included where each seed has its own."""
    study = facts.folder.study
    entries = {arm: study.pretrain.get(study.pretraining_of(arm) or "") for arm in facts.folder.arms}
    repeated = {arm for arm, entry in entries.items() if entry and "seed" in entry.follows}
    costs = [cost for every in facts.costs.values() for cost in every]
    spent = [(cost.whole_as_spent if cost.cell.arm in repeated else cost.as_spent).seconds for cost in costs]
    return float(sum(spent)) if spent else nan


def _seconds_per_step(facts: Facts, arm: str) -> float:
    """Measured seconds a step of an arm's finished cells, evaluations included; nan before the first."""
    costs = [cost for (name, *_), own in facts.costs.items() if name == arm for cost in own]
    rates = [cost.alone.seconds / cost.cell.total for cost in costs]
    return float(np.mean(rates)) if rates else nan


def _missing_seconds(facts: Facts) -> float:
    """Seconds of the segments that are not finished, by the measured steps of their arms; nan where none was run."""
    runs = [run for run in facts.folder.runs.values() if run.end is None]
    return float(sum((r.segment.stop - r.last_step) * _seconds_per_step(facts, r.segment.arm) for r in runs))
