"""Matching and sampling: hand-made overlaps, torchvision's matcher, and counts of random choices."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from devices import static
from headstart.model.regions import match, sample, take

RPN = {"high": 0.7, "low": 0.3, "low_quality": True}
REGIONS = {"high": 0.5, "low": 0.5, "low_quality": False}


def bar(*spans):
    """Boxes of height 10 over the given spans in x: overlaps can be worked out by hand."""
    return torch.tensor([[a, 0.0, b, 10.0] for a, b in spans])


def matched(candidates, gt, *, valid=None, crowd=None, **rule):
    valid = torch.ones(len(gt), dtype=torch.bool) if valid is None else torch.tensor(valid)
    crowd = torch.zeros(len(gt), dtype=torch.bool) if crowd is None else torch.tensor(crowd)
    eager = match(candidates, gt.unsqueeze(0), valid.unsqueeze(0), crowd.unsqueeze(0), **rule)
    with static():
        fixed = match(candidates, gt.unsqueeze(0), valid.unsqueeze(0), crowd.unsqueeze(0), **rule)
    assert all(map(torch.equal, eager, fixed))
    return eager[0][0].tolist(), eager[1][0].tolist()


def test_thresholds_are_inclusive_above_and_exclusive_below():
    gt = bar((0, 10))
    candidates = bar((0, 10), (0, 7), (0, 6.9), (0, 5), (0, 3), (0, 2.9), (20, 30))  # IoU 1, .7, .69, .5, .3, .29, 0
    assert matched(candidates, gt, **RPN)[0] == [1, 1, -1, -1, -1, 0, 0]
    assert matched(candidates, gt, **REGIONS)[0] == [1, 1, 1, 1, 0, 0, 0]


def test_each_candidate_takes_its_best_object():
    gt = bar((0, 10), (8, 20))
    labels, to = matched(bar((0, 9), (9, 20), (5, 14)), gt, **REGIONS)
    assert labels == [1, 1, 0] and to == [0, 1, 1]  # the last: 5/14 of the first, 6/15 of the second


def test_low_quality_matches_take_all_ties_but_nothing_at_zero():
    gt = bar((0, 10), (100, 110))
    candidates = bar(
        (0, 4), (6, 10), (0, 3.5), (50, 60)
    )  # .4, .4 (a tie for the best), .35, 0; none on the second object
    assert matched(candidates, gt, **RPN)[0] == [1, 1, -1, 0]
    assert matched(candidates, gt, **(RPN | {"low_quality": False}))[0] == [-1, -1, -1, 0]


def test_a_low_quality_match_keeps_the_candidates_own_best_object():
    """torchvision's and Detectron's rule: the candidate becomes positive, for the object that it overlaps most."""
    gt = bar((0, 10), (0, 30))
    labels, to = matched(bar((0, 12)), gt, **RPN)  # .83 and .4: the best candidate of both
    assert labels == [1] and to == [0]


def test_crowds_are_neither_positive_nor_negative():
    gt = bar((0, 10), (50, 90))
    candidates = bar((0, 10), (50, 60), (84, 94), (82, 92), (200, 210))  # on the crowd: 0, 1, .6, .8, 0
    labels, _ = matched(candidates, gt, crowd=[False, True], **REGIONS)
    assert labels == [1, -1, 0, -1, 0]
    assert matched(candidates, gt, crowd=[False, True], **RPN)[0] == [1, -1, 0, -1, 0]
    # What is positive for a real object stays so, also inside a crowd.
    assert matched(bar((50, 60)), bar((50, 60), (40, 90)), crowd=[False, True], **REGIONS)[0] == [1]


@pytest.mark.parametrize("rule", [RPN, REGIONS])
def test_no_objects_give_negatives_only(rule):
    candidates = bar((0, 10), (5, 20), (0, 0))
    assert matched(candidates, torch.zeros(1, 4), valid=[False], **rule)[0] == [0, 0, 0]
    # A padded slot is not an object even if a box was left in it.
    assert matched(candidates, bar((0, 10)), valid=[False], **rule)[0] == [0, 0, 0]


def test_candidates_that_are_not_inside_take_no_part_and_win_no_tie():
    gt = bar((0, 10))
    rule = RPN | {"inside": torch.tensor([[False, True, True]])}
    assert matched(bar((0, 10), (0, 4), (50, 60)), gt, **rule)[0] == [-1, 1, 0]


@pytest.mark.parametrize(("rule", "seed"), [(rule, seed) for rule in (RPN, REGIONS) for seed in range(3)])
def test_equals_torchvisions_matcher(rule, seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(400, 2, generator=generator) * 60
    boxes = torch.cat(
        [low, low + 5 + torch.rand(400, 2, generator=generator) * 40], dim=1
    ).round()  # whole: ties happen
    candidates, gt = boxes[:388], boxes[388:]
    overlap = box_iou(gt, candidates)
    wanted = Matcher(rule["high"], rule["low"], rule["low_quality"])(overlap)
    labels, to = matched(candidates, gt, **rule)
    assert labels == torch.where(wanted >= 0, 1, torch.where(wanted == -1, 0, -1)).tolist()
    assert {1, 0} <= set(labels)
    found = torch.tensor(to)[wanted >= 0]
    best = overlap.gather(0, found.unsqueeze(0))
    assert torch.equal(best, overlap.gather(0, wanted[wanted >= 0].unsqueeze(0))), (
        "the same object, or one of equal IoU"
    )


def labels_of(positives, negatives, ignored, rows=1):
    """Labels [rows, N] in a random order, the same in every row."""
    values = torch.tensor([1] * positives + [0] * negatives + [-1] * ignored)
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(1))].expand(rows, -1)


@pytest.mark.parametrize(
    ("have", "num", "max_positive", "expected"),
    [
        ((30, 100, 50), 64, 16, (16, 48)),  # plenty of both
        ((5, 100, 50), 64, 16, (5, 59)),  # few positives: filled up with negatives
        ((30, 10, 50), 64, 16, (16, 10)),  # few negatives: slots stay empty, positives keep their cap
        ((0, 100, 50), 64, 16, (0, 64)),
        ((30, 0, 50), 64, 16, (16, 0)),
        ((0, 0, 50), 64, 16, (0, 0)),
        ((3, 4, 0), 64, 64, (3, 4)),  # fewer candidates than slots
        ((30, 10, 0), 20, 20, (20, 0)),
        ((30, 10, 0), 20, 0, (0, 10)),
    ],
)
def test_sample_counts(have, num, max_positive, expected):
    labels = labels_of(*have, rows=3)
    chosen = sample(labels, torch.arange(3), num=num, max_positive=max_positive, salt=1)
    assert chosen.index.shape == (3, min(num, sum(have)))
    assert (chosen.positive.sum(1).tolist(), (chosen.valid & ~chosen.positive).sum(1).tolist()) == (
        [expected[0]] * 3,
        [expected[1]] * 3,
    )
    values = take(labels, chosen.index)
    assert (values[chosen.positive] == 1).all() and (values[chosen.valid & ~chosen.positive] == 0).all()
    # Positives come first, then negatives, then empty slots; nothing is taken twice.
    rank = 2 * chosen.positive.int() + (chosen.valid & ~chosen.positive).int()
    assert (rank.diff(dim=1) <= 0).all()
    assert all(row.unique().numel() == row.numel() for row in chosen.index)


def test_sampling_is_uniform():
    """How often each candidate is chosen over 4,000 keys, within five standard errors."""
    rows = 4000
    labels = labels_of(12, 40, 8, rows=rows)
    chosen = sample(labels, torch.arange(rows) * 7919, num=16, max_positive=4, salt=1)
    counts = torch.zeros(60).index_add(0, chosen.index[chosen.valid], torch.ones(int(chosen.valid.sum())))
    for label, share in ((1, 4 / 12), (0, 12 / 40), (-1, 0.0)):
        deviation = (counts[labels[0] == label] / rows - share).abs().max()
        assert deviation <= 5 * (share * (1 - share) / rows) ** 0.5
    # Pairs too: choices are not tied to one another.
    picks = torch.zeros(rows, 60).scatter(1, chosen.index, chosen.valid.float())[:, labels[0] == 0]
    together = torch.corrcoef(picks.T).fill_diagonal_(-1 / 39)
    assert (together + 1 / 39).abs().max() < 5 / rows**0.5


def test_a_row_is_sampled_by_its_own_key_only():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(-1, 2, (6, 200), generator=generator)
    keys = torch.randint(0, 2**40, (6,), generator=generator)
    together = sample(labels, keys, num=32, max_positive=8, salt=2)
    for row in range(6):
        alone = sample(labels[row : row + 1], keys[row : row + 1], num=32, max_positive=8, salt=2)
        assert torch.equal(alone.index[0], together.index[row]) and torch.equal(alone.valid[0], together.valid[row])
    other = sample(labels, keys, num=32, max_positive=8, salt=1)
    assert not torch.equal(other.index, together.index)


def test_take_gathers_rows_and_vectors():
    values, index = torch.arange(24.0).view(2, 3, 4), torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(take(values, index), torch.stack([values[0, [2, 0]], values[1, [1, 1]]]))
    assert torch.equal(take(values[..., 0], index), take(values, index)[..., 0])
