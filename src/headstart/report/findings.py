"""Findings of a study: headline by its rule, verdict on every cell, noise of the test images, answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from math import isfinite
from typing import Any

import numpy as np
from msgspec import to_builtins

from headstart.report.answers import Answer, Comparison, EqualEffort, equal_efforts, find_answers, find_crossover
from headstart.report.differences import starts_differ
from headstart.report.facts import Facts
from headstart.report.headline.next_step import NextStep, further_steps, history_of, next_step, seconds_of_seeds
from headstart.report.headline.obstacles import images_of, still_rising, unfinished, void
from headstart.report.headline.resampled import resampled_differences
from headstart.study.folder import OPEN
from headstart.study.results import StudyFolder
from headstart.verdict import words
from headstart.verdict.curves import Crossover
from headstart.verdict.earned import BLIND, LEAST, ImageCounts, Obstacle, floor_of
from headstart.verdict.looks import Look, dated
from headstart.verdict.numbers import counted, fraction_name, span
from headstart.verdict.verdict import Verdict, judge

FEWER = ("seeds", "open", "spread", "rising")  # obstacles that matter less than too few images
LATER = ("seeds", "open", "spread")  # obstacles under which a still rising arm is looked for too


@dataclass(frozen=True)
class Findings:
    """Title and text of the headline, the verdicts and answers.

    state: "decided", or the code of the obstacle to a conclusion. answer: the outcome in words. sure: its certainty.
    until: what to use before there is a conclusion. winner: the arm that the title begins with. steps: next steps,
    the first towards an answer. look: the present look of a finished study. looks: all looks, the present one included.
    saved: seeds that a decision at an early look makes needless, and their seconds.
    """

    state: str
    title: str
    answer: str
    sure: str
    until: str
    winner: str | None
    steps: tuple[NextStep, ...]
    look: Look | None
    looks: tuple[Look, ...]
    saved: tuple[int, float] | None
    comparisons: tuple[Comparison, ...]
    answers: tuple[Answer, ...]
    equal: tuple[EqualEffort, ...]
    crossover: Crossover | None
    resampled: np.ndarray | None  # the headline's difference on resampled test images, float [S, R]

    @property
    def text(self) -> str:
        """Answer, certainty, and what to use meanwhile."""
        return " ".join(part for part in (self.answer, self.sure, self.until) if part)

    @property
    def saved_sentence(self) -> str:
        """Seeds and time that a decision at an early look saves; empty where it saves none."""
        if self.saved is None:
            return ""
        seeds, seconds = self.saved
        time = f", about {span(seconds)} of computation" if isfinite(seconds) else ""
        return f"Decided early: this saves {counted(seeds, 'seed')}{time}."

    def summary(self) -> dict[str, Any]:
        """Fields of report.json. Measured times, and paths, stand under names with "seconds" in them."""
        answers = {
            clock: [{"question": a.question, "lines": a.lines} for a in self.answers if a.from_clock == clock]
            for clock in (False, True)
        }
        equal = [{k: v for k, v in vars(e).items() if k != "verdict"} | _fields(e.verdict) for e in self.equal]
        return {
            "state": self.state,
            "title": self.title,
            "text": self.text,
            "next": [{"what": step.what, "changes": step.changes} for step in self.steps],
            "next_with_seconds": [
                {"sentence": step.sentence, "command": step.command, "seconds": step.seconds} for step in self.steps
            ],
            "looks": [to_builtins(look) for look in self.looks],
            "saved_with_seconds": self.saved
            and {"sentence": self.saved_sentence, "seeds": self.saved[0], "seconds": self.saved[1]},
            "comparisons": [
                {"fraction": e.fraction, "schedule": e.schedule} | _fields(e.verdict) for e in self.comparisons
            ],
            "answers": answers[False],
            "answers_with_seconds": answers[True],
            "at_equal_effort": [entry for entry in equal if "seconds" not in entry["effort"]],
            "at_equal_seconds": [entry for entry in equal if "seconds" in entry["effort"]],
        }


def find(facts: Facts) -> Findings:
    """All findings of a study; an unfinished one has comparisons of the finished cells, and no conclusion."""
    folder = facts.folder
    against, images = void(folder), images_of(folder)
    comparisons = _comparisons(facts, against, images) if folder.rule else ()
    headline, resampled, problem = _headline(facts, against, images)
    at_end = [e.verdict.obstacle for e in comparisons if folder.headline_cell == (e.schedule, e.fraction)]
    blind = any(obstacle and obstacle.code in BLIND for obstacle in (*at_end, against))
    floor = floor_of(folder.rule, facts.num_classes) if folder.rule else LEAST
    crossing = None if blind else find_crossover(folder, floor)
    answers = find_answers(facts, comparisons, crossing, blind=blind)
    if problem:
        answers.append(Answer("Would other test images say the same?", (f"Not known: {problem}.",)))
    known = (obstacle for obstacle in at_end if obstacle)
    early = next((obstacle for obstacle in known if "rising" in obstacle.code or obstacle.code == "unfinished"), None)
    equal = [] if blind else equal_efforts(facts, images, against or early)
    look = _look(folder, headline) if headline else None
    looks = (*folder.looks, *([look] if look and not any(look is known for known in folder.looks) else []))
    titled = _title(facts, headline, against, images)
    planned = folder.rule.looks if folder.rule else ()
    saved = planned[-1] - len(folder.seeds) if planned and titled[0] == "decided" else 0
    seconds = (saved, seconds_of_seeds(facts, saved)) if saved else None
    return Findings(*titled, look, looks, seconds, comparisons, tuple(answers), tuple(equal), crossing, resampled)


def _look(folder: StudyFolder, verdict: Verdict) -> Look:
    """The look of a verdict on the headline's cell, with the date on which it was first made."""
    schedule, fraction = folder.headline_cell
    code = verdict.obstacle and verdict.obstacle.code
    rule = folder.rule
    own = Look(date.today(), schedule, fraction, folder.seeds, rule.alpha, verdict.outcome, code, rule.claim)
    return dated(folder.looks, own)


def _comparisons(facts: Facts, against: Obstacle | None, images: ImageCounts | None) -> tuple[Comparison, ...]:
    folder = facts.folder
    cells = [(fraction, name) for fraction in folder.fractions for name in folder.common_schedules(fraction)]
    made = [Comparison(fraction, name, _judge(facts, name, fraction, against, images)) for fraction, name in cells]
    return tuple(entry for entry in made if entry.verdict.num_seeds)


def _judge(
    facts: Facts,
    schedule: str,
    fraction: float,
    against: Obstacle | None,
    images: ImageCounts | None,
    resampled: tuple[np.ndarray, int] | None = None,
) -> Verdict:
    """The verdict on one cell, withheld until all its seeds have finished, and for too few images.

    It is withheld too, at the last schedule, while an arm still rises.
    """
    folder, rule = facts.folder, facts.folder.rule
    scores = [folder.scores(rule.metric, arm, schedule, fraction) for arm in (rule.baseline, rule.candidate)]
    where = f"at {schedule} with {fraction_name(fraction, folder.num_images.get(fraction))}"
    bootstrap, num_images = resampled or (None, None)
    given = {"where": where, "seeds": folder.seeds, "num_classes": facts.num_classes}
    verdict = judge(rule, *scores, **given, bootstrap=bootstrap, num_images=num_images)
    if against:
        return verdict.against(against)
    code = verdict.obstacle and verdict.obstacle.code
    ends = zip(*(folder.ends(arm, schedule, fraction) for arm in (rule.baseline, rule.candidate)))
    finished = [all(run and run.end for run in runs) for runs in ends]
    if code in (None, "open") and not all(finished):
        done = f"{sum(finished)} of {counted(len(finished), 'seed')}"
        reason = f"{done} have finished; the rule is applied when all have"
        return verdict.against(Obstacle("unfinished", f"{done} finished", reason))
    if images and images.cannot_tell(verdict.mean, rule.margin) and code in (None, *FEWER):
        return verdict.against(images.obstacle)
    is_last = schedule == folder.common_schedules(fraction)[-1] and rule.scope == "converged"
    steep = still_rising(folder, fraction) if is_last and code in (None, *LATER) else None
    if steep and code == "seeds":
        both = [f"{getattr(verdict.obstacle, name)}, and {getattr(steep, name)}" for name in ("title", "reason")]
        steep = Obstacle("seeds and rising", *both)
    return verdict.against(steep) if steep else verdict


def _headline(
    facts: Facts, against: Obstacle | None, images: ImageCounts | None
) -> tuple[Verdict | None, np.ndarray | None, str]:
    """Verdict on the headline's cell of a finished study, and its difference on resampled test images, float [S, R].

    None for either that is not known. The text is the error of match records that cannot be used, else empty.
    """
    folder, resampled, problem = facts.folder, None, ""
    if not folder.is_finished or folder.rule is None or folder.headline_cell is None:
        return None, None, ""
    try:
        resampled = resampled_differences(folder, *folder.headline_cell)
    except ValueError as error:
        problem = str(error)
    verdict = _judge(facts, *folder.headline_cell, against, images, resampled)
    return (verdict if verdict.num_seeds else None), resampled and resampled[0], problem


def _title(
    facts: Facts, verdict: Verdict | None, against: Obstacle | None, images: ImageCounts | None
) -> tuple[str, str, str, str, str, str | None, tuple[NextStep, ...]]:
    """State, title, answer, its certainty, what to use until then, winner and next steps."""
    folder = facts.folder
    obstacle = unfinished(folder) or against
    if obstacle is None and folder.rule is None:
        obstacle = Obstacle("no rule", "the study file has no rule", "without a rule nothing is decided")
    if obstacle is None and verdict is None:
        reason = "the arms have no schedule with a score in common"
        obstacle = Obstacle("scores", "no scores in common", reason)
    if verdict is None:
        reason = f"{obstacle.reason[0].upper()}{obstacle.reason[1:]}."
        step = next_step(facts, None, obstacle)
        return obstacle.code, f"{words.NO_ANSWER}: {obstacle.title}", reason, "", "", None, (step,) if step else ()
    title, winner = words.title(verdict, starts_differ=starts_differ(folder))
    found = verdict.obstacle
    parts, until = [words.certainty(verdict), words.caveats(verdict)], words.until_then(verdict)
    if verdict.rule.scope == "schedule" and (steep := still_rising(folder, folder.headline_cell[1])):
        parts.append(f"This is about training of this length: {steep.reason}.")
    if found is None or found.code in OPEN:
        history = history_of(folder, len(folder.seeds))
        title += history.mark
        parts.append(history.sentence)
    if images and images.are_few:
        is_told = found is not None and found.code == "images"
        parts += [] if is_told else [f"{images.obstacle.title}: {images.obstacle.reason}."]
        if found:
            until = images.until_then(starts_differ=starts_differ(folder))
            until = f"{until[0].upper()}{until[1:]}."
    step = next_step(facts, verdict, found) if found else None
    steps = (*([step] if step else []), *further_steps(facts, verdict, images))
    state = found.code if found else "decided"
    return state, title, words.outcome(verdict), " ".join(part for part in parts if part), until, winner, steps


def _fields(verdict: Verdict) -> dict[str, Any]:
    own = asdict(verdict)
    return {name: own[name] for name in own if name != "rule"} | {"sentence": words.sentence(verdict)}
