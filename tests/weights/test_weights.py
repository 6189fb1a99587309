"""Weights of other projects give the same numbers in our networks, and every tensor is accounted for."""

import os
from functools import cache

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from cli_call import call
from headstart.batch import InputSpec
from headstart.files import file_digest
from headstart.model.backbones.timm_net import TimmNet
from headstart.model.classifier import Classifier
from headstart.training.lineage import weights_digest
from headstart.weights.files import WeightFile, read_weights, write_safetensors
from headstart.weights.input import DETECTRON, DETECTRON2, IMAGENET, input_differences, input_text
from headstart.weights.load import (
    WITHOUT_EPSILON,
    convert_weights,
    expected_names,
    load_weights,
    named_tensors,
)
from headstart.weights.names import input_of
from weight_nets import NARROW, assert_same_maps, file_of, randomise, resnet


@cache
def torchvision_resnet(name):
    return randomise(torchvision.models.get_model(name, weights=None))


def torchvision_maps(model, images):
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    maps = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize("name, depth, kind", [("resnet18", 18, "batch"), ("resnet50", 50, "frozen_batch")])
def test_torchvision_classifier_gives_the_same_maps(tmp_path, name, depth, kind):
    theirs = torchvision_resnet(name)
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    ours = resnet(depth, kind)
    report = load_weights(ours, read_weights(tmp_path / "net.pth"), scope="backbone", input=IMAGENET)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_maps(ours(images), torchvision_maps(theirs, images))
    assert report.left_out == ("fc.weight", "fc.bias")
    assert set(report.loaded) == set(expected_names(ours, "backbone"))
    assert report.loaded["backbone.layer1.0.bn1.running_var"] == "layer1.0.bn1.running_var"
    assert report.hash == file_digest(tmp_path / "net.pth") and report.notes == () and report.source_input == IMAGENET


def test_resnext_gives_the_same_maps():
    block = torchvision.models.resnet.Bottleneck
    theirs = randomise(torchvision.models.resnet.ResNet(block, [2, 1, 1, 1], groups=4, width_per_group=8))
    ours = resnet((2, 1, 1, 1), bottleneck=True, groups=4, group_width=8)
    load_weights(ours, file_of(theirs.state_dict()), scope="backbone")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_maps(ours(images), torchvision_maps(theirs, images))


def test_timm_group_norm_resnet_gives_the_same_maps(tmp_path):
    theirs = timm.create_model("resnet18", pretrained=False, norm_layer="groupnorm", features_only=True)
    randomise(theirs)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = resnet(18, "group")
    report = load_weights(ours, read_weights(tmp_path / "model.safetensors"), scope="backbone")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_maps(ours(images), theirs(images)[1:])
    assert report.left_out == ()


@pytest.mark.parametrize("name, num_left_out", [("resnet18", 2), ("convnext_atto", 4), ("regnety_002", 2)])
def test_timm_checkpoint_gives_the_same_maps_in_timm_backbone(name, num_left_out):
    theirs = randomise(timm.create_model(name, pretrained=False))
    ours = TimmNet(name, norm_kind="batch").eval()
    report = load_weights(ours, file_of(theirs.state_dict()), scope="backbone")
    assert report.missing == () and len(report.left_out) == num_left_out
    again = timm.create_model(name, pretrained=False, features_only=True).eval()
    taken = {key.replace(".", "_"): value for key, value in theirs.state_dict().items()}
    again.load_state_dict({key: taken[key.replace(".", "_")] for key in again.state_dict()})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_maps(ours(images), again(images)[-4:])


def test_timm_norm_with_an_activation_is_found_after_its_replacement():
    theirs = randomise(timm.create_model("regnety_002", pretrained=False))
    ours = TimmNet("regnety_002", norm_kind="frozen_batch").eval()
    live = TimmNet("regnety_002", norm_kind="batch").eval()
    load_weights(ours, file_of(theirs.state_dict()), scope="backbone")
    load_weights(live, file_of(theirs.state_dict()), scope="backbone")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_maps(ours(images), live(images))


def test_other_timm_variant_is_refused_by_name():
    theirs = timm.create_model("resnet18d", pretrained=False)
    with pytest.raises(ValueError, match=r"only 0 of|missing \(backbone\.conv1\.weight"):
        load_weights(resnet(18), file_of(theirs.state_dict()), scope="backbone")


@pytest.mark.parametrize("source, own", [(DETECTRON, IMAGENET), (IMAGENET, DETECTRON)])
def test_first_convolution_is_converted_exactly(source, own):
    """The same pixels, each network with its own order and deviation, the source's mean: the same maps, borders too."""
    pixels = torch.randint(0, 256, (1, 3, 40, 40)).float()  # in rgb
    own = InputSpec(source.in_order(own.order).mean, own.std, own.order)

    def normalise(spec):
        x = pixels.flip(1) if spec.order == "bgr" else pixels
        return (x - torch.tensor(spec.mean).view(1, 3, 1, 1)) / torch.tensor(spec.std).view(1, 3, 1, 1)

    theirs, ours = randomise(resnet(18, width=16)), resnet(18, width=16)
    file = file_of(theirs.state_dict(), input=source)
    report = load_weights(ours, file, scope="backbone", input=own)
    with torch.no_grad():
        assert_same_maps(ours(normalise(own)), theirs(normalise(source)))
        assert not torch.allclose(ours(normalise(source))[0], theirs(normalise(source))[0], rtol=0.1)
    assert report.source_input == own and len(report.notes) == 2
    assert input_differences(report.source_input, own) == []


def test_torchvision_weights_converted_by_detectron2_keep_rgb():
    names = {"stem.conv1.weight": torch.zeros(1)}
    assert input_of(file_of(names, author="torchvision"), "Detectron2") == IMAGENET
    assert input_of(file_of(names), "Detectron2") == DETECTRON2


def test_save_and_read_round_trip(tmp_path):
    source, ours = (
        randomise(Classifier(resnet(18, "group", width=16, norm_groups=4), 5)),
        resnet(18, "group", width=16, norm_groups=4),
    )
    spec = InputSpec((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bgr")
    write_safetensors(tmp_path / "own.safetensors", named_tensors(source), {"input": input_text(spec), "note": "n"})
    report = load_weights(ours, read_weights(tmp_path / "own.safetensors"), scope="backbone", input=spec)
    assert report.layout == "headstart" and report.source_input == spec
    assert sorted(report.left_out) == ["fc.bias", "fc.weight"]
    for name, value in named_tensors(ours).items():
        assert torch.equal(value, named_tensors(source)[name])
    assert os.listdir(tmp_path) == ["own.safetensors"]
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        convert_weights(file_of(source.state_dict()), tmp_path / "own.pt", input=spec)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
def test_published_detectors_without_epsilon_are_corrected(name, tmp_path):
    digits = torchvision.models.get_model_weights(name)["COCO_V1"].url.split("-")[-1].removesuffix(".pth")
    assert digits in WITHOUT_EPSILON
    source = randomise(resnet(18, **NARROW))
    for key, value in source.state_dict().items():
        if key.endswith("running_var"):
            value.mul_(1e-4)  # small enough for the epsilon to matter
    ours = resnet(18, "frozen_batch", **NARROW)
    published = WeightFile("published.pth", digits + "0" * 56, named_tensors(source), input=IMAGENET)
    load_weights(ours, published, scope="backbone")
    convert_weights(published, tmp_path / "own.safetensors")
    again = resnet(18, "frozen_batch", **NARROW)
    load_weights(again, read_weights(tmp_path / "own.safetensors"), scope="backbone")
    assert torch.equal(again.layer1[0].bn1.running_var, ours.layer1[0].bn1.running_var)
    norm = source.layer1[0].bn1
    x = torch.randn(2, 16, 3, 3)
    expected = (x - norm.running_mean.view(1, -1, 1, 1)) / norm.running_var.sqrt().view(1, -1, 1, 1)
    expected = expected * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    # values reach hundreds, so what cancels to nearly nothing keeps their rounding
    assert torch.allclose(ours.layer1[0].bn1(x), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    assert not torch.allclose(source.layer1[0].bn1(x), expected, rtol=1e-2)


def test_converted_file_loads_the_same_without_the_original(tmp_path):
    source = randomise(timm.create_model("resnet18", pretrained=False))
    names = convert_weights(file_of(source.state_dict()), tmp_path / "own.safetensors")
    assert names.left_out == ("fc.weight", "fc.bias") and names.unknown == ()
    direct, converted = resnet(18), resnet(18)
    load_weights(direct, file_of(source.state_dict()), scope="backbone")
    report = load_weights(converted, read_weights(tmp_path / "own.safetensors"), scope="backbone", input=IMAGENET)
    assert report.source_input == IMAGENET
    for a, b in zip(named_tensors(direct).values(), named_tensors(converted).values(), strict=True):
        assert torch.equal(a, b)


def test_conversion_needs_to_know_the_input(tmp_path):
    file = file_of(named_tensors(resnet(18, "group", **NARROW)))
    with pytest.raises(ValueError, match="does not say how its images were normalised; state mean, std and order"):
        convert_weights(file, tmp_path / "own.safetensors")
    convert_weights(file, tmp_path / "own.safetensors", input=DETECTRON)
    assert read_weights(tmp_path / "own.safetensors").input == DETECTRON


def test_own_checkpoint_tells_its_input_from_its_recipe(tmp_path):
    source = Classifier(resnet(18, "group", width=16, norm_groups=4), 5)
    fields = {"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0], "order": "rgb", "size": 64}
    torch.save({"model": source.state_dict(), "optimiser": {}, "recipe": {"input": fields}}, tmp_path / "1.pt")
    file = read_weights(tmp_path / "1.pt")
    assert file.author == "headstart" and file.input == InputSpec((1.0, 2.0, 3.0), (1.0, 1.0, 1.0), "rgb")


def test_wrappers_of_ddp_and_compile_are_taken_off(tmp_path):
    model = resnet(18, "group", width=16, norm_groups=4)
    wrapped = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save(wrapped, tmp_path / "net.pt")
    assert list(read_weights(tmp_path / "net.pt").tensors) == list(model.state_dict())


def test_the_verb_states_the_input_of_a_file_that_does_not_tell(tmp_path, monkeypatch, capsys):
    source, out = Classifier(resnet(18, "group", **NARROW), 5), tmp_path / "own.safetensors"
    torch.save(named_tensors(source), tmp_path / "net.pt")
    convert = ["weights", "convert", tmp_path / "net.pt", out]
    silent = call(monkeypatch, capsys, *convert)
    assert silent.code and "net.pt: does not say how its images were normalised" in silent.err
    stated = {"--mean": "1,2,3", "--std": "4,5.5,6", "--order": "bgr"}
    for option, value, message in (
        ("--mean", "1,x", "--mean: '1,x', expected a number a channel"),
        ("--std", "4,5", "--std: 2 numbers, expected 3, as many as --mean has"),
        ("--order", "gbr", "--order: 'gbr', expected rgb or bgr"),
    ):
        answer = call(monkeypatch, capsys, *convert, *sum((stated | {option: value}).items(), ()))
        assert answer.code and message in answer.err and not out.exists()
    answer = call(monkeypatch, capsys, *convert, *sum(stated.items(), ()))
    assert answer.out == f"{out}: 60 tensors\nleft out: fc.weight\nleft out: fc.bias\n"
    file = read_weights(out)
    assert file.input == InputSpec((1.0, 2.0, 3.0), (4.0, 5.5, 6.0), "bgr")
    assert all(torch.equal(value, named_tensors(source)[name]) for name, value in file.tensors.items())
    before = weights_digest(out)
    assert call(monkeypatch, capsys, *convert, "--force", *sum((stated | {"--order": "rgb"}).items(), ())).code == 0
    assert weights_digest(out) != before  # the first convolution is no longer turned: another run
