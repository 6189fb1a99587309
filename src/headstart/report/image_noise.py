"""How far other test images could move the headline: its difference on resampled images, from the match records."""

from __future__ import annotations

import numpy as np

from headstart.metrics import pixels
from headstart.metrics.records import Records, ap_from_records, bootstrap_ap
from headstart.study.folder import Run, StudyFolder, final_row, metric_of

NUM_RESAMPLES = 1_000  # a 95 % percentile interval then rests on 25 values a side
# What can be computed again from the records of a kind: which metrics, and how.
_BOXES = (("AP", "AP50", "AP75"), Records, ap_from_records, bootstrap_ap)
_PIXELS = (pixels.COLUMNS, pixels.PixelRecords, pixels.pixel_metrics, pixels.bootstrap_pixels)


def resampled_differences(folder: StudyFolder, schedule: str, fraction: float) -> tuple[np.ndarray, int] | None:
    """Candidate minus baseline in the study's metric, float [S, R], and the number of test images.

    The same resamples for both arms and all seeds; nan for seeds that are not finished. None where the metric cannot be
    computed from match records, or a finished run has none. ValueError for records that do not give the run's score.
    """
    kind, _, name = folder.metric.rpartition(".")
    columns, _, _, bootstrap = _PIXELS if kind == "semantic" else _BOXES
    if name not in columns or not kind:
        return None
    cells = [folder.cells_at(arm, schedule, fraction) for arm in (folder.baseline, folder.candidate)]
    pairs = [[folder.tail(own[seed]) if seed in own else None for own in cells] for seed in folder.seeds]
    used = [all(run and run.end for run in pair) for pair in pairs]
    runs = [run for pair, ok in zip(pairs, used) if ok for run in pair]
    records = [_records(run, kind, name) for run in runs]
    if not records or None in records:
        return None
    resampled = bootstrap(records, num_resamples=NUM_RESAMPLES, generator=np.random.default_rng(0))
    scores = resampled[:, :, columns.index(name)].T.reshape(-1, 2, NUM_RESAMPLES)
    differences = np.full((len(folder.seeds), NUM_RESAMPLES), np.nan)
    differences[used] = scores[:, 1] - scores[:, 0]
    return differences, len(records[0].image_ids)


def _records(run: Run, kind: str, name: str) -> Records | pixels.PixelRecords | None:
    path = run.directory / f"records-{kind}-{run.segment.stop}.npz"
    if not path.is_file():
        return None
    _, form, measure, _ = _PIXELS if kind == "semantic" else _BOXES
    records = form.load(path)
    told, found = metric_of(final_row(run) or {}, f"{kind}.{name}"), measure(records)[name]
    if not abs(told - found) < 1e-6:
        raise ValueError(f"{path}: gives a {kind} {name} of {found:.4f}, expected the {told:.4f} of the rows beside it")
    return records
