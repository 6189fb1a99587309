"""Whole detectors on other backbones than ResNet with a pyramid: VGG on one map, DetNet on maps of one stride."""

import pytest
import torch
import torchvision
from torch import nn

from headstart.model.backbones.vgg import Vgg
from headstart.model.build import build
from headstart.model.classifier import Classifier
from headstart.model.norm import SyncBatchNorm
from headstart.recipe.load import load_recipe
from headstart.recipe.recipe import Model
from headstart.weights.audit import audit
from headstart.weights.freeze import freeze
from headstart.weights.input import IMAGENET
from headstart.weights.load import load_weights
from small_detector import SIDE, small_batch, small_detector
from weight_nets import file_of

VGG = {
    "model__backbone": {"kind": "vgg", "depth": [1, 1, 1, 1, 1], "width": 4},
    "model__norm": "none",
    "model__pyramid": False,
    "model__rpn__anchor_sizes": [8, 16, 32],
    "model__box__convs": 0,
    "model__box__fcs": 2,
    "model__box__fc_width": 24,
    "model__mask__enabled": False,
}
DETNET = {"model__backbone": {"kind": "detnet", "depth": [1, 1, 1, 1, 1], "width": 8}}


@pytest.mark.parametrize(("changes", "strides"), [(VGG, (16,)), (DETNET, (4, 8, 16, 16, 16))], ids=["vgg", "detnet"])
def test_a_step_and_a_prediction(changes, strides):
    model, batch = small_detector(**changes), small_batch(2)
    assert model.pyramid.strides == model.pyramid.pooled_strides == model.box_head.convs.pooler.strides == strides
    losses = model(batch)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    found = model.eval().predict(batch.images, batch.sizes)
    assert found.boxes.isfinite().all() and found.valid.any()


def test_all_anchor_sizes_lie_on_the_one_map():
    model = small_detector(**VGG)
    anchors = model.rpn.anchors([torch.zeros(1, 32, SIDE // 16, SIDE // 16)])
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt()
    assert len(anchors) == (SIDE // 16) ** 2 * 3 * 3
    assert {round(float(area) / 8) for area in areas} == {1, 2, 4}


def test_one_size_more_than_maps_adds_the_subsampled_level():
    more = small_detector(**DETNET, model__rpn__anchor_sizes=[8, 16, 32, 48, 64, 80])
    assert more.pyramid.strides == (4, 8, 16, 16, 16, 32) and more.box_head.convs.pooler.strides == (4, 8, 16, 16, 16)
    four = small_detector(model__rpn__anchor_sizes=[8, 16, 32, 48])
    assert four.pyramid.strides == (4, 8, 16, 32)
    with pytest.raises(ValueError, match=r"anchor_sizes: 3 sizes for a pyramid on 4 maps, expected .*4, or 5"):
        small_detector(model__rpn__anchor_sizes=[8, 16, 32])


def test_vgg_classifier_equals_torchvisions_and_starts_the_whole_box_head():
    """torchvision's file gives the backbone and both fully connected layers, as in Fast R-CNN."""
    torch.manual_seed(0)
    layers = torchvision.models.vgg.make_layers([4, "M", 8, "M", 16, "M", 32, "M", 32, "M"])
    with torch.device("meta"):  # its own fully connected layers are large, and are replaced
        theirs = torchvision.models.VGG(nn.Identity(), num_classes=3, init_weights=False)
    theirs.features = layers
    theirs.classifier[0], theirs.classifier[3] = nn.Linear(32 * 49, 24), nn.Linear(24, 24)
    theirs.classifier[6] = nn.Linear(24, 3)
    ours = Classifier(Vgg([1] * 5, width=4, in_channels=3), 3, pool=7, hidden=(24, 24), dropout=0.5).eval()
    ours.backbone.features.load_state_dict(layers.state_dict())
    for layer, source in zip((*ours.fcs, ours.fc), (theirs.classifier[place] for place in (0, 3, 6))):
        layer.load_state_dict(source.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)

    model = small_detector(**VGG)
    for state in (theirs.state_dict(), ours.state_dict()):
        report = load_weights(small_detector(**VGG), file_of(state), scope="backbone", input=IMAGENET)
        assert not report.missing and len(report.loaded) == 2 * (5 + 2)
    load_weights(model, file_of(theirs.state_dict()), scope="backbone", input=IMAGENET)
    assert torch.equal(model.box_head.fcs[0].weight, theirs.classifier[0].weight)
    assert torch.equal(model.box_head.fcs[1].bias, theirs.classifier[3].bias)
    assert torch.equal(model.backbone.features[0].weight, theirs.features[0].weight)


def test_a_vgg_start_without_its_fully_connected_layers_is_an_error():
    bare = Vgg([1] * 5, width=4, in_channels=3).state_dict()
    with pytest.raises(ValueError, match=r"box_head\.fcs\.0\.weight"):
        load_weights(small_detector(**VGG), file_of(bare), scope="backbone", input=IMAGENET)


def test_freezing_and_audit_count_in_vggs_stages():
    model = small_detector(**VGG)
    names = freeze(model, "stage1")
    assert names == tuple(f"backbone.features.{n}.{kind}" for n in (0, 3) for kind in ("weight", "bias"))
    found = audit(model.train(), start="random", freeze="stage1", input=IMAGENET)
    rows = {row.group: row for row in found.rows}
    assert list(rows) == ["stem", "stage1", "stage2", "stage3", "stage4", "rpn", "box_head"]
    assert rows["stage1"].training == "frozen" and rows["stage2"].training == "trains"
    assert rows["stem"].source == "random (MSRA, fan-in)" and rows["stage4"].norm == "none"
    assert "random and frozen" in found.errors[0]


def test_shipped_vgg_and_its_pretraining_fit_together():
    detector, classifier = load_recipe("vgg16").model, load_recipe("vgg16_pretrain").model
    assert isinstance(detector, Model) and detector.backbone == classifier.backbone
    assert classifier.hidden == (detector.box.fc_width,) * detector.box.fcs and classifier.pool == detector.box.pool
    with torch.device("meta"):
        model = build(load_recipe("vgg16_pretrain"), 1000)
    assert (
        sum(p.numel() for p in model.parameters()) == torchvision.models.VGG16_Weights.IMAGENET1K_V1.meta["num_params"]
    )


def test_sync_batch_is_in_every_place_of_the_paper():
    """Stem, blocks, shortcuts, pyramid (both kinds), box-head and mask-head convolutions; not RPN, deconv or fc."""
    model = small_detector(model__norm="sync_batch")
    normed = {name.rsplit(".", 1)[0] for name, layer in model.named_modules() if isinstance(layer, SyncBatchNorm)}
    block = "backbone.layer2.0"
    assert {block, f"{block}.downsample", "backbone", "pyramid.lateral.0", "pyramid.output.3"} <= normed
    assert {"box_head.convs.0", "mask_head.convs.0"} <= normed
    convs = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and layer.bias is None]
    assert len(convs) == sum(isinstance(layer, SyncBatchNorm) for layer in model.modules())
    assert not any(name.startswith("rpn") for name in normed | set(convs))
