"""Weight files: read without executing anything in them, written as .safetensors, and digests of tensors.

Read: .safetensors; .pt .pth .bin (torch, tensors only); .pkl (Detectron, Detectron2: pickled numpy arrays through an
allow-list).
"""

import hashlib
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.batch import InputSpec
from headstart.files import file_digest
from headstart.weights.input import parse_input_spec
from headstart.weights.seal import DamagedError, check_seal

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".pkl")
# Where checkpoints keep their tensors: ours and Detectron2's; Lightning's and timm's; others'; Detectron's.
NESTS = ("model", "state_dict", "model_state_dict", "blobs")
WRAPPERS = ("module.", "_orig_mod.")  # added by DistributedDataParallel and torch.compile
DIGEST = "headstart.digest"  # the key in our .safetensors files; foreign ones have none


@dataclass(frozen=True, eq=False)
class WeightFile:
    """Content of a weight file: tensors by name, its sha256, its author, and its input normalisation.

    `author` is "headstart" for our own files, Detectron2's `__author__` where there is one, else "".
    `input` is None where the file does not say. `left_out` names entries that are no tensors.
    """

    path: str
    hash: str
    tensors: dict[str, Tensor]
    author: str = ""
    input: InputSpec | None = None
    left_out: tuple[str, ...] = ()


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file of any known kind.

    Raises ValueError in one line: no such file, unknown suffix, damaged, no tensors inside, or a pickle that asks for
    anything but arrays; such a pickle is refused at that name, before anything of it is called.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r} of a weight file, expected {', '.join(SUFFIXES)}")
    with path.open("rb") as file:
        check_seal(path, file)
    if path.suffix == ".safetensors":
        return _weight_file(path, *read_safetensors(path))
    content = _read_pickle(path) if path.suffix == ".pkl" else _read_torch(path)
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


def _weight_file(path: Path, values: dict[str, Any], around: dict[str, Any]) -> WeightFile:
    """Tensors out of `values`; author and normalisation from what lies `around` them."""
    tensors, left_out = {}, []
    for name, value in values.items():
        name = str(name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value, order="C"))  # a copy: arrays out of a pickle may be read-only
        if isinstance(value, Tensor):
            tensors[_unwrapped(name)] = value
        else:
            left_out.append(name)
    if not tensors:
        raise ValueError(f"{path}: holds no tensors (found: {', '.join(map(str, list(values)[:5])) or 'nothing'})")
    recipe = around.get("recipe")
    own = parse_input_spec(recipe.get("input") if isinstance(recipe, dict) else around.get("input"))
    author = "headstart" if own is not None else str(around.get("__author__", around.get("author", "")))
    return WeightFile(str(path), file_digest(path), tensors, author, own, tuple(left_out))


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file; ValueError where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
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


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)|`?([\w.]+)`? (?:is|was) not an allowed global", str(error))
        if name is None:
            raise ValueError(f"{path}: not a readable torch file ({_reason(error)})") from None
        raise ValueError(_refusal(path, name[1] or name[2])) from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a readable torch file ({_reason(error)})") from None


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            # latin1: Detectron's files were pickled by Python 2, whose strings are bytes
            return _ArrayUnpickler(file, encoding="latin1").load()
    except _RefusedError as refused:
        raise ValueError(_refusal(path, str(refused))) from None
    except Exception as error:  # damaged bytes raise nearly anything inside the unpickler
        raise ValueError(f"{path}: not a readable pickle of arrays ({type(error).__name__}: {error})") from None


def _reason(error: Exception) -> str:
    """The first sentence: torch goes on to advise loading the file without protection."""
    if "TorchScript" in str(error):
        return "it is a TorchScript program, expected a state dict"
    return (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]


def _refusal(path: Path, name: str) -> str:
    return f"{path}: refused, because it asks for {name} when loaded, which could run code; nothing was executed"


class _RefusedError(Exception):
    """A pickle asked for something that is not on the allow-list."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, texts and numpy arrays; any other name is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise _RefusedError(f"{module}.{name}")
        return allowed


def _empty_array(subtype: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """numpy's `_reconstruct` for plain arrays only; the unpickler fills in the state."""
    return np.ndarray(shape, np.dtype(dtype.encode("latin1") if isinstance(dtype, str) else dtype))


def _array_of_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str, *axes: Any) -> np.ndarray:
    """numpy's `_frombuffer` (pickle protocol 5); `axes` undoes a transposition."""
    flat = np.frombuffer(buffer, dtype=dtype)
    if order == "K" and axes and axes[0] is not None:
        return flat.reshape(shape).transpose(axes[0])
    return flat.reshape(shape, order=order)


def _scalar(dtype: np.dtype, data: Any) -> Any:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype=dtype)[0]


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """Protocol 2 spells bytes as an encoded text; only that one codec, because codecs are code."""
    if encoding != "latin1":
        raise _RefusedError(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.numeric", "_frombuffer"): _array_of_buffer,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes_of_text,
    ("collections", "OrderedDict"): OrderedDict,
}
