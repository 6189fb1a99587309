"""IoU and accuracy by brute force, from counts that any resample of the images can be made of."""

import numpy as np
import pytest

from headstart.metrics.pixels import (
    PixelRecords,
    bootstrap_pixels,
    class_ious,
    count_pixels,
    pixel_metrics,
)

NUM = 6


def case(images=5):
    """Pairs of maps: found, and true with unknown pixels; class 4 never occurs, class 5 is only ever found."""
    truths = [np.random.randint(-1, 4, (9, 11)) for _ in range(images)]
    founds = [np.where(np.random.rand(9, 11) < 0.6, truth, np.random.randint(0, 4, (9, 11))) for truth in truths]
    founds = [np.where((found < 0) | (np.random.rand(9, 11) < 0.05), 5, found) for found in founds]
    return founds, truths


def records_of(founds, truths):
    counts = np.stack([count_pixels(found, truth, NUM) for found, truth in zip(founds, truths)], axis=1)
    return PixelRecords(np.arange(len(founds)), tuple("abcdef"), *counts)


def by_hand(founds, truths):
    """Every class over every pixel, one after the other."""
    hit, union, shown, right, known = [0] * NUM, [0] * NUM, [0] * NUM, 0, 0
    for found, truth in zip(founds, truths):
        for f, t in zip(found.ravel().tolist(), truth.ravel().tolist()):
            if t < 0:
                continue
            known, right = known + 1, right + (f == t)
            for c in range(NUM):
                hit[c] += f == t == c
                union[c] += c in (f, t)
                shown[c] += t == c
    ious = [hit[c] / union[c] if shown[c] else float("nan") for c in range(NUM)]
    defined = [iou for iou in ious if iou == iou]
    return ious, sum(defined) / len(defined), right / known


def test_metrics_are_those_of_brute_force():
    founds, truths = case()
    ious, mean, accuracy = by_hand(founds, truths)
    records = records_of(founds, truths)
    np.testing.assert_allclose(class_ious(records), ious)
    assert np.isnan(ious[4]) and np.isnan(ious[5]) and 0.3 < mean < 0.9
    assert pixel_metrics(records) == {"mIoU": pytest.approx(mean), "accuracy": pytest.approx(accuracy)}


def test_weights_are_copies_of_images():
    founds, truths = case()
    weights = np.array([2, 0, 1, 3, 0])
    copied = [[maps[i] for i in np.repeat(np.arange(5), weights)] for maps in (founds, truths)]
    _, mean, accuracy = by_hand(*copied)
    found = pixel_metrics(records_of(founds, truths), weights)
    assert found == {"mIoU": pytest.approx(mean), "accuracy": pytest.approx(accuracy)}


def test_resamples_are_paired_and_of_the_same_images():
    records = records_of(*case())
    drawn = bootstrap_pixels([records, records], num_resamples=20, generator=np.random.default_rng(0))
    assert drawn.shape == (20, 2, 2) and np.array_equal(drawn[:, 0], drawn[:, 1]) and drawn[:, 0, 0].std() > 0
    other = records_of(*case(4))
    with pytest.raises(ValueError, match="records 1 were made on other image_ids"):
        bootstrap_pixels([records, other], num_resamples=2, generator=np.random.default_rng(0))


def test_records_survive_the_file(tmp_path):
    records = records_of(*case())
    records.save(tmp_path / "r.npz")
    again = PixelRecords.load(tmp_path / "r.npz")
    assert again.class_names == records.class_names and pixel_metrics(again) == pixel_metrics(records)
    (tmp_path / "other.npz").write_text("x")
    with pytest.raises(ValueError, match=r"other\.npz: holds no pixel records"):
        PixelRecords.load(tmp_path / "other.npz")


def test_nothing_known_is_undefined():
    records = records_of([np.zeros((3, 3), int)], [np.full((3, 3), -1)])
    assert all(np.isnan(value) for value in pixel_metrics(records).values())
