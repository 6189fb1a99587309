"""Freezing counts from the input of the backbone up, and holds statistics still."""

import pytest
import torch

from headstart.model.backbones.timm_net import TimmNet
from headstart.model.classifier import mean_cross_entropy
from headstart.weights.freeze import POLICIES, freeze, frozen_modules, set_train_mode
from headstart.weights.load import named_tensors
from weight_nets import classifier


@pytest.mark.parametrize("policy, num", list(zip(POLICIES, (0, 1, 5, 10, 15, 20, 20), strict=True)))
def test_freeze_counts_from_the_input_up(policy, num):
    model = classifier("batch")
    names = freeze(model, policy)
    convolutions = [name for name in names if named_tensors(model)[name].dim() == 4]
    assert len(convolutions) == num
    expected = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert set(names) == expected and "fc.weight" not in names
    if policy.startswith("stage"):
        assert max(name.split(".")[1] for name in names if "layer" in name) == policy.replace("stage", "layer")


def test_frozen_statistics_do_not_move_in_training():
    model = classifier("batch")
    freeze(model, "stage2")
    set_train_mode(model, "stage2")
    before = {name: value.clone() for name, value in named_tensors(model).items()}
    loss = mean_cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    moved = {name for name, value in named_tensors(model).items() if not torch.equal(value, before[name])}
    live = ("backbone.layer3", "backbone.layer4")
    assert moved == {name for name in before if ".running_" in name and name.startswith(live)}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith((*live, "fc.")), name


def test_freeze_that_would_freeze_nothing_is_refused():
    """HRNet gives all its maps at the end, so its layers have no stages."""
    model = TimmNet("hrnet_w18_small", norm_kind="batch")
    with pytest.raises(ValueError, match="'stage1' holds no layers in this backbone, expected 'none' or 'backbone'"):
        freeze(model, "stage1")
    assert frozen_modules(model, "backbone") == [model]
