"""Scores of two arms on resampled test images, from the per-image records of their runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headstart.study.results import NAN, Run, StudyFolder, metric_of
from headstart.tasks import METRIC_KINDS, RecordsReader

NUM_RESAMPLES = 1_000  # a 95 % percentile interval then rests on 25 values a side


def resampled_differences(folder: StudyFolder, schedule: str, fraction: float) -> tuple[np.ndarray, int] | None:
    """Candidate minus baseline at a cell on resampled test images, float [S, R]; number of test images."""
    found = resampled_scores(folder, [(schedule, fraction)], number=NUM_RESAMPLES)
    return found and (found[0][:, 1, 0] - found[0][:, 0, 0], found[1])


def resampled_scores(
    folder: StudyFolder, cells: Sequence[tuple[str, float]], *, number: int
) -> tuple[np.ndarray, int] | None:
    """Scores of baseline and candidate on resampled test images, float [S, 2, C, R]; number of test images.

    All scores share the same resamples; R leaves out those without an annotation, which have no score. cells are
    (schedule, fraction); nan for seeds that are not finished. None where the metric cannot be computed from match
    records, or a finished run has no records. ValueError for records that do not give the run's score.
    """
    kind, _, name = folder.metric.rpartition(".")
    reader = METRIC_KINDS[kind].records if kind in METRIC_KINDS else None
    if reader is None or name not in reader.columns:
        return None
    seeds = list(zip(*(folder.ends(arm, *cell) for arm in (folder.baseline, folder.candidate) for cell in cells)))
    used = [all(run and run.end for run in runs) for runs in seeds]
    records = [_records(run, kind, name, reader) for runs, ok in zip(seeds, used) if ok for run in runs]
    if not records or None in records:
        return None
    resampled = reader.bootstrap(records, num_resamples=number, generator=np.random.default_rng(0))
    resampled = resampled[:, :, reader.columns.index(name)]
    resampled = resampled[np.isfinite(resampled).all(1)]
    scores = np.full((len(used), 2, len(cells), len(resampled)), NAN)
    scores[used] = resampled.T.reshape(-1, 2, len(cells), len(resampled))
    return scores, len(records[0].image_ids)


def _records(run: Run, kind: str, name: str, reader: RecordsReader) -> Any:
    path = run.directory / f"records-{kind}-{run.segment.stop}.npz"
    if not path.is_file():
        return None
    records = reader.load(path)
    logged, found = metric_of(run.final_row() or {}, f"{kind}.{name}"), reader.measure(records)[name]
    if not abs(logged - found) < 1e-6:
        raise ValueError(
            f"{path}: gives a {kind} {name} of {found:.4f}, expected the {logged:.4f} of the rows beside it"
        )
    return records
