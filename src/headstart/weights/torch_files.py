"""torch's files read as data: its zip archives, and the sequence of pickles that it wrote before 1.6."""

import os
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from headstart.files import open_regular
from headstart.weights.pickles import PickleReader, checked_view

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch/serialization.py
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip


def read_torch(path: Path, reader: type[PickleReader] = PickleReader) -> Any:
    """The content of a file of `torch.save`, on the CPU: tensors, containers, numbers and texts.

    Tensors that share storage share it again. RefusedNameError for any other object, before anything is called; some
    other exception for a damaged file, and for tensors whose elements are not all in it. `reader` reads the pickles.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(4)
        file.seek(0)
        return (_read_archive if start == b"PK\x03\x04" else _read_sequence)(file, size, reader)


def _read_archive(file: BinaryIO, size: int, reader: type[PickleReader]) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "constants.pkl" in members:
            raise ValueError("it is a TorchScript program, expected a state dict")
        left, stored = size, {}

        def content(name: str) -> bytes:
            nonlocal left
            info = members[name]
            left -= info.file_size
            if info.compress_type != zipfile.ZIP_STORED or left < 0:  # a small archive may hold any number of bytes
                raise ValueError(f"member {name} is compressed or stored twice")
            return archive.read(info)

        def storage(identity: tuple) -> Tensor:
            dtype, key, count = _storage_fields(identity)
            if key not in stored:
                stored[key] = _tensor_of(bytearray(content(f"data/{key}")))
            values = stored[key].view(dtype)
            if count != values.numel():
                raise ValueError(f"storage {key} of {count:,} elements in {stored[key].numel():,} bytes")
            return values

        if "byteorder" in members and content("byteorder") != b"little":
            raise ValueError("its byte order is not little")
        return reader(size, _NAMES, storage).load(BytesIO(content("data.pkl")))


def _read_sequence(file: BinaryIO, size: int, kind: type[PickleReader]) -> Any:
    buffers: dict[Any, tuple[int, bytearray]] = {}  # by key: elements, and the room for them
    left = size

    def storage(identity: tuple) -> Tensor:
        nonlocal left
        dtype, key, count = _storage_fields(identity)
        view = identity[5]
        if key not in buffers:
            left -= count * dtype.itemsize
            if left < 0:
                raise ValueError(f"storage {key} of {count:,} elements, more than the file holds")
            buffers[key] = count, bytearray(count * dtype.itemsize)  # filled below
        values = _tensor_of(buffers[key][1]).view(dtype)
        if count != values.numel():
            raise ValueError(f"storage {key} of {count:,} elements, and of {values.numel():,}")
        return values if view is None else checked_view(values, view[1], (view[2],), (1,))

    reader = kind(size, _NAMES, storage)
    if reader.load(file) != _MAGIC or reader.load(file) != _PROTOCOL:
        raise ValueError("it does not begin as torch's files do")
    reader.load(file)  # the machine that wrote it
    content, keys = reader.load(file), reader.load(file)
    missing = dict(buffers)
    for key in keys:
        count, buffer = missing.pop(key)
        if struct.unpack("<q", file.read(8)) != (count,) or file.readinto(buffer) != len(buffer):
            raise ValueError(f"storage {key} has not its {count:,} elements")
    if missing:
        raise ValueError(f"{len(missing)} storages without their values")
    return content


def _storage_fields(identity: tuple) -> tuple[torch.dtype, str | int, int]:
    """Type, key and number of elements of a storage."""
    kind, dtype, key, _, count = identity[:5]
    known = kind in ("storage", b"storage") and isinstance(dtype, torch.dtype) and type(key) in (str, int)
    if not known or type(count) is not int or not 0 <= count < 2**63:
        raise ValueError("a storage without type, key or number of elements")
    return dtype, key, count


def _tensor_of(buffer: bytearray) -> Tensor:
    """Bytes as a tensor uint8 [n] that shares their memory."""
    return torch.frombuffer(buffer, dtype=torch.uint8) if buffer else torch.empty(0, dtype=torch.uint8)


def _tensor(storage: Tensor, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:
    """A tensor in a storage; more: gradient, hooks, and marks of conjugated or negated values, which are not read."""
    if len(more) > 2 and more[2]:
        raise ValueError("a conjugated or negated view")
    return checked_view(storage, offset, size, stride)


def _untyped_tensor(storage: Tensor, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:
    gradient, hooks, dtype, *marks = more
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor without a type")
    return _tensor(storage.view(dtype), offset, size, stride, gradient, hooks, *marks)


def _tensor_of_type(rebuild: Any, _type: Any, arguments: Any, _state: Any) -> Tensor:
    """A tensor of a class of its own, or with attributes, as a plain one."""
    if rebuild not in (_tensor, _untyped_tensor):
        raise ValueError("a tensor of another making")
    return rebuild(*arguments)


_NAMES: dict[tuple[str, str], Any] = {
    **{("torch", f"{name}Storage"): dtype for name, dtype in _STORAGES.items()},
    **{("torch", name): dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
    ("torch.storage", "UntypedStorage"): torch.uint8,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _untyped_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_type,
    ("torch.nn.parameter", "Parameter"): lambda tensor, *_: tensor,
    ("torch", "Tensor"): "torch.Tensor",  # an argument of _rebuild_from_type_v2, never called
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *_: None,
    ("torch.serialization", "_get_layout"): lambda *_: None,
}
