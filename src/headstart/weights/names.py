"""Names and layouts of other projects' weights in ours: torchvision, timm, Detectron2, Detectron, and our own.

Every layout is a table of (pattern of the whole name, our name); names that no row matches have no place in our models.
Our names are those of a Detector: "backbone." first, also where a file holds a bare classifier.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.batch import InputSpec
from headstart.weights.files import WeightFile
from headstart.weights.input import DETECTRON, DETECTRON2, DETECTRON2_GROUPED, IMAGENET, parse_input_spec
from headstart.weights.public import training_of
from headstart.weights.timm_names import HEAD, efficientnet_names

Rule = tuple[str, str | Callable[[re.Match], str]]

# The second convolution of the first bottleneck, in Detectron's spelling and in Detectron2's.
_SECOND_CONV = r"res2(?:_0_branch2b_w|\.0\.conv2\.weight)"
# Class predictors of boxes and masks, their bias included.
PREDICTORS = ("box_head.classify.", "box_head.regress.", "mask_head.classify.")


def _less(step: int, form: str) -> Callable[[re.Match], str]:
    """A replacement that counts from `step` in the source and from 0 in ours; "#" is the number, then groups 2, 3."""
    return lambda match: match.expand(form.replace("#", str(int(match[1]) - step)))


def _stage(number: str | None) -> str:
    """The box head of a stage of Detectron2's cascade, which counts them from 0; None is a detector without one."""
    return "box_head" if number in (None, "0") else f"cascade.{int(number) - 1}"


# Which of the two spellings in a row a file has depends on its age: torchvision renamed these modules in 0.13, keeps
# reading both, and its published v1 detector still has the old ones.
_TORCHVISION_DETECTOR: list[Rule] = [
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"pyramid.lateral.\1.conv.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"pyramid.output.\1.conv.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.(\w+)", r"pyramid.lateral.\1.norm.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.(\w+)", r"pyramid.output.\1.norm.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn\.head\.conv\.(\d)\.0\.(weight|bias)", r"rpn.convs.\1.\2"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc(\d)\.(\w+)", _less(6, r"box_head.fcs.#.\2")),
    (r"roi_heads\.box_head\.(\d)\.0\.(\w+)", r"box_head.convs.\1.conv.\2"),
    (r"roi_heads\.box_head\.(\d)\.1\.(\w+)", r"box_head.convs.\1.norm.\2"),
    # the one fully connected layer after four convolutions and a flattening, whose [C,7,7] order is ours
    (r"roi_heads\.box_head\.5\.(weight|bias)", r"box_head.fcs.0.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.classify.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.regress.\1"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", _less(1, r"mask_head.convs.#.conv.\2")),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", r"mask_head.convs.\1.conv.\2"),
    (r"roi_heads\.mask_head\.(\d)\.1\.(\w+)", r"mask_head.convs.\1.norm.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.classify.\1"),
    # a plain sequence, in which every other module is a ReLU
    (r"roi_heads\.keypoint_head\.(\d+)\.(\w+)", lambda m: f"keypoint_head.convs.{int(m[1]) // 2}.conv.{m[2]}"),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.(\w+)", r"keypoint_head.deconv.\1"),
]

# whole detectors have the prefix, ImageNet classifiers have not
_BODY = r"(?:backbone\.(?:bottom_up\.)?)?"
_DETECTRON2: list[Rule] = [
    (rf"{_BODY}stem\.conv1\.(weight|bias)", r"backbone.conv1.\1"),
    (rf"{_BODY}stem\.conv1\.norm\.(\w+)", r"backbone.bn1.\1"),
    (rf"{_BODY}res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)", _less(1, r"backbone.layer#.\2.bn\3.\4")),
    (rf"{_BODY}res(\d)\.(\d+)\.conv(\d)\.(\w+)", _less(1, r"backbone.layer#.\2.conv\3.\4")),
    (rf"{_BODY}res(\d)\.(\d+)\.shortcut\.norm\.(\w+)", _less(1, r"backbone.layer#.\2.downsample.1.\3")),
    (rf"{_BODY}res(\d)\.(\d+)\.shortcut\.(\w+)", _less(1, r"backbone.layer#.\2.downsample.0.\3")),
    (r"backbone\.fpn_(lateral|output)(\d)\.norm\.(\w+)", lambda m: f"pyramid.{m[1]}.{int(m[2]) - 2}.norm.{m[3]}"),
    (r"backbone\.fpn_(lateral|output)(\d)\.(\w+)", lambda m: f"pyramid.{m[1]}.{int(m[2]) - 2}.conv.{m[3]}"),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(weight|bias)", r"rpn.convs.\1.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.deltas.\1"),
    (
        r"roi_heads\.box_head\.(?:(\d)\.)?conv(\d)\.(?:(norm)\.)?(\w+)",
        lambda m: f"{_stage(m[1])}.convs.{int(m[2]) - 1}.{m[3] or 'conv'}.{m[4]}",
    ),
    (r"roi_heads\.box_head\.(?:(\d)\.)?fc(\d)\.(\w+)", lambda m: f"{_stage(m[1])}.fcs.{int(m[2]) - 1}.{m[3]}"),
    (r"roi_heads\.box_predictor\.(?:(\d)\.)?cls_score\.(\w+)", lambda m: f"{_stage(m[1])}.classify.{m[2]}"),
    (r"roi_heads\.box_predictor\.(?:(\d)\.)?bbox_pred\.(\w+)", lambda m: f"{_stage(m[1])}.regress.{m[2]}"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.norm\.(\w+)", _less(1, r"mask_head.convs.#.norm.\2")),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", _less(1, r"mask_head.convs.#.conv.\2")),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", r"mask_head.classify.\1"),
    (r"roi_heads\.keypoint_head\.conv_fcn(\d)\.(\w+)", _less(1, r"keypoint_head.convs.#.conv.\2")),
    (r"roi_heads\.keypoint_head\.score_lowres\.(\w+)", r"keypoint_head.deconv.\1"),
]

_LAYER = {"conv": "conv", "norm": "bn"}
# Caffe2's blob names with the ending already spelled out (see `_caffe2_name`): "/conv.weight", "/norm.bias" and so on.
_CAFFE2: list[Rule] = [
    (r"conv1/conv\.(\w+)", r"backbone.conv1.\1"),
    (r"(?:res_)?conv1/norm\.(\w+)", r"backbone.bn1.\1"),
    (
        r"res(\d)_(\d+)_branch2([abc])/(conv|norm)\.(\w+)",
        lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.{_LAYER[m[4]]}{'abc'.index(m[3]) + 1}.{m[5]}",
    ),
    (
        r"res(\d)_(\d+)_branch1/(conv|norm)\.(\w+)",
        lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.{int(m[3] == 'norm')}.{m[4]}",
    ),
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?/(.+)", _less(2, r"pyramid.lateral.#.\2")),
    (r"fpn_res(\d)_\d+_sum/(.+)", _less(2, r"pyramid.output.#.\2")),
    (r"conv_rpn_fpn2/conv\.(\w+)", r"rpn.convs.0.\1"),
    (r"rpn_cls_logits_fpn2/conv\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn_bbox_pred_fpn2/conv\.(\w+)", r"rpn.deltas.\1"),
    (r"head_conv(\d)/(.+)", _less(1, r"box_head.convs.#.\2")),
    (r"fc([67])/conv\.(\w+)", _less(6, r"box_head.fcs.#.\2")),
    (r"cls_score/conv\.(\w+)", r"box_head.classify.\1"),
    (r"bbox_pred/conv\.(\w+)", r"box_head.regress.\1"),
    (r"_\[mask\]_fcn(\d)/(.+)", _less(1, r"mask_head.convs.#.\2")),
    (r"conv5_mask/conv\.(\w+)", r"mask_head.deconv.\1"),
    (r"mask_fcn_logits/conv\.(\w+)", r"mask_head.classify.\1"),
    (r"conv_fcn(\d)/(.+)", _less(1, r"keypoint_head.convs.#.\2")),
    (r"kps_score_lowres/conv\.(\w+)", r"keypoint_head.deconv.\1"),
]
# bn_gamma and so on: Detectron2's own copies of Detectron's ImageNet files, which keep BatchNorm whole.
_CAFFE2_NORM = {
    "weight": ("gn_s", "bn_s", "bn_gamma"),
    "bias": ("gn_b", "bn_b", "bn_beta"),
    "running_mean": ("bn_rm", "bn_running_mean"),
    "running_var": ("bn_riv", "bn_running_var"),
}
_CAFFE2_ENDINGS = {"w": "conv.weight", "b": "conv.bias"} | {
    ending: f"norm.{ours}" for ours, endings in _CAFFE2_NORM.items() for ending in endings
}

# A classifier: everything but its head belongs to the backbone.
_CLASSIFIER: list[Rule] = [
    # torchvision's VGG: its first two fully connected layers are those of the box head
    (r"classifier\.0\.(.+)", r"box_head.fcs.0.\1"),
    (r"classifier\.3\.(.+)", r"box_head.fcs.1.\1"),
    (HEAD, ""),
    (r"(.+)", r"backbone.\1"),
]

_RULES = {
    "torchvision detector": _TORCHVISION_DETECTOR,
    "Detectron2": [
        *_DETECTRON2,
        (r"pixel_(mean|std)|.*anchor_generator\..+|(linear|fc1000)\..+", ""),
    ],
    "Detectron": [*_CAFFE2, (r"(pred|fc1000)/.+|.+_momentum|kps_score(_w|_b|/.+)|lr|weight_order", "")],
    "headstart": [(r"fc\..+", ""), (r"fcs\.(.+)", r"box_head.fcs.\1"), (r"(.+)", r"\1")],
    "EfficientNet-PyTorch": [(r"(?:classifier|conv_head|bn2)\.(?!num_batches).+", ""), (r"(.+)", r"backbone.\1")],
    "timm": [(r"(.+)", r"backbone.\1")],
    "classifier": _CLASSIFIER,
}


@dataclass(frozen=True)
class Names:
    """Names of a file: `found` {our name: name in the file}; known but not used; unknown."""

    found: dict[str, str]
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]


def layout_of(file: WeightFile) -> str:
    """Layout of a file, recognised by names that no other layout has."""
    names = file.tensors
    if "conv1_w" in names:
        return "Detectron"
    if "_conv_stem.weight" in names:
        return "EfficientNet-PyTorch"
    if any(re.fullmatch(rf"{_BODY}stem\.conv1\.weight", name) for name in names):
        return "Detectron2"
    if "rpn.head.cls_logits.weight" in names:
        return "torchvision detector"
    return "headstart" if any(name.startswith("backbone.") for name in names) else "classifier"


def our_names(file: WeightFile, layout: str) -> Names:
    """Sort a file's names by a layout's table; ValueError where two of them become one of ours."""
    found: dict[str, str] = {}
    left_out, unknown = [], []
    spelled = efficientnet_names(file.path, file.tensors) if layout == "EfficientNet-PyTorch" else {}
    for name in file.tensors:
        ours = _rename(_caffe2_name(name) if layout == "Detectron" else spelled.get(name, name), _RULES[layout])
        if not ours:
            (unknown if ours is None else left_out).append(name)
            continue
        if ours in found:
            raise ValueError(f"{file.path}: {found[ours]!r} and {name!r} are both {ours!r} in our names")
        found[ours] = name
    return Names(found, tuple(left_out), tuple(unknown))


def to_our_rows(name: str, tensor: Tensor, layout: str) -> Tensor:
    """A class predictor with the background last; torchvision and Detectron have it first, with a box and a mask.

    `name` is ours. Other tensors, and other layouts, are returned as they are.
    """
    if layout not in ("torchvision detector", "Detectron") or not name.startswith(PREDICTORS):
        return tensor
    if name.startswith("box_head.classify."):
        return torch.cat([tensor[1:], tensor[:1]])
    return tensor[4:] if name.startswith("box_head.regress.") else tensor[1:]


def input_of(file: WeightFile, layout: str) -> InputSpec | None:
    """Input normalisation of a file: stated in it, else that of its layout's project, else None.

    A bare ResNet or VGG counts as an ImageNet classifier of torchvision or timm; other timm nets state their own input.
    """
    published = training_of(file.hash)
    own = file.input or parse_input_spec(published and published.input)
    if own is not None:
        return own
    if layout == "Detectron2":
        return _detectron2_input(file)
    if layout == "Detectron" and "res2_0_branch2b_bn_gamma" in file.tensors and _is_grouped(file):
        return DETECTRON2_GROUPED
    if layout == "classifier" and not any(
        re.fullmatch(r"layer1\..+|features\.0\.weight", name) for name in file.tensors
    ):
        return None
    return {"Detectron": DETECTRON, "torchvision detector": IMAGENET, "classifier": IMAGENET}.get(layout)


def _detectron2_input(file: WeightFile) -> InputSpec:
    if "torchvision" in file.author.lower():  # converted by Detectron2's tool, which keeps RGB and the deviations
        return IMAGENET
    if "pixel_mean" not in file.tensors:
        return DETECTRON2_GROUPED if _is_grouped(file) else DETECTRON2
    mean, std = (tuple(file.tensors[f"pixel_{name}"].flatten().tolist()) for name in ("mean", "std"))
    # ImageNet's red mean is the largest: the order shows in the values
    return InputSpec(mean, std, "bgr" if mean[0] < mean[-1] else "rgb")


def _is_grouped(file: WeightFile) -> bool:
    """True if a Detectron or Detectron2 file holds a ResNeXt: its 3x3 convolutions see a part of their channels."""
    blocks = (value for name, value in file.tensors.items() if re.fullmatch(rf"{_BODY}{_SECOND_CONV}", name))
    return any(value.shape[1] < value.shape[0] for value in blocks)


def _rename(name: str, rules: list[Rule]) -> str | None:
    """Our name by the first row that matches, "" for a known name without use, None where no row matches."""
    for pattern, ours in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return ours(match) if callable(ours) else match.expand(ours)
    return None


def _caffe2_name(name: str) -> str:
    """ "res2_0_branch2a_gn_s" as "res2_0_branch2a/norm.weight"; names without a known ending stay."""
    for ending in sorted(_CAFFE2_ENDINGS, key=len, reverse=True):
        if name.endswith(f"_{ending}"):
            return f"{name.removesuffix(f'_{ending}')}/{_CAFFE2_ENDINGS[ending]}"
    return name
