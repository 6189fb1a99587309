"""CornerNet's parts against slow references, and whole against its own ground truth."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from devices import static
from headstart.model.box_head import DetectionLimits
from headstart.model.build import build
from headstart.model.corner_head import (
    CornerMaps,
    corner_pool,
    corner_radius,
    corner_targets,
    embedding_losses,
    heat_loss,
    offset_loss,
)
from headstart.model.corner_net import PairLimits, decode
from headstart.model.flops import count_macs, num_parameters, without_values
from headstart.ops.boxes import iou
from headstart.ops.nms import soft_nms
from headstart.recipe.load import load_recipe
from known_losses import FLOAT32, FLOAT64, drawn_exactly, losses_of_steps
from small_detector import (
    CORNERS,
    HOURGLASS,
    NUM_CLASSES,
    SIDE,
    assert_same_gradients,
    in_double,
    rows,
    small_batch,
    small_detector,
)

STRIDE = 4
CELLS = SIDE // STRIDE


def brute_force_pool(x, dim, ahead):
    parts = x.unbind(dim)
    found = [torch.stack(parts[n:] if ahead else parts[: n + 1]).amax(0) for n in range(len(parts))]
    return torch.stack(found, dim)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("dim", [2, 3])
def test_corner_pooling_is_a_maximum_to_the_border(dim, ahead):
    """Values, the gradient to the largest cell, and the form without gradients."""
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64, requires_grad=True)
    above = torch.randn_like(x)
    found, wanted = corner_pool(x, dim, ahead=ahead), brute_force_pool(x, dim, ahead)
    assert torch.equal(found, wanted)
    gradients = [torch.autograd.grad(each, x, above)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        assert torch.equal(corner_pool(x, dim, ahead=ahead), wanted)


@pytest.mark.parametrize("min_iou", [0.3, 0.7])
def test_the_radius_is_the_largest_that_keeps_the_overlap(min_iou):
    """Over all moves of both corners by at most r along each axis: at r the IoU holds, at r + 1 some move breaks it."""
    for width, height in [(40, 40), (10, 10), (33, 12), (7, 60), (3, 2), (25, 24)]:
        radius = int(corner_radius(torch.tensor(float(width)), torch.tensor(float(height)), min_iou))

        def least(r, width=width, height=height):
            moves = torch.cartesian_prod(*[torch.tensor([-r, 0, r])] * 4).double()
            moved = torch.tensor([0.0, 0.0, width, height], dtype=torch.float64) + moves
            moved = moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]
            return iou(torch.tensor([[0.0, 0.0, width, height]], dtype=torch.float64), moved).min()

        assert least(radius) >= min_iou
        assert 2 * (radius + 1) >= min(width, height) or least(radius + 1) < min_iou
    assert [int(corner_radius(*torch.tensor([s, s], dtype=torch.float), 0.3)) for s in (40, 10)] == [9, 2]


def slow_targets(batch, corner):
    """Heat maps [B,C,H,W] as in the paper, cell by cell."""
    heat = torch.zeros(len(batch), NUM_CLASSES, CELLS, CELLS, dtype=torch.float64)
    for b, g in zip(*(index.tolist() for index in (batch.gt_valid & ~batch.gt_crowd).nonzero(as_tuple=True))):
        x1, y1, x2, y2 = (batch.gt_boxes[b, g] / STRIDE).tolist()
        width, height = math.ceil(x2 - x1), math.ceil(y2 - y1)
        radius = int(corner_radius(*torch.tensor([width, height], dtype=torch.float64), 0.3))
        x, y = (x1, y1) if corner == 0 else (x2, y2)
        x, y = (min(max(math.floor(v), 0), CELLS - 1) for v in (x, y))
        sigma = (2 * radius + 1) / 6
        for row in range(max(y - radius, 0), min(y + radius + 1, CELLS)):
            for column in range(max(x - radius, 0), min(x + radius + 1, CELLS)):
                value = math.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
                place = (b, batch.gt_labels[b, g], row, column)
                heat[place] = max(heat[place], value)
    return heat


def targets_of(batch):
    return corner_targets(batch, num_classes=NUM_CLASSES, size=(CELLS, CELLS), stride=STRIDE, min_iou=0.3)


def test_targets_are_those_of_a_slow_reference():
    for seed in range(4):
        batch = in_double(small_batch(4, seed=seed))
        targets, valid, ignored = targets_of(batch)
        assert torch.equal(valid, batch.gt_valid & ~batch.gt_crowd) and valid.sum() == 9
        for number, target in enumerate(targets):
            torch.testing.assert_close(target.heat, slow_targets(batch, number), rtol=1e-13, atol=1e-13)
            cells = torch.stack([target.cell % CELLS, target.cell // CELLS], dim=2)
            corner = batch.gt_boxes[..., 2 * number : 2 * number + 2] / STRIDE
            torch.testing.assert_close((cells + target.offset)[valid], corner[valid], rtol=1e-14, atol=0)
            assert target.offset[valid].min() >= 0 and target.offset[valid].max() < 1
        box = batch.gt_boxes[3, 3] / STRIDE  # the crowd
        wanted = torch.zeros(CELLS, CELLS, dtype=torch.bool)
        wanted[int(box[1]) : math.ceil(box[3]), int(box[0]) : math.ceil(box[2])] = True
        assert torch.equal(ignored[3], wanted) and not ignored[:3].any()


def test_a_corner_on_the_border_is_in_the_last_cell():
    batch = in_double(rows(small_batch(1), [0]))
    batch.gt_boxes[0, 0] = torch.tensor([0.0, 0.0, SIDE, SIDE])
    corner = targets_of(batch)[0][1]
    assert corner.cell[0, 0] == CELLS**2 - 1 and corner.offset[0, 0].tolist() == [1.0, 1.0]
    assert corner.heat[0, batch.gt_labels[0, 0], -1, -1] == 1


def test_losses_are_those_of_a_slow_reference():
    batch = in_double(small_batch(4))
    targets, valid, ignored = targets_of(batch)
    logits, offsets = torch.randn(4, NUM_CLASSES, CELLS, CELLS).double(), torch.randn(4, 2, CELLS, CELLS).double()
    logits[0, 0, 0, 0], logits[0, 0, 0, 1] = 30.0, -30.0  # beyond what the loss looks at
    target, total = targets[0], 0.0
    for place in np.ndindex(*logits.shape):
        p, y = min(max(1 / (1 + math.exp(-logits[place])), 1e-4), 1 - 1e-4), float(target.heat[place])
        if y == 1:
            total -= (1 - p) ** 2 * math.log(p)
        elif not ignored[place[0], place[2], place[3]]:
            total -= (1 - y) ** 4 * p**2 * math.log(1 - p)
    found = heat_loss(logits, target.heat, ignored)
    assert float(found) == pytest.approx(total / int((target.heat == 1).sum()), rel=1e-12)
    total = sum(
        float(F.smooth_l1_loss(offsets[b].flatten(1)[:, target.cell[b, g]], target.offset[b, g], reduction="sum"))
        for b, g in valid.nonzero().tolist()
    )
    assert float(offset_loss(offsets, target, valid)) == pytest.approx(total / int(valid.sum()), rel=1e-12)
    first, second = torch.randn(2, *valid.shape).double()
    pull, push = 0.0, 0.0
    for b in range(4):
        places = valid[b].nonzero().flatten().tolist()
        means = {g: float(first[b, g] + second[b, g]) / 2 for g in places}
        pull += sum((float(e[b, g]) - means[g]) ** 2 for g in places for e in (first, second)) / len(places)
        near = sum(max(0, 1 - abs(means[g] - means[h])) for g in places for h in places if g != h)
        push += near / max(len(places) * (len(places) - 1), 1)
    found = [float(value) for value in embedding_losses(first, second, valid)]
    assert found == pytest.approx([pull / 4, push / 4], rel=1e-12)


def slow_soft_nms(boxes, scores, labels, sigma, num):
    left, out = dict(enumerate(scores.tolist())), []
    while left and len(out) < num:
        best = max(left, key=left.get)
        out.append((best, left.pop(best)))
        for other in left:
            if labels[other] == labels[best]:
                left[other] *= math.exp(-(float(iou(boxes[best, None], boxes[other, None])) ** 2) / sigma)
    return out


def test_soft_suppression_is_that_of_a_slow_reference():
    low = torch.rand(3, 40, 2).double() * 20
    boxes = torch.cat([low, low + 5 + torch.rand(3, 40, 2).double() * 20], dim=2)
    scores, labels, valid = torch.rand(3, 40).double(), torch.randint(0, 3, (3, 40)), torch.rand(3, 40) > 0.2
    index, found = soft_nms(boxes, scores, labels, valid, sigma=0.5, num=36)
    for b in range(3):
        real = valid[b].nonzero().flatten()
        wanted = slow_soft_nms(boxes[b, real], scores[b, real], labels[b, real], 0.5, 36)
        assert index[b, : len(wanted)].tolist() == [int(real[place]) for place, _ in wanted]
        torch.testing.assert_close(found[b, : len(wanted)], torch.tensor([score for _, score in wanted]).double())
        assert (found[b, len(wanted) :] < 0).all()


def scenes(num, seed):
    """Random objects, of which no two have a corner of one kind in the same cell, mirrored or not."""
    batch = small_batch(num, slots=20, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(num, 20, 2, generator=generator) * SIDE * 0.6
    boxes = torch.cat([low, low + 5 + torch.rand(num, 20, 2, generator=generator) * SIDE * 0.35], dim=2)
    labels = torch.randint(0, NUM_CLASSES, (num, 20), generator=generator)
    valid = torch.ones(num, 20, dtype=torch.bool)
    batch = replace(batch, gt_boxes=boxes, gt_labels=labels, gt_valid=valid, gt_crowd=~valid)
    for target in targets_of(batch)[0] + targets_of(mirror(batch))[0]:
        for g in range(20):
            valid[:, g] &= ~((target.cell[:, :g] == target.cell[:, g : g + 1]) & valid[:, :g]).any(dim=1)
    assert valid.sum(dim=1).min() >= 12
    return batch


def mirror(batch):
    x1, y1, x2, y2 = batch.gt_boxes.unbind(2)
    return replace(batch, gt_boxes=torch.stack([SIDE - x2, y1, SIDE - x1, y2], dim=2))


def perfect_maps(batch):
    """The maps that a net without error would give: heat, an embedding an object, offsets."""
    found = []
    for target in targets_of(batch)[0]:
        embedding, offset = torch.zeros(len(batch), CELLS**2), torch.zeros(len(batch), CELLS**2, 2)
        for b, g in batch.gt_valid.nonzero().tolist():
            embedding[b, target.cell[b, g]], offset[b, target.cell[b, g]] = 1.0 + g, target.offset[b, g]
        offset = offset.mT.reshape(-1, 2, CELLS, CELLS)
        found.append(CornerMaps(torch.logit(target.heat, 1e-6), embedding.view(-1, CELLS, CELLS), offset))
    return found


@pytest.mark.parametrize("mirrored", [False, True])
def test_perfect_maps_decode_to_the_ground_truth(mirrored):
    """Each object once and nothing else: a box AP of 100; with mirror images each object from both."""
    batch = scenes(10, 1)
    sizes = torch.full((10, 2), SIDE)
    maps = perfect_maps(batch)
    if mirrored:
        other = perfect_maps(mirror(batch))
        maps = [
            CornerMaps(*(torch.cat(pair) for pair in zip(vars(a).values(), vars(b).values())))
            for a, b in zip(maps, other)
        ]
    found = decode(
        maps,
        sizes,
        stride=STRIDE,
        mirrored=mirrored,
        pairs=PairLimits(40, 200, 0.5, 0.5),
        limits=DetectionLimits(0.001, 0.5, 60),
    )
    for b in range(10):
        wanted, labels = batch.gt_boxes[b][batch.gt_valid[b]], batch.gt_labels[b][batch.gt_valid[b]]
        close = (found.boxes[b].unsqueeze(0) - wanted.unsqueeze(1)).abs().amax(2) < 1e-3
        close &= (found.labels[b] == labels.unsqueeze(1)) & found.valid[b]
        assert (close.sum(dim=1) == (2 if mirrored else 1)).all(), "an object is missing"
        assert close.any(dim=0).equal(found.valid[b]), "what is found is an object"


def test_what_is_no_local_maximum_is_no_corner():
    """A map with fewer maxima than `num_corners` gives pairs of its maxima alone."""
    heat = torch.full((1, 1, 4, 4), -3.0) - torch.arange(16.0).view(1, 1, 4, 4) / 16  # falls from its first cell on
    top_left, bottom_right = (CornerMaps(each, torch.zeros(1, 4, 4), torch.zeros(1, 2, 4, 4)) for each in (heat, heat))
    top_left.heat[0, 0, 0, 0], bottom_right.heat[0, 0, 3, 3] = 3.0, 3.0
    options = {"pairs": PairLimits(16, 200, 0.5, 0.5), "limits": DetectionLimits(0.001, 0.5, 60)}
    found = decode([top_left, bottom_right], torch.tensor([[16, 16]]), stride=STRIDE, mirrored=False, **options)
    assert found.boxes[found.valid].tolist() == [[0, 0, 12, 12]]


def test_a_mirror_image_gives_the_mirrored_detections():
    detector, batch = small_detector(**CORNERS).double().eval(), in_double(small_batch(2))
    sizes = torch.full((2, 2), SIDE)
    found, other = (detector.predict(images, sizes) for images in (batch.images, batch.images.flip(3)))
    assert found.valid.all()
    torch.testing.assert_close(found.scores, other.scores, rtol=1e-12, atol=0)
    x1, y1, x2, y2 = other.boxes.unbind(2)
    torch.testing.assert_close(found.boxes, torch.stack([SIDE - x2, y1, SIDE - x1, y2], dim=2), rtol=1e-10, atol=1e-10)


def test_hourglass_104_has_the_published_size():
    """201,035,212 parameters (the authors' log) and 234 G multiply-adds of the trunk at 511 px, which equal 512's."""
    recipe = load_recipe("cornernet")
    with torch.device("meta"):
        model = build(recipe, 80)
    assert num_parameters(model) == 201_035_212
    backbone = without_values(model).backbone
    with torch.no_grad():
        macs = [
            count_macs(lambda side=side: backbone(torch.empty(1, 3, side, side, device="meta"))) for side in (511, 512)
        ]
    assert macs == [234_028_007_424] * 2


@pytest.mark.parametrize("side", [(64, 96), (68, 52), (60, 100)])
def test_an_hourglass_takes_any_size(side):
    detector = small_detector(**HOURGLASS)
    maps = detector.backbone(torch.randn(1, 3, *side))
    assert [each.shape[2:] for each in maps] == [(side[0] // 4, side[1] // 4)] * 2


KNOWN = {
    "pyramid": [[6.7382822, 0.0042879656, 0.070060693, 0.55500203], [5.9121904, 0.0024499008, 0.067724235, 0.45468819]],
    "hourglass": [[6.6689291, 0.0067431564, 0.069434114, 0.68604457]],  # later steps: in double precision, below
}
KNOWN_DOUBLE = [
    [6.46253059851317, 0.00220836741107282, 0.0699170421996091, 0.617832435091615],
    [6.01027088674809, 0.00279173451994011, 0.0703820758324698, 0.471650101150045],
]


@pytest.mark.parametrize("kind", KNOWN)
def test_losses_of_the_first_steps(kind):
    options = {"pyramid": CORNERS, "hourglass": HOURGLASS}[kind]
    found = losses_of_steps(small_detector(**options), small_batch(4), len(KNOWN[kind]))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(KNOWN[kind]), rtol=FLOAT32, atol=0)


def test_losses_of_the_first_steps_in_double_precision():
    found = losses_of_steps(*drawn_exactly(small_detector(**HOURGLASS), small_batch(4)), 2)
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(KNOWN_DOUBLE, dtype=torch.float64),
        rtol=FLOAT64,
        atol=0,
    )


@pytest.mark.parametrize("kind", [CORNERS, HOURGLASS], ids=["pyramid", "hourglass"])
def test_the_training_step_is_one_graph(kind):
    detector, batch = small_detector(**kind), small_batch(4)
    losses = torch.compile(detector, fullgraph=True, backend="eager")(batch)
    for name, value in detector(batch).items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [CORNERS | {"model__corners__stride": 8}, HOURGLASS], ids=["P3", "hourglass"])
def test_losses_without_objects_reach_every_parameter(kind):
    detector, batch = small_detector(**kind), small_batch(2)
    nothing = torch.zeros_like(batch.gt_valid)
    losses = detector(replace(batch, gt_valid=nothing, gt_crowd=nothing))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(parameter.grad is not None for parameter in detector.parameters())


def test_fixed_shapes_give_the_same_losses_and_gradients():
    def step(detector, batch):
        losses = detector(batch)
        sum(losses.values()).backward()
        return losses, {name: parameter.grad for name, parameter in detector.named_parameters()}

    batch = in_double(small_batch(4))
    losses, gradients = step(small_detector(**HOURGLASS).double(), batch)
    with static():
        others, other_gradients = step(small_detector(**HOURGLASS).double(), batch)
    for name, value in losses.items():
        torch.testing.assert_close(others[name], value, rtol=1e-12, atol=0)
    assert_same_gradients(other_gradients, gradients)
