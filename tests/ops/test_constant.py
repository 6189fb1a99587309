"""What is kept between steps is real, and fit for training, whoever asked for it first."""

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from headstart.ops.constant import constant


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
