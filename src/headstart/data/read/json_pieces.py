"""Cut one long array of a JSON file into pieces, so that it need not be parsed whole.

A parser's own tree and Python's numbers take nine times a COCO file's size; in pieces it is little more than once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

_BLOCK = 1 << 22  # bytes looked at together
_QUOTE, _BACKSLASH, _OPEN, _CLOSE, _END = (ord(c) for c in '"\\[]}')
_STEP = np.zeros(256, np.int8)
_STEP[[ord("{"), ord("[")]] = 1
_STEP[[ord("}"), ord("]")]] = -1


@dataclass
class _Found:
    begin: int = -1  # of the array's [
    end: int = -1  # of its ]
    cuts: list[int] = field(default_factory=list)  # just behind a record, about a piece apart


def split(raw: bytes, key: str, piece: int) -> tuple[bytes, Iterator[bytes]] | None:
    """The document with its top-level array `key` emptied, and that array's content as small JSON arrays.

    If the parser accepts all of them, and none but the first is empty, they are what the whole file says. None if there
    is no such array or more than one, or what follows a record is no comma: parse it whole then, for a proper message.
    """
    found = _scan(raw, key, piece)
    if found is None:
        return None
    bounds = [found.begin + 1, *found.cuts, found.end]
    if bounds[-2] != bounds[0] and not raw[bounds[-2] : bounds[-1]].strip():
        bounds.pop(-2)
    starts = [raw[a : a + 64].lstrip()[:1] for a in bounds[1:-1]]
    if any(start != b"," for start in starts):
        return None
    return raw[: found.begin + 1] + raw[found.end :], _pieces(raw, bounds)


def _pieces(raw: bytes, bounds: list[int]) -> Iterator[bytes]:
    for number, (a, b) in enumerate(pairwise(bounds)):
        if number:
            a = raw.index(b",", a) + 1
        yield b"[" + raw[a:b] + b"]"


def _scan(raw: bytes, key: str, piece: int) -> _Found | None:
    """Follow brackets outside strings; depth 1 is the document, 2 its arrays, 3 their records."""
    named = re.compile(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*$')
    data = np.frombuffer(raw, np.uint8)
    found, depth, inside = _Found(), 0, 0
    for start in range(0, data.size, _BLOCK):
        block = data[start : start + _BLOCK]
        in_string = np.bitwise_xor.accumulate(_quotes(data, start, block).view(np.uint8)) ^ inside
        inside = int(in_string[-1])
        step = np.where(in_string, 0, _STEP[block])
        at = np.flatnonzero(step)
        if not at.size:
            continue
        levels = depth + np.cumsum(step[at], dtype=np.int64)
        depth = int(levels[-1])
        marks, at = block[at], at + start
        for begin in at[(levels == 2) & (marks == _OPEN)].tolist():
            if named.search(raw, max(0, begin - 64 - len(key)), begin):
                if found.begin >= 0:
                    return None
                found.begin = begin
        if found.begin < 0 or found.end >= 0:
            continue
        closes = at[(levels == 1) & (marks == _CLOSE) & (at > found.begin)]
        last = int(closes[0]) if closes.size else int(at[-1]) + 1
        found.end = last if closes.size else -1
        _cut(found, at[(levels == 2) & (marks == _END) & (at > found.begin) & (at < last)] + 1, piece)
    return found if found.end >= 0 else None


def _quotes(data: np.ndarray, start: int, block: np.ndarray) -> np.ndarray:
    """Bool: quotes that open or close a string; one behind an odd number of backslashes does not."""
    quotes = block == _QUOTE
    first = start > 0 and data[start - 1] == _BACKSLASH
    behind = np.concatenate(([first], block[:-1] == _BACKSLASH))
    for at in np.flatnonzero(quotes & behind).tolist():
        before = start + at
        while before and data[before - 1] == _BACKSLASH:
            before -= 1
        quotes[at] = (start + at - before) % 2 == 0
    return quotes


def _cut(found: _Found, ends: np.ndarray, piece: int) -> None:
    previous = found.cuts[-1] if found.cuts else found.begin
    while (at := int(np.searchsorted(ends, previous + piece))) < ends.size:
        previous = int(ends[at])
        found.cuts.append(previous)
