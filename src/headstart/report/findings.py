"""What a study found: the headline by its rule, the verdict on every cell, and the answers around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headstart.report.answers import (
    Answer,
    Comparison,
    EqualEffort,
    equal_efforts,
    find_answers,
    find_crossover,
)
from headstart.report.differences import starts_differ, undeclared
from headstart.report.image_noise import resampled_differences
from headstart.report.spending import Bills, StartCost
from headstart.study.folder import StudyFolder
from headstart.verdict.curves import Crossover
from headstart.verdict.numbers import counted, fraction_name, metric_name
from headstart.verdict.verdict import Rule, Verdict, judge
from headstart.verdict.words import sentence


@dataclass(frozen=True)
class Findings:
    """state: decided, open, indicative, unfinished, undeclared or none. winner: the arm that the title begins with."""

    state: str
    title: str
    text: str
    winner: str | None
    headline: Verdict | None
    comparisons: tuple[Comparison, ...]
    answers: tuple[Answer, ...]
    equal: tuple[EqualEffort, ...]
    crossover: Crossover | None
    resampled: np.ndarray | None  # the headline's difference on resampled test images, float [S, R]


def find(folder: StudyFolder, bills: Bills, starts: dict[str, StartCost]) -> Findings:
    """All findings of a study; an unfinished one has comparisons of what is there, and no headline."""
    comparisons = _comparisons(folder) if folder.rule else ()
    headline, resampled, problem = _headline(folder)
    crossing = find_crossover(folder)
    answers = find_answers(folder, bills, starts, comparisons, crossing)
    if problem:
        answers.append(Answer("Would other test images say the same?", (f"Not known: {problem}.",)))
    equal = equal_efforts(folder, bills)
    return Findings(*_title(folder, headline), headline, comparisons, tuple(answers), tuple(equal), crossing, resampled)


def _comparisons(folder: StudyFolder) -> tuple[Comparison, ...]:
    cells = [(fraction, name) for fraction in folder.fractions for name in folder.common_schedules(fraction)]
    made = [Comparison(fraction, name, _judge(folder, folder.rule, name, fraction)) for fraction, name in cells]
    return tuple(entry for entry in made if entry.verdict.num_seeds)


def _judge(
    folder: StudyFolder, rule: Rule, schedule: str, fraction: float, resampled: tuple[np.ndarray, int] | None = None
) -> Verdict:
    scores = [folder.scores(rule.metric, arm, schedule, fraction) for arm in (rule.baseline, rule.candidate)]
    where = f"at {schedule} with {fraction_name(fraction, folder.num_images.get(fraction))}"
    bootstrap, num_images = resampled or (None, None)
    return judge(rule, *scores, where=where, bootstrap=bootstrap, num_images=num_images)


def _headline(folder: StudyFolder) -> tuple[Verdict | None, np.ndarray | None, str]:
    """The verdict on the headline's cell once everything is finished; its difference on resampled test images, [S, R].

    With them comes why they are not known, if they are not.
    """
    if not folder.is_finished or undeclared(folder) or folder.rule is None or folder.headline_cell is None:
        return None, None, ""
    resampled, problem = None, ""
    try:
        resampled = resampled_differences(folder, *folder.headline_cell)
    except ValueError as error:
        problem = str(error)
    verdict = _judge(folder, folder.rule, *folder.headline_cell, resampled)
    return (verdict if verdict.num_seeds else None), resampled and resampled[0], problem


def _title(folder: StudyFolder, verdict: Verdict | None) -> tuple[str, str, str, str | None]:
    """State, title, text and winner."""
    if not folder.is_finished:
        done = f"{folder.num_finished} of {counted(len(folder.runs), 'segment')} finished"
        return "unfinished", "No verdict yet", f"{done}; the rule is applied when all are.", None
    if undeclared(folder):
        text = f"The arms differ in what they did not declare: {', '.join(undeclared(folder))}."
        return "undeclared", "No verdict", f"{text} That could be the whole difference.", None
    if folder.rule is None:
        return "none", "No verdict", "The study file has no rule, so nothing is decided; the numbers are below.", None
    if verdict is None:
        return "none", "No verdict", "The arms have no schedule with a score in common.", None
    outcome = verdict.leaning if verdict.indicative else verdict.outcome
    candidate, baseline = verdict.rule.candidate, verdict.rule.baseline
    title, winner = {
        "better": (f"{candidate} ends ahead", candidate),
        "worse": (f"{baseline} ends ahead", baseline),
        "equivalent": ("Either start will do" if starts_differ(folder) else "Either will do", None),
        "not worse": (f"{candidate} is not worse", candidate),
        "not decidable": ("Not decidable with these runs", None),
    }[outcome]
    state = "indicative" if verdict.indicative else "open" if outcome == "not decidable" else "decided"
    return state, title, sentence(verdict), winner


def rule_sentence(rule: Rule) -> str:
    """The rule as it was written before the runs, in words."""
    margin = f"{100 * rule.margin:g} point{'' if rule.margin == 0.01 else 's'}"
    claim = {
        "equivalence": f"whether {rule.candidate} and {rule.baseline} differ by less than {margin}",
        "non_inferiority": f"whether {rule.candidate} is not worse than {rule.baseline} by more than {margin}",
        "superiority": f"whether one of {rule.candidate} and {rule.baseline} is better by more than {margin}",
    }[rule.kind]
    test = {"t": "a paired t test", "sign_flip": "an exact sign-flip test"}[rule.test]
    how = f"in {metric_name(rule.metric)}, at {100 * rule.level:g} % by {test} over at least {rule.min_seeds} seeds"
    return f"The rule, written before the first run: {claim} {how}."


def settled_schedule(folder: StudyFolder, arm: str, fraction: float) -> str | None:
    """The shortest schedule of an arm that comes within the rule's margin (without a rule: a point) of its own best.

    None where none has a score of every seed.
    """
    names = folder.schedules(fraction, arm)
    means = {name: float(folder.scores(folder.metric, arm, name, fraction).mean()) for name in names}
    known = {name: value for name, value in means.items() if np.isfinite(value)}
    margin = folder.rule.margin if folder.rule else 0.01
    return next((name for name, value in known.items() if value >= max(known.values()) - margin), None)
