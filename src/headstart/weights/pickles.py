"""Pickles read as data: containers, numbers, texts, arrays and tensors, by an interpreter that calls nothing else.

Names that a pickle asks for are looked up in the reader's own table, and arrays and tensors are checked before they
exist: their extents lie in the bytes that the file holds.
"""

import math
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# Kinds of NumPy's elements that are weights: floating point, integers, truth values.
_ELEMENTS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_VALUES = {  # instructions that push a number or a text
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_COPIED = (str, bytes, bytearray, list, tuple, dict)
_MOST_DIMENSIONS = 64  # torch's own limit
MOST_STEPS = 1_000_000  # instructions of a pickle: a tensor takes some 60, and all of them three seconds


class RefusedNameError(Exception):
    """A pickle asked for something that is not in the table."""


class Element:
    """Type of an array's elements: `dtype` is None where they are no numbers, such as objects and records."""

    def __init__(self, code: Any, *_: Any):
        code = code.decode("latin1") if isinstance(code, bytes) else code
        self.dtype = np.dtype(f"<{code}") if isinstance(code, str) and code in _ELEMENTS else None

    def set_state(self, state: Any) -> None:
        """Byte order, as in NumPy's state of a type."""
        if self.dtype is not None and state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class Array:
    """An array of a pickle; `tensor` is None until its values have come, and where they are no numbers."""

    def __init__(self, reader: "PickleReader"):
        self.tensor: Tensor | None = None
        self._reader = reader

    def set_state(self, state: Any) -> None:
        """Values from NumPy's state of an array: version, shape, type, whether in Fortran's order, bytes."""
        shape, element, fortran, raw = state[-4:]
        self.fill(raw, element, shape, "F" if fortran else "C")

    def fill(self, raw: Any, element: Any, shape: Any, order: str) -> None:
        """Values from bytes; ValueError where they are more or fewer than the shape needs."""
        if not isinstance(element, Element) or element.dtype is None:
            return
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        size = _product(shape)
        if size * element.dtype.itemsize != len(raw):
            raise ValueError(f"an array of {size:,} elements in {len(raw):,} bytes")
        self._reader.take(len(raw))
        values = np.frombuffer(raw, element.dtype).reshape(shape, order=order)
        self.tensor = torch.from_numpy(values.astype(element.dtype.newbyteorder("="), order="C"))


class PickleReader:
    """Reader of the pickles of a file of `most` bytes, which bound all arrays together; copies may take twice these."""

    def __init__(
        self, most: int, names: Mapping[tuple[str, str], Any] | None = None,
        storage: Callable[[tuple], Any] | None = None,
    ):  # fmt: skip
        self._left, self._storage = most, storage
        self._copies = 2 * most + 1024  # elements of what is handed over: each once, and names and shapes again
        self._names: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(self),
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy.core.numeric", "_frombuffer"): self._array_of_buffer,
            ("numpy", "ndarray"): "numpy.ndarray",  # an argument of _reconstruct, never called
            ("numpy", "dtype"): Element,
            ("_codecs", "encode"): _bytes_of_text,
            ("collections", "OrderedDict"): _mapping,
            ("collections", "Counter"): _mapping,
            ("builtins", "set"): list,
            ("builtins", "bytearray"): _bytes,
            ("builtins", "complex"): lambda *_: None,
            **(names or {}),
        }

    def take(self, size: int) -> None:
        """Count bytes of arrays; ValueError where they become more than the file has, as copies of one text would."""
        self._left -= size
        if self._left < 0:
            raise ValueError("arrays of more bytes than the file holds")

    def load(self, file: BinaryIO) -> Any:
        """The next pickle of a file. RefusedNameError for a foreign name; other exceptions for damaged content."""
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            nonlocal stack
            found, stack = stack, marks.pop()
            return found

        for step, (op, value, _) in enumerate(pickletools.genops(file)):
            if step > MOST_STEPS:
                raise ValueError(f"more than {MOST_STEPS:,} instructions")
            match op.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    break
                case "MARK":
                    marks.append(stack)
                    stack = []
                case "POP" if stack:
                    stack.pop()
                case "POP" | "POP_MARK":
                    since_mark()
                case "DUP":
                    stack.append(stack[-1])
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[op.name])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    size = int(op.name[-1])
                    stack[-size:] = [tuple(stack[-size:])]
                case "TUPLE":
                    items = since_mark()  # first, as it changes the stack
                    stack.append(tuple(items))
                case "EMPTY_LIST" | "EMPTY_SET":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "LIST" | "FROZENSET":
                    items = since_mark()
                    stack.append(items)
                case "DICT":
                    items = since_mark()
                    stack.append(_pairs(items))
                case "APPEND":
                    item = stack.pop()
                    _of(stack[-1], list).append(item)
                case "APPENDS" | "ADDITEMS":
                    items = since_mark()
                    _of(stack[-1], list).extend(items)
                case "SETITEM":
                    pair = [stack.pop(-2), stack.pop()]
                    _of(stack[-1], dict).update(_pairs(pair))
                case "SETITEMS":
                    items = since_mark()
                    _of(stack[-1], dict).update(_pairs(items))
                case "GLOBAL":
                    stack.append(self._named(*value.split(" ", 1)))
                case "STACK_GLOBAL":
                    name = stack.pop()
                    stack.append(self._named(stack.pop(), name))
                case "REDUCE" | "NEWOBJ":
                    arguments = _of(stack.pop(), tuple)
                    self._copies -= sum(len(one) for one in arguments if isinstance(one, _COPIED))
                    if self._copies < 0:
                        raise ValueError("copies of more than the file holds")
                    stack[-1] = stack[-1](*arguments)
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Array | Element):
                        stack[-1].set_state(_of(state, tuple))
                    elif hasattr(stack[-1], "keep_state"):  # of `audits.read`
                        stack[-1].keep_state(state)
                    elif not isinstance(stack[-1], dict | Tensor):  # whose attributes are of no use here
                        raise ValueError(f"a state of a {type(stack[-1]).__name__}")
                case "BINPERSID" if self._storage is not None:
                    stack.append(self._storage(_of(stack.pop(), tuple)))
                case name if name in _VALUES:
                    stack.append(value)
                case _:
                    raise ValueError(f"the instruction {op.name}")
        return stack.pop()

    def _named(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        module = {"__builtin__": "builtins"}.get(module, module).replace("numpy._core", "numpy.core")
        try:
            return self._names[module, name]
        except KeyError:
            raise RefusedNameError(f"{module}.{name}") from None

    def _array_of_buffer(self, raw: Any, element: Any, shape: Any, order: Any, *axes: Any) -> Array:
        """NumPy's `_frombuffer` (pickle protocol 5); `axes` undoes a transposition."""
        found = Array(self)
        found.fill(raw, element, shape, "F" if order == "F" else "C")
        if order == "K" and axes and axes[0] is not None and found.tensor is not None:
            found.tensor = found.tensor.permute(axes[0]).contiguous()
        return found

    def _scalar(self, element: Any, raw: Any = b"") -> int | float | None:
        found = Array(self)
        found.fill(raw, element, (1,), "C")
        return None if found.tensor is None else found.tensor.item()


def checked_view(values: Tensor, offset: Any, size: Any, stride: Any) -> Tensor:
    """A view of stored elements [n]; ValueError unless the view lies in them and has at most n elements."""
    numbers = [offset, *size, *stride]
    if not all(map(_is_size, numbers)) or len(size) != len(stride):
        raise ValueError("a tensor with a size, strides or a place that are none")
    count = _product(size)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride))
    if count > values.numel() or (count and last >= values.numel()):
        raise ValueError(f"a tensor of size {size} and strides {stride} from {offset} in {values.numel():,} elements")
    return values.as_strided(size, stride, values.storage_offset() + offset) if count else values.new_empty(size)


def _bytes(value: Any = b"", encoding: Any = "latin1") -> bytes:
    return _bytes_of_text(value, encoding) if isinstance(value, str) else bytes(_of(value, bytes | bytearray))


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """Protocol 2 spells bytes as an encoded text; only that one codec, because codecs are code."""
    if encoding not in ("latin1", "latin-1"):
        raise RefusedNameError(f"_codecs.encode with {encoding!r}" if isinstance(encoding, str) else "_codecs.encode")
    return text.encode("latin1")


def _mapping(pairs: Iterable = ()) -> dict:
    return (
        dict(pairs) if isinstance(pairs, dict) else _pairs([item for pair in pairs for item in _of(pair, list | tuple)])
    )


def _pairs(items: list) -> dict:
    """A dict of keys and values in turn. Keys are texts and numbers: hashing nested tuples may take unbounded time."""
    keys = items[0::2]
    for key in keys:
        plain = key is None or type(key) in (str, bytes, bool, float) or (type(key) is int and abs(key) < 2**63)
        if not plain:
            raise ValueError(f"a {type(key).__name__} as a key")
    return dict(zip(keys, items[1::2], strict=True))


def _product(shape: Any) -> int:
    if len(shape) > _MOST_DIMENSIONS or not all(map(_is_size, shape)):
        raise ValueError("a shape of something else than sides")
    return math.prod(shape)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} in a wrong place")
    return value
