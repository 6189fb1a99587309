"""Dropped slots change nothing, and cached constants hold values fit for training."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from devices import static
from headstart.ops.fixed_shapes import constant, pool_slots, used_length


@pytest.mark.parametrize(
    ("rows", "used"),
    [([[1, 0, 0], [1, 1, 0]], 2), ([[0, 0, 0], [0, 0, 1]], 3), ([[0, 0, 0], [0, 0, 0]], 1), ([[1, 1, 1]], 3)],
)
def test_used_length(rows, used):
    valid = torch.tensor(rows, dtype=torch.bool)
    assert used_length(valid) == used
    with static():
        assert used_length(valid) == valid.shape[1]


def flags_of(count, num=50):
    generator = torch.Generator().manual_seed(count)
    flags = torch.zeros(num, dtype=torch.bool)
    flags[torch.randperm(num, generator=generator)[:count]] = True
    return flags, torch.rand(num, generator=generator)


@pytest.mark.parametrize("count", [0, 1, 12, 20, 21, 50])
@pytest.mark.parametrize("capacity", [20, 500])
def test_both_forms_choose_the_same(count, capacity):
    flags, priority = flags_of(count)
    index, chosen = pool_slots(flags, capacity, priority)
    with static():
        fixed_index, fixed_chosen = pool_slots(flags, capacity, priority)
    assert fixed_index.shape == (min(capacity, 50),), "the shape must not depend on the data"
    assert index.shape[0] <= capacity
    assert sorted(index[chosen].tolist()) == sorted(fixed_index[fixed_chosen].tolist())
    assert chosen.sum() == min(count, capacity)
    assert flags[index[chosen]].all() and not flags[fixed_index[~fixed_chosen]].any()
    assert fixed_index.unique().numel() == fixed_index.numel()


def test_overflow_drops_the_lowest_priorities():
    flags, priority = flags_of(40)
    index, chosen = pool_slots(flags, 15, priority)
    wanted = flags.nonzero().squeeze(1)
    wanted = wanted[priority[wanted].argsort(descending=True)[:15]]
    assert chosen.all() and sorted(index.tolist()) == sorted(wanted.tolist())


def ramp():
    """A constant that counts how often it was made."""
    made = []

    @constant
    def numbers(num: int) -> torch.Tensor:
        made.append(num)
        return torch.arange(num).float()

    return numbers, made


def test_it_is_made_once_an_argument():
    numbers, made = ramp()
    assert numbers(3) is numbers(3) and numbers(4).shape == (4,)
    assert made == [3, 4]


def test_what_a_fake_mode_makes_is_not_kept():
    numbers, _ = ramp()
    with FakeTensorMode():
        assert isinstance(numbers(3), FakeTensor)
    assert numbers(3).tolist() == [0, 1, 2]


def test_what_inference_asked_for_serves_training():
    numbers, _ = ramp()
    with torch.inference_mode():
        numbers(3)
    weight = torch.ones(3, requires_grad=True)
    (weight * numbers(3)).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2]


def test_a_traced_graph_makes_its_own():
    numbers, _ = ramp()
    graph = torch.compile(lambda x: x * numbers(3), fullgraph=True, backend="eager")
    assert graph(torch.ones(3)).tolist() == [0, 1, 2]
    assert type(numbers(3)) is torch.Tensor
