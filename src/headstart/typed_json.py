"""JSON read as typed records: a missing, unknown, wrong-typed or non-finite entry is one line naming file and field."""

import gc
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Record = TypeVar("Record")

_FAULT = re.compile(r"(?P<reason>.*?)(?: - at `(?P<key>key` in `)?\$(?P<place>.*)`)?", re.DOTALL)
_NAMED = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)


def read_json(path: Path, kind: type[Record]) -> Record:
    """A JSON file as a msgspec type; ValueError of one line naming the file, and the field that is wrong."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a file that headstart writes") from None
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {_fault(error, _plain(content), kind)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None


def read_lines(path: Path, kind: type[Record]) -> list[Record]:
    """Records of a file with one in JSON a line; an absent file has none, and a torn last line is left out.

    ValueError of one line naming the file, the line and the field for anything else that is no such record.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); nothing was changed") from None
    decoder, lines = msgspec.json.Decoder(kind), content.split(b"\n")
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # line by line takes 1.6 times as long
        records = decoder.decode_lines(content)
        if len(records) == sum(map(bool, lines)):
            return records
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(decoder.decode(line))
        except msgspec.ValidationError as error:
            found = _fault(error, _plain(line), kind)
            raise ValueError(f"{path}: line {number}: {found}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if number >= len(lines) - 1:
                break
            raise ValueError(f"{path}: line {number} is not JSON, expected one record a line") from None
    return records


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: reading makes millions of small objects without cycles, walked at each search."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def typed(value: Any, kind: type[Record], where: str) -> Record:
    """Plain data as a msgspec type; ValueError of one line: `where`, field, value, what was expected."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {_fault(error, value, kind)}") from None


def _plain(content: bytes) -> Any:
    """The content as plain values; None where it is not JSON."""
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _fault(error: msgspec.ValidationError, value: Any, kind: Any) -> str:
    """ "field = value: expected X" of data that msgspec refused; without the value where its place is unknown."""
    found = _FAULT.fullmatch(str(error))
    reason, place = found["reason"], (found["place"] or "").removeprefix(".")
    if named := _NAMED.fullmatch(reason):
        field = f"{place}.{named[2]}".removeprefix(".")
        if named[1].startswith("missing"):
            return f"{field}: missing"
        near = get_close_matches(named[2], getattr(kind, "__struct_fields__", ()), 1) if not place else []
        return f"{reprlib.repr(field)}: unknown field" + (f", did you mean {near[0]!r}?" if near else "")
    shown = ""
    if place and "..." not in place and not found["key"] and value is not None:
        for part in re.findall(r"[^.\[\]]+", place):
            value = value[int(part) if isinstance(value, list | tuple) else part]
        shown = f" = {reprlib.repr(value)}"
        reason = reason.partition(", got ")[0]
    reason = reason.replace("`", "")
    return f"{'a key of ' if found['key'] else ''}{place or 'the content'}{shown}: {reason[0].lower()}{reason[1:]}"
