"""The difference of two arms on resampled test images, from the per-image records of their runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from headstart.study.results import NAN, Run, StudyFolder, final_row, metric_of
from headstart.tasks import METRIC_KINDS, RecordsReader

NUM_RESAMPLES = 1_000  # a 95 % percentile interval then rests on 25 values a side


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
