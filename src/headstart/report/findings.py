"""Findings of a study: headline by its rule, verdict on every cell, noise of the test images, answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headstart.report.answers import Answer, Comparison, EqualEffort, equal_efforts, find_answers, find_crossover
from headstart.report.differences import starts_differ, undeclared
from headstart.report.facts import Facts
from headstart.study.results import NAN, Run, StudyFolder, final_row, metric_of
from headstart.tasks import METRIC_KINDS, RecordsReader
from headstart.verdict import words
from headstart.verdict.curves import Crossover
from headstart.verdict.numbers import counted, fraction_name
from headstart.verdict.verdict import Verdict, judge

NUM_RESAMPLES = 1_000  # a 95 % percentile interval then rests on 25 values a side
# Recomputed from the records of a kind: which metrics, and how.


@dataclass(frozen=True)
class Findings:
    """state: decided, open, indicative, unfinished, undeclared or none. winner: the arm that the title begins with."""

    state: str
    title: str
    text: str
    winner: str | None
    comparisons: tuple[Comparison, ...]
    answers: tuple[Answer, ...]
    equal: tuple[EqualEffort, ...]
    crossover: Crossover | None
    resampled: np.ndarray | None  # the headline's difference on resampled test images, float [S, R]

    def summary(self) -> dict[str, Any]:
        """Fields of report.json. Measured times stand under names with "seconds" in them."""
        answers = {
            clock: [{"question": a.question, "lines": a.lines} for a in self.answers if a.from_clock == clock]
            for clock in (False, True)
        }
        equal = [{k: v for k, v in vars(e).items() if k != "verdict"} | _fields(e.verdict) for e in self.equal]
        return {
            "state": self.state,
            "title": self.title,
            "text": self.text,
            "comparisons": [
                {"fraction": e.fraction, "schedule": e.schedule} | _fields(e.verdict) for e in self.comparisons
            ],
            "answers": answers[False],
            "answers_with_seconds": answers[True],
            "at_equal_effort": [entry for entry in equal if "seconds" not in entry["effort"]],
            "at_equal_seconds": [entry for entry in equal if "seconds" in entry["effort"]],
        }


def find(facts: Facts) -> Findings:
    """All findings of a study; an unfinished one has comparisons of the finished cells, and no headline."""
    folder = facts.folder
    comparisons = _comparisons(facts) if folder.rule else ()
    headline, resampled, problem = _headline(facts)
    crossing = find_crossover(facts)
    answers = find_answers(facts, comparisons, crossing)
    if problem:
        answers.append(Answer("Would other test images say the same?", (f"Not known: {problem}.",)))
    equal = equal_efforts(facts)
    return Findings(*_title(folder, headline), comparisons, tuple(answers), tuple(equal), crossing, resampled)


def _comparisons(facts: Facts) -> tuple[Comparison, ...]:
    folder = facts.folder
    cells = [(fraction, name) for fraction in folder.fractions for name in folder.common_schedules(fraction)]
    made = [Comparison(fraction, name, _judge(facts, name, fraction)) for fraction, name in cells]
    return tuple(entry for entry in made if entry.verdict.num_seeds)


def _judge(facts: Facts, schedule: str, fraction: float, resampled: tuple[np.ndarray, int] | None = None) -> Verdict:
    rule = facts.folder.rule
    scores = [facts.scores(rule.metric, arm, schedule, fraction) for arm in (rule.baseline, rule.candidate)]
    where = f"at {schedule} with {fraction_name(fraction, facts.folder.num_images.get(fraction))}"
    bootstrap, num_images = resampled or (None, None)
    return judge(rule, *scores, where=where, bootstrap=bootstrap, num_images=num_images)


def _headline(facts: Facts) -> tuple[Verdict | None, np.ndarray | None, str]:
    """Verdict on the headline's cell of a finished study, its difference on resampled test images float [S, R].

    The text says why these are not known, if they are not.
    """
    folder, resampled, problem = facts.folder, None, ""
    if not folder.is_finished or undeclared(folder) or folder.rule is None or folder.headline_cell is None:
        return None, None, ""
    try:
        resampled = resampled_differences(folder, *folder.headline_cell)
    except ValueError as error:
        problem = str(error)
    verdict = _judge(facts, *folder.headline_cell, resampled)
    return (verdict if verdict.num_seeds else None), resampled and resampled[0], problem


def _title(folder: StudyFolder, verdict: Verdict | None) -> tuple[str, str, str, str | None]:
    """State, title, text and winner."""
    if not folder.is_finished:
        done = f"{folder.num_finished} of {counted(len(folder.runs), 'segment')} finished"
        return "unfinished", "No verdict yet", f"{done}; the rule is applied when all are.", None
    if undeclared(folder):
        text = f"The arms differ in undeclared fields: {', '.join(undeclared(folder))}."
        return "undeclared", "No verdict", f"{text} These could explain the whole difference.", None
    if folder.rule is None:
        return "none", "No verdict", "The study file has no rule, so nothing is decided; the scores are below.", None
    if verdict is None:
        return "none", "No verdict", "The arms have no schedule with a score in common.", None
    title, winner = words.title(verdict, starts_differ=starts_differ(folder))
    state = "indicative" if verdict.indicative else "open" if verdict.outcome == "not decidable" else "decided"
    return state, title, words.sentence(verdict), winner


def _fields(verdict: Verdict) -> dict[str, Any]:
    own = asdict(verdict)
    return {name: own[name] for name in own if name != "rule"} | {"sentence": words.sentence(verdict)}


def resampled_differences(folder: StudyFolder, schedule: str, fraction: float) -> tuple[np.ndarray, int] | None:
    """Candidate minus baseline in the study's metric on resampled test images, float [S, R]; number of test images.

    The same resamples for both arms and all seeds; nan for seeds that are not finished. None where the metric cannot be
    computed from match records, or a finished run has none. ValueError for records that do not give the run's score.
    """
    kind, _, name = folder.metric.rpartition(".")
    reader = METRIC_KINDS[kind].records if kind in METRIC_KINDS else None
    if reader is None or name not in reader.columns:
        return None
    cells = [folder.cells_at(arm, schedule, fraction) for arm in (folder.baseline, folder.candidate)]
    pairs = [[folder.tail(own[seed]) if seed in own else None for own in cells] for seed in folder.seeds]
    used = [all(run and run.end for run in pair) for pair in pairs]
    runs = [run for pair, ok in zip(pairs, used) if ok for run in pair]
    records = [_records(run, kind, name, reader) for run in runs]
    if not records or None in records:
        return None
    resampled = reader.bootstrap(records, num_resamples=NUM_RESAMPLES, generator=np.random.default_rng(0))
    scores = resampled[:, :, reader.columns.index(name)].T.reshape(-1, 2, NUM_RESAMPLES)
    differences = np.full((len(folder.seeds), NUM_RESAMPLES), NAN)
    differences[used] = scores[:, 1] - scores[:, 0]
    return differences, len(records[0].image_ids)


def _records(run: Run, kind: str, name: str, reader: RecordsReader) -> Any:
    path = run.directory / f"records-{kind}-{run.segment.stop}.npz"
    if not path.is_file():
        return None
    records = reader.load(path)
    logged, found = metric_of(final_row(run) or {}, f"{kind}.{name}"), reader.measure(records)[name]
    if not abs(logged - found) < 1e-6:
        raise ValueError(
            f"{path}: gives a {kind} {name} of {found:.4f}, expected the {logged:.4f} of the rows beside it"
        )
    return records
