"""What a study found: the headline, and the answers to the questions that people ask of it, in words and numbers.

The statistics are those of verdict.py and curves.py; here they meet the cells of a folder. S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headstart.study.curves import Crossover, Curve, compare_at, crossover, images_worth, overfit_onset
from headstart.study.display import fraction_name, large, metric_name, span
from headstart.study.read import NAN, StudyFolder
from headstart.study.spending import Bills, mean_cost, outside_weights
from headstart.study.verdict import Rule, Verdict, judge
from headstart.study.wording import counted

DEFAULT_METRIC = "box.AP"  # what is asked about where a study has no rule
DEFAULT_LEVEL = 0.95
EFFORTS = ("images", "pixels", "seconds")


@dataclass(frozen=True)
class Comparison:
    """The verdict on one schedule at one fraction."""

    fraction: float
    schedule: str
    verdict: Verdict


@dataclass(frozen=True)
class Answer:
    """One question of a reader and its answer; from_clock says that the text holds measured seconds."""

    question: str
    text: str
    from_clock: bool = False


@dataclass(frozen=True)
class EqualEffort:
    """Both arms with the same effort spent, interpolated between the ends of schedules; scores are means over seeds."""

    effort: str
    at: float
    baseline: float
    candidate: float
    verdict: Verdict


@dataclass(frozen=True)
class Findings:
    """state: decided, open, indicative, unfinished, undeclared or none. winner: the arm that the title names, if any."""

    state: str
    title: str
    text: str
    winner: str | None
    headline: Verdict | None
    comparisons: tuple[Comparison, ...]
    answers: tuple[Answer, ...]
    equal: tuple[EqualEffort, ...]
    crossover: Crossover | None


def find(folder: StudyFolder, bills: Bills) -> Findings:
    """All findings of a study; an unfinished one has comparisons of what is there, and no headline."""
    comparisons = _comparisons(folder) if folder.rule else ()
    headline = _headline(folder, comparisons)
    state, title, text, winner = _title(folder, headline)
    crossing = _crossover(folder)
    answers = _answers(folder, bills, comparisons, crossing) if folder.baseline else ()
    equal = _equal_efforts(folder, bills) if folder.rule else ()
    return Findings(state, title, text, winner, headline, comparisons, tuple(answers), tuple(equal), crossing)


def metric(folder: StudyFolder) -> str:
    """The metric that the study is about."""
    return folder.rule.metric if folder.rule else DEFAULT_METRIC


def common_schedules(folder: StudyFolder, fraction: float) -> tuple[str, ...]:
    """Schedules that both arms of the question have, shortest first."""
    return folder.schedules(fraction, folder.baseline, folder.candidate) if folder.baseline else ()


def undeclared(folder: StudyFolder) -> tuple[str, ...]:
    """Fields in which arms differ without having declared it: they make a comparison void."""
    return tuple(str(row["field"]) for row in folder.differences if not row.get("declared"))


def _comparisons(folder: StudyFolder) -> tuple[Comparison, ...]:
    made = []
    for fraction in folder.fractions:
        for schedule in common_schedules(folder, fraction):
            verdict = _judge(folder, folder.rule, schedule, fraction)
            if verdict.num_seeds:
                made.append(Comparison(fraction, schedule, verdict))
    return tuple(made)


def _judge(folder: StudyFolder, rule: Rule, schedule: str, fraction: float) -> Verdict:
    scores = [folder.scores(rule.metric, arm, schedule, fraction) for arm in (rule.baseline, rule.candidate)]
    return judge(rule, *scores, where=f"at {schedule} with {fraction_name(folder, fraction)}")


def _headline(folder: StudyFolder, comparisons: tuple[Comparison, ...]) -> Verdict | None:
    """The longest schedule that both have, at the largest fraction, once everything is finished."""
    if not folder.is_finished or undeclared(folder):
        return None
    most = [entry.verdict for entry in comparisons if entry.fraction == folder.fractions[0]]
    return most[-1] if most else None


def _title(folder: StudyFolder, verdict: Verdict | None) -> tuple[str, str, str, str | None]:
    if not folder.is_finished:
        done = f"{folder.num_finished} of {counted(len(folder.runs), 'segment')} finished"
        return "unfinished", "No verdict yet", f"{done}; the rule is applied when all are.", None
    if undeclared(folder):
        listed = ", ".join(undeclared(folder))
        return (
            "undeclared",
            "No verdict",
            f"The arms differ in what they did not declare: {listed}. That could be the whole difference.",
            None,
        )
    if verdict is None:
        reason = (
            "The arms have no schedule with a score in common."
            if folder.rule
            else "The study file has no rule, so nothing is decided; the differences are below."
        )
        return "none", "No verdict", reason, None
    outcome = verdict.leaning if verdict.indicative else verdict.outcome
    rule = verdict.rule
    title, winner = {
        "better": (f"{rule.candidate} ends ahead", rule.candidate),
        "worse": (f"{rule.baseline} ends ahead", rule.baseline),
        "equivalent": ("Either start will do", None),
        "not worse": (f"{rule.candidate} is not worse", rule.candidate),
        "not decidable": ("Not decidable with these runs", None),
    }[outcome]
    state = "indicative" if verdict.indicative else "open" if outcome == "not decidable" else "decided"
    return state, title, verdict.sentence(), winner


def _ends(folder: StudyFolder, arm: str, fraction: float, *, x: dict[str, float] | None = None) -> Curve:
    """Scores at the ends of schedules as a curve over total steps, or over `x` by schedule."""
    schedules = common_schedules(folder, fraction)
    x = x or {name: float(folder.total(arm, name, fraction)) for name in schedules}
    scores = [folder.scores(metric(folder), arm, name, fraction) for name in schedules]
    return Curve(arm, [x[name] for name in schedules], np.stack(scores, 1)[_complete(folder, fraction)])


def _complete(folder: StudyFolder, fraction: float) -> np.ndarray:
    """Seeds, bool [S], that have a score for every common schedule in both arms."""
    pairs = [(arm, name) for arm in (folder.baseline, folder.candidate) for name in common_schedules(folder, fraction)]
    return np.isfinite([folder.scores(metric(folder), arm, name, fraction) for arm, name in pairs]).all(0)


def _level(folder: StudyFolder) -> float:
    return folder.rule.level if folder.rule else DEFAULT_LEVEL


def _crossover(folder: StudyFolder) -> Crossover | None:
    """Where the candidate catches up, over the ends of schedules of the largest fraction; None with fewer than two."""
    if not folder.baseline or not folder.fractions:
        return None
    largest = folder.fractions[0]
    if len(common_schedules(folder, largest)) < 2 or not _complete(folder, largest).any():
        return None
    return crossover(_ends(folder, folder.baseline, largest), _ends(folder, folder.candidate, largest), level=_level(folder))


def _answers(folder: StudyFolder, bills: Bills, comparisons: tuple[Comparison, ...], crossing: Crossover | None) -> list[Answer]:
    level, largest, answers = _level(folder), folder.fractions[0], []
    at_most = [entry for entry in comparisons if entry.fraction == largest]
    if len(at_most) > 1:
        answers.append(Answer("Who is ahead early?", at_most[0].verdict.sentence()))
    if len(common_schedules(folder, largest)) > 1 and _complete(folder, largest).any():
        found = crossover(
            _ends(folder, folder.baseline, largest), _ends(folder, folder.candidate, largest), level=level
        )
        answers.append(Answer(f"When does {folder.candidate} catch up?", found.sentence()))
    for fraction in folder.fractions[1:]:
        last = [entry for entry in comparisons if entry.fraction == fraction][-1:]
        answers += [Answer(f"And with {100 * fraction:g} % of the data?", entry.verdict.sentence()) for entry in last]
    answers += _worth(folder, level)
    answers += _overfitting(folder, level)
    answers += _price(folder, bills)
    return answers


def _worth(folder: StudyFolder, level: float) -> list[Answer]:
    """What the start is worth in labelled images: the longest common schedule of every fraction, smallest first."""
    fractions = [f for f in reversed(folder.fractions) if f in folder.num_images and common_schedules(folder, f)]
    if len(fractions) < 2:
        return []
    used = np.all([_complete(folder, fraction) for fraction in fractions], 0)
    if not used.any():
        return []
    curves = [
        Curve(
            arm,
            [folder.num_images[f] for f in fractions],
            np.stack(
                [folder.scores(metric(folder), arm, common_schedules(folder, f)[-1], f)[used] for f in fractions], 1
            ),
        )
        for arm in (folder.baseline, folder.candidate)
    ]
    found = [images_worth(*curves, images=folder.num_images[fraction], level=level) for fraction in fractions[:-1]]
    return [Answer("How many labelled images is the start worth?", " ".join(each.sentence() for each in found))]


def _overfitting(folder: StudyFolder, level: float) -> list[Answer]:
    """Whether longer schedules lose on validation while the training loss still falls, arm by arm."""
    sentences = []
    for fraction in folder.fractions:
        names = common_schedules(folder, fraction)
        used = _complete(folder, fraction)
        if len(names) < 2 or not used.any():
            continue
        where = "" if len(folder.fractions) == 1 else f"With {fraction_name(folder, fraction)}, "
        for arm in (folder.baseline, folder.candidate):
            validation = _ends(folder, arm, fraction)
            losses = np.stack([_final_losses(folder, arm, name, fraction) for name in names], 1)[used]
            if np.isfinite(losses).all():
                sentences.append(
                    where + overfit_onset(Curve(arm, validation.x, -losses), validation, level=level).sentence()
                )
    return [Answer("Does longer training hurt?", " ".join(sentences))] if sentences else []


def _final_losses(folder: StudyFolder, arm: str, schedule: str, fraction: float) -> np.ndarray:
    """The last logged training loss of a schedule, float [S]."""
    tails = {
        c.seed: folder.tail(c)
        for c in folder.plan.cells
        if (c.arm, c.schedule, c.fraction) == (arm, schedule, fraction)
    }
    logged = [
        [row["loss"] for row in tails[seed].rows if row["kind"] == "train"] if seed in tails else []
        for seed in folder.seeds
    ]
    return np.array([NAN if not losses or losses[-1] is None else losses[-1] for losses in logged], float)


def _price(folder: StudyFolder, bills: Bills) -> list[Answer]:
    """What the pre-training cost, held against the longest run of the candidate."""
    sentences = []
    for arm in (folder.baseline, folder.candidate):
        own = [bill.pretraining for (owner, *_), cells in bills.items() if owner == arm for bill in cells]
        if own and own[0].images > 0:
            cost = own[0]
            sentences.append(
                f"The start of {arm} took {large(cost.images)} images ({large(cost.pixels)} pixels) and {span(cost.seconds)} of pre-training, once."
            )
    longest = common_schedules(folder, folder.fractions[0])[-1:]
    for arm in (folder.baseline, folder.candidate) if sentences else ():
        cells = bills.get((arm, *longest, folder.fractions[0]))
        if cells:
            whole = mean_cost([bill.whole for bill in cells])
            sentences.append(
                f"All in, {longest[0]} of {arm} takes {large(whole.images)} images, {large(whole.pixels)} pixels and {span(whole.seconds)}."
            )
    sentences += [
        f"{arm} starts from weights made elsewhere, whose cost is not counted here." for arm in outside_weights(folder)
    ]
    return [Answer("What does the start cost?", " ".join(sentences), from_clock=True)] if sentences else []


def _equal_efforts(folder: StudyFolder, bills: Bills) -> list[EqualEffort]:
    """Both arms at equal steps, and at equal whole cost, pre-training included, for the largest fraction."""
    fraction = folder.fractions[0]
    names = common_schedules(folder, fraction)
    arms = (folder.baseline, folder.candidate)
    if not names or not _complete(folder, fraction).any():
        return []
    curves = {"steps": [_ends(folder, arm, fraction) for arm in arms]}
    for effort in EFFORTS:
        spent = [
            {name: getattr(mean_cost([b.whole for b in bills[arm, name, fraction]]), effort) for name in names}
            for arm in arms
        ]
        if all(np.all(np.diff(list(x.values())) > 0) and np.isfinite(list(x.values())).all() for x in spent):
            curves[f"{effort}, pre-training included"] = [
                _ends(folder, arm, fraction, x=x) for arm, x in zip(arms, spent)
            ]
    made = []
    for effort, (baseline, candidate) in curves.items():
        at = min(baseline.x[-1], candidate.x[-1])
        verdict = compare_at(folder.rule, baseline, candidate, axis=effort)
        made.append(EqualEffort(effort, at, float(baseline.at(at).mean()), float(candidate.at(at).mean()), verdict))
    return made


def rule_sentence(rule: Rule) -> str:
    """The rule as it was written before the runs, in words."""
    margin = f"{100 * rule.margin:g} points"
    claim = {
        "equivalence": f"whether {rule.candidate} and {rule.baseline} differ by less than {margin}",
        "non_inferiority": f"whether {rule.candidate} is not worse than {rule.baseline} by more than {margin}",
        "superiority": f"whether one of {rule.candidate} and {rule.baseline} is better by more than {margin}",
    }[rule.kind]
    test = {"t": "a paired t test", "sign_flip": "an exact sign-flip test"}[rule.test]
    return f"The rule, written before the first run: {claim} in {metric_name(rule.metric)}, at {100 * rule.level:g} % by {test} over at least {rule.min_seeds} seeds."


def settled_schedule(folder: StudyFolder, arm: str, fraction: float) -> str | None:
    """The shortest schedule of an arm that comes within the rule's margin (else 1 point) of its own best; None if none is scored."""
    names = folder.schedules(fraction, arm)
    means = {name: float(scores.mean()) for name in names if np.isfinite(scores := folder.scores(metric(folder), arm, name, fraction)).any()}
    means = {name: value for name, value in means.items() if np.isfinite(value)}
    margin = folder.rule.margin if folder.rule else 0.01
    return next((name for name in means if means[name] >= max(means.values()) - margin), None)
