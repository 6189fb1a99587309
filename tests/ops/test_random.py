"""Random numbers as a function of keys: even, unrelated, and blind to how a batch was split."""

import itertools

import pytest
import torch

from headstart.ops.random import fold, mix, uniform


def murmur_finaliser(value):
    """MurmurHash3's 32-bit finaliser in plain integers."""
    value ^= value >> 16
    value = value * 0x85EBCA6B & 0xFFFFFFFF
    value ^= value >> 13
    value = value * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ value >> 16


def test_mix_is_murmurs_finaliser():
    values = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xDEADBEEF, 0xFFFFFFFF, *range(1000, 9000, 37)]
    assert mix(torch.tensor(values)).tolist() == [murmur_finaliser(value) for value in values]


@pytest.mark.parametrize(
    "keys", [[0, 1, 2, 3], [2**40, 2**40 + 1, 7, 2**62], [fold(3, n) for n in range(4)], [-1, -2, 5, 6]]
)
def test_numbers_are_uniform(keys):
    """Kolmogorov-Smirnov distance and means; the bounds are four standard errors."""
    numbers = uniform(torch.tensor(keys), 100_000, salt=1).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    expected = (torch.arange(100_000) + 0.5) / 100_000
    assert (numbers.sort(dim=1).values - expected).abs().max() < 2.0 / 100_000**0.5
    assert (numbers.mean(dim=1) - 0.5).abs().max() < 4 * (1 / 12 / 100_000) ** 0.5
    correlation = torch.corrcoef(torch.cat([numbers, numbers.roll(1, dims=1)]))
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 100_000**0.5


def test_columns_are_uniform_over_consecutive_keys():
    numbers = uniform(torch.arange(100_000), 3, salt=2).double()
    expected = (torch.arange(100_000) + 0.5) / 100_000
    assert (numbers.T.sort(dim=1).values - expected).abs().max() < 2.0 / 100_000**0.5
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 5 / 100_000**0.5


def test_a_row_does_not_know_its_batch():
    keys = torch.tensor([fold(0, slot) for slot in range(8)])
    together = uniform(keys, 500, salt=3)
    for index in range(8):
        assert torch.equal(uniform(keys[index : index + 1], 500, salt=3)[0], together[index])
    order = torch.tensor([5, 1, 7, 0, 2, 6, 3, 4])
    assert torch.equal(uniform(keys[order], 500, salt=3), together[order])
    assert torch.equal(uniform(keys, 200, salt=3), together[:, :200])


def test_salts_and_keys_tell_apart():
    keys = torch.arange(4)
    drawn = [uniform(keys, 1000, salt=salt) for salt in (1, 2, 3)]
    for a, b in itertools.combinations(torch.cat(drawn), 2):
        assert (a == b).float().mean() < 0.01


def test_numbers_are_pinned():
    """The stream is part of what a run means: changing it changes every result."""
    assert uniform(torch.tensor([0, 12345]), 3, salt=1).mul(2**24).long().tolist() == [
        [4653563, 3835454, 136112],
        [14816255, 3799268, 6228227],
    ]


def test_fold_tells_order_depth_and_value_apart():
    seen = {fold(seed) for seed in range(20)}
    seen |= {fold(seed, a) for seed in range(20) for a in range(50)}
    seen |= {fold(seed, a, b) for seed in range(20) for a in range(50) for b in range(20)}
    assert len(seen) == 20 + 20 * 50 + 20 * 50 * 20
    assert all(0 <= value < 2**63 for value in seen)
    assert fold(0, 1, 2) != fold(0, 2, 1)
    assert torch.tensor(list(seen)).dtype == torch.int64


def test_low_bits_of_fold_are_even():
    bits = torch.tensor([[fold(0, n) >> bit & 1 for bit in range(32)] for n in range(4000)]).double()
    assert (bits.mean(dim=0) - 0.5).abs().max() < 4 * 0.5 / 4000**0.5
