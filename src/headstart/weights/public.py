"""Public weights: which there are, their terms and what they cost to make; and fetching one, only when asked.

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
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from headstart.files import file_digest

_SUFFIXES = {"torchvision": ".pth", "timm": ".safetensors", "detectron": ".pkl"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A documented training and the files that it made, as an entry of `public.yaml` describes it.

    One epoch shows `images` images `views` times, each with `instances` objects on `pixels` pixels. epochs is None
    where they are not published. `after` is the training that it began with. kind and norm are the start.kind and
    model.norm that the files fit; files {name: torchvision model and weights, hub repository, or URL}.
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
    """A file that `download` fetches: its name here, the training that made it, and where it is published."""

    name: str
    location: str
    training: Training


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
    """All files that can be fetched by name, sorted."""
    found = [
        PublicFile(name, location, training)
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


def list_weights() -> list[tuple[str, ...]]:
    """Header and rows of text about all files that can be fetched, to be printed."""
    header = ("name", "start.kind", "model.norm", "trained for", "images seen", "in public_weights", "licence")
    rows = []
    for file in public_files().values():
        training = file.training
        seen = "not known" if training.images_seen is None else f"{training.images_seen:,.0f}"
        name = "" if training.images_seen is None else training.name
        rows.append((file.name, training.kind, training.norm, training.length(), seen, name, training.licence))
    return [header, *rows]


def download(name: str, path: str | Path) -> Fetched:
    """Fetch known weights to a file that does not exist yet, and check them against the publisher's hash.

    ValueError in one line: unknown name, a file in the way, no folder, no connection, or a hash that does not agree
    (the file is then removed).
    """
    known, path = find_file(name), Path(path)
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
