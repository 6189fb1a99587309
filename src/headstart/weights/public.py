"""Public weights: which there are, under what terms, what they cost to make; and fetching one, only when asked.

Nothing else in headstart uses the network. A file fetched anywhere else serves just as well: give its path.
"""

import re
import shutil
import urllib.request
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from headstart.files import file_digest

IMAGENET_IMAGES = 1_281_167  # of ILSVRC 2012's training set
COCO_IMAGES = 118_287  # of train2017

_TORCHVISION_TERMS = "BSD-3-Clause; its README: the terms of the training data may apply"
_TIMM_TERMS = "Apache-2.0; ImageNet's own terms are for research"
_DETECTRON_TERMS = "not stated beside the file; Detectron's model zoo is CC BY-SA 3.0"


@dataclass(frozen=True)
class PublicWeights:
    """One public file. `scope` is what it can start; `images` were shown to make it (None: not documented).

    `norm` is the model.norm it needs. `source` names a torchvision model and weights, a hub repository, or a URL.
    """

    name: str
    source: str
    scope: str
    norm: str
    licence: str
    cost: str
    images: int | None


@dataclass(frozen=True)
class Fetched:
    """A fetched file with its sha256; `verified` where the publisher gives a hash, and it agrees."""

    path: Path
    hash: str
    verified: bool

    def __str__(self) -> str:
        check = "agrees with its publisher's hash" if self.verified else "its publisher gives no hash to compare"
        return f"{self.path}: sha256 {self.hash}, {check}"


def known_weights() -> tuple[PublicWeights, ...]:
    """All known public weights, in the order of their names."""
    return tuple(sorted([*_torchvision_classifiers(), *_OTHERS], key=lambda known: known.name))


def list_weights() -> list[tuple[str, ...]]:
    """Header and rows of text about all known public weights, to be printed."""
    header = ("name", "start.kind", "model.norm", "cost", "images", "licence")
    return [header, *((w.name, w.scope, w.norm, w.cost, _count(w.images), w.licence) for w in known_weights())]


def _count(images: int | None) -> str:
    return "not documented" if images is None else f"{images:,}"


def find_weights(name: str) -> PublicWeights:
    """Known weights by name; ValueError with the nearest name."""
    known = {weights.name: weights for weights in known_weights()}
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"the nearest is {near[0]!r}" if near else f"expected one of {', '.join(known)}"
    raise ValueError(f"weights {name!r}: not known; {hint}")


def download(name: str, path: str | Path) -> Fetched:
    """Fetch known weights to a file that does not exist yet, and check them against the publisher's hash.

    ValueError in one line: unknown name, a file in the way, no folder, no connection, or a hash that does not agree
    (the file is then removed).
    """
    known, path = find_weights(name), Path(path)
    suffix = _SUFFIXES[name.split("/")[0]]
    if path.suffix != suffix or path.exists() or not path.parent.is_dir():
        raise ValueError(f"{path}: expected a new file with suffix {suffix} in a folder that exists")
    provider = _from_hub if name.startswith("timm/") else _from_url
    try:
        kind, expected = provider(known, path)
    except Exception as error:  # each client raises its own kinds for "no connection"
        path.unlink(missing_ok=True)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"weights {name!r}: could not be fetched from {known.source} ({reason})") from None
    found = file_digest(path, kind)
    if not found.startswith(expected):
        path.unlink()
        raise ValueError(
            f"weights {name!r}: {known.source} gave {kind} {found[:16]}, expected {expected[:16]}; removed"
        )
    return Fetched(path, file_digest(path), bool(expected))


def _from_url(known: PublicWeights, path: Path) -> tuple[str, str]:
    """Through torch.hub's downloader; the kind of hash that the publisher gives, and the hash ("" for none).

    torchvision's file names end in the first digits of their sha256; Detectron keeps an md5 beside each file.
    """
    import torch.hub

    url = known.source if "://" in known.source else torchvision_url(known.source)
    torch.hub.download_url_to_file(url, str(path), progress=False)
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return ("sha256", match[1]) if match else ("md5", _published_md5(url))


def _published_md5(url: str) -> str:
    """The md5 that Detectron's server gives at the address plus ".md5sum" (its MODEL_ZOO.md); "" where it has none."""
    try:
        with urllib.request.urlopen(f"{url}.md5sum", timeout=30) as answer:
            match = re.search(rb"\b[0-9a-f]{32}\b", answer.read(1024))
    except OSError:
        return ""
    return match[0].decode() if match else ""


def _from_hub(known: PublicWeights, path: Path) -> tuple[str, str]:
    """Through Hugging Face's client, where timm's weights live; the hub's etag of a large file is its sha256."""
    import huggingface_hub

    file = "model.safetensors"
    etag = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(known.source, file)).etag or ""
    shutil.copyfile(huggingface_hub.hf_hub_download(known.source, file), path)
    return "sha256", etag if re.fullmatch(r"[0-9a-f]{64}", etag) else ""


def torchvision_url(source: str) -> str:
    """The address that torchvision itself has for "model WEIGHTS"."""
    import torchvision

    model, weights = source.split(" ")
    return torchvision.models.get_model_weights(model)[weights].url


def _torchvision_classifiers() -> list[PublicWeights]:
    """ResNets of torchvision: V1 by its references' first recipe, V2 by the long one of 600 epochs."""
    found = []
    for model, versions in _TORCHVISION.items():
        for version, epochs in versions.items():
            found.append(
                PublicWeights(
                    name=f"torchvision/{model}.{version.lower()}",
                    source=f"{model} {version}",
                    scope="backbone",
                    norm="batch, sync_batch or frozen_batch",
                    licence=_TORCHVISION_TERMS,
                    cost=f"{epochs} epochs of ImageNet",
                    images=epochs * IMAGENET_IMAGES,
                )
            )
    return found


_SUFFIXES = {"torchvision": ".pth", "timm": ".safetensors", "detectron": ".pkl"}

# Epochs: torchvision's references/classification/README (90; ResNeXt 100), and its issue 3995 for V2 (600).
_TORCHVISION = {
    "resnet18": {"IMAGENET1K_V1": 90},
    "resnet34": {"IMAGENET1K_V1": 90},
    "resnet50": {"IMAGENET1K_V1": 90, "IMAGENET1K_V2": 600},
    "resnet101": {"IMAGENET1K_V1": 90, "IMAGENET1K_V2": 600},
    "resnext50_32x4d": {"IMAGENET1K_V1": 100, "IMAGENET1K_V2": 600},
    "resnext101_32x8d": {"IMAGENET1K_V1": 100, "IMAGENET1K_V2": 600},
}

_OTHERS = [
    PublicWeights(
        name="timm/resnet50_gn.a1h_in1k",
        source="timm/resnet50_gn.a1h_in1k",
        scope="backbone",
        norm="group",
        licence=_TIMM_TERMS,
        cost="ImageNet, epochs not documented",
        images=None,
    ),
    PublicWeights(
        name="timm/resnet18.a1_in1k",
        source="timm/resnet18.a1_in1k",
        scope="backbone",
        norm="batch, sync_batch or frozen_batch",
        licence=_TIMM_TERMS,
        cost="600 epochs of ImageNet (recipe A1 of 2110.00476)",
        images=600 * IMAGENET_IMAGES,
    ),
    PublicWeights(
        name="detectron/R-50-GN",
        source="https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/47261647/R-50-GN.pkl",
        scope="backbone",
        norm="group",
        licence=_DETECTRON_TERMS,
        cost="100 epochs of ImageNet (Group Normalization, 1803.08494)",
        images=100 * IMAGENET_IMAGES,
    ),
    PublicWeights(
        name="detectron/R-101-GN",
        source="https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/47592356/R-101-GN.pkl",
        scope="backbone",
        norm="group",
        licence=_DETECTRON_TERMS,
        cost="100 epochs of ImageNet (Group Normalization, 1803.08494)",
        images=100 * IMAGENET_IMAGES,
    ),
    PublicWeights(
        name="torchvision/maskrcnn_resnet50_fpn.coco_v1",
        source="maskrcnn_resnet50_fpn COCO_V1",
        scope="detector",
        norm="frozen_batch; none in pyramid and heads",
        licence=_TORCHVISION_TERMS,
        cost="90 epochs of ImageNet, 26 of COCO",
        images=90 * IMAGENET_IMAGES + 26 * COCO_IMAGES,
    ),
    PublicWeights(
        name="torchvision/maskrcnn_resnet50_fpn_v2.coco_v1",
        source="maskrcnn_resnet50_fpn_v2 COCO_V1",
        scope="detector",
        norm="batch, sync_batch or frozen_batch",
        licence=_TORCHVISION_TERMS,
        cost="400 epochs of COCO (torchvision pull request 5773, whose command names no backbone weights)",
        images=400 * COCO_IMAGES,
    ),
]
