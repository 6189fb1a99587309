"""Padded sizes: few enough that one compiled graph each is affordable, close enough to waste little on padding."""

from dataclasses import dataclass

import numpy as np

STRIDE = 32  # padded sides are multiples of the coarsest backbone stride
RUNG = (
    128  # pixels between the rungs of the longer side (perf: 1088/1216/1344 saves 10-19 % over one shape at 800x1333)
)


@dataclass(frozen=True)
class Resize:
    """Fit an image to `short` pixels on its shorter side, but to no more than `long` on the longer."""

    short: int
    long: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Size after resizing, in whole pixels, at least 1."""
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return max(round(height * scale), 1), max(round(width * scale), 1)


def _up(value: float, multiple: int) -> int:
    return int(-(-value // multiple) * multiple)


def bucket_of(height: int, width: int, resize: Resize) -> tuple[int, int]:
    """The padded (height, width) for an image of this size: the short side, and the longer side's rung."""
    short, long = _up(resize.short, STRIDE), _up(resize.long, STRIDE)
    new_height, new_width = resize.size(height, width)
    longest = max(new_height, new_width)
    rung = long - RUNG * int((long - longest) // RUNG) if longest <= long else long
    rung = max(rung, short)
    return (short, rung) if width >= height else (rung, short)


def group_by_bucket(
    heights: np.ndarray, widths: np.ndarray, resize: Resize, *, smallest: int
) -> dict[tuple[int, int], np.ndarray]:
    """Image indices by bucket, {(H, W): indices}, where no group is smaller than `smallest` unless there is only one.

    A small group joins the group whose common bucket costs the fewest pixels. Deterministic.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(zip(heights.tolist(), widths.tolist())):
        groups.setdefault(bucket_of(height, width, resize), []).append(index)
    while len(groups) > 1:
        small = min(groups, key=lambda bucket: (len(groups[bucket]), bucket))
        if len(groups[small]) >= smallest:
            break
        members = groups.pop(small)
        host = min(groups, key=lambda bucket: (_joined_cost(bucket, groups[bucket], small, members), bucket))
        joined = (max(host[0], small[0]), max(host[1], small[1]))
        members += groups.pop(host)
        groups[joined] = groups.get(joined, []) + members
    return {bucket: np.array(sorted(groups[bucket])) for bucket in sorted(groups)}


def _joined_cost(host: tuple[int, int], host_members: list[int], small: tuple[int, int], members: list[int]) -> int:
    """Pixels that joining two groups adds."""
    area = max(host[0], small[0]) * max(host[1], small[1])
    return len(host_members) * (area - host[0] * host[1]) + len(members) * (area - small[0] * small[1])
