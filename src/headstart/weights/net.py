"""The network in a weight file, as fields of a recipe: stated in the file or beside it, or found by its tensors."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from headstart.model.backbones.resnet import DEPTHS
from headstart.weights.files import WeightFile
from headstart.weights.load import load_weights
from headstart.weights.names import input_of, layout_of, our_names
from headstart.weights.public import public_files, trainings

CONFIG = "config.json"  # beside timm's own files; its field "architecture" names the net
GROUPS = 32  # of GroupNorm in foreign files, at their usual width of 64: Detectron's and timm's
FOLDED, GROUP = "_bn_s", "_gn_s"  # endings of the scale of a norm whose statistics are not stored, in Detectron's files
_PYRAMIDS = ("resnet", "timm", "detnet")  # kinds of backbones that give maps of stride 4 to 32
# Our names of a torchvision ResNet, and what is no part of the backbone.
_PLAIN_RESNET = re.compile(
    r"backbone\.(?:conv1|bn1|layer\d\.\d+\.(?:conv\d|bn\d|downsample\.\d))\.\w+|(?!backbone\.).+"
)


def find_backbone(file: WeightFile, found: dict[str, str]) -> dict[str, Any]:
    """model.backbone of the network in a file, whose names {ours: theirs} are `found`; empty where it is not known."""
    own = _model(file).get("backbone", {})
    if plain := _resnet(file, found) or own:
        return plain
    name = _timm_name(file)
    return {"kind": "timm", "name": name} if name else {}


def net_fields(file: WeightFile) -> dict[str, Any]:
    """Recipe fields {dotted: value} with which a backbone starts from a file: the network, its norm and its input.

    BatchNorm is live, so that a random start can train the same network. ValueError for a network that is not known,
    gives no pyramid, or has a norm that a random start cannot train.
    """
    layout = layout_of(file)
    backbone = find_backbone(file, our_names(file, layout).found)
    if not backbone:
        raise ValueError(
            f"{file.path}: the network is not known by its tensors: expected a ResNet, a file of headstart, or "
            f'{{"architecture": "NAME OF TIMM"}} in {CONFIG} beside it'
        )
    if backbone["kind"] not in _PYRAMIDS:
        raise ValueError(f"{file.path}: holds a {backbone['kind']}, expected one of {', '.join(_PYRAMIDS)}")
    fields = {f"model.backbone.{key}": value for key, value in backbone.items() if value is not None}
    spec = input_of(file, layout)
    if spec is None and backbone["kind"] == "timm":
        spec = _timm_net(backbone["name"]).input
    stated = {} if spec is None else {f"input.{k}": v if k == "order" else list(v) for k, v in asdict(spec).items()}
    return fields | _norm(file, backbone) | stated


def _norm(file: WeightFile, backbone: dict[str, Any]) -> dict[str, Any]:
    if model := _model(file):
        live = "batch" if model["norm"] == "frozen_batch" else model["norm"]
        return {"model.norm": live, "model.norm_groups": model["norm_groups"]}
    if has_statistics(file) or backbone["kind"] == "timm":  # timm's own norm, whatever it is
        return {"model.norm": "batch"}
    if any(name.endswith(FOLDED) for name in file.tensors):
        raise ValueError(
            f"{file.path}: BatchNorm is folded, which only model.norm frozen_batch reads: expected another"
        )
    if backbone.get("width", 64) != 64:
        raise ValueError(f"{file.path}: the groups of its GroupNorm are not stated: expected a file with its recipe")
    return {"model.norm": "group", "model.norm_groups": GROUPS}


def _model(file: WeightFile) -> dict[str, Any]:
    """The model section of the recipe in a headstart file; empty where there is none that names its network."""
    model = file.recipe.get("model")
    named = isinstance(model, dict) and {"backbone", "norm", "norm_groups"} <= model.keys()
    backbone = model["backbone"] if named else None
    return model if isinstance(backbone, dict) and isinstance(backbone.get("kind"), str) else {}


def has_statistics(file: WeightFile) -> int:
    """Number of layers of a file that store the statistics of BatchNorm."""
    return sum(name.endswith(("running_mean", "_bn_rm", "_bn_running_mean")) for name in file.tensors)


def _timm_name(file: WeightFile) -> str:
    """timm's name of a net: of published weights, stated in config.json, or of a public net that takes the file."""
    published = next((known.training.backbone for known in public_files().values() if known.hash == file.hash), "")
    try:
        beside = (Path(file.path).parent / CONFIG).read_text(encoding="utf-8")
        stated = json.loads(beside).get("architecture", "")
    except (OSError, ValueError, AttributeError):
        stated = ""
    if published or stated or not any("conv_stem" in name for name in file.tensors):
        return published or str(stated)
    return next((name for name in sorted({t.backbone for t in trainings().values()} - {""}) if _takes(name, file)), "")


def _takes(name: str, file: WeightFile) -> bool:
    """True if a file has all tensors of a timm net."""
    try:
        load_weights(_timm_net(name), file, scope="backbone")
    except ValueError:
        return False
    return True


def _timm_net(name: str) -> Any:
    from headstart.model.backbones.timm_net import TimmNet  # timm takes a second to import

    with torch.random.fork_rng(devices=[]):
        return TimmNet(name, norm_kind="batch")


def _resnet(file: WeightFile, found: dict[str, str]) -> dict[str, Any]:
    """model.backbone of a ResNet in any layout; empty for other nets."""
    stem, second = (found.get(f"backbone.{name}.weight") for name in ("conv1", "layer1.0.conv2"))
    if stem is None or second is None or not all(map(_PLAIN_RESNET.fullmatch, found)):
        return {}
    bottleneck = "backbone.layer1.0.conv3.weight" in found
    blocks = tuple(_count_blocks(found, stage) for stage in range(1, 5))
    depth = next((depth for depth, plan in DEPTHS.items() if plan == (blocks, bottleneck)), list(blocks))
    width, (middle, each, *_) = file.tensors[stem].shape[0], file.tensors[second].shape
    parts: dict[str, Any] = {"kind": "resnet", "depth": depth}
    parts |= {"bottleneck": bottleneck} if isinstance(depth, list) else {}
    parts |= {"width": width} if width != 64 else {}
    return parts | ({"groups": middle // each, "group_width": each} if each < middle else {})


def _count_blocks(found: Iterable[str], stage: int) -> int:
    pattern = rf"backbone\.layer{stage}\.(\d+)\..+"
    return len({match[1] for name in found if (match := re.fullmatch(pattern, name))})
