"""Detectron2's and Detectron's files load entirely; folded norms and the other stride are told apart."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.weights.files import read_weights
from headstart.weights.input import DETECTRON, DETECTRON2, DETECTRON2_GROUPED, IMAGENET, input_differences
from headstart.weights.load import convert_weights, load_weights, named_tensors
from small_detector import small_detector
from weight_nets import file_of, group_detector, randomise, resnet


def detectron2_name(name):
    """Our name in Detectron2's spelling."""
    if name.startswith("backbone."):
        name = name.replace("backbone.conv1.", "backbone.bottom_up.stem.conv1.")
        name = name.replace("backbone.bn1.", "backbone.bottom_up.stem.conv1.norm.")
        name = re.sub(r"backbone\.layer(\d)", lambda m: f"backbone.bottom_up.res{int(m[1]) + 1}", name)
        name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
        return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    name = re.sub(r"pyramid\.(\w+)\.(\d)\.(conv\.)?", lambda m: f"backbone.fpn_{m[1]}{int(m[2]) + 2}.", name)
    name = name.replace("rpn.convs.0.", "proposal_generator.rpn_head.conv.")
    name = name.replace("rpn.objectness.", "proposal_generator.rpn_head.objectness_logits.")
    name = name.replace("rpn.deltas.", "proposal_generator.rpn_head.anchor_deltas.")
    name = name.replace("box_head.classify.", "roi_heads.box_predictor.cls_score.")
    name = name.replace("box_head.regress.", "roi_heads.box_predictor.bbox_pred.")
    name = re.sub(r"^box_head\.convs\.(\d)\.(conv\.)?", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}.", name)
    name = re.sub(r"^box_head\.fcs\.(\d)", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 1}", name)
    name = re.sub(
        r"^mask_head\.convs\.(\d)\.(conv\.)?", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.", name
    )
    return name.replace("mask_head.deconv", "roi_heads.mask_head.deconv").replace(
        "mask_head.classify", "roi_heads.mask_head.predictor"
    )


def detectron2_stage(name):
    """The same in a cascade, where every box head is numbered."""
    stage = re.match(r"cascade\.(\d)\.", name)
    plain = detectron2_name(re.sub(r"^cascade\.\d\.", "box_head.", name))
    number = int(stage[1]) + 1 if stage else 0
    return re.sub(r"^roi_heads\.box_(head|predictor)\.", rf"roi_heads.box_\1.{number}.", plain)


def cascade_detector(seed):
    on = {"model__cascade__enabled": True, "model__box__class_agnostic": True, "model__box__convs": 2}
    return randomise(small_detector(**on), seed)


def test_detectron2_cascade_loads_whole():
    source, ours = cascade_detector(1), cascade_detector(2)
    tensors = {detectron2_stage(name): value for name, value in named_tensors(source).items()}
    assert {"roi_heads.box_predictor.2.bbox_pred.weight", "roi_heads.box_head.0.conv2.norm.bias"} <= set(tensors)
    report = load_weights(ours, file_of(tensors), scope="detector", input=DETECTRON2)
    assert report.layout == "Detectron2" and len(report.loaded) == len(tensors) and not report.reset
    for name, value in named_tensors(ours).items():
        assert torch.equal(value, named_tensors(source)[name]), name


def test_another_number_of_classes_resets_the_class_predictors_of_every_stage_and_no_box():
    source, ours = cascade_detector(1), cascade_detector(2)
    tensors = dict(named_tensors(source))
    for name in tensors:
        if re.fullmatch(r"(\w+_head|cascade\.\d)\.classify\.\w+", name):
            tensors[name] = torch.cat([tensors[name], tensors[name][:2]])
    report = load_weights(ours, file_of(tensors, input=DETECTRON2), scope="detector", input=DETECTRON2)
    heads = ("box_head", "mask_head", "cascade.0", "cascade.1")
    assert set(report.reset) == {f"{head}.classify.{part}" for head in heads for part in ("weight", "bias")}
    assert torch.equal(ours.cascade[1].regress.weight, source.cascade[1].regress.weight)


def test_a_cascade_and_a_plain_detector_are_told_apart():
    plain, cascade = small_detector(), cascade_detector(1)
    for ours, theirs, expected in (
        (plain, cascade, "holds a cascade, which the model is not; set model.cascade.enabled to true"),
        (cascade, plain, "holds a detector without the stages of a cascade; set model.cascade.enabled to false"),
    ):
        with pytest.raises(ValueError, match=expected) as error:
            load_weights(ours, file_of(named_tensors(theirs), input=DETECTRON2), scope="detector")
        assert "\n" not in str(error.value)


def test_detectron2_detector_pickle_loads_whole(tmp_path):
    source, ours = group_detector(1), group_detector(2)
    arrays = {detectron2_name(name): value.numpy() for name, value in named_tensors(source).items()}
    arrays["pixel_mean"] = np.array(DETECTRON2.mean, np.float32).reshape(3, 1, 1)
    arrays["pixel_std"] = np.ones((3, 1, 1), np.float32)
    with open(tmp_path / "model_final.pkl", "wb") as file:
        pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file)
    report = load_weights(ours, read_weights(tmp_path / "model_final.pkl"), scope="detector", input=DETECTRON2)
    assert report.layout == "Detectron2" and report.left_out == ("pixel_mean", "pixel_std")
    assert input_differences(report.source_input, DETECTRON2) == []
    for name, value in named_tensors(ours).items():
        assert torch.equal(value, named_tensors(source)[name]), name


def caffe2_name(name):
    """Our name as a blob of Detectron's Caffe2 networks with GroupNorm."""
    ending = {"weight": "w", "bias": "b"}[name.rpartition(".")[2]]
    gn = {"weight": "gn_s", "bias": "gn_b"}[name.rpartition(".")[2]]
    norm = ".norm." in name or re.search(r"bn\d|downsample\.1", name)
    stem = name.rpartition(".")[0].removesuffix(".conv").removesuffix(".norm")
    last = {2: 0, 3: 0, 4: 0, 5: 0}  # the last block of each stage names the pyramid's blobs
    stem = re.sub(r"^backbone\.(conv1|bn1)$", "conv1", stem)
    stem = re.sub(
        r"^backbone\.layer(\d)\.(\d+)\.(?:conv|bn)(\d)$",
        lambda m: f"res{int(m[1]) + 1}_{m[2]}_branch2{'abc'[int(m[3]) - 1]}",
        stem,
    )
    stem = re.sub(r"^backbone\.layer(\d)\.(\d+)\.downsample\.\d$", lambda m: f"res{int(m[1]) + 1}_{m[2]}_branch1", stem)
    lateral = {5: "", 4: "_lateral", 3: "_lateral", 2: "_lateral"}
    stem = re.sub(
        r"^pyramid\.lateral\.(\d)$",
        lambda m: f"fpn_inner_res{int(m[1]) + 2}_{last[int(m[1]) + 2]}_sum{lateral[int(m[1]) + 2]}",
        stem,
    )
    stem = re.sub(r"^pyramid\.output\.(\d)$", lambda m: f"fpn_res{int(m[1]) + 2}_{last[int(m[1]) + 2]}_sum", stem)
    stem = re.sub(r"^box_head\.convs\.(\d)$", lambda m: f"head_conv{int(m[1]) + 1}", stem)
    stem = re.sub(r"^mask_head\.convs\.(\d)$", lambda m: f"_[mask]_fcn{int(m[1]) + 1}", stem)
    plain = {
        "rpn.convs.0": "conv_rpn_fpn2",
        "rpn.objectness": "rpn_cls_logits_fpn2",
        "rpn.deltas": "rpn_bbox_pred_fpn2",
        "box_head.fcs.0": "fc6",
        "box_head.classify": "cls_score",
        "box_head.regress": "bbox_pred",
        "mask_head.deconv": "conv5_mask",
        "mask_head.classify": "mask_fcn_logits",
    }
    return f"{plain.get(stem, stem)}_{gn if norm else ending}"


def caffe2_array(name, value):
    """A class predictor with the background in front, as Detectron has it; its box and mask rows are noise."""
    if name.startswith("box_head.classify"):
        value = torch.cat([value[-1:], value[:-1]])
    elif name.startswith("box_head.regress"):
        value = torch.cat([torch.randn(4, *value.shape[1:]), value])
    elif name.startswith("mask_head.classify"):
        value = torch.cat([torch.randn(1, *value.shape[1:]), value])
    return value.numpy()


def test_detectron_group_norm_detector_pickle_loads_whole(tmp_path):
    source, ours = group_detector(1), group_detector(2)
    blobs = {caffe2_name(name): caffe2_array(name, value) for name, value in named_tensors(source).items()}
    blobs |= {f"{name}_momentum": np.zeros(1, np.float32) for name in list(blobs)[:3]} | {"lr": np.zeros(1, np.float32)}
    with open(tmp_path / "model_final.pkl", "wb") as file:
        pickle.dump({"blobs": blobs, "cfg": "..."}, file, protocol=2)
    report = load_weights(ours, read_weights(tmp_path / "model_final.pkl"), scope="detector", input=DETECTRON)
    assert report.layout == "Detectron" and len(report.left_out) == 4 and report.source_input == DETECTRON
    for name, value in named_tensors(ours).items():
        assert torch.equal(value, named_tensors(source)[name]), name


def folded(model):
    """Detectron's blobs of a ResNet with its BatchNorm folded into scale and shift, and those scales and shifts."""
    blobs, scales = {"conv1_b": np.zeros(model.conv1.out_channels, np.float32)}, {}
    for name, value in named_tensors(model).items():
        if value.dim() == 4:
            blobs[caffe2_name(name)] = value.numpy()
        elif name.endswith(".weight"):
            blob = caffe2_name(name).replace("_gn_s", "_bn")
            blob = "res_conv1_bn" if blob == "conv1_bn" else blob
            scales[name.removesuffix(".weight")] = value, torch.randn_like(value)
            blobs[f"{blob}_s"], blobs[f"{blob}_b"] = (part.numpy() for part in scales[name.removesuffix(".weight")])
    return blobs, scales


THIN = {"width": 16, "groups": 4, "group_width": 4}


def test_folded_batch_norm_becomes_an_exact_affine_in_frozen_norms_only():
    source = randomise(resnet(50, **THIN))
    blobs, scales = folded(source)
    file = file_of({name: torch.from_numpy(value) for name, value in blobs.items()})
    ours = resnet(50, "frozen_batch", **THIN)
    report = load_weights(ours, file, scope="backbone")
    assert report.left_out == ("conv1_b",) and set(report.loaded) == set(named_tensors(ours))
    for name, (scale, shift) in scales.items():
        module = ours.get_submodule(name.removeprefix("backbone."))
        x = torch.randn(2, len(scale), 3, 3)
        assert torch.allclose(module(x), x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1), atol=1e-5)
    with pytest.raises(ValueError, match=r"folded into scale and shift.*set model.norm to frozen_batch"):
        load_weights(resnet(50, **THIN), file, scope="backbone")


def test_msra_resnet_with_its_other_stride_is_refused():
    blobs, _ = folded(randomise(resnet(50, width=16)))
    file = file_of({name: torch.from_numpy(value) for name, value in blobs.items()})
    with pytest.raises(ValueError, match=r"weights\.pth: an MSRA ResNet.*1x1 convolution.*3x3"):
        load_weights(resnet(50, "frozen_batch", width=16), file, scope="backbone")


def python2_pickle(blobs):
    """{"blobs": arrays} byte for byte as Python 2 wrote it: its texts and the arrays' bytes are both "strings"."""
    out = b"\x80\x02}U\x05blobs}("
    for name, array in blobs.items():
        shape = b"(" + b"".join(b"M" + side.to_bytes(2, "little") for side in array.shape) + b"t"
        data = array.astype("<f4").tobytes()
        out += b"U" + bytes([len(name)]) + name.encode()
        out += b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01" + shape
        out += b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
        out += b"\x89T" + len(data).to_bytes(4, "little") + data + b"tb"
    return out + b"us."


def test_imagenet_group_norm_classifier_of_python_2_loads_whole(tmp_path):
    """As R-50-GN.pkl was written, with its classifier and with bgr input without deviations."""
    source, ours = (randomise(resnet(50, "group", width=16, norm_groups=4), seed) for seed in (1, 2))
    blobs = {caffe2_name(name): value.numpy() for name, value in named_tensors(source).items()}
    blobs |= {"pred_w": np.ones((10, 32), np.float32), "pred_b": np.zeros(10, np.float32)}
    (tmp_path / "R-50-GN.pkl").write_bytes(python2_pickle(blobs))
    report = load_weights(ours, read_weights(tmp_path / "R-50-GN.pkl"), scope="backbone", input=DETECTRON)
    assert report.left_out == ("pred_w", "pred_b") and report.notes == ()
    assert (report.source_input.mean, report.source_input.std) == ((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))
    for name, value in named_tensors(ours).items():
        assert torch.equal(value, named_tensors(source)[name]), name
    shifted = replace(DETECTRON, mean=(0.0, 0.0, 0.0))
    assert input_differences(report.source_input, DETECTRON) == []
    assert "input.mean is [0, 0, 0]" in input_differences(shifted, report.source_input)[0]


def whole_batch_norm(model):
    """Detectron2's copy of a Detectron ImageNet file: its blob names, BatchNorm with its statistics."""
    ending = {"running_mean": "_bn_running_mean", "running_var": "_bn_running_var"}
    blobs = {"fc1000_w": torch.zeros(10, 32), "fc1000_b": torch.zeros(10), "conv1_b": torch.zeros(16)}
    for name, value in named_tensors(model).items():
        stem, last = name.rsplit(".", 1)
        blob = caffe2_name(f"{stem}.weight").removesuffix("_gn_s").replace("conv1_bn", "res_conv1_bn")
        kinds = ending | {"weight": "_bn_gamma", "bias": "_bn_beta"}
        stem_norm = "res_conv1" if blob == "conv1" else blob
        blobs[caffe2_name(name) if value.dim() == 4 else stem_norm + kinds[last]] = value
    return blobs


@pytest.mark.parametrize("kind", ["batch", "frozen_batch"])
def test_resnext_with_whole_batch_norm_loads_with_its_own_deviations(kind):
    source, ours = randomise(resnet(50, **THIN), 1), randomise(resnet(50, kind, **THIN), 2)
    file = file_of(whole_batch_norm(source))
    report = load_weights(ours, file, scope="backbone", input=DETECTRON2_GROUPED)
    assert report.source_input == DETECTRON2_GROUPED and report.notes == ()
    for name, value in named_tensors(ours).items():
        assert torch.equal(value, named_tensors(source)[name]), name


def test_every_msra_resnet_is_refused_and_no_other():
    """Told in three layouts; the same file from torchvision's weights, or with GroupNorm, or with groups, loads."""
    plain, group = randomise(resnet(50, width=16)), randomise(resnet(50, "group", width=16, norm_groups=4))
    into = {"batch": resnet(50, "batch", width=16), "group": group}
    detectron2 = {detectron2_name(name): value for name, value in named_tensors(plain).items()}
    for file in (file_of(whole_batch_norm(plain)), file_of(detectron2)):
        with pytest.raises(ValueError, match=r"weights\.pth: an MSRA ResNet.*1x1 convolution.*3x3"):
            load_weights(into["batch"], file, scope="backbone")
    deviations = {"pixel_mean": torch.tensor(IMAGENET.mean), "pixel_std": torch.tensor(IMAGENET.std)}
    load_weights(into["batch"], file_of(detectron2 | deviations), scope="backbone")
    load_weights(into["batch"], file_of(detectron2, author="torchvision"), scope="backbone")
    grouped = {detectron2_name(name): value for name, value in named_tensors(group).items()}
    load_weights(into["group"], file_of(grouped), scope="backbone")


def test_an_msra_resnet_is_not_converted_either(tmp_path):
    """Under our names nothing would tell it apart any more."""
    with pytest.raises(ValueError, match="an MSRA ResNet"):
        convert_weights(file_of(whole_batch_norm(resnet(50, width=16))), tmp_path / "own.safetensors")
    assert list(tmp_path.iterdir()) == []
