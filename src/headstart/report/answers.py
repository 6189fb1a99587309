"""Answers to a reader's questions: curves.py applied to the cells of a study.

Points of curves are the ends of schedules: points inside a run depend on where its learning rate dropped.
Letters: S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan

import numpy as np

from headstart.report.cost import Cost, outside_weights
from headstart.report.differences import starts_differ
from headstart.report.facts import Facts
from headstart.report.headline.resampled import resampled_scores
from headstart.study.results import LOSS, StudyFolder
from headstart.verdict import words
from headstart.verdict.curves import Crossover, Curve, compare_at, crossover, overfit_onset
from headstart.verdict.earned import ImageCounts, Obstacle
from headstart.verdict.numbers import TRAIN, fraction_name, large, span
from headstart.verdict.paired import t_half_width
from headstart.verdict.verdict import Verdict
from headstart.verdict.worth import (
    crossing_sentence,
    held_out,
    held_out_sentence,
    schedules_compared,
    schedules_sentence,
    start_worth,
    worth_sentence,
)

DEFAULT_LEVEL = 0.95
NUM_RESAMPLES = 200  # of the test images: their spread is needed, not the ends of an interval
EFFORTS = ("images", "pixels", "seconds")


@dataclass(frozen=True)
class Comparison:
    """The verdict on one schedule at one fraction."""

    fraction: float
    schedule: str
    verdict: Verdict


@dataclass(frozen=True)
class Answer:
    """One question of a reader and its answer, a line an arm or fraction; from_clock: it holds measured seconds."""

    question: str
    lines: tuple[str, ...]
    from_clock: bool = False


@dataclass(frozen=True)
class EqualEffort:
    """Both arms at the same effort, interpolated between the ends of schedules; scores are means over seeds."""

    effort: str
    at: float
    baseline: float
    candidate: float
    verdict: Verdict


def find_crossover(folder: StudyFolder, floor: float) -> Crossover | None:
    """Crossover over the ends of schedules of the largest fraction; None without two that tell and steps in common."""
    largest = folder.fractions[0] if folder.fractions else 1.0
    if len(folder.common_schedules(largest)) < 2 or not _have_curves(folder, largest):
        return None
    curves = [_ends(folder, arm, largest) for arm in (folder.baseline, folder.candidate)]
    if max(curve.x[0] for curve in curves) > min(curve.x[-1] for curve in curves):
        return None  # an arm of small batches may take more steps to its 1x than the other to its longest
    found = crossover(*curves, level=_level(folder), within=_margin(folder), floor=floor)
    return found if found.start < found.budget else None


def find_answers(
    facts: Facts, comparisons: tuple[Comparison, ...], crossing: Crossover | None, *, blind: bool = False
) -> list[Answer]:
    """Answers to all questions that the finished cells can answer; none with a single arm.

    blind: curves carry no information, as of arms that learnt nothing. Only verdicts on cells and costs are then given.
    """
    folder, answers = facts.folder, []
    if not folder.baseline or not folder.fractions:
        return []
    at_largest = [entry for entry in comparisons if entry.fraction == folder.fractions[0]]
    if len(at_largest) > 1:
        answers.append(Answer("Who is ahead early?", (words.outcome(at_largest[0].verdict),)))
    if crossing:
        answers.append(Answer(f"When does {folder.candidate} catch up?", (words.sentence(crossing),)))
    for fraction in folder.fractions[1:]:
        for entry in [entry for entry in comparisons if entry.fraction == fraction][-1:]:
            question = f"And with {100 * fraction:g} % of the data?"
            answers.append(Answer(question, (words.outcome(entry.verdict),)))
    return [*answers, *([] if blind else [*_worth(folder, comparisons), *_overfitting(folder)]), *_price(facts)]


def equal_efforts(facts: Facts, images: ImageCounts | None, against: Obstacle | None) -> list[EqualEffort]:
    """Both arms at equal steps, and at equal total cost, pre-training included, for the largest fraction.

    `against` is an obstacle to every conclusion; too few images are one to each that other images could change.
    """
    folder = facts.folder
    if folder.rule is None or folder.headline_cell is None or not _have_curves(folder, folder.fractions[0]):
        return []
    fraction, arms = folder.fractions[0], (folder.baseline, folder.candidate)
    names = folder.common_schedules(fraction)
    curves = {"steps": [_ends(folder, arm, fraction) for arm in arms]}
    own = [[(arm, folder.own_schedule(arm, name, fraction), fraction) for name in names] for arm in arms]
    for effort in EFFORTS:
        spent = [[getattr(facts.mean_costs[key]["whole"], effort) for key in keys] for keys in own]
        if all(np.all(np.diff(x) > 0) and np.isfinite(x).all() for x in spent):
            ends = [_ends(folder, arm, fraction, x=x) for arm, x in zip(arms, spent)]
            curves[f"{effort}, pre-training included"] = ends
    made, seeds = [], [seed for seed, used in zip(folder.seeds, _complete(folder, fraction)) if used]
    for effort, (baseline, candidate) in curves.items():
        at = min(baseline.x[-1], candidate.x[-1])
        verdict = compare_at(
            folder.rule, baseline, candidate, axis=effort, seeds=seeds, num_classes=facts.num_classes, obstacle=against
        )
        if images and verdict.obstacle is None and images.cannot_tell(verdict.mean, folder.rule.margin):
            verdict = verdict.against(images.obstacle)
        made.append(EqualEffort(effort, at, float(baseline.at(at).mean()), float(candidate.at(at).mean()), verdict))
    return made


def _level(folder: StudyFolder) -> float:
    return folder.rule.look_level if folder.rule else DEFAULT_LEVEL


def _margin(folder: StudyFolder) -> float:
    """The margin of all answers: the rule's, or 0 without a rule."""
    return folder.rule.margin if folder.rule else 0.0


def _ends(folder: StudyFolder, arm: str, fraction: float, *, x: Sequence[float] | None = None) -> Curve:
    """Scores at the ends of schedules as a curve over total steps, or over `x`."""
    x = x or [folder.total(arm, name, fraction) for name in folder.common_schedules(fraction)]
    scores = _columns(folder, folder.metric, arm, folder.common_schedules(fraction), fraction)
    return Curve(arm, x, scores[_complete(folder, fraction)])


def _columns(folder: StudyFolder, metric: str, arm: str, names: Sequence[str], fraction: float) -> np.ndarray:
    """A metric at the ends of these schedules, float [seeds, schedules]."""
    return np.stack([folder.scores(metric, arm, name, fraction) for name in names], 1)


def _complete(folder: StudyFolder, fraction: float) -> np.ndarray:
    """Seeds, bool [S], that have a score for every common schedule in both arms."""
    pairs = [(arm, name) for arm in (folder.baseline, folder.candidate) for name in folder.common_schedules(fraction)]
    return np.isfinite([folder.scores(folder.metric, arm, name, fraction) for arm, name in pairs]).all(0)


def _have_curves(folder: StudyFolder, fraction: float) -> bool:
    """True if some seed is complete, and the common schedules are in one order by the steps of either arm."""
    names, arms = folder.common_schedules(fraction), (folder.baseline, folder.candidate)
    ascend = (np.all(np.diff([folder.total(arm, name, fraction) for name in names]) > 0) for arm in arms)
    return bool(_complete(folder, fraction).any()) and all(ascend)


def _worth(folder: StudyFolder, comparisons: tuple[Comparison, ...]) -> list[Answer]:
    """Worth of the start in labelled images, over all fractions, smallest first, at one schedule if they share any."""
    fractions = [f for f in reversed(folder.fractions) if f in folder.num_images and folder.common_schedules(f)]
    fractions = list({folder.num_images[f]: f for f in fractions}.values())  # of tiny sets two may be the same images
    if len(fractions) < 2:
        return []
    tried = [folder.common_schedules(fraction) for fraction in fractions]
    cells = list(zip(schedules_compared(tried), fractions))
    arms = (folder.baseline, folder.candidate)
    scores = np.stack([[folder.scores(folder.metric, arm, *cell) for cell in cells] for arm in arms]).transpose(2, 0, 1)
    used = np.all([_complete(folder, fraction) for fraction in fractions], 0)
    if not used.any():
        return []
    problem, resampled = "", None
    try:
        resampled = resampled_scores(folder, cells, number=NUM_RESAMPLES) if used.sum() > 1 else None
    except ValueError as error:
        problem = f"The noise of the test images is not in these intervals: {error}."
    images, sizes = [folder.num_images[f] for f in fractions], {"level": _level(folder), "within": _margin(folder)}
    found = start_worth(arms, images, scores[used], resampled=resampled and resampled[0][used], **sizes)
    differ = starts_differ(folder)
    lines = [*(worth_sentence(found, count, starts_differ=differ) for count in found.needed), crossing_sentence(found)]
    at_floor = {
        (e.schedule, e.fraction) for e in comparisons if e.verdict.obstacle and e.verdict.obstacle.code == "floor"
    }
    low = [f"{folder.num_images[cell[1]]:,}" for cell in cells if cell in at_floor]
    if low:
        lines.append(
            f"With {' and '.join(low)} images an arm has not learnt enough to compare: these figures are rough."
        )
    lines.append(schedules_sentence(images, tried))
    if predicted := held_out(arms, images, scores[used]):
        lines.append(held_out_sentence(predicted))
    question = f"How many labelled images is {'the start' if differ else folder.baseline} worth?"
    return [Answer(question, tuple(line for line in (*lines, problem) if line))]


def _overfitting(folder: StudyFolder) -> list[Answer]:
    """Find arms whose longer schedules lose more than the margin on validation while training still improves.

    All schedules of an arm count, also those that the other does not have. Training is the same metric on training
    images where the recipe evaluates them, else the training loss. Arms whose validation is best at the longest
    schedule share one line.
    """
    level, lines, best = _level(folder), [], []
    plain = folder.metric.rpartition(":")[2]  # training images are evaluated without a variant
    for fraction in folder.fractions:
        place = fraction_name(fraction, folder.num_images.get(fraction)) if len(folder.fractions) > 1 else ""
        where = f"With {place}, " if place else ""
        for arm in (folder.baseline, folder.candidate):
            names = folder.schedules(fraction, arm)
            columns = (folder.metric, plain, f"{TRAIN}:{plain}", LOSS)
            every = [_columns(folder, column, arm, names, fraction) for column in columns]
            used = np.isfinite(every[0]).all(1)
            if len(names) < 2 or not used.any():
                continue
            scores, alike, seen, losses = (values[used] for values in every)
            validation = Curve(arm, [folder.total(arm, name, fraction) for name in names], scores)
            judged = bool(np.isfinite(seen).all())
            if judged or np.isfinite(losses).all():
                train = Curve(arm, validation.x, seen if judged else -losses)
                found = overfit_onset(train, validation, level=level, tolerance=_margin(folder), judged=judged)
                if found.onset == validation.x[-1] and not found.fall > 0:
                    best.append(f"{arm} with {place}" if place else arm)
                else:
                    lines.append(where + words.sentence(found))
            if judged:
                gaps = seen[:, -1] - alike[:, -1]
                size = {"mean": float(gaps.mean()), "half_width": float(t_half_width(gaps, level))}
                lines.append(where + words.gap_sentence(arm, names[-1], **size, level=level, num_seeds=len(gaps)))
    if best:
        lines.append(f"Validation is best at the longest schedule tried: {'; '.join(best)}.")
    return [Answer("Does longer training hurt?", tuple(lines))] if lines else []


def _price(facts: Facts) -> list[Answer]:
    """Cost of the pre-training, and of the longest common schedule of either arm without and with it."""
    folder, lines = facts.folder, []
    arms = (folder.baseline, folder.candidate)
    for arm in arms:
        start = facts.starts.get(arm)
        if start and start.whole.images > 0:
            took = f"Pre-training of {arm}{f' (public weights {start.public})' if start.public else ''} took"
            share = f"; amortised over {start.uses:,g} uses: {_effort(start.share)} each"
            lines.append(f"{took} {_effort(start.whole)}{', counted to one use' if start.uses == 1 else share}.")
    for arm in arms if lines and folder.headline_cell else ():
        schedule, fraction = folder.own_schedule(arm, *folder.headline_cell), folder.headline_cell[1]
        if mean := facts.mean_costs.get((arm, schedule, fraction)):
            training, total = (_effort(mean[way]) for way in ("alone", "whole"))
            total = total if isfinite(mean["whole"].images) else "unknown"
            lines.append(f"{arm} at {schedule}: training takes {training}; total with pre-training {total}.")
    for arm in arms:
        start = facts.starts.get(arm)
        if isnan(start.whole.images) if start else arm in outside_weights(folder):
            who = f"The pre-training of {arm}" if start else arm
            lines.append(f"{who} starts from weights made elsewhere, whose cost is unknown (“?” in the tables).")
    return [Answer("What does the start cost?", tuple(lines), from_clock=True)] if lines else []


def _effort(cost: Cost) -> str:
    """Images, pixels and seconds of a training; unknown seconds (nan) are left out."""
    time = f" and {span(cost.seconds)}" if isfinite(cost.seconds) else ""
    return f"{large(cost.images)} images, {large(cost.pixels)} pixels{time}"
