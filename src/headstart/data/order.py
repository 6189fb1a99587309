"""Order of images: padded sizes (buckets), and the image of each slot as a pure function of (seed, step, slot).

The order is independent of workers, processes, and the length of the schedule, so that a resumed, branched or
differently split run sees the same images. B slots a step.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from headstart.ops.random import fold

STRIDE = 32  # padded sides are multiples of the coarsest backbone stride
# Pixels between two sizes of the longer side: few enough shapes that compiling a graph for each is affordable, and
# 10-19 % less work than with one shape (1088/1216/1344 against 1344 at 800 x 1333).
RUNG = 128
# Step t takes its bucket at position frac(offset + t * golden) of the line of bucket shares: a low-discrepancy
# sequence, so that every bucket advances through its epochs at the same pace.
_GOLDEN = 0.6180339887498949
_BLOCK = 1 << 14


@dataclass(frozen=True)
class Resize:
    """Fit an image to `short` pixels on its shorter side, but to no more than `long` on the longer."""

    short: int
    long: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Size after resizing, in whole pixels, at least 1."""
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return max(round(height * scale), 1), max(round(width * scale), 1)


def bucket_of(height: int, width: int, resize: Resize) -> tuple[int, int]:
    """Padded (height, width) of an image of this size: the short side, and the longer side rounded up to a rung."""
    short, long = (int(-(-side // STRIDE) * STRIDE) for side in (resize.short, resize.long))
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


class Order:
    """An endless, shuffled stream over images in groups (buckets), one group a step.

    groups: disjoint arrays of image indices, none empty. Every image is seen once an epoch of its group, in a new
    seeded permutation each epoch. repeats [I]: how often each image is seen instead, on average (`repeat_factors`).
    """

    def __init__(self, groups: list[np.ndarray], *, batch: int, seed: int, repeats: np.ndarray | None = None):
        assert groups and all(len(group) for group in groups)
        self.groups, self.batch, self.seed, self.repeats = groups, batch, seed, repeats
        # Images of an epoch, by group.
        self.lengths = [len(group) if repeats is None else round(repeats[group].sum()) for group in groups]
        share = np.array(self.lengths, dtype=float)
        self._edges = np.cumsum(share / share.sum())[:-1]
        self._offset = (fold(seed, 1) % (1 << 30)) / (1 << 30)
        self._group_of_step = np.zeros(0, dtype=np.int64)
        self._turn_of_step = np.zeros(0, dtype=np.int64)
        self._extending = threading.Lock()  # workers that cross a block's edge together must not shrink the table

    def group(self, step: int) -> int:
        """Group of `step`."""
        if step >= len(self._group_of_step):
            with self._extending:
                if step >= len(self._group_of_step):
                    self._extend(step)
        return int(self._group_of_step[step])

    def indices(self, step: int) -> np.ndarray:
        """Image indices [B] of a step."""
        group = self.group(step)
        first = int(self._turn_of_step[step]) * self.batch
        size = self.lengths[group]
        places = np.arange(first, first + self.batch)
        out = np.empty(self.batch, dtype=np.int64)
        for epoch in range(places[0] // size, places[-1] // size + 1):
            here = places // size == epoch
            out[here] = self.groups[group][self._epoch(group, epoch)[places[here] % size]]
        return out

    def _extend(self, step: int) -> None:
        """Extend the tables to `step`: the group of each step, and the number of earlier steps of the same group."""
        total = (step // _BLOCK + 1) * _BLOCK
        position = (self._offset + np.arange(total) * _GOLDEN) % 1.0
        group = np.searchsorted(self._edges, position, side="right")
        turn = np.empty(total, dtype=np.int64)
        for index in range(len(self.groups)):
            here = group == index
            turn[here] = np.arange(here.sum())
        self._turn_of_step = turn  # before the groups, which other threads read first
        self._group_of_step = group

    @lru_cache(maxsize=8)  # noqa: B019 -- one Order lives as long as its run
    def _epoch(self, group: int, epoch: int) -> np.ndarray:
        """Places in a group of the images of an epoch, in their order."""
        generator = slot_generator(self.seed, 2, group, epoch)
        shuffled = generator.permutation(len(self.groups[group]))
        if self.repeats is None:
            return shuffled
        # Systematic sampling: of a factor of 1.3 every epoch has 1 or 2, and the length of an epoch is always the same.
        ends = np.cumsum(self.repeats[self.groups[group][shuffled]])
        length = self.lengths[group]
        drawn = np.searchsorted(ends, (np.arange(length) + generator.random()) * (ends[-1] / length), side="right")
        return generator.permutation(shuffled[np.minimum(drawn, len(shuffled) - 1)])


def repeat_factors(image_of: np.ndarray, labels: np.ndarray, num_images: int, threshold: float) -> np.ndarray:
    """Repeats of each image [I], so that rare classes are seen more often.

    A class c in a share f of the images has max(1, sqrt(threshold / f)); an image has the largest factor of the classes
    of its objects, and 1 without any (LVIS, Gupta et al. 2019). image_of, labels [N]: image and class of each object.
    """
    pairs = np.unique(np.stack([image_of, labels], axis=1), axis=0)
    shares = np.bincount(pairs[:, 1]) / num_images
    of_class = np.sqrt(np.maximum(threshold / np.maximum(shares, 1 / num_images), 1))  # a class without objects: unused
    found = np.ones(num_images)
    np.maximum.at(found, pairs[:, 0], of_class[pairs[:, 1]])
    return found


def slot_generator(seed: int, *place: int) -> np.random.Generator:
    """Random generator of one place (step and slot, or epoch), a function of the key alone."""
    return np.random.Generator(np.random.PCG64(fold(seed, *place)))
