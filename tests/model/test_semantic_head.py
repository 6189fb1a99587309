"""The semantic branch: Panoptic FPN's shape, its loss by hand, and decoding in the original's pixels."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from headstart.batch import IGNORE_LABEL, PixelBatch
from headstart.model.build import build
from headstart.model.semantic_head import Segmenter, SemanticHead
from headstart.recipe.load import load_recipe
from tiny import NET

CLASSES = 5


def head(weight=1.0, norm="group"):
    return SemanticHead(8, (4, 8, 16, 32), num_classes=CLASSES, width=8, norm_kind=norm, norm_groups=2, weight=weight)


def segmenter(**changes):
    patch = {name.replace("__", "."): value for name, value in changes.items()}
    small = {**NET, "model.pyramid_channels": 8, "model.semantic.channels": 8, **patch}
    return build(load_recipe("base_segment", small), CLASSES)


def features(side=32, batch=2):
    return [torch.randn(batch, 8, side // 2**level, side // 2**level) for level in range(4)]


def test_the_branch_has_the_papers_convolutions():
    """Figure 3 of the paper: 3, 2, 1 convolutions with doublings from 1/32, 1/16, 1/8, and one without at 1/4."""
    net = head()
    assert [len(level) for level in net.levels] == [1, 1, 2, 3] and net.doublings == (0, 1, 2, 3)
    conv = 8 * 8 * 9 + 2 * 8
    assert sum(p.numel() for p in net.parameters()) == 7 * conv + 8 * CLASSES + CLASSES
    # base_segment: the branch on 256 channels with width 128, as in Panoptic FPN
    with torch.device("meta"):
        whole = build(load_recipe("base_segment"), 54).semantic_head
    first, later = 256 * 128 * 9 + 256, 128 * 128 * 9 + 256
    assert sum(p.numel() for p in whole.parameters()) == 4 * first + 3 * later + 128 * 54 + 54


def test_logits_are_a_sum_over_levels_written_out():
    net, maps = head(), features()
    total = 0
    for x, convs, times in zip(maps, net.levels, (0, 1, 2, 3)):
        for conv in convs:
            x = F.relu(conv.norm(F.conv2d(x, conv.conv.weight, padding=1)))
            x = F.interpolate(x, scale_factor=2, mode="bilinear") if times else x
        total = total + x
    wanted = F.conv2d(total, net.classify.weight, net.classify.bias)
    found = net.predict([*maps, torch.randn(2, 8, 2, 2)])  # P6 is not used
    torch.testing.assert_close(found, wanted)
    assert found.shape == (2, CLASSES, 32, 32)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_loss_is_the_mean_over_known_pixels(stride):
    logits = torch.randn(2, CLASSES, 6, 8, requires_grad=True)
    labels = torch.randint(-1, CLASSES, (2, 24 // stride, 32 // stride))
    large = F.interpolate(logits, scale_factor=4 / stride, mode="bilinear")
    chances = large.softmax(dim=1).gather(1, labels.clamp(min=0).unsqueeze(1))[:, 0]
    wanted = -chances.log()[labels != IGNORE_LABEL].mean()
    torch.testing.assert_close(head(weight=0.5).loss(logits, labels)["semantic"], 0.5 * wanted)


def test_what_stands_in_unknown_pixels_and_padding_changes_nothing():
    logits = torch.randn(1, CLASSES, 8, 8, requires_grad=True)
    labels = torch.randint(0, CLASSES, (1, 8, 8))
    labels[:, 5:] = IGNORE_LABEL
    loss = head().loss(logits, labels)["semantic"]
    torch.testing.assert_close(loss, head().loss(logits[:, :, :5], labels[:, :5])["semantic"])
    assert not torch.autograd.grad(loss, logits)[0][:, :, 5:].any()


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_nothing_known_gives_a_connected_zero(norm):
    net = segmenter(model__norm=norm)
    batch = PixelBatch(torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), IGNORE_LABEL), torch.arange(2))
    losses = net(batch)
    losses["semantic"].backward()
    assert list(losses) == ["semantic"] and losses["semantic"] == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in net.parameters())


def test_every_parameter_learns():
    net = segmenter()
    batch = PixelBatch(torch.randn(2, 3, 64, 96), torch.randint(-1, CLASSES, (2, 64, 96)), torch.arange(2))
    net(batch)["semantic"].backward()
    assert all(parameter.grad.any() for parameter in net.parameters())


def test_decoding_gives_back_what_was_encoded():
    """Logits of blocks of 8 x 8 pixels: in the blocks' middles the labels come back, at the original's size."""
    blocks = torch.randint(0, CLASSES, (4, 6))
    logits = F.one_hot(blocks.repeat_interleave(2, 0).repeat_interleave(2, 1), CLASSES).permute(2, 0, 1).float()
    same = head().decode(logits, (32, 48), (32, 48))
    assert torch.equal(same[4::8, 4::8], blocks) and torch.equal(same[3::8, 3::8], blocks)
    cut = head().decode(logits, (24, 40), (24, 40))
    assert torch.equal(cut, same[:24, :40])
    twice = head().decode(logits, (32, 48), (64, 96))
    assert twice.shape == (64, 96) and torch.equal(twice[8::16, 8::16], blocks)
    whole = F.interpolate(logits[None], scale_factor=4, mode="bilinear")[:, :, :24, :40]
    wanted = F.interpolate(whole, size=(50, 70), mode="bilinear").argmax(1)[0]
    assert torch.equal(head().decode(logits, (24, 40), (50, 70)), wanted)


def test_step_and_prediction_have_no_shape_that_depends_on_the_data():
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = segmenter()
        batch = PixelBatch(torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.long), torch.arange(2))
        net(batch)["semantic"].backward()
        assert net.predict(batch.images).shape == (2, CLASSES, 16, 24)
    assert isinstance(net, Segmenter)


def test_the_training_step_is_one_graph():
    net = segmenter()
    batch = PixelBatch(torch.randn(2, 3, 64, 64), torch.randint(-1, CLASSES, (2, 64, 64)), torch.arange(2))
    found = torch.compile(net, fullgraph=True, backend="eager")(batch)["semantic"]
    torch.testing.assert_close(found, net(batch)["semantic"])
