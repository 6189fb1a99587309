"""The keypoint head is torchvision's: targets, loss, decoding, and the whole detector with its weights."""

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from test_parity import (
    CANONICAL,
    COMMON,
    NUM_CLASSES,
    SIZES,
    annotations,
    calibrate,
    images,
    inputs_in_double,
    padded,
    pair_in_double,
    reference,
)
from torchvision.models.detection import keypointrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypointrcnn_loss, keypoints_to_heatmap
from torchvision.ops import MultiScaleRoIAlign

from devices import static
from headstart.model.build import build
from headstart.model.region_heads import KeypointHead, cells_of, peaks
from headstart.model.regions import RegionConvs, RegionPooler
from headstart.recipe.load import load_recipe
from headstart.weights.files import read_weights
from headstart.weights.load import load_weights
from small_detector import assert_same_gradients, rows, small_batch, small_detector, with_keypoints

ON = {"model__keypoint__enabled": True, "model__mask__enabled": False}


def regions(num=40, points=5):
    """Boxes of half a pixel to 90 pixels a side, and keypoints in, on the edge of and around them."""
    low, side = torch.rand(num, 2) * 50, torch.rand(num, 2) * 40 + torch.tensor([0.5, 1.0])
    side[: num // 4] *= 2.2
    boxes = torch.cat([low, low + side], dim=1)
    places = low[:, None] + (torch.rand(num, points, 2) * 1.4 - 0.2) * side[:, None]
    places[:, 0] = boxes[:, 2:]  # the right and bottom edge
    places[:, 1] = low
    return boxes, torch.cat([places, torch.randint(0, 3, (num, points, 1))], dim=2)


def test_targets_are_torchvisions():
    boxes, keypoints = regions()
    wanted, valid = keypoints_to_heatmap(keypoints.clone(), boxes, 56)
    cells, inside = cells_of(keypoints, boxes, 56)
    assert torch.equal(cells, wanted) and torch.equal(inside, valid.bool())
    assert 0.2 < inside.float().mean() < 0.8 and (cells == 56 * 56 - 1).any()


def head(points=5, convs=1):
    stack = RegionConvs(8, RegionPooler(14, (4, 8)), num=convs, channels=8, norm_kind="none", norm_groups=1)
    return KeypointHead(stack, num_keypoints=points)


@pytest.mark.parametrize("visible", [True, False])
def test_the_loss_is_torchvisions_over_valid_regions(visible):
    boxes, keypoints = regions()
    if not visible:
        keypoints[..., 2] = 0
    logits = torch.randn(40, 5, 56, 56, requires_grad=True)
    valid = torch.arange(40) % 3 > 0
    kept = [logits[valid], [boxes[valid]], [keypoints[valid]], [torch.arange(int(valid.sum()))]]
    wanted, found = keypointrcnn_loss(*kept), head().loss(logits, keypoints, boxes, valid)["keypoints"]
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (wanted, found)]
    torch.testing.assert_close(*gradients)
    assert (wanted > 5) == visible and gradients[1].any() == visible


def test_no_region_gives_a_connected_zero():
    net = head()
    features = [torch.randn(1, 8, 16, 16), torch.randn(1, 8, 8, 8)]
    none = torch.zeros(0, dtype=torch.long)
    logits = net.predict(features, torch.zeros(0, 4), none, none.bool())
    loss = net.loss(logits, torch.zeros(0, 5, 3), torch.zeros(0, 4), none.bool())["keypoints"]
    loss.backward()
    assert loss == 0 and all(not parameter.grad.any() for parameter in net.parameters())


def test_places_are_torchvisions():
    boxes, _ = regions()
    maps = torch.nn.functional.interpolate(torch.randn(40, 5, 14, 14), scale_factor=4.0, mode="bicubic")
    wanted, scores = heatmaps_to_keypoints(maps, boxes)
    found = peaks(maps, boxes)
    torch.testing.assert_close(found[..., :2], wanted[..., :2])
    torch.testing.assert_close(found[..., 2], scores)
    assert peaks(maps[:0], boxes[:0]).shape == (0, 5, 3)


@pytest.mark.parametrize("side", [20.0, 56.0, 90.5])
def test_a_map_that_falls_off_around_the_target_cell_gives_the_keypoint_back(side):
    low = torch.rand(8, 2) * 30
    boxes = torch.cat([low, low + side], dim=1)
    keypoints = torch.cat([low[:, None] + torch.rand(8, 6, 2) * side, torch.ones(8, 6, 1)], dim=2)
    cells, inside = cells_of(keypoints, boxes, 56)
    assert inside.all()
    row, column = (torch.div(cells, 56, rounding_mode="floor")[..., None, None], (cells % 56)[..., None, None])
    axis = torch.arange(56)
    maps = -((axis[:, None] - row) ** 2 + (axis - column) ** 2).float()
    # half a cell from the rounding to cells, half a pixel from the points that are tried
    bound = 0.5 * side / 56 + 0.51
    assert ((peaks(maps, boxes)[..., :2] - keypoints[..., :2]).abs() <= bound).all()


def places(boxes):
    """17 keypoints of each box, labelled but for every fifth; seeded by their number alone."""
    generator = torch.Generator().manual_seed(5)
    share = torch.rand(len(boxes), 17, 2, generator=generator)
    points = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
    labelled = (torch.arange(len(boxes) * 17) % 5 > 0).view(-1, 17, 1)
    return torch.cat([points, labelled], dim=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """torchvision's keypoint detector, calibrated, and ours with its weights, both in eval mode."""
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2, canonical_scale=CANONICAL)
    theirs = reference(partial(keypointrcnn_resnet50_fpn, keypoint_roi_pool=pool))
    targets = [{**each, "keypoints": places(each["boxes"])} for each in annotations()]
    calibrate(theirs, targets)
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save(theirs.state_dict(), path)
    changes = {"model.box.convs": 0, "model.box.fcs": 2, "model.mask.enabled": False, "model.keypoint.enabled": True}
    recipe = load_recipe("base", {**COMMON, **changes, "model.keypoint.norm": False, "model.keypoint.slots": 10**6})
    ours = build(recipe, NUM_CLASSES, 17).eval()
    report = load_weights(ours, read_weights(path), scope="detector")
    path.unlink()
    assert len([name for name in report.loaded if name.startswith("keypoint_head.")]) == 18
    return theirs, ours, targets


@torch.no_grad()
def test_the_detectors_keypoints_are_torchvisions(pair):
    theirs, ours, _ = pair
    raw = []
    hook = theirs.roi_heads.register_forward_hook(lambda module, _, out: raw.extend(dict(one) for one in out[0]))
    theirs(images())
    hook.remove()
    found = ours.predict(padded(), torch.tensor(SIZES))
    for index, wanted in enumerate(raw):
        valid = found.valid[index]
        assert valid.sum() == len(wanted["boxes"]) >= 8
        torch.testing.assert_close(found.boxes[index, valid], wanted["boxes"], rtol=1e-4, atol=1e-4)
        placed = peaks(found.heat_maps[index, valid], found.boxes[index, valid])
        torch.testing.assert_close(placed[..., 2], wanted["keypoints_scores"], rtol=1e-3, atol=1e-3)
        # two points of one map may be equally high up to rounding: then either may be taken
        same = (placed[..., :2] - wanted["keypoints"][..., :2]).abs().amax(dim=2) < 1e-2
        assert same.float().mean() > 0.99
        assert not found.heat_maps[index, ~valid].any()


def test_the_detectors_keypoint_loss_is_torchvisions_with_exhaustive_sampling(pair):
    theirs, ours = pair_in_double(*pair[:2])
    for model in (theirs, ours):
        model.train()
        for module in model.modules():
            module.train(not isinstance(module, torch.nn.BatchNorm2d))
    pictures, targets, batch = inputs_in_double(pair[2])
    points = torch.zeros(2, 6, 17, 3, dtype=torch.float64)
    points[0, :4] = targets[0]["keypoints"]
    wanted = theirs(pictures, targets)["loss_keypoint"]
    found = ours(replace(batch, gt_keypoints=points))["keypoints"]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    name, their_name = "keypoint_head.convs.3.conv.weight", "roi_heads.keypoint_head.6.weight"
    one, other = theirs.get_parameter(their_name), ours.get_parameter(name)
    gradients = [torch.autograd.grad(loss, tensor)[0] for loss, tensor in ((found, other), (wanted, one))]
    assert_same_gradients(*({name: gradient} for gradient in gradients))


def test_the_eager_cpu_path_equals_the_fixed_one_and_padding_adds_nothing():
    detector, batch = small_detector(**ON, model__keypoint__slots=16), with_keypoints(small_batch(4))
    eager = detector(batch)
    noise = torch.rand(batch.gt_keypoints.shape) * 90
    dirty = torch.where(batch.gt_valid[..., None, None], batch.gt_keypoints, noise)
    with static():
        fixed, other = detector(batch), detector(replace(batch, gt_keypoints=dirty))
    assert eager["keypoints"] > 1
    torch.testing.assert_close(eager["keypoints"], fixed["keypoints"], rtol=1e-5, atol=1e-6)
    assert torch.equal(fixed["keypoints"], other["keypoints"])
    detector.eval()
    found = detector.predict(batch.images, batch.sizes)
    with static():
        again = detector.predict(batch.images, batch.sizes)
    assert found.valid.sum() > 20
    torch.testing.assert_close(found.heat_maps, again.heat_maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_without_a_labelled_keypoint_the_loss_is_zero_and_connected(norm):
    detector, batch = small_detector(**ON, model__norm=norm), with_keypoints(small_batch())
    batch = replace(batch, gt_keypoints=batch.gt_keypoints * torch.tensor([1, 1, 0]))
    for path in (mock.MagicMock(), static()):
        with path:
            losses = detector(batch)
        detector.zero_grad()
        sum(losses.values()).backward()
        assert losses["keypoints"] == 0
        assert all(parameter.grad is not None for parameter in detector.parameters())
        assert not any(parameter.grad.any() for parameter in detector.keypoint_head.parameters())


def test_it_learns_beside_masks_and_changes_none_of_the_other_losses():
    batch = with_keypoints(small_batch(4))
    both = small_detector(model__keypoint__enabled=True)
    losses, without = both(batch), small_detector()(batch)
    assert list(losses) == [*without, "keypoints"]
    assert all(torch.equal(losses[name], without[name]) for name in without)
    sum(losses.values()).backward()
    assert all(parameter.grad.any() for parameter in both.keypoint_head.parameters())
    order = [2, 0, 3, 1]
    torch.testing.assert_close(both(rows(batch, order))["keypoints"], losses["keypoints"], rtol=1e-5, atol=1e-6)


def test_a_file_with_another_number_of_keypoints_keeps_all_but_the_predictor(tmp_path):
    detector = small_detector(**ON)
    path = tmp_path / "other.pth"
    other = {name: value + 1 if value.is_floating_point() else value for name, value in detector.state_dict().items()}
    other["keypoint_head.deconv.weight"] = torch.zeros(16, 5, 4, 4)
    other["keypoint_head.deconv.bias"] = torch.zeros(5)
    torch.save(other, path)
    report = load_weights(detector, read_weights(path), scope="detector")
    assert report.reset == ("keypoint_head.deconv.weight", "keypoint_head.deconv.bias")
    assert "5 keypoints and this model 3" in report.notes[0]
    assert torch.equal(detector.keypoint_head.convs[0].conv.weight, other["keypoint_head.convs.0.conv.weight"])
