"""Keys of COCO JSON that one object gives twice, and numbers beyond 64 bits."""

import json
import math
import operator
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw, Struct

from headstart.data.read.coco_records import PLURAL, AnnotationRecord, CategoryRecord, ImageRecord, show

_READ = {  # keys that are read, as JSON has them
    name: f'"{name}"'.encode()
    for name in [
        *PLURAL.values(),
        *(
            field.name
            for kind in (ImageRecord, AnnotationRecord, CategoryRecord)
            for field in msgspec.structs.fields(kind)
        ),
    ]
}
_NUMBERS, _BLOCK = b"0123456789.,- \n[]", 1 << 24  # bytes; no letter of a key, and no quote
_parts = msgspec.json.Decoder(dict[str, Raw]).decode


def may_repeat(raw: bytes, lists: tuple[list[Struct], ...]) -> bool:
    """False if no object gives a key twice that is read: each stands in the text as often as in the records.

    lists: the records of images, annotations and categories that the text holds. True also where what is skipped has
    such a key. A parser that sees each key takes ten times as long.
    """
    found = Counter(PLURAL.values())
    for records in lists:
        for field in msgspec.structs.fields(records[0]) if records else ():
            values = map(operator.attrgetter(field.name), records)
            found[field.name] += len(records) if field.required else sum(value is not None for value in values)
    words = _words(raw)
    surplus = {name: words.count(key) - found[name] for name, key in _READ.items()}
    if any(surplus.values()):  # licences have ids and names too
        for part in (
            _words(bytes(memoryview(part))) for own, part in _parts(raw).items() if own not in PLURAL.values()
        ):
            surplus = {name: count - part.count(_READ[name]) for name, count in surplus.items()}
    return any(surplus.values())


def _words(raw: bytes) -> bytes:
    """A text without its numbers, which are most of it: keys stay, and others may only be added."""
    return b"".join(raw[at : at + _BLOCK].translate(None, _NUMBERS) for at in range(0, len(raw), _BLOCK))


def refuse_repeated(path: Path, raw: bytes) -> None:
    """ValueError for a key that is read and given twice in one object, of which parsers keep the last.

    json.JSONDecodeError where the text is no JSON.
    """

    def check(pairs: list[tuple[str, Any]]) -> None:
        counts = Counter(name for name, _ in pairs)
        for name in counts:
            if counts[name] > 1 and name in _READ:
                own = next((value for key, value in pairs if key == "id"), None)
                where = f"the object with id {own}" if type(own) is int else f"the object of {show(list(counts))}"
                raise ValueError(f"{path}: {where}: {name!r} is given {counts[name]} times: expected once")

    try:
        json.loads(raw, object_pairs_hook=check, parse_int=lambda text: int(text) if len(text) < 20 else text)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply: expected records of COCO") from None


def whole(text: str) -> int | float:
    """A whole number of JSON; a float where 64 bits do not hold it, as orjson reads it."""
    return int(text) if len(text) < 20 else finite(text)


def finite(text: str) -> float:
    """A number of JSON; ValueError for one that is too large for a float."""
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {show(text)} is too large")
    return value
