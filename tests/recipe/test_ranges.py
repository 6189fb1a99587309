"""Every field of every kind of recipe at values that none of them can mean: a stated meaning, or one line."""

import math

import pytest

from headstart.recipe.dotted import flatten, unflatten
from headstart.recipe.load import KINDS, load_recipe
from headstart.recipe.recipe import schedule_of, to_dict
from headstart.recipe.refusal import validate
from odd_values import VALUES, odd_cases

# Accepted on purpose, by value: the fields (an element of a list: its first), and what they then mean.
ACCEPTED = {
    "text": {  # paths and names
        "name", "data.train", "data.train_images", "data.train_split", "data.val", "data.val_images", "data.val_split",
        "model.backbone.name",
    },
    "true": {
        "data.cache", "input.jitter.enabled", "model.backbone.bottleneck", "model.pyramid", "model.pyramid_norm",
        "model.aligned", "model.box.norm", "model.box.class_agnostic", "model.mask.enabled", "model.mask.norm",
        "model.keypoint.enabled", "model.keypoint.norm", "model.semantic.norm", "train.compile", "train.channels_last",
        "evaluate.voc", "evaluate.tta.enabled", "evaluate.tta.flip", "input.crop.enabled", "input.quarter_turns",
        "model.corners.flip",
    },
    "null": {
        "data.train_images", "data.train_split", "data.val_images", "data.val_split", "data.train_labels",
        "data.val_labels",  # found beside the annotations, or made from them
        "data.max_objects",  # that of the fullest image
        "data.repeat_threshold", "input.transform",  # none
        "model.backbone.bottleneck", "model.backbone.group_width",  # those of the depth and the width
        "model.rpn.straddle",  # no anchor is dropped
        "start.weights", "start.stem",  # none
        "train.clip_norm",  # no clipping
        "train.ema",  # no averages
        "train.threads",  # torch's choice
        "evaluate.keypoint_sigmas",  # COCO's
    },
    "0": {
        "seed", "data.fraction_seed",
        "data.num_workers",  # decoded by the process itself
        "input.colour.brightness", "input.colour.contrast", "input.colour.saturation", "input.colour.lighting",
        "input.colour.hue", "input.mosaic",  # none
        "model.corners.pull", "model.corners.push", "model.corners.offset",  # no such loss
        "model.corners.distance",  # equal embeddings alone
        "input.flip", "input.flip_vertical", "input.mean.0", "data.ignore.0",
        "model.box.convs", "model.mask.convs", "model.keypoint.convs",  # no convolution
        "model.rpn.low",  # nothing is negative
        "model.rpn.straddle",  # anchors that cross the border are dropped
        "model.rpn.nms_threshold", "evaluate.nms_threshold",  # any overlap suppresses
        "model.box.smooth_l1_beta",  # L1
        "model.dropout", "train.momentum", "train.weight_decay", "train.norm_weight_decay",  # off
        "train.warmup", "train.warmup_from",  # none; from a rate of 0
        "evaluate.every", "checkpoint.every",  # at the end only
        "evaluate.train_images", "evaluate.precise_bn",  # none
        "evaluate.score_threshold",  # every detection
    },
    "-1": {"input.mean.0"},
    "[]": {"data.ignore", "model.hidden", "train.loggers"},  # no value, no layer
    "1e9": {
        "seed", "data.fraction_seed",
        "evaluate.train_images",  # all
        "train.clip_norm",  # never reached
    },
}  # fmt: skip
ACCEPTED["'16'"] = ACCEPTED["text"]
BACKBONES = {
    "vgg": {"model.backbone": {"kind": "vgg", "depth": 16}, "model.norm": "none", "model.pyramid": False},
    "detnet": {"model.backbone": {"kind": "detnet", "depth": [3, 4, 6, 3, 3]}},
    "timm": {"model.backbone": {"kind": "timm", "name": "resnet18"}},
    "hourglass": {
        "model.backbone": {"kind": "hourglass", "depth": [1, 1], "widths": [8, 8], "stacks": 1},
        "model.pyramid": False,
        "model.norm_groups": 8,
    },
    "blocks": {"model.backbone.depth": [3, 4, 6, 3], "model.backbone.bottleneck": True},
}


def refusal(model, values):
    """The message with which a recipe's values are refused, None where they are not."""
    try:
        validate(model, values, "mine.yaml")
    except ValueError as error:
        return str(error)
    return None


def check(model, values, start=""):
    """Put every odd value at every place of a recipe whose path begins with `start`."""
    for path, label, changed in odd_cases(values, start):
        message = refusal(model, changed)
        field = path.removesuffix(".0").removesuffix(".0")
        if message is None:
            assert path in ACCEPTED.get(label, ()), (path, label, "is accepted without a meaning")
        else:
            assert path not in ACCEPTED.get(label, ()), message
            assert len(message.splitlines()) == 1 and len(message) < 500, message
            assert message.startswith("mine.yaml: ") and field in message, (path, label, message)


@pytest.mark.parametrize("task", KINDS)
def test_every_field_of_a_recipe(task):
    model, name = KINDS[task]
    check(model, to_dict(load_recipe(name)))


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_field_of_other_backbones(kind):
    check(KINDS["detection"][0], to_dict(load_recipe("base", BACKBONES[kind])), "model.backbone.")


def test_accepted_values_are_those_of_fields():
    known = {path for _, name in KINDS.values() for path, _, _ in odd_cases(to_dict(load_recipe(name)))}
    assert {field for fields in ACCEPTED.values() for field in fields} - known == {"model.backbone.name"}
    assert set(ACCEPTED) < set(VALUES) and math.isnan(VALUES["nan"])


FROZEN = {"start.kind": "backbone", "start.weights": "w.pt", "start.freeze": "backbone"}
CONTRADICTIONS = [
    ({"train.optimizer": "adamw", "train.betas": [0.9, 1.0]}, "train.betas.1: 1.0 is not valid"),
    ({"train.betas": [0.8, 0.999]}, "train.betas: [0.8, 0.999] has no effect with train.optimizer sgd"),
    ({"train.eps": 1e-6}, "train.eps: 1e-06 has no effect with train.optimizer sgd; expected 1e-08"),
    ({"train.optimizer": "lamb"}, "train.optimizer: 'lamb' is not valid: input should be 'sgd', 'adam' or 'adamw'"),
    ({"train.ema": 1.0}, "train.ema: 1.0 is not valid: input should be less than 1"),
    ({"train.ema": 0}, "train.ema: 0 is not valid: input should be greater than 0"),
    ({"train.layer_decay": 1.5}, "train.layer_decay: 1.5 is not valid"),
    ({"train.rates.backbone": 0}, "train.rates.backbone: 0 is not valid"),
    ({"train.rates.body": 0.1}, "train.rates.body: unknown field; the nearest name is"),
    (
        {"model.pyramid": False, "train.rates.pyramid": 0.5},
        "train.rates.pyramid: 0.5 has no effect with model.pyramid false",
    ),
    ({**FROZEN, "train.rates.backbone": 0.1}, "train.rates.backbone: 0.1 has no effect with start.freeze 'backbone'"),
    ({**FROZEN, "train.layer_decay": 0.8}, "train.layer_decay: 0.8 has no effect with start.freeze 'backbone'"),
    ({"model.rpn.low": 0.8}, "model.rpn.low: 0.8 is above model.rpn.high, 0.7"),
    ({"model.rpn.high": 2.0}, "model.rpn.high: 2.0 is not valid: input should be less than or equal to 1"),
    ({"input.short": [800, 1400]}, "input.short: 1400 is above input.long, 1333"),
    ({"input.test_short": 1334}, "input.test_short: 1334 is above input.test_long, 1333"),
    ({"evaluate.tta.long": 1100}, "evaluate.tta.shorts: 1200 is above evaluate.tta.long, 1100"),
    ({"input.jitter.low": 3.0}, "input.jitter.low: 3 is above input.jitter.high, 2"),
    ({"model.backbone.depth": 18, "model.backbone.groups": 2}, "model.backbone.groups: 2 has no effect"),
    ({"model.backbone.depth": 34, "model.backbone.group_width": 8}, "model.backbone.group_width: 8 has no effect"),
    ({"model.backbone.bottleneck": False}, "model.backbone.bottleneck: false, which depth 50 contradicts"),
    ({"model.backbone.depth": [3, 4, 0, 3]}, "model.backbone.depth.2: 0 is not valid"),
    ({"model.backbone.depth": [3, 4, -1, 3]}, "model.backbone.depth.2: -1 is not valid"),
    ({"model.backbone.depth": 51}, "model.backbone.depth: 51 is not valid: input should be 18, 34, 50, 101 or 152"),
    ({"train.threads": 100_000}, "train.threads: 100000 is not valid: input should be less than or equal to 1024"),
    ({"data.num_workers": 100_000}, "data.num_workers: 100000 is not valid"),
    ({"model.box.pool": 10**8}, "model.box.pool: 100000000 is not valid"),
    ({"model.mask.slots": 10**8}, "model.mask.slots: 100000000 is not valid"),
    ({"model.backbone.width": 10**8}, "model.backbone.width: 100000000 is not valid"),
    ({"train.rate": 1e-300}, "train.rate: 1e-300 is not valid: input should be greater than or equal to 0.000000001"),
    ({"train.base": "10000000M steps"}, "train.base: '10000000M steps' is not valid: expected at most 100,000,000"),
    ({"train.base": 0}, "train.base: 0 is not valid: expected more than nothing"),
    ({"train.schedule": "999999999999x"}, "train.schedule: '999999999999x' is not valid: expected at most 10,000x"),
    ({"train.warmup": "5"}, "train.warmup: '5' is not valid: expected a number with a unit"),
]


@pytest.mark.parametrize(("patch", "expected"), CONTRADICTIONS, ids=[expected[:40] for _, expected in CONTRADICTIONS])
def test_contradictions_and_impossible_sizes(patch, expected):
    message = refusal(KINDS["detection"][0], unflatten(flatten(to_dict(load_recipe("base"))) | patch))
    assert message is not None and expected in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("text", ["yes", "true", "'16'", "1:30", "16.0", "0x10", "010", "2026-01-01", "1" * 5000])
def test_what_yaml_1_1_would_take_for_a_number_is_none(text):
    from headstart.recipe.yaml_text import parse_override

    with pytest.raises(ValueError, match=r"base\.yaml \(override\): train\.batch: .* is not valid: input should be a"):
        load_recipe("base", dict([parse_override(f"train.batch={text}")]))


def test_schedules_that_would_never_end_are_refused():
    long = load_recipe("base", {"train.base": "1 steps", "train.warmup": 0, "train.schedule": "90k"})
    with pytest.raises(ValueError, match="'90k' is 90,000 times the base of 1 steps, expected at most 10,000"):
        schedule_of(long, 100)
    long = load_recipe("base", {"train.base": "1M epochs"})
    with pytest.raises(ValueError, match=r"expected at most 100,000,000"):
        schedule_of(long, 118_287)


OTHER_NAMES = [
    ("lr", "the learning rate is train.rate"), ("epochs", "the length of training is train.base"),
    ("imgsz", "the size of images is input.short"), ("img_size", "the size of images is input.short"),
    ("batch_size", "the images of a step are train.batch"), ("bs", "the images of a step are train.batch"),
    ("train.epochs", "the length of training is train.base"),
    ("workers", "the threads that load images are data.num_workers"),
    ("pretrained", "the weights to start from are start.weights"), ("nc", "the classes are those of data.train"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "meant"), OTHER_NAMES)
def test_names_of_other_trainers_lead_to_the_field(key, meant):
    with pytest.raises(ValueError, match=rf"\(override\): {key}: no such field; {meant}$"):
        load_recipe("base", {key: 1})
    if key == "imgsz":
        with pytest.raises(ValueError, match=r"imgsz: no such field; the size of images is input\.size$"):
            load_recipe("base_classify", {key: 1})


def test_every_other_name_leads_to_a_field_and_hides_none():
    from headstart.recipe.recipe import ClassifyRecipe, Recipe
    from headstart.recipe.refusal import OTHER_NAMES, field_names

    known = {*field_names(Recipe), *field_names(ClassifyRecipe)}
    assert {field for _, fields in OTHER_NAMES.values() for field in fields} <= known
    assert OTHER_NAMES.keys() & known == set()


def test_a_value_for_a_section_is_told_its_fields():
    said = r"\(override\): data: 'coco\.yaml' is not valid: expected its fields, such as data\.train, "
    with pytest.raises(ValueError, match=said):
        load_recipe("base", {"data": "coco.yaml"})


def test_depths_are_those_that_can_be_built():
    import typing

    from headstart.model.backbones import resnet, vgg
    from headstart.recipe.net import DetNetPart, ResNetPart, VggPart

    for part, known in ((ResNetPart, resnet.DEPTHS), (DetNetPart, resnet.DETNET), (VggPart, vgg.DEPTHS)):
        assert typing.get_args(typing.get_args(part.model_fields["depth"].annotation)[0]) == tuple(known)
    assert {depth for depth, (_, bottleneck) in resnet.DEPTHS.items() if bottleneck} == {50, 101, 152}
