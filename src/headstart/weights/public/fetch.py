"""Download public weights and check them; nothing else in headstart uses the network."""

from __future__ import annotations

import re
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from headstart.files import file_digest
from headstart.weights.public import HUB_FILE, PublicFile, find_file, hash_in, how_to_get, hub_folder, url_of

SUFFIXES = {"torchvision": ".pth", "timm": ".safetensors", "detectron": ".pkl"}


@dataclass(frozen=True)
class Fetched:
    """A fetched file with its sha256; `verified` where the publisher gives a hash, and it agrees."""

    path: Path
    hash: str
    verified: bool

    def __str__(self) -> str:
        check = "agrees with its publisher's hash" if self.verified else "its publisher gives no hash to compare"
        return f"{self.path}: sha256 {self.hash}, {check}"


def download(name: str, path: str | Path | None = None) -> Fetched:
    """Fetch known weights and check them against the publisher's hash.

    path: a file that does not exist yet. None: the cache of torch.hub or of Hugging Face's client, where recipes find
    them by name; what is there already is checked and not fetched again.
    ValueError in one line: unknown name, a file in the way, no folder, no connection, or a hash that does not agree
    (the file is then removed).
    """
    known = find_file(name)
    if known.hash:
        raise ValueError(f"weights {name!r}: a Python package, expected: {how_to_get(known)}")
    suffix, provider = SUFFIXES[name.split("/")[0]], _from_hub if name.startswith("timm/") else _from_url
    if path is not None and ((path := Path(path)).suffix != suffix or path.exists() or not path.parent.is_dir()):
        raise ValueError(f"{path}: expected a new file with suffix {suffix} in a folder that exists")
    try:
        file, kind, expected = provider(known, path)
    except Exception as error:  # each client raises its own kinds for "no connection"
        if path is not None:
            path.unlink(missing_ok=True)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"weights {name!r}: could not be fetched from {known.location} ({reason})") from None
    found = file_digest(file, kind)
    if not found.startswith(expected):
        for part in {file.resolve(), file}:  # the hub's client has a link to a file of its cache
            part.unlink(missing_ok=True)
        raise ValueError(
            f"weights {name!r}: {file} has {kind} {found[:16]}, expected {expected[:16]} as at {known.location}; it is "
            "removed, and the same command fetches it again"
        )
    return Fetched(file, file_digest(file), bool(expected))


def _from_url(known: PublicFile, path: Path | None) -> tuple[Path, str, str]:
    """Through torch.hub's downloader: the file, the kind of hash that the publisher gives, and the hash ("" for none).

    torchvision's file names end in the first digits of their sha256; Detectron keeps an md5 beside each file.
    """
    import torch.hub

    url, file = url_of(known), path
    if file is None:
        file = hub_folder() / url.rpartition("/")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
    if path is not None or not file.exists():
        torch.hub.download_url_to_file(url, str(file), progress=False)
    stated = hash_in(url)
    return (file, "sha256", stated) if stated else (file, "md5", _published_md5(url))


def _published_md5(url: str) -> str:
    """The md5 that Detectron's server gives at the address plus ".md5sum" (its MODEL_ZOO.md); "" where it has none."""
    try:
        with urllib.request.urlopen(f"{url}.md5sum", timeout=30) as answer:
            match = re.search(rb"\b[0-9a-f]{32}\b", answer.read(1024))
    except OSError:
        return ""
    return match[0].decode() if match else ""


def _from_hub(known: PublicFile, path: Path | None) -> tuple[Path, str, str]:
    """Through Hugging Face's client, for timm's weights; the hub's etag of a large file is its sha256."""
    import huggingface_hub

    etag = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(known.location, HUB_FILE)).etag or ""
    file = Path(huggingface_hub.hf_hub_download(known.location, HUB_FILE))
    if path is not None:
        file = Path(shutil.copyfile(file, path))
    return file, "sha256", etag if re.fullmatch(r"[0-9a-f]{64}", etag) else ""
