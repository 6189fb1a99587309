"""The whole detector: empty input, fixed shapes, randomness by slot, and known losses."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from devices import static
from headstart.batch import Batch
from known_losses import FLOAT32, FLOAT64, drawn_exactly, losses_of_steps
from small_detector import (
    NUM_KEYPOINTS,
    assert_same_gradients,
    in_double,
    rows,
    small_batch,
    small_detector,
    with_keypoints,
)

LOSSES = ["rpn_objectness", "rpn_box", "box_class", "box_delta", "mask"]


def gradients(detector, losses):
    detector.zero_grad()
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in detector.named_parameters()}


def emptied(kind):
    batch = small_batch()
    none = torch.zeros_like(batch.gt_valid)
    if kind == "only crowd":
        return replace(batch, gt_crowd=batch.gt_valid)
    if kind == "all padding":
        return replace(batch, gt_valid=none, gt_crowd=none)
    nothing = {
        name: torch.zeros_like(getattr(batch, name)) for name in ("gt_boxes", "gt_labels", "gt_valid", "gt_masks")
    }
    return replace(batch, gt_crowd=none, **nothing)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("kind", ["no objects", "only crowd", "all padding"])
def test_empty_batches_give_finite_losses_and_a_gradient_everywhere(kind, norm):
    detector = small_detector(model__norm=norm)
    found = []
    for path in (mock.MagicMock(), static()):
        with path:
            losses = detector(emptied(kind))
        assert list(losses) == LOSSES
        assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
        assert losses["rpn_box"] == losses["box_delta"] == losses["mask"] == 0
        assert losses["rpn_objectness"] > 0 and losses["box_class"] > 0
        for name, gradient in gradients(detector, losses).items():
            assert gradient is not None, f"{name} is not connected to the losses"
            assert gradient.isfinite().all()
            if name.startswith(("mask_head", "rpn.deltas", "box_head.regress")):
                assert not gradient.any()
        found.append(losses)
    for name in LOSSES:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-6)


def test_what_lies_in_padding_slots_changes_nothing():
    detector, batch = small_detector(), small_batch()
    generator = torch.Generator().manual_seed(1)
    hole = ~batch.gt_valid
    noise = torch.rand(batch.gt_boxes.shape, generator=generator) * 90
    dirty = replace(
        batch,
        gt_boxes=torch.where(hole.unsqueeze(2), noise, batch.gt_boxes),
        gt_labels=torch.where(hole, 3, batch.gt_labels),
        gt_masks=batch.gt_masks | hole[..., None, None],
        gt_crowd=batch.gt_crowd | hole,
    )
    with static():
        clean, other = detector(batch), detector(dirty)
    for name in LOSSES:
        assert torch.equal(clean[name], other[name])


def test_every_parameter_learns_from_an_ordinary_batch():
    detector = small_detector()
    for name, gradient in gradients(detector, detector(small_batch(4))).items():
        assert gradient is not None and gradient.any(), name


def assert_paths_agree(detector, batch, names):
    """Losses (of the given names), gradients and detections of both paths are equal, in double precision."""
    detector, batch = detector.double(), in_double(batch)
    eager = detector(batch)
    eager_gradients = gradients(detector, eager)
    with static():
        fixed = detector(batch)
    assert list(eager) == list(fixed) == names
    for name in names:
        assert eager[name] > 0
        torch.testing.assert_close(eager[name], fixed[name], rtol=1e-12, atol=0)
    assert_same_gradients(eager_gradients, gradients(detector, fixed))
    detector.eval()
    found = detector.predict(batch.images, batch.sizes)
    with static():
        other = detector.predict(batch.images, batch.sizes)
    assert found.valid.sum() > 20 and torch.equal(found.valid, other.valid) and torch.equal(found.labels, other.labels)
    for name in ("boxes", "scores", "masks"):
        torch.testing.assert_close(getattr(found, name), getattr(other, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_eager_cpu_path_equals_the_fixed_one(norm):
    """What the CPU cuts away carries no weight: losses, gradients, detections."""
    assert_paths_agree(small_detector(model__norm=norm, model__mask__slots=16), small_batch(4), LOSSES)


def test_more_positives_than_mask_slots_is_the_same_on_both_paths():
    detector, batch = small_detector(model__mask__slots=1), small_batch(4)
    eager = detector(batch)["mask"]
    with static():
        torch.testing.assert_close(eager, detector(batch)["mask"], rtol=1e-5, atol=1e-6)


def fake_batch(mode, batch):
    return Batch(**{name: mode.from_tensor(getattr(batch, name)) for name in Batch.__dataclass_fields__})


def test_the_training_step_has_no_shape_that_depends_on_the_data():
    """Forward and backward on tensors without values: any nonzero, item or branch on a value raises."""
    batch = with_keypoints(small_batch())
    with static(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = small_detector(model__keypoint__enabled=True)
        losses = fake(fake_batch(mode, batch))
        sum(losses.values()).backward()
        detections = fake.predict(fake_batch(mode, batch).images, fake_batch(mode, batch).sizes)
    assert all(loss.shape == () for loss in losses.values())
    assert detections.boxes.shape == (3, 20, 4) and detections.masks.shape == (3, 20, 28, 28)
    assert detections.heat_maps.shape == (3, 20, NUM_KEYPOINTS, 16, 16)
    assert all(parameter.grad is not None for parameter in fake.parameters())
    raised = pytest.raises((DataDependentOutputException, DynamicOutputShapeException))
    with raised, FakeTensorMode(allow_non_fake_inputs=True) as mode:  # and the eager path does: the guard guards
        small_detector()(fake_batch(mode, batch))


def test_the_training_step_is_one_graph():
    """torch.compile finds no break in it, and the graph computes the same losses."""
    detector, batch = small_detector(model__keypoint__enabled=True), with_keypoints(small_batch(4))
    with mock.patch("headstart.ops.nms.MAX_ROUNDS", 8):  # enough for these boxes; each round takes time to trace
        losses = torch.compile(detector, fullgraph=True, backend="eager")(batch)
    for name, value in detector(batch).items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)


def test_losses_do_not_depend_on_the_order_of_the_images():
    """Sampling is a function of the slot number, not of the place in the batch."""
    detector, batch = small_detector(), small_batch(4)
    together = detector(batch)
    order = [2, 0, 3, 1]
    shuffled = detector(rows(batch, order))
    for name in LOSSES:
        torch.testing.assert_close(shuffled[name], together[name], rtol=1e-5, atol=1e-6)
    moved = detector(replace(batch, slots=batch.slots + 1))
    assert not torch.equal(moved["rpn_objectness"], together["rpn_objectness"]), "the slot must matter"


def test_what_is_sampled_is_the_same_alone_and_in_a_batch():
    detector, batch = small_detector(), small_batch(4)
    seen = []
    with mock.patch("headstart.model.detector.sample_regions", side_effect=recorded(seen)):
        detector(batch)
        for index in range(4):
            detector(rows(batch, [index]))
    together, alone = seen[0], seen[1:]
    for index, region in enumerate(alone):
        assert torch.equal(region.labels[0], together.labels[index])
        assert torch.equal(region.positive[0], together.positive[index])
        torch.testing.assert_close(region.boxes[0], together.boxes[index], rtol=1e-4, atol=1e-3)


def recorded(seen):
    from headstart.model.regions import sample_regions

    def sample(*args, **kwargs):
        seen.append(sample_regions(*args, **kwargs))
        return seen[-1]

    return sample


def test_building_is_a_function_of_the_seed_and_keeps_the_callers_random_state():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one = small_detector()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    two, other = small_detector(), small_detector(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert not torch.equal(one.backbone.conv1.weight, other.backbone.conv1.weight)
    assert one.key != other.key


def test_losses_at_a_fixed_seed_are_known():
    """Five steps of SGD on one batch. A change of these numbers is a change of what every run computes: say so.

    All regions are used: which are sampled depends on their order, in which a rounding error can exchange two. So a
    relative error of 1e-6 in the weights moves these numbers by 4e-6 only.
    """
    found = losses_of_steps(small_detector(**EVERYTHING), small_batch(4), len(KNOWN))
    assert found == [pytest.approx(row, rel=FLOAT32, abs=0) for row in KNOWN]
    assert sum(found[-1]) < sum(found[0])


def test_losses_in_double_precision_are_known():
    """The same from weights and images that every processor draws alike."""
    found = losses_of_steps(*drawn_exactly(small_detector(**EVERYTHING), small_batch(4)), len(KNOWN_DOUBLE))
    assert found == [pytest.approx(row, rel=FLOAT64, abs=0) for row in KNOWN_DOUBLE]


EVERYTHING = {"model__box__num_regions": 400, "model__box__positive_fraction": 1.0, "model__mask__slots": 64}
KNOWN = [  # in the order of LOSSES
    [0.69283950, 0.019055706, 1.77658021, 0.015086346, 0.85052276],
    [0.69125998, 0.019044012, 1.68781495, 0.015060616, 0.83288342],
    [0.68826634, 0.019020962, 1.50277483, 0.015005459, 0.80359477],
    [0.68401593, 0.018987501, 1.15497375, 0.010679309, 0.76509655],
    [0.67865783, 0.018956661, 0.58121282, 0.014933046, 0.74852991],
]
KNOWN_DOUBLE = [
    [0.70672387430344, 0.027580890178212, 1.6683932877362, 0.0082563249003219, 0.69048012595784],
    [0.68482994577304, 0.024024367803846, 0.94933609212277, 0.01121366356507, 0.6894259859345],
    [0.64093684849051, 0.021577574384148, 0.25145497205845, 0.029500733498747, 0.69040867787436],
    [0.58300204415328, 0.02100493476324, 0.098567209364408, 0.041767292199976, 0.68981074687899],
    [0.52132049181143, 0.020307302032861, 0.14086583760601, 0.059162809402825, 0.68888748599865],
]


def test_detections_are_in_order_inside_the_image_and_empty_slots_are_zero():
    detector, batch = small_detector().eval(), small_batch(3)
    found = detector.predict(batch.images, batch.sizes)
    assert (found.scores.diff(dim=1) <= 0).all()
    height, width = batch.sizes[:, :1], batch.sizes[:, 1:]
    assert (found.boxes >= 0).all() and (found.boxes[..., 2] <= width).all() and (found.boxes[..., 3] <= height).all()
    strict = small_detector(evaluate__score_threshold=0.9).eval().predict(batch.images, batch.sizes)
    assert not strict.valid.any() and not strict.masks.any() and not strict.scores.any()


def test_without_masks_it_is_faster_rcnn():
    detector, batch = small_detector(model__mask__enabled=False), small_batch()
    batch = replace(batch, gt_masks=batch.gt_masks[..., :0, :0])
    assert list(detector(batch)) == LOSSES[:4]
    assert detector.eval().predict(batch.images, batch.sizes).masks is None


def test_objects_without_a_segmentation_teach_no_mask():
    detector, batch = small_detector(), small_batch()
    losses = detector(replace(batch, gt_masks=torch.zeros_like(batch.gt_masks)))
    assert losses["mask"] == 0 and losses["box_delta"] == detector(batch)["box_delta"]
