"""Digests of a data set's content: annotations, and the bytes of its images, which are read once and remembered."""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from headstart.data.dataset import Dataset, fingerprint
from headstart.files import file_digest, write_whole

SETTLED = 2.0  # seconds: a file changed later than that before now may change again within one tick of its clock
ABSENT = "absent"  # the digest of a file that is not there


class FileState(NamedTuple):
    """Size in bytes, times in ns and inode number of a file, and the first half of its content's SHA-256 in hex.

    `modified` can be set at will, as copying tools do; `changed` cannot on POSIX, and a replaced file has another
    `number`.
    """

    size: int
    modified: int
    changed: int
    number: int
    digest: str


@dataclass(frozen=True)
class Content:
    """The digest of data, and its images and label maps by path, as they were when it was taken."""

    digest: str
    images: dict[str, FileState]
    labels: dict[str, FileState] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, FileState]:
        """All files whose bytes are part of the digest."""
        return self.images | self.labels

    def plus(self, other: "Content") -> "Content":
        """Content of both; the digests are concatenated."""
        return Content(self.digest + other.digest, self.images | other.images, self.labels | other.labels)

    def shared_with(self, other: "Content") -> tuple[str, ...]:
        """Paths of the images here whose bytes equal those of an image in `other`."""
        known = {state.digest for state in other.images.values()} - {ABSENT}
        return tuple(path for path, state in self.images.items() if state.digest in known)


def data_content(dataset: Dataset, *, rehash: bool = False) -> Content:
    """Content of everything annotated and of the images' bytes; the digest is the same for a copy elsewhere.

    An absent image file is no error; its absence is part of the digest. rehash: see `file_states`.
    """
    states = file_states(dataset.image_dir, dataset.file_names, rehash=rehash)
    digest = hashlib.sha256(fingerprint(dataset).encode())
    for state in states:
        digest.update(state.digest.encode())
    return Content(digest.hexdigest(), dict(zip(_paths(dataset.image_dir, dataset.file_names), states)))


def file_content(folder: Path, names: Sequence[str], around: Sequence[str], *, rehash: bool = False) -> Content:
    """Content of files by name below a folder; the texts `around` are part of the digest."""
    states = file_states(folder, names, rehash=rehash)
    text = " ".join([*around, *(state.digest for state in states)])
    return Content(hashlib.sha256(text.encode()).hexdigest(), dict(zip(_paths(folder, names), states)))


def file_states(folder: Path, names: Sequence[str], *, rehash: bool = False) -> list[FileState]:
    """State of each file by name below a folder.

    Reading 15,000 small images takes seconds and COCO's a minute: digests are kept in the user's cache folder, and used
    while a file's size, times and number stay the same. With `rehash` every file is read, which also finds content that
    changed although these did not, as on a failing disk.
    """
    root = os.fsencode(os.path.abspath(folder))
    path = cache_folder() / f"images-{hashlib.sha256(root).hexdigest()[:16]}.json"
    try:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, FileState])
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):  # absent, damaged or of another layout
        known = {}
    now = time.time_ns()
    found: dict[str, FileState] = {}
    for name, place in zip(names, _paths(folder, names)):
        if name not in found:
            found[name] = _state(place, None if rehash else known.get(name))
    settled = {name: state for name, state in found.items() if max(state.modified, state.changed) < now - SETTLED * 1e9}
    if any(known.get(name) != state for name, state in settled.items()):
        with suppress(OSError):  # where nothing can be written the next call reads the images again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(known | settled, separators=(",", ":")))
    return [found[name] for name in names]


def refuse_changed(files: Mapping[str, FileState]) -> None:
    """ValueError naming the first file whose content is no longer what it was.

    A file is read again only where its size, times or number differ.
    """
    for path, before in files.items():
        now = _state(path, before)
        if now.digest != before.digest:
            what = "is gone" if now.digest == ABSENT else "has other content"
            raise ValueError(
                f"{path}: {what} than when this run began, expected data that stay the same during a run; nothing was "
                "saved since the checkpoint before: restore the file and run again, or run again on the new data"
            )


def cache_folder() -> Path:
    """Folder for what can be made again: $XDG_CACHE_HOME/headstart, by default below ~/.cache.

    Without a home, as for a container's user id without an account: a folder in which nothing can be written.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart"
    except RuntimeError:
        return Path(os.devnull) / "headstart"


def _paths(folder: Path, names: Sequence[str]) -> list[str]:
    root = os.path.abspath(folder)
    return [f"{root}{os.sep}{name}" for name in names]


def _state(path: str, known: FileState | None) -> FileState:
    """The state of a file, its bytes unread where all but its digest is as `known`."""
    try:
        status = os.stat(path)
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if known and known[:4] == facts:
            return known
        return FileState(*facts, file_digest(path)[:32])
    except (FileNotFoundError, NotADirectoryError):  # an error of the disk is not absence: the run would be another
        return FileState(0, 0, 0, 0, ABSENT)
