"""Conditions for a headline that the rows of a study do not show by themselves."""

from __future__ import annotations

from math import nan

import numpy as np

from headstart.report.differences import undeclared
from headstart.study.results import Run, StudyFolder, metric_of
from headstart.training.rows import training_rows
from headstart.training.stored import AUDIT_FILE, SEGMENT_FILE, RunFacts
from headstart.verdict.earned import ImageCounts, Obstacle, last_doubling, rising
from headstart.verdict.numbers import counted
from headstart.weights.audits.record import Audit


def unfinished(folder: StudyFolder) -> Obstacle | None:
    """The obstacle of segments that are still to run."""
    if folder.is_finished:
        return None
    done = f"{folder.num_finished} of {counted(len(folder.runs), 'segment')} finished"
    return Obstacle("unfinished", done, f"{done}; the rule is applied when all are")


def void(folder: StudyFolder) -> Obstacle | None:
    """The obstacle that voids every comparison: undeclared differences, unaudited starts, shared pictures."""
    fields = undeclared(folder)
    if fields:
        reason = f"the arms differ in undeclared fields: {', '.join(fields)}; these could explain the whole difference"
        return Obstacle("undeclared", "the arms differ in undeclared fields", reason)
    starts = {arm: starts_of_arm(folder, arm) for arm in (folder.baseline, folder.candidate) if arm}
    for arm, runs in starts.items():
        audits = [run.fact(AUDIT_FILE, Audit) for run in runs]
        if not all(audit is not None and not audit.errors for audit in audits):
            return Obstacle("unaudited", f"the start of {arm} was not audited", f"a run of {arm} has no clean audit")
    stored = [run.fact(SEGMENT_FILE, RunFacts) for runs in starts.values() for run in runs]
    shared = [own.overlap for own in stored if own]
    if any(shared) or folder.study.allow_overlap:
        pictures = counted(max(shared), "picture") if any(shared) else "pictures"
        allowed = " (the study file says allow_overlap: true)" if folder.study.allow_overlap else ""
        reason = f"training and validation images share {pictures}{allowed}, so scores say little of new images"
        return Obstacle("overlap", "training and validation images share pictures", reason)
    return None


def images_of(folder: StudyFolder) -> ImageCounts | None:
    """Images of a study, those of its largest amount of data; None where its runs do not say."""
    arms = {run.segment.name: run for arm in (folder.baseline, folder.candidate) for run in starts_of_arm(folder, arm)}
    stored = [run.fact(SEGMENT_FILE, RunFacts) for run in arms.values()]
    num_val = next((own.num_val_images for own in stored if own and own.num_val_images), None)
    num_train = folder.num_images.get(folder.fractions[0]) if folder.fractions else None
    return ImageCounts(num_val, num_val + num_train) if num_val and num_train else None


def still_rising(folder: StudyFolder, fraction: float) -> Obstacle | None:
    """The obstacle of an arm that the last doubling of the schedule compared still improves by more than the margin.

    Of an arm without a shorter schedule the evaluations at the full learning rate are compared: drops would hide the
    rise. Longer schedules, which the other arm does not have, do not count.
    """
    gains, compared = {}, folder.common_schedules(fraction)[-1]
    for arm in (folder.baseline, folder.candidate):
        end = folder.total(arm, compared, fraction)
        names = [name for name in folder.schedules(fraction, arm) if folder.total(arm, name, fraction) <= end]
        x = np.array([folder.total(arm, name, fraction) for name in names], float)
        scores = np.stack([folder.scores(folder.metric, arm, name, fraction) for name in names], 1)
        if len(names) < 2:
            x, scores = _at_full_rate(folder, arm, names[0], fraction)
        known = np.isfinite(scores).all(1)
        gains[arm] = last_doubling(x, scores[known]) if known.any() and len(x) else nan
    return rising(folder.rule, gains)


def starts_of_arm(folder: StudyFolder, arm: str) -> list[Run]:
    """Finished runs of an arm that begin at step 0, or leave another arm's trunk."""
    runs, found = folder.runs, []
    for run in runs.values():
        parent = runs.get(run.segment.parent or "")
        own = run.segment.kind != "pretrain" and run.segment.arm == arm and run.end is not None
        if own and (parent is None or parent.segment.arm != arm):
            found.append(run)
    return found


def _at_full_rate(folder: StudyFolder, arm: str, schedule: str, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps [P] and scores [S,P] of the evaluations before the first drop of the learning rate, of finished seeds."""
    curves: list[dict[int, float]] = []
    metric = folder.metric.rpartition(":")[2]  # of a variant: the plain evaluations are its curve
    for cell in folder.cells_at(arm, schedule, fraction).values():
        runs = [folder.runs[name] for name in cell.segments]
        rates = {row["step"]: row["rate"] for run in runs for row in training_rows(run.rows)}
        if runs[-1].end is None or not rates:
            continue
        until = max(step for step, rate in rates.items() if rate >= max(rates.values()) * (1 - 1e-9))
        rows = [row for run in runs for row in run.evaluations if row["step"] <= until]
        curves.append({row["step"]: metric_of(row, metric) for row in rows})
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return np.array(steps, float), np.array([[curve[step] for step in steps] for curve in curves])
