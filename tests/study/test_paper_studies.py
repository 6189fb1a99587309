"""The shipped studies against the paper's numbers, written down here by hand; and their small twins."""

import pytest
import torch

from cli_call import call
from headstart.model.build import build, input_spec
from headstart.recipe.load import shipped
from headstart.recipe.recipe import Recipe, to_dict
from headstart.report.references import account, paper_tables
from headstart.study import prepare as study_run
from headstart.study.prepare import arm_recipe, prepare, pretrain_recipe, refuse_undeclared
from headstart.study.sections import PaperTable
from headstart.study.spec import read_study
from headstart.weights.audit import audit, tensor_digests
from headstart.weights.files import read_weights
from headstart.weights.freeze import freeze
from headstart.weights.load import load_weights
from tiny import one_step

COCO, VOC, IMAGENET = 118_287, 10_728, 1_281_167
# name: steps of 16 images, first drop, second drop. The last 60k and 20k of COCO's; VOC's as in Detectron2's recipe.
STEPS = {
    "2x": (180_000, 120_000, 160_000),
    "3x": (270_000, 210_000, 250_000),
    "4x": (360_000, 300_000, 340_000),
    "5x": (450_000, 390_000, 430_000),
    "6x": (540_000, 480_000, 520_000),
    "9x": (810_000, 750_000, 790_000),
    "11x": (990_000, 930_000, 970_000),
    "220k": (220_000, 160_000, 200_000),
    "60k": (60_000, 30_000, 50_000),
    "77k": (77_000, 56_000, 70_000),
    "21k": (21_000, 10_500, 17_500),
    "22k": (22_000, 16_000, 20_000),
    "6k": (6_000, 3_000, 5_000),
    "18k": (18_000, 12_000, 16_000),
    "144k": (144_000, 132_000, 140_000),
}
FIVE = ("2x", "3x", "4x", "5x", "6x")
SCALES = (640, 672, 704, 736, 768, 800)
CASCADE = {
    f"{cascade}{depth}{start}": (schedule,)
    for cascade in ("", "cascade_")
    for depth in ("", "deep_")
    for start, schedule in (("scratch", "9x"), ("pretrained", "6x"))
}
TUNED = {"input.short": (512, 544, 576, 608, *SCALES), "train.rate": 0.04, "train.drop_factor": 0.02}
# name: ({arm: schedules}, training images, steps that are run with shared trunks, steps of all cells alone)
STUDIES = {
    "e01": ({"scratch": FIVE, "pretrained": FIVE}, COCO, 1_560_000, 3_600_000),
    "e02": ({"deep_scratch": FIVE, "deep_pretrained": FIVE}, COCO, 1_560_000, 3_600_000),
    "e03": ({"scratch": FIVE, "pretrained": FIVE}, COCO, 1_560_000, 3_600_000),
    "e04": ({"scratch": FIVE, "pretrained": FIVE, "deep_scratch": FIVE, "deep_pretrained": FIVE}, COCO,
            3_120_000, 7_200_000),
    "e05": ({"scratch": ("9x",), "pretrained": ("6x",), "deep_scratch": ("9x",), "deep_pretrained": ("6x",)}, COCO,
            2_700_000, 2_700_000),
    "e06": (CASCADE, COCO, 3_780_000, 5_400_000),  # 4 plain nets and the last 270k steps of 4 cascades
    "e07": (CASCADE, COCO, 3_780_000, 5_400_000),
    "e08": ({arm: schedules for arm, schedules in CASCADE.items() if "deep" not in arm}, COCO, 1_890_000, 2_700_000),
    "e09": ({"scratch": ("2x", "3x"), "pretrained": ("2x", "3x")}, COCO, 660_000, 900_000),
    "e10": ({"scratch": ("9x", "11x"), "pretrained": ("9x", "11x")}, COCO, 2_100_000, 3_600_000),
    "e11": ({"pretrained": FIVE}, 35_185, 780_000, 1_800_000),
    "e12": ({"scratch": FIVE, "pretrained": FIVE}, 35_185, 1_560_000, 3_600_000),
    "e13": ({"scratch": ("220k",), "pretrained": ("60k",)}, 10_000, 280_000, 280_000),
    "e14": ({"scratch": ("77k",), "pretrained": ("21k",)}, 3_500, 98_000, 98_000),
    "e15": ({"scratch": ("22k",), "pretrained": ("6k",)}, 1_000, 28_000, 28_000),
    "e16": ({"deep_scratch": ("144k",), "deep_pretrained": ("18k",)}, VOC, 162_000, 162_000),
    "e17": ({"scratch": ("6x",), "pretrained": ("2x",)}, COCO, 720_000, 720_000),
}  # fmt: skip
# name: {field: value} of every arm, where it is not the base's.
FIELDS = {
    "e01": {"model.norm": "group", "model.backbone.depth": 50, "input.short": (800,), "train.drop_factor": 0.1},
    "e02": {"model.norm": "group", "model.backbone.depth": 101, "input.short": (800,)},
    "e03": {"model.norm": "sync_batch", "model.backbone.depth": 50, "input.short": (800,)},
    "e05": {"input.short": SCALES},
    "e06": {"input.short": SCALES, "model.cascade.iou": (0.5, 0.6, 0.7)},
    "e07": {"input.short": SCALES, "evaluate.tta.long": 2000},
    "e08": {"model.backbone.depth": 152, "model.backbone.groups": 8, "model.backbone.group_width": 32},
    "e09": {
        "model.keypoint.enabled": True,
        "model.keypoint.convs": 8,
        "model.keypoint.conv_channels": 512,
        "input.short": SCALES,
        "model.mask.enabled": False,
    },
    "e10": {"model.norm": "none", "model.backbone.depth": 16, "model.pyramid": False, "model.mask.enabled": False},
    "e11": {"input.short": (800,), "train.rate": 0.02, "train.drop_factor": 0.1},
    **dict.fromkeys(("e12", "e13", "e14", "e15"), TUNED),
    "e16": {"model.backbone.depth": 101, "model.mask.enabled": False, "evaluate.voc": True},
}
NAMES = [name.removeprefix("paper/") for name in shipped("studies") if name.startswith("paper/")]


@pytest.fixture
def counted(monkeypatch):
    """Data sets of the right sizes without the data."""

    def count(recipe):
        whole = IMAGENET if not isinstance(recipe, Recipe) else VOC if "VOC" in recipe.data.train else COCO
        return round(whole * recipe.data.fraction)

    monkeypatch.setattr(study_run, "num_training_images", count)


def value_of(recipe, path):
    for part in path.split("."):
        recipe = getattr(recipe, part)
    return recipe


def test_every_study_of_the_paper_is_there():
    assert sorted(STUDIES) == NAMES and len(NAMES) == 17
    assert {"bccd", "cats_dogs", "demo", "semantic"} <= set(shipped("studies"))


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_study_expands_to_the_papers_steps_drops_and_counts(counted, name):
    arms, images, shared, alone = STUDIES[name]
    prepared = prepare(read_study(f"paper/{name}"))
    cells = {arm: tuple(c.schedule for c in prepared.plan.cells if c.arm == arm) for arm in prepared.study.arms}
    assert cells == arms
    assert set(prepared.num_images.values()) == {images}
    assert (prepared.plan.steps_shared, prepared.plan.steps_alone) == (shared, alone)
    assert prepared.plan.notes == ()
    refuse_undeclared(prepared)
    for arm, schedules in arms.items():
        recipe = prepared.recipes[arm][0]
        assert recipe.train.batch == 16 and recipe.train.momentum == 0.9 and recipe.train.weight_decay == 1e-4
        assert {field: value_of(recipe, field) for field in FIELDS.get(name, {})} == FIELDS.get(name, {})
        if recipe.start.kind == "random":
            assert recipe.start.freeze == "none"
        for schedule in schedules:
            found = prepared.schedules[arm][schedule]
            assert (found.total, *found.drops) == STEPS[schedule]
            assert found.base_rate == recipe.train.rate and found.warmup == 500


@pytest.mark.parametrize("name", ["e06", "e07", "e08"])
def test_the_cascade_is_switched_on_for_the_last_270k_steps(counted, name):
    prepared = prepare(read_study(f"paper/{name}"))
    segments = {segment.name: segment for segment in prepared.plan.segments}
    late = [segment for segment in segments.values() if segment.arm.startswith("cascade_")]
    assert late and {segment.steps for segment in late} == {270_000}
    for segment in late:
        assert segments[segment.parent].arm == segment.arm.removeprefix("cascade_")
        plain, cascade = (prepared.recipes[arm][0] for arm in (segments[segment.parent].arm, segment.arm))
        assert (plain.model.cascade.enabled, cascade.model.cascade.enabled) == (False, True)
        assert plain.model.backbone == cascade.model.backbone and plain.start == cascade.start


def test_the_same_ends_are_judged_with_test_augmentation(counted):
    plain, judged = (prepare(read_study(f"paper/{name}")) for name in ("e06", "e07"))
    assert plain.plan.segments == judged.plan.segments and plain.study.arms == judged.study.arms
    assert judged.study.also_evaluate == {"tta": {"evaluate.tta.enabled": True}}


def test_four_times_the_batch_is_a_quarter_of_the_steps_at_four_times_the_rate(counted):
    """Detectron2's 9x from scratch at batch 64: rate 0.08, 202.5k steps, drops at 187.5k and 197.5k."""
    prepared = prepare(read_study("paper/e05"), {"train.batch": 64})
    found = prepared.schedules["scratch"]["9x"]
    assert (found.total, found.drops, found.base_rate) == (202_500, (187_500, 197_500), 0.08)


def test_the_studies_of_table_1_and_2_share_their_segments(counted):
    plans = {name: prepare(read_study(f"paper/{name}")) for name in ("e01", "e02", "e04")}
    segments = {name: {segment.name for segment in prepared.plan.segments} for name, prepared in plans.items()}
    assert segments["e01"] | segments["e02"] == segments["e04"]
    assert {prepared.study.runs for prepared in plans.values()} == {"paper"}
    for name, arm in (("e01", "scratch"), ("e01", "pretrained"), ("e02", "deep_scratch"), ("e02", "deep_pretrained")):
        own, again = (plans[study].recipes[arm][0] for study in (name, "e04"))
        assert own.model_copy(update={"name": ""}) == again.model_copy(update={"name": ""})


def account_of(study):
    return account(study, {arm: arm_recipe(study, arm, {})[0] for arm in study.arms})


def test_the_account_of_samples_is_the_papers_figure_2():
    """1.309e8 against 8.64e6 images, 1.482e8 against 6.05e7 instances, 9.49e12 against 9.21e12 pixels."""
    scratch, pretrained = account_of(read_study("paper/e17"))
    assert [scratch[count] for count in ("images", "instances", "pixels")] == [8.64e6, 6.048e7, 8.64e6 * 1066400]
    images, instances, pixels = (pretrained[count] for count in ("images", "instances", "pixels"))
    assert (images, instances) == (1.28e8 + 2.88e6, 1.28e8 + 2.016e7)
    assert pixels == pytest.approx(9.49e12, rel=1e-3)
    assert (images / 8.64e6, instances / 6.048e7, pixels / scratch["pixels"]) == pytest.approx(
        (15.1, 2.45, 1.03), abs=0.05
    )


def test_the_account_is_printed_and_written_without_any_data(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    answer = call(monkeypatch, capsys, "study", "run", "paper/e17")
    assert answer.code == 0, answer.err
    assert "pretrained 2x sees 15.1 times the images, 2.45 times the instances, 1.03 times the pixels" in answer.out
    lines = (tmp_path / "runs/e17/account.csv").read_text().splitlines()
    assert lines[0].startswith("arm,schedule,steps,images_own") and lines[1].startswith("scratch,6x,540000,8640000")
    refused = call(monkeypatch, capsys, "study", "search", "paper/e17")
    assert refused.code == 2 and "study e17: account: it only counts what its arms would see" in refused.err


def test_an_account_needs_the_cost_of_weights():
    study = read_study("paper/e17", changes={"public_weights": {}})
    with pytest.raises(ValueError, match=r"account: arm 'pretrained' starts from 'data/weights/R-50-GN\.pkl'"):
        account_of(study)


def test_tables_of_the_paper_are_those_that_a_study_may_name():
    assert set(paper_tables()) == set(PaperTable.__args__)
    assert paper_tables()["R50"]["box.AP75"] == {"random": {"6x": 0.456}, "pre-trained": {"6x": 0.446}}
    assert paper_tables()["R101"]["mask.AP"] == {"random": {"6x": 0.376}, "pre-trained": {"3x": 0.372}}
    assert paper_tables()["R101"]["box.AP"]["pre-trained"]["6x"] == 0.422
    assert paper_tables()["Table 2"]["box.AP50"]["R101 pre-trained"] == {"3x": 0.626}
    assert paper_tables()["X152"]["tta:box.AP"] == {"random": {"9x": 0.509}, "pre-trained": {"6x": 0.503}}
    assert paper_tables()["X152"]["mask.AP75"] == {"random": {"9x": 0.434}, "random, cascade": {"9x": 0.446}}


def twin_recipes(study):
    """Every recipe of a study: of its arms, and of the pre-trainings that they use."""
    used = dict.fromkeys(name for arm in study.arms if (name := study.pretraining_of(arm)))
    arms = [arm_recipe(study, arm, {})[0] for arm in study.arms]
    return arms + [pretrain_recipe(study, name, {})[0] for name in used]


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_small_twin_has_the_axes_of_its_study(name):
    full, twin = read_study(f"paper/{name}"), read_study(f"paper/{name}", size="small")
    assert (twin.name, twin.runs, twin.account) == (f"{name}-small", "small", None)
    assert set(full.arms) >= set(twin.arms) - {"batch_of_2", "group_of_2"}
    for recipe in twin_recipes(twin):
        assert recipe.data.train.startswith("data/demo") and recipe.train.threads == 1
    for arm in twin.arms:
        own = arm_recipe(twin, arm, {})[0]
        if arm in full.arms:
            theirs = arm_recipe(full, arm, {})[0]
            assert (own.start.kind, own.model.norm) == (theirs.start.kind, theirs.model.norm)
            assert (len(own.input.short) > 1) == (len(theirs.input.short) > 1)
            assert own.model.mask.enabled == theirs.model.mask.enabled


def test_every_net_of_the_small_twins_makes_a_step(data_root):
    """One step of each distinct net and task, on tiny data."""
    done = set()
    for name in sorted(STUDIES):
        for recipe in twin_recipes(read_study(f"paper/{name}", size="small")):
            key = recipe.model.model_dump_json()
            if key not in done:
                done.add(key)
                one_step(recipe, data_root)
    assert len(done) >= 8


def starts_on_own_weights():
    """(study, size, arm) of every shipped study whose arm starts from a pre-training of its own."""
    for study in sorted(shipped("studies")):
        for size in ("full", "small") if read_study(study).small else ("full",):
            found = read_study(study, size=None if size == "full" else size)
            if (study, size) == ("paper/e08", "full"):
                continue  # 100 M parameters, twice; its names are those of every other ResNet
            yield from ((study, size, arm) for arm in found.arms if found.pretraining_of(arm))


def moved(net):
    """The network as if it had been trained: no scale or shift keeps its initial value."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01)
    return net


@pytest.mark.parametrize(("study", "size", "arm"), list(starts_on_own_weights()))
def test_an_arm_can_begin_with_its_own_pretraining(study, size, arm, tmp_path):
    """What the pre-training makes is what the arm expects, tensor by tensor, and its audit passes."""
    found = read_study(study, size=None if size == "full" else size)
    source = pretrain_recipe(found, found.pretraining_of(arm), {})[0]
    recipe = arm_recipe(found, arm, {})[0]
    path = tmp_path / "weights.pt"
    net = moved(build(source, 3))
    torch.save({"model": net.state_dict(), "recipe": to_dict(source)}, path)
    model = build(recipe, 3, num_keypoints=5)
    initial, start = tensor_digests(model), recipe.start
    report = load_weights(model, read_weights(path), scope=start.kind, input=input_spec(recipe))
    freeze(model, start.freeze)
    found = audit(
        model, start=start.kind, freeze=start.freeze, input=input_spec(recipe), report=report, initial=initial
    )
    found.check()
