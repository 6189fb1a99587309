"""Weight files: read without executing anything in them, written as .safetensors, digests of tensors, and seals.

Read: .safetensors; .pt .pth .bin (torch, tensors only); .pkl (Detectron, Detectron2: pickled numpy arrays through an
allow-list). A seal is a checkpoint file's digest, in the comment at its end that readers of zip archives pass over.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.batch import InputSpec
from headstart.files import file_digest, named, open_regular, read_regular
from headstart.hardware import memory
from headstart.weights.input import parse_input_spec
from headstart.weights.pickles import Array, PickleReader, RefusedNameError
from headstart.weights.torch_files import read_torch

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".pkl")
# Where checkpoints keep their tensors: ours and Detectron2's; Lightning's and timm's; others'; Detectron's.
NESTS = ("model", "state_dict", "model_state_dict", "blobs")
WRAPPERS = ("module.", "_orig_mod.")  # added by DistributedDataParallel and torch.compile
MOST_HEADER = 2**24  # bytes of a .safetensors header: a tensor takes about 100, and the largest nets have thousands
_MOST_PICKLE = 2**35  # bytes of a pickle where the memory, into which it must fit, is unknown
COUNTER = ".num_batches_tracked"  # BatchNorm's, which no computation of ours reads: not a weight, never accounted for
DIGEST = "headstart.digest"  # the key in our .safetensors files; foreign ones have none
_SEAL_TEXT = "headstart checkpoint, format {:02d}, SHA-256 of all before: {}"
_SEAL = re.compile(rb"headstart checkpoint, format (\d\d), SHA-256 of all before: ([0-9a-f]{64})")
_SEAL_SIZE = len(_SEAL_TEXT.format(0, "0" * 64))
_SEAL_LENGTH = _SEAL_SIZE.to_bytes(2, "little")  # of a comment: the field before it (APPNOTE.TXT 4.3.16, pkware.com)
_BLOCK = 1 << 20  # bytes hashed at a time


class DamagedError(ValueError):
    """A checkpoint that is not as it was written: torn, empty, changed since, or of another kind."""


class RefusedError(ValueError):
    """A pickle asks for something that could run code."""


@dataclass(frozen=True, eq=False)
class WeightFile:
    """Content of a weight file: tensors by name, its sha256, its author, and its input normalisation.

    `author` is "headstart" for our own files, Detectron2's `__author__` where there is one, else "".
    `input` is None where the file does not say. `left_out` names entries that are no tensors. `recipe` is that of the
    run that made a headstart file; empty for others.
    """

    path: str
    hash: str
    tensors: dict[str, Tensor]
    author: str = ""
    input: InputSpec | None = None
    left_out: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file of any known kind.

    Raises ValueError in one line: no regular file, unknown suffix, damaged, no tensors inside, tensors that lie outside
    the stored bytes or take more memory than these, or a pickle that asks for anything but arrays; such a pickle is
    refused at that name, before anything of it is called.
    """
    path = Path(path)
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such weight file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): expected a weight file") from None
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r} of a weight file, expected {', '.join(SUFFIXES)}")
    with named(path), path.open("rb") as file:
        check_seal(path, file)
    if path.suffix == ".safetensors":
        return _weight_file(path, *read_safetensors(path))
    content = _read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a mapping of names to tensors")
    nest = next((name for name in NESTS if isinstance(content.get(name), dict)), None)
    return _weight_file(path, content if nest is None else content[nest], {} if nest is None else content)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to a .safetensors file whose author is headstart."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    facts = {**metadata, "author": "headstart"}
    save_file(plain, path, {**facts, DIGEST: _export_digest(plain, facts)})


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors in order: equal exactly when names and values are equal bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(bits(tensor))
    return digest.hexdigest()


def bits(tensor: Tensor) -> bytes:
    """A tensor's values as bytes in row-major order, whatever its memory layout and device."""
    plain = tensor.detach().cpu().contiguous(memory_format=torch.contiguous_format)
    return plain.view(-1).view(torch.uint8).numpy().tobytes()


def tensor_digest(tensor: Tensor) -> str:
    """First half of the SHA-256 of a tensor's values, which tells equal tensors from different ones."""
    return hashlib.sha256(bits(tensor)).hexdigest()[:32]


def _weight_file(path: Path, values: dict[str, Any], around: dict[str, Any]) -> WeightFile:
    """Tensors out of `values`; author and normalisation from what lies `around` them."""
    tensors, left_out = {}, []
    for name, value in values.items():
        name = str(name)
        if isinstance(value, Array):
            value = value.tensor
        if isinstance(value, Tensor):
            tensors[unwrapped(name)] = value
        else:
            left_out.append(name)
    if not tensors:
        found = ", ".join(_printable(name) for name in left_out[:5])
        raise ValueError(f"{path}: holds no tensors (found: {found or 'nothing'})")
    recipe = _recipe(around.get("recipe"))
    own = parse_input_spec(recipe.get("input") or around.get("input"))
    given = around.get("__author__", around.get("author", ""))
    author = "headstart" if own is not None else given if isinstance(given, str) else ""
    return WeightFile(str(path), file_digest(path), tensors, author, own, tuple(left_out), recipe)


def _recipe(stated: Any) -> dict[str, Any]:
    """A recipe as our files hold it: a mapping in checkpoints, its JSON in exports; empty for anything else."""
    try:
        found = json.loads(stated) if isinstance(stated, str) else stated
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def unwrapped(name: str) -> str:
    """A name without the prefixes of DistributedDataParallel and torch.compile."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file; ValueError where it is damaged."""
    try:
        with open_regular(path) as begin:
            (length,) = struct.unpack("<Q", begin.read(8))
        if length > MOST_HEADER:
            raise ValueError(f"a header of {length:,} bytes, more than {MOST_HEADER:,}")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = dict(file.metadata() or {})
    except Exception as error:  # the library has several kinds, and for some contents torch's own
        raise ValueError(f"{path}: not a readable safetensors file ({_reason(path, error)})") from None
    digest = facts.pop(DIGEST, None)
    if digest is not None and digest != _export_digest(tensors, facts):
        raise DamagedError(f"{path}: not as it was written: its digest differs")
    return tensors, facts


def _export_digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """SHA-256 of tensors and metadata, whatever their order in a file."""
    tensors = dict(sorted(tensors.items()))
    shapes = [f"{name} {value.dtype} {list(value.shape)}" for name, value in tensors.items()]
    text = json.dumps([sorted(facts.items()), shapes, tensors_digest(tensors)])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_pickle(path: Path) -> Any:
    """The content of a file of pickled arrays, or of torch's."""
    try:
        if path.suffix != ".pkl":
            return read_torch(path)
        content = read_regular(path, most=memory() or _MOST_PICKLE)
        return PickleReader(len(content)).load(BytesIO(content))
    except RefusedNameError as refused:
        name = _printable(str(refused))
        raise RefusedError(
            f"{path}: refused, because it asks for {name} when loaded, which could run code; nothing was executed"
        ) from None
    except Exception as error:  # damaged bytes raise nearly anything
        kind = "pickle of arrays" if path.suffix == ".pkl" else "torch file"
        raise ValueError(f"{path}: not a readable {kind} ({_reason(path, error)})") from None


def _reason(path: Path, error: Exception) -> str:
    return _printable(str(error).removeprefix(f"{path}: ") or type(error).__name__)


def _printable(text: str) -> str:
    """A text of a file on one line, cut where it is long."""
    return (text if text.isprintable() else ascii(text)[1:-1])[:200]


def write_seal(file: BinaryIO, number: int) -> None:
    """Seal a zip archive without comment, open for reading and writing, as a checkpoint of format `number`."""
    end = file.seek(0, os.SEEK_END)
    file.seek(end - len(_SEAL_LENGTH))
    file.write(_SEAL_LENGTH)
    digest = _digest(file, end)
    file.seek(end)
    file.write(_SEAL_TEXT.format(number, digest).encode())


def check_seal(path: Path, file: BinaryIO) -> int | None:
    """Format in the seal of an open file; None for a file without one.

    DamagedError where the bytes are not those that were sealed. A flipped bit in the seal itself is found too, because
    both the length before it and its text mark a seal.
    """
    end = file.seek(0, os.SEEK_END)
    length, text = _end(file, end)
    seal = _SEAL.fullmatch(text)
    if length != _SEAL_LENGTH and seal is None:
        return None
    if length != _SEAL_LENGTH or seal is None or _digest(file, end - _SEAL_SIZE) != seal[2].decode():
        raise DamagedError(f"{path}: is not a whole checkpoint (its bytes are not those that were written)")
    return int(seal[1])


def ends_whole(file: BinaryIO) -> bool:
    """True for an open file that ends in a seal, or as a zip archive without one; reads some 130 bytes only."""
    length, text = _end(file, file.seek(0, os.SEEK_END))
    unsealed = text[-22:-18] == b"PK\x05\x06" and text[-2:] == b"\0\0"  # the 22 bytes that end an archive
    return unsealed or (length == _SEAL_LENGTH and _SEAL.fullmatch(text) is not None)


def _end(file: BinaryIO, end: int) -> tuple[bytes, bytes]:
    """Length and text of the archive's comment, where a seal would be."""
    file.seek(max(0, end - _SEAL_SIZE - len(_SEAL_LENGTH)))
    tail = file.read()
    return tail[: len(_SEAL_LENGTH)], tail[len(_SEAL_LENGTH) :]


def _digest(file: BinaryIO, end: int) -> str:
    """SHA-256 of the bytes up to `end`: 0.1 s for 100 MB on one core with SHA instructions."""
    digest = hashlib.sha256()
    file.seek(0)
    while end and (block := file.read(min(end, _BLOCK))):
        digest.update(block)
        end -= len(block)
    return digest.hexdigest()
