"""Whole detectors of torchvision's two layouts load entirely and compute the same."""

import re
from functools import cache

import pytest
import timm
import torch
import torchvision

from headstart.model.build import build, input_spec
from headstart.recipe.load import load_recipe
from headstart.weights.input import IMAGENET
from headstart.weights.load import load_weights, named_tensors
from headstart.weights.names import our_names
from headstart.weights.public import find_file
from weight_nets import assert_same_maps, detector, file_of, randomise


def v1(**changes):
    return detector("mask", **changes)


def v2(**changes):
    return detector("mask", **{"norm_kind": "batch", "rpn_convs": 2, "box_convs": 4, "fcs": 1} | changes)


@cache
def torchvision_detector(name):
    build = torchvision.models.get_model_builder(name)
    return randomise(build(weights=None, weights_backbone=None))


@pytest.mark.parametrize("name, build", [("maskrcnn_resnet50_fpn", v1), ("maskrcnn_resnet50_fpn_v2", v2)])
def test_torchvision_detector_loads_whole_and_computes_the_same(name, build):
    theirs, ours = torchvision_detector(name), build()
    report = load_weights(ours, file_of(theirs.state_dict()), scope="detector", input=IMAGENET)
    assert report.missing == report.unexpected == report.left_out == report.reset == ()
    assert set(report.loaded) == set(named_tensors(ours))
    counters = [key for key in theirs.state_dict() if key.endswith("num_batches_tracked")]
    assert len(report.loaded) == len(theirs.state_dict()) - len(counters)
    with torch.no_grad():
        check_parts(ours, theirs)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("coco_r50", lambda: torchvision_detector("maskrcnn_resnet50_fpn")),
        ("torchvision_r50", torchvision.models.resnet50),
        ("timm_r50", lambda: timm.create_model("resnet50_gn")),
    ],
)
def test_a_recipe_fits_the_weights_that_it_names(name, made):
    recipe = load_recipe(name)
    assert find_file(recipe.start.weights).training.kind == recipe.start.kind
    model, file = build(recipe, 7, 0), file_of(made().state_dict())
    report = load_weights(model, file, scope=recipe.start.kind, input=input_spec(recipe))
    assert not report.missing and not report.unexpected and not report.mismatched and report.loaded
    predictors = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")  # of COCO's classes
    left_out = ("fc.weight", "fc.bias") if name != "coco_r50" else predictors
    assert all(name.startswith(left_out) for name in report.left_out) and len(report.left_out) in (2, 6)
    assert {name.rsplit(".", 1)[0] for name in report.reset} == (
        {"box_head.classify", "box_head.regress", "mask_head.classify"} if name == "coco_r50" else set()
    )


def check_parts(ours, theirs):
    """Pyramid, proposals' raw outputs and both heads on the same input; classes in our order."""
    images = torch.randn(1, 3, 64, 96)
    pyramid = ours.pyramid(ours.backbone(images))
    expected = list(theirs.backbone(images).values())
    assert_same_maps(pyramid, expected)
    logits, deltas = ours.rpn.predict(pyramid)
    their_logits, their_deltas = theirs.rpn.head(expected)
    for a, b in zip(logits, their_logits, strict=True):
        assert_same_maps([a], [b.permute(0, 2, 3, 1).flatten(1)])  # cell by cell, ratios within a cell
    for a, b in zip(deltas, their_deltas, strict=True):
        shape = (1, 3, 4, *b.shape[-2:])
        assert_same_maps([a], [b.view(shape).permute(0, 3, 4, 1, 2).reshape(1, -1, 4)])
    check_box_head(ours, theirs)
    check_mask_head(ours, theirs)


def check_box_head(ours, theirs):
    pooled = torch.randn(3, 256, 7, 7)
    x = pooled
    for conv in ours.box_head.convs:
        x = conv(x)
    x = x.flatten(1)
    for fc in ours.box_head.fcs:
        x = torch.relu(fc(x))
    classes, boxes = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
    assert_same_maps([ours.box_head.classify(x)], [torch.cat([classes[:, 1:], classes[:, :1]], dim=1)])
    assert_same_maps([ours.box_head.regress(x)], [boxes[:, 4:]])


def check_mask_head(ours, theirs):
    x = pooled = torch.randn(2, 256, 14, 14)
    for conv in ours.mask_head.convs:
        x = conv(x)
    masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled))
    assert_same_maps([ours.mask_head.classify(torch.relu(ours.mask_head.deconv(x)))], [masks[:, 1:]])


def old_spelling(name):
    """A torchvision v1 detector's name as in its published file, from before 0.13."""
    name = re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", name)
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}.", name)


def test_old_spelling_of_torchvision_loads_the_same():
    state = torchvision_detector("maskrcnn_resnet50_fpn").state_dict()
    old = {old_spelling(name): value for name, value in state.items()}
    assert len(set(old) - set(state)) == 26  # 16 of the pyramid, 2 of the rpn, 8 of the mask head
    names, old_names = (our_names(file_of(values), "torchvision detector").found for values in (state, old))
    assert {ours: state[name] for ours, name in names.items()} == {ours: old[name] for ours, name in old_names.items()}


def test_other_number_of_classes_keeps_initial_predictors_and_says_so():
    ours = v1(num_classes=3)
    before = {name: value.clone() for name, value in named_tensors(ours).items()}
    report = load_weights(ours, file_of(torchvision_detector("maskrcnn_resnet50_fpn").state_dict()), scope="detector")
    assert len(report.reset) == 6 and len(report.left_out) == 6
    assert report.notes == (
        "the file predicts 90 classes and this model 3: class predictors keep their initial values",
    )
    for name, value in named_tensors(ours).items():
        assert torch.equal(value, before[name]) == (name in report.reset), name


def test_backbone_out_of_a_detector_and_detector_without_masks():
    state = torchvision_detector("maskrcnn_resnet50_fpn").state_dict()
    without = detector("box")
    report = load_weights(without.backbone, file_of(state), scope="backbone")
    assert set(report.loaded.values()) == {name for name in state if ".body." in name and "num_batches" not in name}
    assert sorted(report.left_out) == sorted(name for name in state if ".body." not in name)
    report = load_weights(without, file_of(state), scope="detector")
    assert sorted(report.left_out) == sorted(name for name in state if ".mask_" in name)
