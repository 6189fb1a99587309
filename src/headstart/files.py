"""Files written whole or not at all, locked by one process at a time, and hashed; JSON has no NaN, CSV no formulas."""

import csv
import errno
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

# Naming Files, Paths, and Namespaces, learn.microsoft.com/windows/win32/fileio/naming-a-file
_REFUSED = re.compile(
    r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udfff]|[. ]\Z|\A(con|prn|aux|nul|(com|lpt)[1-9¹²³])(\.|\Z)', re.IGNORECASE
)
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.part\Z")  # the end of a name of `replacing`
MOST_BYTES = 100  # of a name: file systems take 255, encryption leaves 143 of them (eCryptfs), and a digest may follow
# With their full-width forms: owasp.org/www-community/attacks/CSV_Injection.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_KINDS = {
    "a folder": stat.S_ISDIR,
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}
PATIENCE = 2.0  # seconds for which a rename is tried again: Windows refuses it while a reader has the target open


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name beside `path`, renamed over it at the end, removed on an error.

    Readers never see half a file, and several processes may write the same one. A killed process leaves its
    temporary file behind; `remove_unfinished` clears those of a folder. An OSError names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with named(path):
            yield temporary
            _rename(temporary, path)
    finally:
        with suppress(OSError):  # else it would hide the error; `remove_unfinished` tries again
            temporary.unlink(missing_ok=True)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Name `path` in every OSError inside that names no file, as reads and writes raise, or its temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and not _TEMPORARY.search(str(error.filename))):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write bytes, or text as UTF-8 with "\\n" on every platform, whole or not at all; returns the path."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def refuse_overwrite(targets: Iterable[tuple[Path, Path]], *, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """ValueError where a verb would write over a file that is there, over one that it reads, or over its own.

    targets: (file to write, the file or folder that it is made of) each; inputs: other files that are read. `force`
    allows to replace a plain file that is no input. Targets that differ in case alone count as one.
    """
    pairs, made = list(targets), {}
    for path, source in pairs:
        first = made.setdefault(str(path).casefold(), source)
        if first is not source:
            raise ValueError(f"{path}: would be written for {first} and again for {source}; expected a call for each")
    there = [path for path, _ in pairs if os.path.lexists(path)]
    known = _identities([source for _, source in pairs]) | _identities(inputs) if there else {}
    for path in there:
        own = known.get(_identity(path))
        if own is not None:
            raise ValueError(f"{path}: is read here ({own}), and is never replaced; expected the name of a new file")
        if not force:
            raise ValueError(f"{path}: exists already; expected the name of a new file, or --force to replace it")
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{path}: is a link or no file, which --force does not replace; expected another name")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of `replacing` in a folder; no other process may be writing there."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def sync_folders(path: Path) -> None:
    """Write the entries of a new file and of its folder down to the disk, where the system can (POSIX)."""
    for folder in (path.parent, path.parent.parent) if os.name == "posix" else ():
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with named(folder):
                os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
                raise
        finally:
            os.close(descriptor)


def is_file_name(name: str) -> bool:
    """True for a name that every platform takes for a file or folder: Windows refuses some signs and CON, NUL …"""
    return 0 < len(name) <= MOST_BYTES and not _REFUSED.search(name) and len(name.encode()) <= MOST_BYTES


@contextmanager
def locked(path: Path, *, taken: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock that one process at a time can have; `path` then names the holder. Its folder is made if absent.

    Waits at most `wait` seconds (math.inf: for ever) for the holder to leave, then ValueError: folder, `taken`, holder.
    The lock is the operating system's, on a hidden file beside `path`: a killed process holds nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}"))  # apart from `path`, as Windows lets nobody read a locked file
    try:
        lock.acquire(timeout=-1 if wait == math.inf else wait)
    except Timeout:
        raise ValueError(f"{path.parent}: {taken} by {_holder(path)}") from None
    try:
        write_whole(path, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            lock.release()


def plain(value: Any, *, digits: int | None = None) -> Any:
    """JSON's own values at any depth: null for NaN and infinity, a number for a scalar of NumPy or torch.

    With `digits` floats are rounded to that many significant digits.
    """
    if not isinstance(value, float):  # asked first: nearly all values are
        if isinstance(value, dict):
            return {str(key): plain(item, digits=digits) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item, digits=digits) for item in value]
        if hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, float):
            return value
    if not math.isfinite(value):
        return None
    return float(value) if digits is None else float(f"{value:.{digits}g}")


def json_text(value: Any, *, indent: int | None = None, digits: int | None = None) -> str:
    """JSON of `plain(value)`."""
    return json.dumps(plain(value, digits=digits), indent=indent, allow_nan=False)


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with all their columns, in order of first use; unknown values stay empty. Replaces the file whole.

    A text that a spreadsheet would take for a formula begins with an apostrophe (OWASP, CSV Injection); numbers do not.
    """

    def cell(value: Any) -> Any:
        if isinstance(value, str):
            return f"'{value}" if value.startswith(FORMULA_SIGNS) else value
        return None if value != value else value

    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, columns))
        writer.writerows([cell(row.get(name)) for name in columns] for row in rows)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file to read bytes.

    Anything else is refused unopened, so that no pipe is waited for and no device is touched: ValueError naming the
    path and its kind. OSError as `open`.
    """
    _refuse_irregular(path, os.stat(path).st_mode)
    # The file may have been replaced since: open it without waiting, and check again.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
    try:
        _refuse_irregular(path, os.fstat(file.fileno()).st_mode)
    except ValueError:
        file.close()
        raise
    return file


def read_regular(path: str | Path, *, most: int) -> bytes:
    """The bytes of a regular file.

    ValueError naming the path if it is no regular file, has more than `most` bytes, or changes while it is read.
    """
    with named(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path}: has {size:,} bytes: expected at most {most:,}")
        content = file.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{path}: changed while it was read: expected {size:,} bytes")
    return content


def file_digest(path: str | Path, kind: str = "sha256") -> str:
    """SHA-256 (or another digest by hashlib's name) of a file's bytes, as hex digits; errors as `open_regular`."""
    with named(path), open_regular(path) as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _refuse_irregular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        found = next((name for name, test in _KINDS.items() if test(mode)), "no regular file")
        raise ValueError(f"{path}: is {found}: expected a regular file")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of the file that a path leads to; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _identities(paths: Iterable[Path]) -> dict[tuple[int, int], Path]:
    """The files among the paths, by identity; folders left out."""
    return {own: path for path in paths if path.is_file() and (own := _identity(path)) is not None}


def _rename(temporary: Path, path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(temporary, path)
            return
        except (PermissionError, InterruptedError):  # the latter from network file systems; Python repeats other calls
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
