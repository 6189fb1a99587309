"""Run-length codes against pycocotools, pasting against a plain full-image form."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from headstart.data import rle


def paste_plainly(scores, box, height, width):
    """The definition, pixel by pixel on the whole image, in float64."""
    num_cells = scores.shape[0]
    x1, y1, x2, y2 = box
    values = np.zeros((height, width))
    if x2 <= x1 or y2 <= y1:
        return values
    padded = np.pad(scores.astype(np.float64), 1)
    for y in range(height):
        v = (y + 0.5 - y1) / (y2 - y1) * num_cells - 0.5
        for x in range(width):
            u = (x + 0.5 - x1) / (x2 - x1) * num_cells - 0.5
            if not (-1 <= u < num_cells and -1 <= v < num_cells):
                continue
            i, j = int(np.floor(u)), int(np.floor(v))
            a, b = u - i, v - j
            cells = padded[j + 1 : j + 3, i + 1 : i + 3]
            cells = np.pad(cells, [(0, 2 - cells.shape[0]), (0, 2 - cells.shape[1])])
            values[y, x] = np.array([1 - b, b]) @ cells @ np.array([1 - a, a])
    return values


def encode_plainly(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


BOXES = [
    [3.2, 4.1, 17.9, 20.3],
    [0, 0, 24, 19],  # the whole image
    [-8.5, -3.25, 9.5, 30],  # over three sides
    [10.25, 2, 11, 17],  # narrower than a pixel
    [30, 5, 50, 9],  # beside the image
    [-20, -20, -1, -1],
    [5, 5, 5, 12],  # no extent
    [5, 9, 12, 9],
    [7, 12, 3, 15],  # turned over
    [-1000, -1000, 1000, 1000],
    [6, 0, 14, 19],  # full columns
]


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.9])
def test_paste_equals_full_image_form(threshold):
    generator = np.random.default_rng(0)
    random_boxes = np.sort(generator.uniform(-10, 34, (9, 2, 2)), axis=1).reshape(-1, 4)
    boxes = np.concatenate([BOXES, random_boxes])
    for num_cells in (1, 7):
        scores = generator.random((len(boxes), num_cells, num_cells)).astype(np.float32) ** 0.2
        ours = rle.paste_rle(scores, boxes, 19, 24, threshold=threshold)
        num_ones = 0
        for mask, score, box in zip(ours, scores, boxes):
            values = paste_plainly(score, box, 19, 24)
            assert np.abs(values - threshold).min() > 1e-6  # otherwise rounding would decide, not the rule
            assert mask == encode_plainly(values >= threshold)
            num_ones += (values >= threshold).sum()
        assert num_ones > 20


def test_paste_includes_ties_exactly():
    scores = np.array([[[1, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0, 0, 1]]], np.float32)
    for box in ([0, 0, 8, 8], [2, 1, 10, 17], [-4, -8, 12, 8], [4, 4, 8, 8]):  # every weight is a dyadic number
        values = paste_plainly(scores[0], box, 16, 12)
        assert (values == 0.5).any()
        assert rle.paste_rle(scores, np.array([box]), 16, 12) == [encode_plainly(values >= 0.5)]


def test_paste_takes_torch_of_any_kind():
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(5, 14, 14, generator=generator)
    boxes = torch.rand(5, 4, generator=generator) * 10 + torch.tensor([0, 0, 15, 15])
    expected = rle.paste_rle(scores.numpy(), boxes.numpy(), 30, 40)
    assert rle.paste_rle(scores.requires_grad_(), boxes, 30, 40) == expected
    half = scores.detach().bfloat16()
    assert rle.paste_rle(half, boxes, 30, 40) == rle.paste_rle(half.float(), boxes, 30, 40)


def test_paste_in_parts_equals_paste_at_once(monkeypatch):
    generator = np.random.default_rng(2)
    scores = generator.random((40, 7, 7))
    boxes = np.sort(generator.uniform(-10, 60, (40, 2, 2)), axis=1).reshape(-1, 4)
    at_once = rle.paste_rle(scores, boxes, 50, 50)
    monkeypatch.setattr(rle, "_MAX_PIXELS", 700)
    assert rle.paste_rle(scores, boxes, 50, 50) == at_once


def test_paste_nothing_and_refuses_threshold_zero():
    assert rle.paste_rle(np.zeros((0, 28, 28)), np.zeros((0, 4)), 10, 10) == []
    with pytest.raises(ValueError, match="threshold is 0, expected more than 0"):
        rle.paste_rle(np.zeros((0, 28, 28)), np.zeros((0, 4)), 10, 10, threshold=0)


def test_compress_large_runs():
    generator = np.random.default_rng(4)
    lists = [np.array([30_000 * 40_000])]
    for count in (1, 2, 3, 4, 5, 60):
        lists += [generator.integers(0, 10 ** generator.integers(1, 8), count) + 1 for _ in range(20)]
    first = np.concatenate([[0], np.cumsum([len(runs) for runs in lists])])
    masks = rle.compress(np.concatenate(lists), first, 1, 1)
    for mask, runs in zip(masks, lists):
        size = [1, int(runs.sum())]
        assert mask["counts"] == coco_mask.frPyObjects({"size": size, "counts": runs.tolist()}, *size)["counts"]
