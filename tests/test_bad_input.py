"""What a user may get wrong: one line that says where and what, exit code 2, and earlier results as they were."""

import importlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cli_call import call
from headstart.recipe.load import load_recipe
from headstart.training.run import train
from headstart.weights import checkpoint
from tiny import CLASSIFIER, DETECTOR, NET, class_paths, patched, scene_paths, tiny_classifier, tiny_study, tree_digest


class Bomb:
    """A pickle payload that would create a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
    """A folder of earlier results: a tiny detector without masks and a tiny classifier, as a user would have them."""
    runs = tmp_path_factory.mktemp("earlier")
    patch = {"name": "tiny", **DETECTOR, **scene_paths(data_root), "model.mask.enabled": False, "train.base": "2 steps"}
    detector = train(load_recipe("base", patch), runs)
    classifier = train(tiny_classifier(data_root), runs)
    return {"runs": runs, "detector": detector.checkpoint, "classifier": classifier.checkpoint, "data": data_root}


@pytest.fixture
def say(monkeypatch, capsys, finished, tmp_path):
    """Call the command line; afterwards the earlier results must be what they were."""
    monkeypatch.chdir(tmp_path)
    earlier = [finished[name].parent.parent for name in ("detector", "classifier")]
    before = [tree_digest(run) for run in earlier]
    yield lambda *arguments: call(monkeypatch, capsys, *arguments)
    assert [tree_digest(run) for run in earlier] == before


def refused(answer, *expected, code=2):
    """One line on the error stream with all of `expected` in it."""
    assert answer.code == code, answer
    lines = answer.err.splitlines()
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("headstart: ")
    for part in expected:
        assert str(part) in lines[0], (part, lines[0])
    assert "Traceback" not in answer.out


def overrides(patch):
    """`key=value` arguments of a patch."""
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in patch.items()]


def tiny(data_root, **changes):
    """Arguments that make `base` the tiny detector."""
    patch = {name.replace("__", "."): value for name, value in changes.items()}
    return overrides(patched({**DETECTOR, **scene_paths(data_root), "train.base": "2 steps"}, patch))


def fail_to_train(say, finished, *expected, code=2, **changes):
    """Train the tiny detector with changes into the folder of earlier results: refused, nothing left behind."""
    answer = say("train", "base", *tiny(finished["data"], **changes), "--out", finished["runs"])
    refused(answer, *expected, code=code)


RECIPES = [
    ({"train.rte": 1}, ["train.rte: unknown field", "'train.rate'"]),
    ({"model.mask.slot": 1}, ["model.mask.slot: unknown field", "'model.mask.slots'"]),
    ({"train.batch": "many"}, ["train.batch: 'many' is not valid", "integer"]),
    ({"train.rate": -0.1}, ["train.rate: -0.1 is not valid", "greater than or equal to 0.000000001"]),
    ({"data.fraction": 0}, ["data.fraction: 0 is not valid", "greater than 0"]),
    ({"data.mask_frame": 14}, ["data.mask_frame: 14", "multiple of 4"]),
    ({"data.mask_frame": 0}, ["data.mask_frame: 0", "greater than or equal to 4"]),
    ({"input.std": [58.0, 0.0, 57.0]}, ["input.std.1: 0.0", "greater than or equal to 0.001"]),
    ({"input.mean": [1.0, 2.0]}, ["input.mean: 2 numbers", "input.channels is 3", "a number a channel"]),
    ({"input.channels": 4}, ["input.mean: 3 numbers", "input.channels is 4", "a number a channel"]),
    ({"input.channels": 13}, ["input.channels: 13 is not valid", "less than or equal to 12"]),
    (
        {"input.channels": 1, "input.mean": [127.0], "input.std": [60.0], "input.order": "bgr"},
        ["input.order: 'bgr'", "input.channels is 1", "expected rgb"],
    ),
    ({"start.stem": "mean"}, ["start.stem: 'mean'", "start.kind is 'random'", "expected null"]),
    (
        {"start.kind": "backbone", "start.weights": "w.pt", "start.stem": "random"},
        ["start.stem: 'random'", "input.channels 3", "expected null"],
    ),
    ({"model.norm_groups": 3}, ["norm_groups", "3", "8"]),
    ({"model.cascade.enabled": True}, ["model.box.class_agnostic: false, expected true with model.cascade.enabled"]),
    ({"model.cascade.iou": [0.5, 0.7, 0.6]}, ["model.cascade.iou: [0.5, 0.7, 0.6]", "ascending"]),
    ({"model.cascade.iou": [0.5, 0.6]}, ["model.cascade.weights: 3 given, expected 2"]),
    ({"model.cascade.iou": [0.5]}, ["model.cascade.iou", "at least 2"]),
    ({"model.backbone.depth": 51}, ["depth", "51", "18", "50"]),
    ({"model.backbone": {"kind": "vgg", "depth": 16}, "model.norm": "sync_batch"}, ["model.norm: 'sync_batch'", "vgg"]),
    ({"model.backbone": {"kind": "vgg", "depth": 16}, "model.norm": "none"}, ["model.pyramid: true", "one map"]),
    ({"model.backbone": {"kind": "vgg", "depth": 16, "groups": 2}}, ["model.backbone.groups: unknown field"]),
    ({"model.backbone": {"kind": "vggnet", "depth": 16}}, ["model.backbone", "'vggnet'", "'vgg'"]),
    ({"processes": 4, "train.batch": 6}, ["train.batch: 6 images do not divide among 4 processes"]),
    ({"processes": 0}, ["processes: 0 is not valid"]),
    ({"evaluate.precise_bn": 5}, ["evaluate.precise_bn: 5", "'group'", "expected 0"]),
    ({"model.rpn.anchor_sizes": [8, 16, 32]}, ["model.rpn.anchor_sizes: 3 sizes", "4 maps", "5"]),
    ({"model.backbone": {"kind": "timm", "name": "resnet1"}}, ["model.backbone.name", "'resnet1'", "resnet"]),
    ({"train.base": "4 lightyears"}, ["train.base", "'4 lightyears'", "steps"]),
    ({"train.schedule": "2 times"}, ["'2 times'", '"2x"']),
    ({"train.schedule": "0.1x", "train.warmup": "0 steps", "train.base": "1 steps"}, ["total", "0"]),
    ({"train.warmup": "500 steps"}, ["schedule 2x with a base of 2 steps", "warmup is 500 steps", "at most 3"]),
    ({"start.weights": "w.pt"}, ["start.weights: 'w.pt'", "start.kind is 'random'"]),
    ({"start.kind": "backbone"}, ["start.weights: missing", "'backbone'"]),
    ({"start.kind": "backbone", "start.weights": "nowhere.pt"}, ["nowhere.pt: no such weight file"]),
    ({"start.freeze": "stem"}, ["backbone.conv1.weight", "random and frozen", "set start.freeze to none"]),
    ({"data.train": "nowhere.json", "data.train_images": None}, ["nowhere.json"]),
    ({"data.train_images": "nowhere"}, ["nowhere"]),
    ({"task": "tracking"}, ["task: 'tracking' is unknown", "detection"]),
    ({"seed": -1}, ["seed: -1 is not valid"]),
    ({"evaluate.voc": "07"}, ["evaluate.voc: '07'", "boolean"]),
    ({"input.jitter.enabled": True, "input.short": [48, 64]}, ["input.short: [48, 64] has no effect", "single size"]),
    ({"input.jitter.crop": 100}, ["input.jitter.crop: 100", "multiple of 32"]),
    ({"input.jitter.low": 3}, ["input.jitter.low: 3 is above input.jitter.high, 2"]),
    ({"input.copy_paste": True}, ["input.copy_paste: needs a fixed crop", "input.jitter.enabled=true"]),
    (
        {"input.copy_paste": True, "input.jitter.enabled": True, "model.mask.enabled": False},
        ["input.copy_paste: pastes masks", "model.mask.enabled is false"],
    ),
    ({"evaluate.tta.shorts": [64, 64]}, ["evaluate.tta.shorts: [64, 64] holds a size twice"]),
    ({"evaluate.tta.vote_threshold": 0}, ["evaluate.tta.vote_threshold: 0", "greater than 0"]),
    ({"evaluate.every": "2"}, ["evaluate.every", "'2'", "unit"]),
    ({"model.keypoint.enabled": True}, ["train.json", "category 1", "no field 'keypoints'", "model.keypoint.enabled"]),
    (
        {"train.batch": 65_536, "input.short": [8192], "input.long": 8192},
        ["GiB for a training step", "train.batch 65536"],
    ),
    ({"train.clip_norm": -1}, ["train.clip_norm: -1 is not valid", "greater than or equal to 0.000001"]),
    ({"evaluate.keypoint_sigmas": [0.1]}, ["evaluate.keypoint_sigmas", "model.keypoint.enabled is false", "null"]),
]


@pytest.mark.parametrize(("patch", "expected"), RECIPES, ids=[str(patch) for patch, _ in RECIPES])
def test_recipes(say, finished, patch, expected):
    fail_to_train(say, finished, *expected, **{name.replace(".", "__"): value for name, value in patch.items()})


def test_unknown_recipe_names(say):
    refused(say("train", "demmo"), "recipe 'demmo'", "no such file or shipped name", "'demo'")
    refused(say("recipe", "show", "zzz"), "recipe 'zzz'", "shipped: base")
    refused(say("pretrain", "demo"), "recipe 'demo': task is 'detection'", "demo_pretrain")


SEGMENTS = [
    ({"data.train_labels": "maps"}, ["data.val_labels: missing, but data.train_labels is given"]),
    ({"data.train": "nowhere.json"}, ["nowhere.json"]),
    ({"data.train_labels": "nowhere", "data.val_labels": "nowhere"}, ["nowhere/000000.png: no such label map"]),
    ({"data.ignore": [256]}, ["data.ignore.0: 256", "255"]),
    ({"model.semantic.loss_stride": 3}, ["model.semantic.loss_stride: 3"]),
    ({"model.semantic.channels": 6}, ["norm_groups", "6"]),
    ({"model.rpn.num_samples": 3}, ["model.rpn: unknown field"]),
]


@pytest.mark.parametrize(("patch", "expected"), SEGMENTS, ids=[str(patch) for patch, _ in SEGMENTS])
def test_segmentation_recipes(say, finished, patch, expected):
    base = {**NET, **scene_paths(finished["data"]), "model.pyramid_channels": 8, "model.semantic.channels": 8}
    small = {"train.batch": 2, "train.base": "2 steps", "train.warmup": "0 steps", "data.num_workers": 0}
    refused(say("train", "base_segment", *overrides({**base, **small, **patch}), "--out", finished["runs"]), *expected)


@pytest.mark.parametrize("value", ["[", "@x", "%", "\tx: 1", "*a", "[" * 3000])
def test_overrides_that_are_no_yaml(say, value):
    refused(say("recipe", "show", "base", f"train.rate={value}"), "override 'train.rate=")


def test_an_override_given_two_values(say, data_root):
    refused(say("recipe", "show", "base", "seed=1", "seed=2"), "override seed: is given twice, as 1 and 2")
    refused(say("recipe", "show", "base", "train={rate: 1}", "train.rate=2"), "(override): train.rate: is given twice")
    assert say("recipe", "show", "base", "seed=1", "seed=1").code == 0


def test_files_where_yaml_is_expected(say, tmp_path, data_root):
    (tmp_path / "folder").mkdir()
    (tmp_path / "picture.yaml").write_bytes((data_root / "scenes/val/000000.jpg").read_bytes())
    for name, expected in (("folder", "is a folder or a device"), ("/dev/zero", "is a folder or a device"),
                           ("picture.yaml", "is not a text file")):  # fmt: skip
        refused(say("recipe", "show", tmp_path / name), name, expected)
        refused(say("study", "plan", tmp_path / name), name, expected)


@pytest.mark.parametrize("text", ["train.rate", "=1"])
def test_overrides_without_a_value(say, text):
    refused(say("recipe", "show", "base", text), f"override {text!r}", "key.path=value")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("train: {rate: 0.1\nname: x", ["line 2", "not valid YAML"]),
        ("- a\n- b\n", ["expected a mapping of fields, found list"]),
        (b"\xff\xfe\x00binary", ["mine.yaml"]),
        ("train: {rate: 1}\ntrain: {batch: 2}\n", ["line 2", "'train' is given twice"]),
        ("extends: nothing_like_this\n", ["nothing_like_this"]),
        ("train:\n  rate: [1, 2]\n", ["train.rate: [1, 2] is not valid"]),
        ("!!python/object/apply:os.mkdir [pwned]", ["mine.yaml: not valid YAML"]),
    ],
)
def test_recipe_files(say, tmp_path, content, expected):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(say("recipe", "show", path), "mine.yaml", *expected)
    assert not (tmp_path / "pwned").exists()


def test_weights_of_a_wrong_architecture(say, finished, data_root):
    start = {"start__kind": "backbone", "start__weights": str(finished["classifier"])}
    for change, expected in (
        ({"model__backbone__width": 16}, "8"),
        ({"model__backbone__depth": [2, 1, 1, 1]}, "[1, 1, 1, 1] blocks a stage"),
        ({"model__norm": "none"}, "tensors of the backbone could be loaded"),
    ):
        fail_to_train(say, finished, finished["classifier"], expected, **start, **change)


def test_weights_with_a_payload_or_of_no_known_kind(say, finished, tmp_path):
    torch.save({"model": {"x": Bomb(tmp_path / "proof")}}, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "weights.docx").write_text("not weights")
    for name in ("evil.pt", "text.pt", "weights.docx"):
        fail_to_train(say, finished, name, start__kind="backbone", start__weights=str(tmp_path / name))
    assert not (tmp_path / "proof").exists()


def changed_scenes(data_root, tmp_path, change):
    """A copy of the training scenes whose annotations went through `change`; fields of a recipe that uses it."""
    folder = shutil.copytree(data_root / "scenes", tmp_path / "scenes")
    content = json.loads((folder / "train.json").read_text())
    change(content, folder / "train")
    (folder / "train.json").write_text(json.dumps(content))
    return {"data__train": str(folder / "train.json"), "data__train_images": str(folder / "train")}


def no_segmentation(content, folder):
    for annotation in content["annotations"]:
        del annotation["segmentation"]


def another_category(content, folder):
    content["categories"][2]["name"] = "unicorn"


def missing_image(content, folder):
    (folder / "000003.jpg").unlink()


def other_size(content, folder):
    content["images"][4]["height"] = 65
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1, 1, 5, 1, 5, 5]]


def escaping_name(content, folder):
    content["images"][1]["file_name"] = "../../etc/passwd"


def absolute_name(content, folder):
    content["images"][1]["file_name"] = "/etc/passwd"


def bomb(content, folder):
    Image.fromarray(np.zeros((12000, 12000), np.uint8)).save(folder / "000002.jpg")


def text_as_image(content, folder):
    (folder / "000002.jpg").write_text("not an image")


def no_images(content, folder):
    content["images"], content["annotations"] = [], []


def unknown_category(content, folder):
    content["annotations"][0]["category_id"] = 99


def unknown_image(content, folder):
    content["annotations"][0]["image_id"] = 99


def image_twice(content, folder):
    content["images"].append(content["images"][0])


def text_in_box(content, folder):
    content["annotations"][0]["bbox"][1] = "left"


DATA = [
    (no_segmentation, ["no object has a segmentation", "model.mask.enabled"]),
    (another_category, ["category 4", "'unicorn'", "the same categories"]),
    (missing_image, ["000003.jpg"]),
    (other_size, ["000004.jpg", "image 5", "64 x 64", "64 x 65"]),
    (escaping_name, ["../../etc/passwd"]),
    (absolute_name, ["/etc/passwd"]),
    (bomb, ["000002.jpg", "12000 x 12000", "decompression bomb"]),
    (text_as_image, ["000002.jpg", "not a readable image"]),
    (no_images, ["train.json"]),
    (unknown_category, ["99"]),
    (unknown_image, ["99"]),
    (image_twice, ["train.json", "1"]),
    (text_in_box, ["train.json", "left"]),
]


@pytest.mark.parametrize(("change", "expected"), DATA, ids=[change.__name__ for change, _ in DATA])
def test_data(say, finished, data_root, tmp_path, change, expected):
    fail_to_train(say, finished, *expected, train__base="4 steps", **changed_scenes(data_root, tmp_path, change))


def test_a_missing_validation_image_is_named_before_the_first_step(say, finished, data_root, tmp_path):
    """Evaluation would meet it only at its end; a folder that is empty or absent misses all."""
    folder = shutil.copytree(data_root / "scenes", tmp_path / "scenes")
    (folder / "val" / "000001.jpg").unlink()
    fields = {"data__val": str(folder / "val.json"), "data__val_images": str(folder / "val")}
    fail_to_train(say, finished, "val.json: '000001.jpg' is not in", folder / "val", **fields)
    answer = say("train", "base", *tiny(data_root, **fields), "--out", tmp_path / "runs")
    refused(answer, "000001.jpg")
    assert not (tmp_path / "runs").exists()
    fail_to_train(say, finished, "'000000.jpg' is not in", "nowhere", **{**fields, "data__val_images": "nowhere"})


def test_masks_are_not_measured_on_validation_images_with_boxes_only(say, finished, data_root, tmp_path):
    content = json.loads((data_root / "scenes/val.json").read_text())
    no_segmentation(content, None)
    (tmp_path / "val.json").write_text(json.dumps(content))
    fail_to_train(say, finished, "val.json: no object has a segmentation", data__val=str(tmp_path / "val.json"))


def test_json_that_is_none(say, finished, tmp_path):
    for name, content in (("torn.json", '{"images": [{"id": 1'), ("list.json", "[]"), ("empty.json", "")):
        (tmp_path / name).write_text(content)
        fail_to_train(say, finished, name, data__train=str(tmp_path / name))


def test_validation_data_is_checked_before_training_too(say, finished, data_root, tmp_path):
    fields = changed_scenes(data_root, tmp_path, another_category)
    changes = {"data__val": fields["data__train"], "data__val_images": fields["data__train_images"]}
    fail_to_train(say, finished, "'unicorn'", "category 4", **changes)


def test_folders_for_pretraining(say, finished, data_root, tmp_path):
    base = {**CLASSIFIER, **class_paths(data_root)}
    (tmp_path / "empty").mkdir()
    (tmp_path / "one/a").mkdir(parents=True)
    for changes, expected in (
        ({"data.train": str(tmp_path / "empty")}, ["empty"]),
        ({"data.train": str(tmp_path / "nowhere")}, ["nowhere"]),
        ({"data.train": str(tmp_path / "one")}, ["one"]),
        ({"data.val": str(data_root / "scenes")}, ["classes differ"]),
        ({"model.norm_groups": 5}, ["norm_groups", "5"]),
    ):
        answer = say("pretrain", "base_classify", *overrides({**base, **changes}), "--out", finished["runs"])
        refused(answer, *expected)


def test_checkpoints_given_to_predict_and_eval(say, finished, data_root, tmp_path):
    image = data_root / "scenes/val/000000.jpg"
    torch.save({"model": {}, "recipe": {}, "payload": Bomb(tmp_path / "proof")}, tmp_path / "evil.pt")
    (tmp_path / "torn.pt").write_bytes(finished["detector"].read_bytes()[:5000])
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    (tmp_path / "empty").mkdir()
    for verb in ("predict", "eval"):
        more = [image] if verb == "predict" else []
        refused(say(verb, tmp_path / "evil.pt", *more), "evil.pt", "refused")
        refused(say(verb, tmp_path / "torn.pt", *more), "torn.pt", "not a whole checkpoint")
        refused(say(verb, tmp_path / "foreign.pt", *more), "foreign.pt", "not a headstart checkpoint")
        refused(say(verb, tmp_path / "nowhere.pt", *more), "nowhere.pt", "no such checkpoint")
        refused(say(verb, tmp_path / "empty", *more), "empty", "holds no checkpoints")
        refused(say(verb, finished["classifier"], *more), "classification recipe", "expected a detection checkpoint")
    assert not (tmp_path / "proof").exists()


def test_predict_on_what_holds_no_images(say, finished, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    refused(say("predict", finished["detector"], tmp_path / "empty"), "empty", "holds no images")
    refused(say("predict", finished["detector"], tmp_path / "nowhere"), "nowhere", "no such image or folder")
    refused(say("predict", finished["detector"], tmp_path / "notes.txt"), "notes.txt", "not a readable image")
    refused(say("predict", finished["detector"], tmp_path / "broken.png"), "broken.png", "not a readable image")


def test_eval_on_other_categories_or_nothing(say, finished, data_root, tmp_path):
    scenes = changed_scenes(data_root, tmp_path, lambda content, folder: content["categories"].pop())
    content = json.loads((tmp_path / "scenes/train.json").read_text())
    known = {category["id"] for category in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in known]
    (tmp_path / "scenes/train.json").write_text(json.dumps(content))
    answer = say(
        "eval", finished["detector"], "--data", scenes["data__train"], "--images", scenes["data__train_images"]
    )
    refused(answer, "train.json", "categories")
    content = json.loads((data_root / "scenes/val.json").read_text())
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    (tmp_path / "swapped.json").write_text(json.dumps(content))
    answer = say(
        "eval", finished["detector"], "--data", tmp_path / "swapped.json", "--images", data_root / "scenes/val"
    )
    here, there = repr(first["name"]), repr(second["name"])
    refused(answer, f"classes differ from the checkpoint: category {first['id']} is {here}, there it is {there}")
    refused(say("eval", finished["detector"], "--data", "nowhere.json"), "nowhere.json")
    for option, value in (("--images", scenes["data__train_images"]), ("--split", "train")):
        refused(say("eval", finished["detector"], option, value), "--images, --split: given without --data FILE")


def test_verify_and_report_on_folders_that_are_none(say, tmp_path):
    refused(say("verify", tmp_path), "holds no checkpoints")
    refused(say("study", "report", tmp_path), str(tmp_path))
    refused(say("study", "report", tmp_path / "nowhere"), "nowhere")


RULE = {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01, "level": 0.95}
RULE |= {"test": "t", "min_seeds": 3, "kind": "equivalence"}
STUDIES = [
    ({"rule": {**RULE, "candidate": "scrach"}}, ["rule.candidate: arm 'scrach'", "'scratch'"]),
    ({"rule": {**RULE, "metric": "box.AP60"}}, ["rule.metric 'box.AP60'", "'box.AP"]),
    ({"rule": {**RULE, "marginn": 1}}, ["rule key 'marginn'", "'margin'"]),
    ({"rule": {**RULE, "test": "sign_flip"}, "seeds": 2}, ["seeds: 2 can never satisfy", "sign_flip", "at least"]),
    ({"rule": {**RULE, "candidate": "pretrained"}}, ["rule.candidate is 'pretrained'", "another arm"]),
    ({"schedules": ["2x", "twice"]}, ["schedule 'twice'", '"2x"']),
    ({"schedules": "2x"}, ["schedules: '2x'", "[2x]"]),
    ({"schedules": []}, ["schedules: none for arm 'scratch'"]),
    ({"schedules": ["2x", "2x"]}, ["schedules: ", "given twice"]),
    ({"schedules": ["0.25x"]}, ["0.25x", "tail"]),
    ({"fractions": [0]}, ["fractions", "0 is not valid", "greater than 0"]),
    ({"fractions": [0.5, 0.5]}, ["fractions: 0.5 is given twice"]),
    ({"seeds": 0}, ["seeds: 0", "at least one"]),
    ({"arms": {}}, ["arms"]),
    ({"arms": {"a/b": {}}}, ["arms: 'a/b' is not a name"]),
    ({"arms": {"scratch": {"train.rte": 1}}}, ["train.rte: unknown field", "'train.rate'", "arm scratch"]),
    ({"pretrain": {}}, ["pretrain", "'forms'"]),
    ({"arms": {"a": {}, "b": {"branch_of": "c", "last": "1x", "seed": 1}}}, ["arms.b.branch_of: arm 'c'", "'a'"]),
    ({"arms": {"a": {}, "b": {"branch_of": "a", "seed": 1}}}, ["arms.b: branch_of is given without last"]),
    ({"arms": {"a": {}, "b": {"branch_of": "a", "last": "1 steps", "seed": 1}}}, ["arms.b.last: the last 1 of the 8"]),
    ({"recipe": "bse"}, ["recipe 'bse'", "'base'"]),
    ({"colour": "red"}, ["study key 'colour'"]),
]


@pytest.mark.parametrize(("changes", "expected"), STUDIES, ids=[str(changes)[:50] for changes, _ in STUDIES])
def test_studies(say, finished, data_root, tmp_path, changes, expected):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_study(data_root, **changes), sort_keys=False))
    refused(say("study", "run", tmp_path / "study.yaml", "--out", finished["runs"]), *expected)


def test_study_files(say, finished, data_root, tmp_path):
    text = yaml.safe_dump(tiny_study(data_root), sort_keys=False)
    (tmp_path / "twice.yaml").write_text(text + "seeds: 3\n")
    refused(say("study", "plan", tmp_path / "twice.yaml"), "twice.yaml: line", "'seeds' is given twice")
    (tmp_path / "torn.yaml").write_text(text + "rule: {metric: box.AP\n")
    refused(say("study", "plan", tmp_path / "torn.yaml"), "torn.yaml: not valid YAML at line")
    refused(say("study", "run", "demoo"), "study 'demoo'", "'demo'")
    (tmp_path / "good.yaml").write_text(text)
    refused(say("study", "run", tmp_path / "good.yaml", "seeds=three"), "seeds", "'three'")
    refused(say("study", "run", tmp_path / "good.yaml", "train.rte=3"), "train.rte: unknown field")


def test_a_batch_that_does_not_divide_among_processes(say, finished, data_root, monkeypatch):
    monkeypatch.setattr("headstart.tasks.task.num_processes", lambda: 2)
    fail_to_train(say, finished, "train.batch: 3", "2 processes", train__batch=3)
    patch = {"name": "tiny-pretrain", **CLASSIFIER, **class_paths(data_root), "train.batch": 3}
    answer = say("pretrain", "base_classify", *overrides(patch), "--out", finished["runs"])
    refused(answer, "train.batch: 3", "2 processes")


def test_a_loss_that_is_not_finite_ends_with_code_3(say, finished, data_root, tmp_path):
    answer = say("train", "base", *tiny(data_root, train__rate=1e6, train__base="4 steps"), "--out", tmp_path / "runs")
    assert answer.code == 3
    assert len(answer.err.splitlines()) == 1
    for part in ("headstart: step ", "the loss is not finite", "images ", "stopped before the update"):
        assert part in answer.err


def test_a_full_disk_names_the_checkpoint(say, finished, data_root, tmp_path, monkeypatch):
    def full(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    answer = say("train", "base", *tiny(data_root), "--out", tmp_path / "runs")
    refused(answer, "00000003.pt: the checkpoint cannot be written", "No space left on device")


def test_class_names_with_markup_are_printed_as_they_are(say, finished, data_root, tmp_path):
    name = "[bold red]<script>alert(1)</script>[/]"

    def rename(content, folder):
        content["categories"][0]["name"] = name

    fields = changed_scenes(data_root, tmp_path, rename)
    other = {"data__val": fields["data__train"], "data__val_images": fields["data__train_images"]}
    answer = say("train", "base", *tiny(data_root, **fields, **other), "--out", tmp_path / "runs")
    assert answer.code == 0, answer.err
    run = next((tmp_path / "runs").iterdir())
    answer = say("eval", run, "--per-class")
    assert answer.code == 0 and name in "".join(answer.out.split("\n"))
    answer = say("data", "stats", fields["data__train"], "--images", fields["data__train_images"])
    assert answer.code == 0 and name in answer.out


def test_interrupting_says_how_to_continue(say, finished, data_root, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("headstart.training.run"), "train", stop)
    answer = say("train", "base", *tiny(data_root), "--out", tmp_path / "runs")
    refused(answer, "stopped; runs and studies continue with the same command", code=130)


def test_good_input_is_not_refused(say, finished, data_root, tmp_path):
    """The commands above, without what is wrong with them."""
    out = tmp_path / "out"
    answer = say("predict", finished["detector"], data_root / "scenes/val", "--out", out, "--score", "0.0")
    assert answer.code == 0, answer.err
    assert len(list(out.glob("*.png"))) + len(list(out.glob("*.jpg"))) == 3
    assert isinstance(json.loads((out / "predictions.json").read_text()), list)
    answer = say("verify", finished["detector"].parent.parent)
    assert answer.code == 0 and "equal bit for bit" in answer.out
    assert say("recipe", "show", "base", *overrides(NET)).code == 0
    assert checkpoint.load(finished["detector"])["recipe"]["name"] == "tiny"


def test_what_a_trained_detector_is_not_told_anew(say, finished):
    said = "a trained detector stays what it is"
    refused(say("eval", finished["detector"], "train.rate=1"), "override train.rate", said)
    refused(say("eval", finished["detector"], "evaluate.tta.shorts=[]"), "evaluate.tta.shorts: []", "at least 1 item")
    refused(say("predict", finished["detector"], "model.norm=batch"), "override model.norm", said)
    refused(say("eval", finished["classifier"], "evaluate.tta.enabled=true"), "expected a detection checkpoint")


def test_searches_and_variants_that_cannot_be(say, tmp_path, data_root):
    study = tiny_study(data_root)
    for key, value, expected in (
        ("fractions", [{"images": 7}], "fractions: 7 images, but the training set has 6"),
        ("also_evaluate", {"tta": {"evaluate.tta.enable": True}}, "evaluate.tta.enable: unknown field"),
        ("also_evaluate", {"plain": {"train.rate": 1}}, "also_evaluate.plain: train.rate is no part of one evaluation"),
    ):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**study, key: value}))
        refused(say("study", "run", tmp_path / "mine.yaml"), expected)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    refused(say("study", "search", tmp_path / "mine.yaml"), "study tiny: has no search")


@pytest.fixture
def photos(data_root, tmp_path):
    """A folder with three pictures of a user, as PNG."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((data_root / "scenes/val").iterdir())[:3]:
        with Image.open(path) as image:
            image.save(folder / f"{path.stem}.png")
    return folder


def test_predict_writes_over_no_picture(say, finished, photos, tmp_path):
    def predict(*arguments):
        return say("predict", finished["detector"], *arguments)

    before, first = tree_digest(photos), sorted(photos.iterdir())[0]
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, tmp_path / "link", photos / ".." / "photos"):
        for force in ([], ["--force"]):
            refused(predict(photos, "--out", out, *force), "--out", "is a folder of the images")
            refused(predict(first, "--out", out, *force), f"{first.name}: is read here", "never replaced")
    (tmp_path / "b").mkdir()
    shutil.copy(first, tmp_path / "b")
    refused(predict(first, tmp_path / "b", "--force"), first, tmp_path / "b" / first.name, "and again for")
    assert not (tmp_path / "predictions").exists()

    assert predict(photos, "--out", tmp_path / "out").code == 0
    made = tree_digest(tmp_path / "out")
    refused(predict(photos, "--out", tmp_path / "out", "--score", "0"), "exists already", "--force")
    assert tree_digest(tmp_path / "out") == made
    assert predict(photos, "--out", tmp_path / "out", "--score", "0", "--force").code == 0
    assert tree_digest(tmp_path / "out") != made and tree_digest(photos) == before
    (tmp_path / "c").mkdir()
    (tmp_path / "c/predictions.json").write_text("mine")
    refused(predict(photos, "--out", tmp_path / "c"), "predictions.json: exists already")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["predictions.json"]


def test_eval_writes_over_no_annotations(say, finished, data_root, tmp_path):
    annotations = tmp_path / "val.json"
    shutil.copy(data_root / "scenes/val.json", annotations)
    before, folder = annotations.read_bytes(), data_root / "scenes/val"
    ask = ["eval", finished["detector"], "--data", annotations, "--images", folder, "--save"]
    for force in ([], ["--force"]):
        refused(say(*ask, annotations, *force), "val.json: is read here", "never replaced")
        refused(say(*ask, finished["detector"], *force), "is read here", "never replaced")
        refused(say(*ask, next(folder.iterdir()), *force), "is read here", "never replaced")
    (tmp_path / "notes.json").write_text("mine")
    split = tmp_path / "split.json"
    assert say("data", "split", annotations, split, "--images", folder).code == 0
    asked = ["eval", finished["detector"], "--data", f"{split}:val", "--save", split, "--force"]
    refused(say(*asked), "split.json: is read here", "never replaced")
    refused(say(*ask, tmp_path / "notes.json"), "notes.json: exists already", "--force")
    assert (tmp_path / "notes.json").read_text() == "mine" and annotations.read_bytes() == before
    answer = say(*ask, tmp_path / "notes.json", "--force")
    assert answer.code == 0 and isinstance(json.loads((tmp_path / "notes.json").read_text()), list)


def test_conversions_and_exports_write_over_no_file(say, finished, data_root, tmp_path):
    annotations, notes = tmp_path / "val.json", tmp_path / "notes.json"
    content = json.loads((data_root / "scenes/val.json").read_text())
    annotations.write_text(json.dumps(content, indent=1))
    (tmp_path / "val").symlink_to(data_root / "scenes/val")
    before = annotations.read_bytes()
    for force in ([], ["--force"]):
        refused(say("data", "convert", annotations, annotations, *force), "val.json: is read here", "never replaced")
        refused(say("data", "convert", annotations, tmp_path / "val.xml", *force), "expected one that ends in .json")
    split = tmp_path / "split.json"
    assert say("data", "split", annotations, split).code == 0
    part, held = f"{split}:train", split.read_bytes()
    for verb in (["convert", part, split], ["rename", part, "--out", split], ["split", part, split]):
        refused(say("data", *verb, "--force"), "split.json: is read here", "never replaced")
    merge = ["data", "merge", part, f"{split}:val"]
    refused(say(*merge, "--out", split, "--force"), "split.json: is read here", "never replaced")
    refused(say(*merge, "--out", annotations, "--force"), "val.json: is read here", "never replaced")
    refused(say(*merge, *["--images", tmp_path] * 3), "images: 3 folders for 2 data sets: expected at most one each")
    assert split.read_bytes() == held
    notes.write_text("mine")
    refused(say("data", "convert", annotations, notes), "notes.json: exists already", "--force")
    assert notes.read_text() == "mine" and annotations.read_bytes() == before
    assert say("data", "convert", annotations, notes, "--force").code == 0 and len(notes.read_bytes()) > 1000

    weights, mine = tmp_path / "tiny.safetensors", tmp_path / "mine.safetensors"
    mine.write_text("mine")
    assert say("export", finished["detector"], weights).code == 0
    held = weights.read_bytes()
    refused(say("export", finished["detector"], mine), "mine.safetensors: exists already", "--force")
    refused(say("weights", "convert", weights, mine), "mine.safetensors: exists already", "--force")
    for verb in (["export"], ["weights", "convert"]):
        refused(say(*verb, weights, weights, "--force"), "tiny.safetensors: is read here", "never replaced")
    assert mine.read_text() == "mine" and weights.read_bytes() == held
    assert say("export", finished["detector"], mine, "--force").code == 0
    assert len(mine.read_bytes()) == len(held)  # metadata come in any order
