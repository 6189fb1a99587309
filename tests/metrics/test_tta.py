"""Test-time augmentation against plain prediction, against itself mirrored, and against a plain walk through votes."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from headstart.batch import Detections
from headstart.data.order import Resize
from headstart.data.read.coco import read
from headstart.data.stream import make_batch
from headstart.metrics.tta import Tta, TtaView, merge, move, predict, vote
from headstart.model.box_head import DetectionLimits
from headstart.model.build import build, input_spec
from headstart.tasks.detection import predict_all
from headstart.tasks.task import eval_images
from tiny import SIDE, tiny_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(data_root):
    """A detector that finds something: its scores are pushed apart and above the threshold."""
    recipe = tiny_recipe(data_root, evaluate__score_threshold=0.01, evaluate__batch=3)
    model = build(recipe, 10).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, size in ((model.box_head.classify, 0.5), (model.box_head.regress, 0.05)):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * size)
        model.mask_head.classify.weight.mul_(30)
    data = read(data_root / "scenes/val.json", data_root / "scenes/val")
    return recipe, model, data


def tta(*shorts, flip=False, long=96):
    return Tta(tuple(Resize(short, long) for short in shorts), flip, 0.9)


def tta_views(pixels, recipe, chosen):
    """The views of `chosen` at images uint8 [h,w,3]."""
    return [
        TtaView(lambda resize=resize, flip=flip: make_batch(pixels, resize, input_spec(recipe), CPU, flip=flip), flip)
        for resize, flip in chosen.views()
    ]


def test_one_look_is_the_plain_prediction_bit_for_bit(trained):
    recipe, model, data = trained
    images = eval_images(recipe, data)
    plain = predict_all(model, images, CPU)
    same = predict_all(model, images, CPU, tta=tta(SIDE, long=SIDE))
    assert len(plain) > 10
    for field in fields(plain):
        a, b = getattr(plain, field.name), getattr(same, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name
    other = predict_all(model, images, CPU, tta=tta(SIDE, 48, flip=True, long=SIDE))
    assert len(other) and not np.array_equal(plain.scores, other.scores)


def test_every_look_shows_the_image_resized_and_mirrored(trained):
    recipe, _, data = trained
    pixels = [data.load_image(0), data.load_image(1)]
    views = tta(48, SIDE, flip=True).views()
    assert views == [
        (Resize(48, 96), False),
        (Resize(48, 96), True),
        (Resize(SIDE, 96), False),
        (Resize(SIDE, 96), True),
    ]
    shown = [view.make_batch() for view in tta_views(pixels, recipe, tta(48, SIDE, flip=True))]
    assert [tuple(images.shape) for images, _ in shown] == [(2, 3, 64, 96)] * 4
    for (images, sizes), (mirrored, same) in zip(shown[::2], shown[1::2]):
        assert torch.equal(sizes, same)
        width = int(sizes[0, 1])
        assert torch.equal(images[..., :width].flip(3), mirrored[..., :width])


def test_a_mirrored_image_gives_mirrored_results(trained):
    """With both views of an image its mirror image has the same two views, so that the results are mirrored."""
    recipe, model, data = trained
    pixels = data.load_image(0)
    answers = []
    for image in (pixels, pixels[:, ::-1].copy()):
        answers.append(predict(model, tta_views([image], recipe, tta(SIDE, flip=True, long=SIDE)), vote_threshold=0.9))
    (own, sizes), (mirrored, _) = answers
    assert own.valid.sum() > 3 and torch.equal(own.valid, mirrored.valid)
    back = replace(mirrored, boxes=move(mirrored.boxes, sizes, True, sizes, False), masks=mirrored.masks.flip(-1))
    num = int(own.valid.sum())
    for name, limit in (("scores", 1e-5), ("boxes", 1e-2), ("masks", 1e-3)):
        torch.testing.assert_close(getattr(own, name)[:, :num], getattr(back, name)[:, :num], atol=limit, rtol=1e-4)
    assert torch.equal(own.labels[:, :num], back.labels[:, :num])


def test_moving_there_and_back_is_the_identity():
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(2, 5, 4, generator=generator) * 32
    sizes, other = torch.tensor([[64, 48], [40, 64]]), torch.tensor([[128, 96], [80, 128]])
    assert torch.equal(move(boxes, sizes, False, sizes, False), boxes)
    for flip in (False, True):
        for to_flip in (False, True):
            there = move(boxes, sizes, flip, other, to_flip)
            torch.testing.assert_close(move(there, other, to_flip, sizes, flip), boxes, rtol=0, atol=1e-4)
    once = move(boxes, sizes, True, sizes, False)
    torch.testing.assert_close(
        once[0, 0], torch.stack([48 - boxes[0, 0, 2], boxes[0, 0, 1], 48 - boxes[0, 0, 0], boxes[0, 0, 3]])
    )


def lists(generator, num, *, around):
    """Detections of one image in `num` slots close to boxes `around`, best first, every seventh slot empty."""
    base = around[torch.randint(len(around), (num,), generator=generator)]
    boxes = base + torch.randn(num, 4, generator=generator)
    scores = torch.rand(num, generator=generator).sort(descending=True).values
    labels = torch.randint(2, (num,), generator=generator)
    return Detections(boxes[None], scores[None], labels[None], (torch.arange(num) % 7 != 6)[None])


def plain_iou(a, b):
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def plain_merge(parts, *, nms_threshold, vote_threshold, num):
    """Suppression and voting, one box after the other (Detectron's box_results_with_nms_and_limit)."""
    union = [
        (s, k, b)
        for part in parts
        for s, k, b, v in zip(*(getattr(part, n)[0].tolist() for n in ("scores", "labels", "boxes", "valid")))
        if v
    ]
    union.sort(key=lambda entry: -entry[0])
    kept = []
    for entry in union:
        if all(entry[1] != other[1] or plain_iou(entry[2], other[2]) <= nms_threshold for other in kept):
            kept.append(entry)
    found = []
    for score, label, box in kept[:num]:
        voters = [(s, b) for s, k, b in union if k == label and plain_iou(box, b) >= vote_threshold]
        total = sum(s for s, _ in voters)
        found.append((score, label, [sum(s * b[i] for s, b in voters) / total for i in range(4)]))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_merging_equals_a_plain_walk(seed):
    generator = torch.Generator().manual_seed(seed)
    around = torch.tensor([[10.0, 10, 50, 60], [30, 30, 90, 80], [100, 5, 160, 70]])
    parts = [lists(generator, 20, around=around) for _ in range(3)]
    options = {"nms_threshold": 0.5, "vote_threshold": 0.85, "num": 5}
    ours, expected = merge(parts, **options), plain_merge(parts, **options)
    assert int(ours.valid.sum()) == len(expected) >= 4
    for slot, (score, label, box) in enumerate(expected):
        assert ours.scores[0, slot].item() == pytest.approx(score) and ours.labels[0, slot].item() == label
        np.testing.assert_allclose(ours.boxes[0, slot].numpy(), box, atol=1e-3)
    assert any(
        not torch.isin(box, torch.cat([p.boxes[0] for p in parts])).all() for box in ours.boxes[0, : len(expected)]
    )


def test_a_box_that_votes_alone_stays_bit_for_bit():
    boxes = torch.tensor([[[1.1, 2.3, 30.7, 41.9], [1.1, 2.4, 30.7, 41.9]]])
    labels, weights = torch.tensor([[0, 1]]), torch.tensor([[0.3, 0.7]])
    assert torch.equal(vote(boxes, labels, boxes, labels, weights, 0.9), boxes)


def test_votes_are_exact_under_bf16():
    """Autocast would round the voters' coordinates to 8 bits: of 700 pixels, to multiples of 4."""
    low = torch.rand(1, 40, 2) * 600
    boxes = torch.cat([low, low + 60 + torch.rand(1, 40, 2) * 40], dim=2)
    boxes = torch.cat([boxes, boxes + torch.rand(1, 40, 4)], dim=1)
    args = boxes[:, :20], torch.zeros(1, 20), boxes, torch.zeros(1, 80), torch.rand(1, 80), 0.9
    plain = vote(*args)
    assert not torch.equal(plain, boxes[:, :20])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vote(*args), plain)


class Pointed:
    """A detector of one box whose heat maps are what it is shown: the left point's, the right one's, the nose's."""

    def __init__(self):
        self.limits = DetectionLimits(0.0, 0.5, 1)
        self.keypoint_mirror = (1, 0, 2)

    def features(self, images):
        return [images]

    def find(self, features, sizes):
        valid = torch.ones(1, 1, dtype=torch.bool)
        return Detections(torch.tensor([[[8.0, 8, 40, 40]]]), torch.ones(1, 1), torch.zeros(1, 1).long(), valid)

    def complete(self, features, detections):
        return replace(detections, heat_maps=features[0].unsqueeze(1))


def test_heat_maps_of_a_mirrored_look_are_turned_back_with_left_and_right_exchanged():
    plain = torch.zeros(1, 3, 8, 8)
    plain[0, 0, 2, 1], plain[0, 1, 5, 6], plain[0, 2, 3, 3] = 3.0, 2.0, 1.0
    mirrored = plain[:, [1, 0, 2]].flip(3)  # of a mirrored person the left point is where the right one was
    sizes = torch.tensor([[48, 48]])
    chosen = [TtaView(lambda: (plain, sizes)), TtaView(lambda: (mirrored, sizes), flip=True)]
    found, _ = predict(Pointed(), chosen, vote_threshold=0.9)
    assert torch.equal(found.heat_maps[:, 0], plain) and found.masks is None
