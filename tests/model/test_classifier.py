"""The classifier: torchvision's logits with torchvision's weights, and its loss."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from headstart.model.classifier import Classifier, mean_cross_entropy
from headstart.weights.load import load_weights
from weight_nets import NARROW, file_of, randomise, resnet


def test_logits_equal_torchvision():
    theirs = randomise(torchvision.models.resnet18(weights=None))
    ours = Classifier(resnet(18), 1000).eval()
    load_weights(ours, file_of(theirs.state_dict()), scope="backbone")
    ours.fc.load_state_dict(theirs.fc.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(images)
        assert torch.allclose(ours(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert torch.equal(ours.classify(ours.features(images)), ours(images))


def test_initial_fc_is_small_and_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = Classifier(resnet(18, "group"), 50, dropout=0.5)
    assert float(model.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.05) and not model.fc.bias.any()
    features = torch.ones(1, 512)
    assert torch.equal(model.eval().classify(features), model.fc(features))
    slots = torch.tensor([7])
    dropped = model.train().classify(features, slots)
    assert not torch.equal(dropped, model.fc(features))
    assert torch.equal(dropped, model.classify(features, slots))  # a function of the slot, not of torch's generator
    assert not torch.equal(dropped, model.classify(features, slots + 1))
    kept = model._drop(torch.ones(1, 10_000), slots, 0)
    assert set(kept.unique().tolist()) == {0.0, 2.0} and float(kept.mean()) == pytest.approx(1, abs=0.05)


def test_loss_is_the_mean_cross_entropy_and_a_connected_zero_without_images():
    model = Classifier(resnet(18, "group", **NARROW), 4)
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    assert torch.allclose(mean_cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    empty = mean_cross_entropy(model.classify(torch.zeros(0, 128)), torch.zeros(0, dtype=torch.int64))
    empty.backward()
    assert float(empty.detach()) == 0 and not model.fc.weight.grad.any()
