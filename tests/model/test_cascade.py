"""Cascade R-CNN: each stage by hand, one stage against the plain detector, and the detector's own rules with it on."""

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from test_detector import KNOWN as KNOWN_PLAIN
from test_detector import LOSSES, assert_paths_agree, emptied, fake_batch, gradients
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from devices import static
from headstart.model import box_head
from headstart.model.box_head import cascade_loss, cascade_predict
from headstart.model.regions import Regions, match_again
from headstart.recipe.load import load_recipe
from headstart.weights.audit import audit
from headstart.weights.freeze import freeze, set_train_mode
from headstart.weights.input import IMAGENET
from known_losses import FLOAT32, FLOAT64, drawn_exactly, losses_of_steps
from small_detector import NUM_CLASSES, rows, small_batch, small_detector

ON = {"model__cascade__enabled": True, "model__box__class_agnostic": True}
STAGES = [f"{name}_{stage}" for stage in (1, 2, 3) for name in ("box_class", "box_delta")]
NAMES = [*LOSSES[:2], *STAGES, "mask"]


def box_iou(a, b):
    """Of two boxes, in plain Python."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def share_on(box, other):
    """Share of a box that lies on another."""
    width, height = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0.0) * max(height, 0.0) / max((box[2] - box[0]) * (box[3] - box[1]), 1e-6)


def target_by_hand(box, took_part, batch, image, threshold):
    """(label, object, positive, valid) of one region."""
    objects = [g for g in range(batch.gt_valid.shape[1]) if batch.gt_valid[image, g]]
    plain = [g for g in objects if not batch.gt_crowd[image, g]]
    gt_boxes = batch.gt_boxes[image].tolist()
    if not took_part or box[2] <= box[0] or box[3] <= box[1]:
        return NUM_CLASSES, None, False, False
    best = max(plain, key=lambda g: box_iou(box, gt_boxes[g]), default=None)
    if best is not None and box_iou(box, gt_boxes[best]) >= threshold:
        return int(batch.gt_labels[image, best]), best, True, True
    on_crowd = any(share_on(box, gt_boxes[g]) > 0.7 for g in objects if batch.gt_crowd[image, g])
    return NUM_CLASSES, None, False, not on_crowd


def regions_at(batch, num=120, seed=0):
    """Regions scattered about the objects of a batch, some of them empty, on crowds or not taking part."""
    generator = torch.Generator().manual_seed(seed)
    about = torch.randint(0, batch.gt_boxes.shape[1], (len(batch), num), generator=generator)
    boxes = batch.gt_boxes.gather(1, about.unsqueeze(2).expand(-1, -1, 4))
    boxes = (boxes + torch.randn(boxes.shape, generator=generator) * 4).clamp(0, 96)
    boxes[:, ::17, 2] = boxes[:, ::17, 0]
    valid = torch.rand(len(batch), num, generator=generator) > 0.1
    nothing = torch.zeros(len(batch), num, dtype=torch.long)
    return boxes, Regions(boxes * 0, nothing, nothing, valid & False, valid, 7)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7])
def test_regions_are_matched_again_as_by_hand(threshold):
    batch = small_batch(4)
    boxes, regions = regions_at(batch)
    found = match_again(boxes, regions, batch, num_classes=NUM_CLASSES, iou_threshold=threshold)
    assert found.leading == boxes.shape[1] and found.boxes is boxes
    for image in range(4):
        for slot, box in enumerate(boxes[image].tolist()):
            label, gt, positive, valid = target_by_hand(box, bool(regions.valid[image, slot]), batch, image, threshold)
            assert bool(found.valid[image, slot]) == valid and bool(found.positive[image, slot]) == positive
            assert int(found.labels[image, slot]) == label
            assert not positive or int(found.gt[image, slot]) == gt
    assert found.positive.sum() > 20 and (found.valid & ~found.positive).sum() > 20
    assert (regions.valid & ~found.valid).sum() > 5, "some are empty or on a crowd"
    assert found.positive.nonzero()[:, 1].max() > 7, "any slot may be positive, not only the leading ones"


def recorded_stages(detector, run):
    """What `run` returns, and (boxes, valid, logits, deltas) of each stage in it."""
    seen = []

    def record(head):
        honest = head.predict

        def predict(features, boxes, valid):
            logits, deltas = honest(features, boxes, valid)
            seen.append((boxes, valid, logits, deltas))
            return logits, deltas

        return mock.patch.object(head, "predict", predict)

    first, second, third = detector.box_heads
    with record(first), record(second), record(third):
        return run(), seen


def decoded(box, delta, weights, size):
    """One box moved by one delta and cut to its image, in plain Python."""
    width, height = box[2] - box[0], box[3] - box[1]
    x = (box[0] + box[2]) / 2 + delta[0] / weights[0] * width
    y = (box[1] + box[3]) / 2 + delta[1] / weights[1] * height
    width, height = width * math.exp(delta[2] / weights[2]), height * math.exp(delta[3] / weights[3])
    moved = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(max(value, 0.0), float(size[1 - place % 2])) for place, value in enumerate(moved)]


def lively(*, std=0.15, **changes):
    """A cascade whose stages move boxes by a pixel or so, as a trained one does."""
    detector = small_detector(**ON, **changes)
    for head in detector.box_heads:
        nn.init.normal_(head.regress.weight, std=std, generator=torch.Generator().manual_seed(1))
    return detector


def test_losses_of_every_stage_are_those_computed_by_hand():
    detector, batch = lively(), small_batch(4)
    losses, seen = recorded_stages(detector, lambda: detector(batch))
    assert list(losses) == NAMES
    assert [head.weights for head in detector.box_heads] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    num_positive = []
    for stage, head in enumerate(detector.box_heads[1:], 1):
        boxes, valid, logits, deltas = (value.tolist() for value in seen[stage])
        before, took_part, _, moves = (value.tolist() for value in seen[stage - 1])
        entropy, distance, count = 0.0, 0.0, 0
        num_positive.append(0)
        for image in range(4):
            for slot, box in enumerate(boxes[image]):
                weights, size = detector.box_heads[stage - 1].weights, batch.sizes[image].tolist()
                assert box == pytest.approx(decoded(before[image][slot], moves[image][slot], weights, size), abs=1e-3)
                label, gt, positive, used = target_by_hand(
                    box, took_part[image][slot], batch, image, (0.6, 0.7)[stage - 1]
                )
                assert valid[image][slot] == used
                if not used:
                    continue
                count += 1
                entropy -= torch.tensor(logits[image][slot]).double().log_softmax(0)[label].item()
                if positive:
                    num_positive[-1] += 1
                    distance += smooth_l1(
                        deltas[image][slot], encoded(batch.gt_boxes[image, gt].tolist(), box, head.weights)
                    )
        assert losses[f"box_class_{stage + 1}"].item() == pytest.approx(entropy / count, rel=1e-4)
        assert losses[f"box_delta_{stage + 1}"].item() == pytest.approx(distance / count, rel=1e-3)
    assert num_positive[0] > num_positive[1] > 0


def encoded(gt, box, weights):
    """The delta that moves a box onto its object, in plain Python."""
    size, gt_size = (box[2] - box[0], box[3] - box[1]), (gt[2] - gt[0], gt[3] - gt[1])
    centre, gt_centre = ((b[0] + b[2]) / 2 for b in (box, gt)), ((b[1] + b[3]) / 2 for b in (box, gt))
    (x, gt_x), (y, gt_y) = centre, gt_centre
    offset = (
        (gt_x - x) / size[0],
        (gt_y - y) / size[1],
        math.log(gt_size[0] / size[0]),
        math.log(gt_size[1] / size[1]),
    )
    return [value * weight for value, weight in zip(offset, weights)]


def smooth_l1(found, wanted):
    errors = [abs(a - b) for a, b in zip(found, wanted)]
    return sum(0.5 * error**2 if error < 1 else error - 0.5 for error in errors)


def test_scores_are_the_mean_of_the_stages_on_the_last_ones_boxes():
    detector, batch = lively().eval(), small_batch(2)
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(2, 30, 2, generator=generator) * 60
    proposals = torch.cat([low, low + 8 + torch.rand(2, 30, 2, generator=generator) * 25], dim=2)
    valid = torch.rand(2, 30, generator=generator) > 0.2
    features = detector.pyramid(detector.backbone(batch.images))
    (scores, deltas, boxes), seen = recorded_stages(
        detector, lambda: cascade_predict(detector.box_heads, features, proposals, valid, batch.sizes)
    )
    mean = sum(torch.exp(logits) / torch.exp(logits).sum(2, keepdim=True) for _, _, logits, _ in seen) / 3
    torch.testing.assert_close(scores, mean)
    assert torch.equal(boxes, seen[2][0]) and torch.equal(deltas, seen[2][3]) and torch.equal(seen[0][0], proposals)
    for stage in (1, 2):
        moves, weights = seen[stage - 1][3].tolist(), detector.box_heads[stage - 1].weights
        for image in range(2):
            for slot, box in enumerate(seen[stage - 1][0][image].tolist()):
                wanted = decoded(box, moves[image][slot], weights, batch.sizes[image].tolist())
                assert seen[stage][0][image, slot].tolist() == pytest.approx(wanted, abs=1e-3)
    assert (seen[2][0] - proposals).abs().mean() > 0.2
    found = detector.box_heads[2].decode(scores, deltas, boxes, valid, batch.sizes, detector.limits)
    assert found.valid.any() and detector.box_heads[2].weights == (30, 30, 15, 15)


def test_one_stage_is_the_plain_detector_bit_for_bit():
    plain, first = small_detector(model__box__class_agnostic=True), small_detector(**ON)
    own = plain.state_dict()
    assert {name for name in first.state_dict() if name not in own} == {
        name for name in first.state_dict() if name.startswith("cascade.")
    }
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in own.items()), "all else starts the same"
    first.cascade, first.iou_thresholds = nn.ModuleList(), first.iou_thresholds[:1]
    batch = small_batch(4)
    losses, wanted = first(batch), plain(batch)
    assert list(losses) == list(wanted) == LOSSES
    assert all(torch.equal(losses[name], wanted[name]) for name in LOSSES)
    for (name, gradient), other in zip(gradients(first, losses).items(), gradients(plain, wanted).values()):
        assert torch.equal(gradient, other), name
    found, expected = (detector.eval().predict(batch.images, batch.sizes) for detector in (first, plain))
    for name in ("boxes", "scores", "labels", "valid", "masks"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_the_first_stage_and_what_is_before_it_lose_as_in_the_plain_detector():
    plain, detector, batch = small_detector(model__box__class_agnostic=True), small_detector(**ON), small_batch(4)
    wanted, losses = plain(batch), detector(batch)
    for name, other in (
        ("rpn_objectness",) * 2,
        ("rpn_box",) * 2,
        ("box_class", "box_class_1"),
        ("box_delta", "box_delta_1"),
    ):
        assert torch.equal(wanted[name], losses[other])


def test_features_get_the_mean_of_the_gradients_and_heads_their_own():
    detector, batch = small_detector(**ON), small_batch(3)
    maps = [level.detach() for level in detector.pyramid(detector.backbone(batch.images))]
    boxes, _ = regions_at(batch)
    nothing = torch.zeros(boxes.shape[:2], dtype=torch.long)
    blank = Regions(boxes, nothing, nothing, nothing.bool(), nothing.bool() | True, boxes.shape[1])
    regions = match_again(boxes, blank, batch, num_classes=NUM_CLASSES, iou_threshold=0.5)

    def backward():
        levels = [level.clone().requires_grad_() for level in maps]
        losses, _ = cascade_loss(detector.box_heads, levels, regions, batch, thresholds=(0.5, 0.6, 0.7))
        own = gradients(detector, losses)
        return [level.grad for level in levels[:4]], {k: v for k, v in own.items() if v is not None}

    scaled, own = backward()
    with mock.patch.object(box_head._ScaleGradient, "apply", lambda level, factor: level):
        whole, others = backward()
    for a, b in zip(scaled, whole):
        torch.testing.assert_close(a * 3, b)
    assert len(own) == sum(1 for head in detector.box_heads for _ in head.parameters())
    assert all(torch.equal(own[name], others[name]) for name in own)


def test_a_later_stage_teaches_no_earlier_one_through_its_boxes():
    detector, batch = lively(), small_batch(3)
    losses = detector(batch)
    taught = gradients(detector, {name: losses[name] for name in ("box_class_3", "box_delta_3")})
    assert all(
        gradient is None for name, gradient in taught.items() if name.startswith(("box_head", "cascade.0", "rpn"))
    )
    assert taught["cascade.1.regress.weight"].any() and taught["backbone.conv1.weight"].any()


@pytest.mark.parametrize("kind", ["no objects", "only crowd", "all padding"])
def test_empty_batches_give_finite_losses_and_a_gradient_everywhere(kind):
    detector = small_detector(**ON)
    for path in (mock.MagicMock(), static()):
        with path:
            losses = detector(emptied(kind))
        assert list(losses) == NAMES and all(loss.isfinite() for loss in losses.values())
        assert all(losses[name] == 0 for name in NAMES if name.startswith(("box_delta", "mask", "rpn_box")))
        assert all(losses[name] > 0 for name in NAMES if name.startswith("box_class"))
        for name, gradient in gradients(detector, losses).items():
            assert gradient is not None and gradient.isfinite().all(), name


def test_no_region_at_all_gives_zeros():
    """All boxes empty, as of an image whose every region was cut away."""
    detector, batch = small_detector(**ON), small_batch(2)
    features = detector.pyramid(detector.backbone(batch.images))
    none = torch.zeros(2, 9, dtype=torch.bool)
    regions = Regions(torch.zeros(2, 9, 4), none.long() + NUM_CLASSES, none.long(), none, none, 9)
    losses, last = cascade_loss(detector.box_heads, features, regions, batch, thresholds=(0.5, 0.6, 0.7))
    assert list(losses) == STAGES and not any(losses.values()) and not last.valid.any()


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_eager_cpu_path_equals_the_fixed_one(norm):
    assert_paths_agree(small_detector(**ON, model__norm=norm, model__mask__slots=64), small_batch(4), NAMES)


def test_the_training_step_has_no_shape_that_depends_on_the_data():
    batch = small_batch()
    with static(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = small_detector(**ON)
        losses = fake(fake_batch(mode, batch))
        sum(losses.values()).backward()
        detections = fake.predict(fake_batch(mode, batch).images, fake_batch(mode, batch).sizes)
    assert all(loss.shape == () for loss in losses.values()) and detections.masks.shape == (3, 20, 28, 28)
    assert all(parameter.grad is not None for parameter in fake.parameters())


def test_the_training_step_is_one_graph():
    detector, batch = small_detector(**ON), small_batch(4)
    with mock.patch("headstart.ops.nms.MAX_ROUNDS", 8):  # enough for these boxes; each round takes time to trace
        losses = torch.compile(detector, fullgraph=True, backend="eager")(batch)
    for name, value in detector(batch).items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)


def test_losses_do_not_depend_on_the_order_of_the_images():
    detector, batch = small_detector(**ON, model__mask__slots=64), small_batch(4)
    together, shuffled = detector(batch), detector(rows(batch, [2, 0, 3, 1]))
    for name in NAMES:
        torch.testing.assert_close(shuffled[name], together[name], rtol=1e-5, atol=1e-6)


def test_masks_are_taught_by_the_regions_of_the_last_stage():
    detector, batch = lively(model__mask__slots=64), small_batch(4)
    seen = []
    honest = detector.mask_head.predict

    def predict(features, boxes, *rest):
        seen.append(boxes)
        return honest(features, boxes, *rest)

    with mock.patch.object(detector.mask_head, "predict", predict):
        _, stages = recorded_stages(detector, lambda: detector(batch))
    positive = [
        box
        for image in range(4)
        for box, took_part in zip(stages[2][0][image].tolist(), stages[1][1][image].tolist())
        if target_by_hand(box, took_part, batch, image, 0.7)[2]
    ]
    assert len(positive) > 4 and sorted(map(tuple, positive)) == sorted(map(tuple, seen[0].tolist()))


def test_without_masks_it_is_cascade_rcnn_on_boxes():
    detector, batch = small_detector(**ON, model__mask__enabled=False), small_batch()
    batch = replace(batch, gt_masks=batch.gt_masks[..., :0, :0])
    assert list(detector(batch)) == NAMES[:-1]
    assert detector.eval().predict(batch.images, batch.sizes).masks is None


def test_losses_at_a_fixed_seed_are_known():
    """As in test_detector: three steps of SGD on one batch, all regions used."""
    found = losses_of_steps(lively(std=0.08, **EVERYTHING), small_batch(4), len(KNOWN))
    assert found == [pytest.approx(row, rel=FLOAT32, abs=0) for row in KNOWN]
    proposals = pytest.approx(KNOWN_PLAIN[0][:2], rel=FLOAT32, abs=0)
    assert found[0][:2] == proposals, "the proposals know nothing of the stages yet"


def test_losses_in_double_precision_are_known():
    found = losses_of_steps(*drawn_exactly(small_detector(**ON, **EVERYTHING), small_batch(4)), len(KNOWN_DOUBLE))
    assert found == [pytest.approx(row, rel=FLOAT64, abs=0) for row in KNOWN_DOUBLE]


EVERYTHING = {"model__box__num_regions": 400, "model__box__positive_fraction": 1.0, "model__mask__slots": 400}
KNOWN = [  # in the order of NAMES
    [0.6928395, 0.019055705, 1.8053874, 0.015901227, 1.7931139, 0.011092698, 1.7782704, 0.020237856, 0.90234345],
    [0.69124621, 0.019042464, 1.720968, 0.01560366, 1.6909509, 0.010866053, 1.6667279, 0.019654777, 0.87502009],
    [0.68823159, 0.019015105, 1.5628967, 0.015618529, 1.4938294, 0.010799114, 1.4487743, 0.01976152, 0.83430719],
]
KNOWN_DOUBLE = [
    [0.70950840912915, 0.030871700884581, 1.6680798771706, 0.011821612717123, 1.8035943178416,
     0.0029962354448219, 1.771725924299, 0.006335798218711, 0.69326159800673],
    [0.6872430556808, 0.02505742008619, 0.97117814926098, 0.012366723013357, 1.2510878376911,
     0.0053361364530258, 0.99384829014382, 0.011479811884296, 0.69317854592093],
    [0.64076710368692, 0.021102144143135, 0.26580578654124, 0.020308845346117, 0.54558317065789,
     0.029892689708868, 0.20571350191403, 0.036721751811071, 0.6912960266581],
]  # fmt: skip


def test_the_audit_and_freezing_know_the_stages():
    detector = small_detector(**ON)
    assert freeze(detector, "backbone") and all(p.requires_grad for p in detector.cascade.parameters())
    freeze(detector := small_detector(**ON), "none")
    set_train_mode(detector, "none")
    found = audit(detector, start="random", freeze="none", input=IMAGENET)
    rows = {row.group: row for row in found.rows}
    assert not found.errors and list(rows)[-1] == "cascade"
    assert rows["cascade"].num_tensors == 2 * rows["box_head"].num_tensors
    assert (rows["cascade"].source, rows["cascade"].norm) == (rows["box_head"].source, "group (4)")


def test_a_cascade_needs_class_agnostic_boxes_and_ascending_thresholds():
    on = {name.replace("__", "."): value for name, value in ON.items()}
    for changes, message in (
        (
            {"model.box.class_agnostic": False},
            "model.box.class_agnostic: false, expected true with model.cascade.enabled",
        ),
        ({"model.cascade.iou": [0.5, 0.7, 0.6]}, r"model.cascade.iou: \[0.5, 0.7, 0.6\], expected ascending"),
        ({"model.cascade.iou": [0.4, 0.6, 0.7]}, "model.cascade.iou: 0.4 first, expected 0.5, the value of"),
        ({"model.cascade.iou": [0.5, 0.6]}, "model.cascade.weights: 3 given, expected 2, one a stage"),
        ({"model.cascade.iou": [0.5]}, "model.cascade.iou"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load_recipe("base", on | changes)
        assert "\n" not in str(error.value)
    assert load_recipe("base").model.cascade.enabled is False
