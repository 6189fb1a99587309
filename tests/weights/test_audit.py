"""The eleven situations of trainers that silently void a from-scratch arm, each rebuilt small and stopped by the audit.

They are the rows of a survey of detection trainers: what a user does to turn pre-training off, and what happens
instead.
"""

import pytest
import timm
import torch
from torch import nn

from headstart.batch import InputSpec
from headstart.model.backbones.timm_net import TimmNet
from headstart.model.classifier import Classifier
from headstart.model.norm import FrozenBatchNorm
from headstart.tasks import make_task
from headstart.training.start import prepare_start
from headstart.weights.audit import audit, tensor_digests
from headstart.weights.freeze import POLICIES, freeze, set_train_mode
from headstart.weights.input import DETECTRON, IMAGENET
from headstart.weights.load import load_weights, named_tensors
from tiny import tiny_recipe
from weight_nets import NARROW, classifier, file_of, group_detector, randomise, resnet


def random_audit(model, *, policy="none", report=None, **digests):
    return audit(model, start="random", freeze=policy, input=IMAGENET, report=report, **digests)


def prepared(model, policy):
    """Frozen and in its training mode, as the loop has it at step 0."""
    freeze(model, policy)
    set_train_mode(model, policy)
    return model


def pretrained(kind="group", seed=1):
    return file_of(randomise(resnet(18, kind, **NARROW), seed).state_dict())


def assert_errors(result, *patterns):
    assert len(result.errors) == len(patterns), result.errors
    for error, pattern in zip(result.errors, patterns, strict=True):
        assert all(part in error for part in pattern.split(" ... ")), error
        assert "\n" not in error
    with pytest.raises(ValueError, match=r"^initialisation audit: "):
        result.check()


# --- valid arms


@pytest.mark.parametrize("kind", ["group", "batch", "sync_batch"])
def test_valid_random_arm_has_no_errors(kind):
    model = classifier(kind)
    other = tensor_digests(classifier(kind, seed=1))
    result = random_audit(model, initial=tensor_digests(model), other_seed=other)
    assert result.errors == ()
    result.check()
    assert {row.source.split(" ")[0] for row in result.rows} == {"random"}
    assert {row.training for row in result.rows} == {"trains"}


@pytest.mark.parametrize("kind", ["group", "batch", "frozen_batch"])
@pytest.mark.parametrize("policy", POLICIES)
def test_valid_pretrained_arm_has_no_errors(kind, policy):
    model = classifier(kind)
    initial = tensor_digests(model)
    report = load_weights(model, pretrained(kind), scope="backbone", input=IMAGENET)
    result = audit(
        prepared(model, policy), start="backbone", freeze=policy, input=IMAGENET, report=report, initial=initial
    )
    assert result.errors == ()


def test_rows_count_every_tensor_once_and_say_where_it_is_from():
    model, source = group_detector(1), group_detector(2)
    file = file_of(source.backbone.state_dict())
    report = load_weights(model, file, scope="backbone", input=IMAGENET)
    result = audit(prepared(model, "stage1"), start="backbone", freeze="stage1", input=IMAGENET, report=report)
    assert result.errors == ()
    groups = [row.group for row in result.rows]
    assert groups == ["stem", "stage1", "stage2", "stage3", "stage4", "pyramid", "rpn", "box_head", "mask_head"]
    assert sum(row.num_tensors for row in result.rows) == len(named_tensors(model))
    assert sum(row.num_params for row in result.rows) == sum(value.numel() for value in named_tensors(model).values())
    by_group = {row.group: row for row in result.rows}
    assert by_group["stem"].source == "weights.pth (sha256 000000000000)" and by_group["stem"].training == "frozen"
    assert by_group["stage2"].training == "trains" and by_group["stage2"].norm == "group (4)"
    assert by_group["rpn"].source == "random (N(0, 0.01))" and by_group["rpn"].norm == "none"
    table = result.table()
    assert len(table) == 10 and all(len(line) == 6 for line in table)
    assert result.to_json()["rows"][0]["group"] == "stem" and result.to_json()["hash"] == "0" * 64


def test_detector_arm_of_another_number_of_classes_is_valid():
    model, source = group_detector(1), group_detector(2)
    file = dict(named_tensors(source))
    for name in ("box_head.classify", "box_head.regress", "mask_head.classify"):
        for part in ("weight", "bias"):
            file[f"{name}.{part}"] = torch.cat([file[f"{name}.{part}"]] * 2)
    report = load_weights(model, file_of(file, input=IMAGENET), scope="detector", input=IMAGENET)
    result = audit(model.train(), start="detector", freeze="none", input=IMAGENET, report=report)
    assert result.errors == () and len(result.notes) == 1
    by_group = {row.group: row for row in result.rows}
    assert "of 18; the others random" in by_group["box_head"].source


# --- the nine situations


def test_1_weights_emptied_but_two_stages_and_all_norms_stay_frozen():
    """Detectron2 with MODEL.WEIGHTS emptied."""
    model = prepared(classifier("frozen_batch"), "stage1")
    assert_errors(
        random_audit(model, policy="stage1"),
        "random and frozen ... backbone.conv1.weight ... set start.freeze to none",
        "20 norms (backbone.bn1 ... identity statistics ... set model.norm to group",
    )


def test_2_first_stage_frozen_and_norms_in_eval_mode():
    """mmdetection with init_cfg=None: frozen_stages=1 and norm_eval=True stay."""
    model = prepared(classifier("batch"), "stage1")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert_errors(
        random_audit(model, policy="stage1"),
        "random and frozen ... set start.freeze to none",
        "20 norms ... identity statistics",
    )


def test_3_number_whose_meaning_depends_on_the_trainer():
    """maskrcnn-benchmark: is 0 or -1 "nothing frozen"? Here numbers are refused, and the stem alone is caught."""
    model = classifier("group")
    for number in (0, -1):
        with pytest.raises(ValueError, match=rf"start.freeze: unknown policy {number}, expected one of none, stem"):
            freeze(model, number)
    assert_errors(
        random_audit(prepared(model, "stem"), policy="stem"),
        "3 tensors (backbone.conv1.weight, backbone.bn1.weight, backbone.bn1.bias) are random and frozen",
    )


def test_4_random_layers_frozen_and_identity_norms_by_default():
    """torchvision before 2022 with pretrained=False and pretrained_backbone=False; nobody declared the freezing."""
    model = prepared(classifier("frozen_batch"), "stage1")
    assert_errors(
        random_audit(model, policy="none"),
        "random and frozen",
        "start.freeze is none, but ... are frozen too; let them train, or declare it",
        "identity statistics",
    )


def test_5_library_that_freezes_by_itself_whatever_the_weights_are():
    """HF transformers' DETR: every BatchNorm replaced by a frozen one, early layers without gradients."""
    model = classifier("batch")
    for module in list(model.backbone.modules()):
        if hasattr(module, "bn1"):
            for name in ("bn1", "bn2"):
                if hasattr(module, name):
                    old = getattr(module, name)
                    setattr(module, name, timm.layers.FrozenBatchNormAct2d(old.num_features, apply_act=False))
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    assert_errors(
        random_audit(model),
        "random and frozen",
        "start.freeze is none",
        "17 norms (backbone.bn1, ... identity statistics",
    )


def test_6_frozen_norms_with_global_statistics():
    """PaddleDetection without pretrain_weights: freeze_norm=True (no gradient, eval mode), first stage frozen."""
    model = prepared(classifier("batch"), "stem")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    assert_errors(
        random_audit(model, policy="stem"),
        "41 tensors ... random and frozen",
        "start.freeze is stem, but ... are frozen too",
        "20 norms ... identity statistics",
    )


def test_7_weights_load_although_the_arm_is_declared_random():
    """Ultralytics with pretrained=False and a .pt model: the file decides."""
    model = classifier("group")
    report = load_weights(model, pretrained(), scope="backbone", input=IMAGENET)
    assert_errors(
        random_audit(model, report=report),
        "start.kind is random, but 60 tensors (backbone.conv1.weight ... from weights.pth; set start.weights to null",
    )


def test_8_backbone_loads_by_itself_behind_the_start(monkeypatch):
    """RF-DETR with pretrain_weights=None: DINOv2 comes in with the backbone; a declared freezing is ignored."""
    model = classifier("group")
    initial = tensor_digests(model)
    load_weights(model, pretrained(), scope="backbone")  # by some code that tells nobody
    assert_errors(
        random_audit(model, initial=initial), "60 tensors ... changed after construction ... remove what sets them"
    )

    public = randomise(timm.create_model("resnet18", features_only=True), 1).state_dict()
    create = timm.create_model

    def create_with_weights(*arguments, **options):
        body = create(*arguments, **options)
        body.load_state_dict(public)
        return body

    def build(seed):
        torch.manual_seed(seed)
        return Classifier(TimmNet("resnet18", norm_kind="batch"), 3)

    def audited():
        model, other = build(0).train(), build(1)
        return model, random_audit(model, initial=tensor_digests(model), other_seed=tensor_digests(other))

    assert audited()[1].errors == ()
    monkeypatch.setattr(timm, "create_model", create_with_weights)
    model, result = audited()
    assert sum(value.dim() > 1 for value in named_tensors(model).values()) == 21  # fc.weight among them
    assert_errors(result, "20 tensors (backbone.body.conv1.weight ... the same for every seed ... pretrained=False")

    ignored = classifier("group")
    report = load_weights(ignored, pretrained(), scope="backbone", input=IMAGENET)
    result = audit(ignored, start="backbone", freeze="stage1", input=IMAGENET, report=report)
    assert_errors(result, "start.freeze is stage1, but 15 tensors ... train; apply the policy")


def test_9_frozen_base_with_moving_norms_and_foreign_input():
    """Keras: a frozen pre-trained base whose BatchNorm follows the new batches, fed with another preprocessing."""
    model = classifier("batch")
    own = InputSpec((127.5,) * 3, (127.5,) * 3, "rgb")
    report = load_weights(model, pretrained("batch"), scope="backbone", input=own)
    freeze(model, "backbone")
    model.train()
    result = audit(model, start="backbone", freeze="backbone", input=own, report=report)
    assert_errors(
        result,
        "20 norms ... statistics still follow each batch; keep them in eval mode",
        "input.mean is [127.5, 127.5, 127.5], expected [123.675, 116.28, 103.53] ... weights.pth",
    )


def test_10_loader_reports_every_tensor_and_loads_none():
    """LibreYOLO with Transformers 5: "223/223 loaded", and the model initialises itself once more (#444)."""
    model = classifier("group")
    initial, fresh = tensor_digests(model), {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, pretrained(), scope="backbone", input=IMAGENET)
    assert len(report.loaded) == 60
    expect = {"start": "backbone", "freeze": "none", "input": IMAGENET, "report": report, "initial": initial}
    assert audit(model, **expect).errors == ()
    model.load_state_dict(fresh)
    assert_errors(audit(model, **expect), "60 tensors (backbone.conv1.weight ... still have their initial values")

    load_weights(model, pretrained(), scope="backbone", input=IMAGENET)
    with torch.no_grad():
        model.backbone.layer2[0].conv1.weight.copy_(fresh["backbone.layer2.0.conv1.weight"])
        model.backbone.layer3[0].bn1.bias[3] += 1e-6
    assert_errors(
        audit(model, **expect),
        "1 tensor (backbone.layer2.0.conv1.weight) count as loaded ... still have their initial values",
        "1 tensor (backbone.layer3.0.bn1.bias) count as loaded from weights.pth, but differ from it",
    )


@pytest.mark.parametrize("kind", ["group", "batch"])
def test_11_arm_called_pretrained_is_random(kind):
    """LightlyTrain before 0.14.3: `pretrained` hard-coded to False behind a switch that says otherwise (#802)."""
    model = classifier(kind)
    assert_errors(
        audit(model, start="backbone", freeze="none", input=IMAGENET, initial=tensor_digests(model)),
        "start.kind is backbone, but nothing was loaded",
    )
    untrained = file_of(resnet(18, kind, **NARROW).state_dict())  # what such a constructor's checkpoint holds
    report = load_weights(model, untrained, scope="backbone", input=IMAGENET)
    result = audit(model, start="backbone", freeze="none", input=IMAGENET, report=report)
    assert_errors(result, "weights.pth holds a network that was never trained ... set start.kind to random")


# --- the five rules, one by one


def test_tensor_that_did_not_load_is_an_error_even_when_the_loading_was_lenient():
    model, file = classifier("group"), pretrained()
    del file.tensors["layer4.1.bn2.bias"]
    report = load_weights(model, file, scope="backbone", input=IMAGENET, strict=False)
    result = audit(model, start="backbone", freeze="none", input=IMAGENET, report=report)
    assert_errors(result, "1 tensor (backbone.layer4.1.bn2.bias) did not come from weights.pth")
    absent = audit(model, start="backbone", freeze="none", input=IMAGENET)
    assert_errors(absent, "nothing was loaded; give start.weights, or set start.kind to random")


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("order", "bgr", "input.order is bgr, expected rgb"),
        ("mean", (0.0, 0.0, 0.0), "input.mean is [0, 0, 0], expected [123.675"),
        ("std", (1.0, 1.0, 1.0), "input.std is [1, 1, 1], expected [58.395"),
    ],
)
def test_each_difference_of_the_input_is_one_error(field, value, message):
    model = classifier("group")
    report = load_weights(model, pretrained(), scope="backbone")  # without input: nothing is converted
    other = InputSpec(**{**vars(IMAGENET), field: value})
    assert_errors(audit(model, start="backbone", freeze="none", input=other, report=report), message)


def test_converted_weights_pass_and_near_means_are_the_same():
    model = classifier("group")
    own = InputSpec((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr")  # Detectron2's numbers on Detectron's weights
    report = load_weights(model, file_of(pretrained().tensors, input=DETECTRON), scope="backbone", input=own)
    assert audit(model, start="backbone", freeze="none", input=own, report=report).errors == ()


def test_file_that_does_not_tell_its_input_is_an_error():
    model = classifier("group")
    trained = randomise(classifier(seed=1))
    report = load_weights(model, file_of(named_tensors(trained)), scope="backbone", input=IMAGENET)
    result = audit(model, start="backbone", freeze="none", input=IMAGENET, report=report)
    assert_errors(result, "weights.pth does not say how its images were normalised")


def test_frozen_norms_of_heads_that_a_classifier_cannot_fill_are_named_with_their_switches():
    model = group_detector(1)
    for part in (model.pyramid, model.box_head, model.mask_head):
        for conv in [*getattr(part, "lateral", []), *getattr(part, "output", []), *getattr(part, "convs", [])]:
            conv.norm = FrozenBatchNorm(conv.norm.num_channels)
    report = load_weights(model, file_of(group_detector(2).backbone.state_dict()), scope="backbone", input=IMAGENET)
    result = audit(model.train(), start="backbone", freeze="none", input=IMAGENET, report=report)
    assert_errors(result, "16 norms (pyramid.lateral.0.norm ... model.pyramid_norm and the norm of every head")


def test_one_changed_number_is_noticed():
    model = classifier("group")
    initial = tensor_digests(model)
    with torch.no_grad():
        model.backbone.layer3[0].bn1.bias[3] = 1e-20
    assert_errors(random_audit(model, initial=initial), "1 tensor (backbone.layer3.0.bn1.bias) changed")


@pytest.mark.parametrize("kind", ["random", "backbone"])
def test_a_run_does_not_start_from_a_constructor_that_loads_weights(kind, data_root, tmp_path, monkeypatch):
    """timm gives its weights unasked; the run's own start must notice, and leave the random state alone."""
    path, create = tmp_path / "net.pth", timm.create_model
    torch.save(randomise(create("resnet18")).state_dict(), path)
    start = {"start__kind": kind, "start__weights": str(path) if kind == "backbone" else None}
    recipe = tiny_recipe(data_root, model__backbone={"kind": "timm", "name": "resnet18"}, model__norm="batch", **start)
    task, state = make_task(recipe), torch.get_rng_state()
    assert prepare_start(task.model, recipe, task.classes).errors == () and torch.equal(torch.get_rng_state(), state)

    def create_with_weights(*arguments, **options):
        body = create(*arguments, **options)
        if options.get("features_only"):
            body.load_state_dict(torch.load(path), strict=False)
        return body

    monkeypatch.setattr(timm, "create_model", create_with_weights)
    task = make_task(recipe)
    if kind == "random":
        with pytest.raises(ValueError, match=r"start.kind is random, but 20 tensors .* the same for every seed"):
            prepare_start(task.model, recipe, task.classes)
    else:  # declared, and loaded once more
        assert prepare_start(task.model, recipe, task.classes).errors == ()
