"""What a data set is, images included: annotations and the bytes of every image file.

Reading 15,000 small images takes seconds and COCO's a minute, so digests are kept in the user's cache folder and
trusted for as long as a file's size and time of change stay what they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from headstart.data.dataset import Dataset, fingerprint
from headstart.files import file_digest, write_whole

SETTLED = 2.0  # seconds: a file changed later than that before now may change again within one tick of its clock

Entry = tuple[int, int, str]  # bytes, time of change in ns, digest


def data_digest(dataset: Dataset) -> str:
    """SHA-256 hex digest of everything annotated and of the images' bytes; the same for a copy elsewhere.

    An image file that is absent counts as such: whoever needs it names it.
    """
    digest = hashlib.sha256(fingerprint(dataset).encode())
    for content in file_digests(dataset.image_dir, dataset.file_names):
        digest.update(content.encode())
    return digest.hexdigest()


def file_digests(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Half a SHA-256 of each file's bytes, hex; "absent" for none. Known ones are taken from the cache."""
    root = os.path.abspath(folder)
    path = cache_folder() / f"images-{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"
    known, now = _read(path), time.time_ns()
    found: dict[str, Entry] = {}
    for name in dict.fromkeys(names):
        found[name] = _entry(f"{root}{os.sep}{name}", known.get(name))
    settled = {name: entry for name, entry in found.items() if entry[1] < now - SETTLED * 1e9}
    if any(known.get(name) != entry for name, entry in settled.items()):
        _write(path, known | settled)
    return [found[name][2] for name in names]


def cache_folder() -> Path:
    """Where headstart keeps what it can always make again: $XDG_CACHE_HOME/headstart, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart"


def _entry(path: str, known: Entry | None) -> Entry:
    try:
        status = os.stat(path)
        if known and known[:2] == (status.st_size, status.st_mtime_ns):
            return known
        digest = file_digest(path)[:32]
    except OSError:
        return 0, 0, "absent"
    return status.st_size, status.st_mtime_ns, digest


def _read(path: Path) -> dict[str, Entry]:
    """What is known; nothing where the file is absent or no longer whole."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: (size, changed, digest) for name, (size, changed, digest) in entries.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(path: Path, entries: dict[str, Entry]) -> None:
    """Keep what is known; where nothing can be written the next call reads the images again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(entries, separators=(",", ":")))
