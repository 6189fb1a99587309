"""Which image stands in which slot of which step: a pure function of (seed, step, slot).

The order does not depend on workers, processes, or the length of the schedule, so that a resumed, branched or
differently split run sees the same images. I images, B slots a step.
"""

import threading
from functools import lru_cache

import numpy as np

from headstart.ops.random import fold

# Step t takes its bucket at position frac(offset + t * golden) of the line of bucket shares: a low-discrepancy
# sequence, so that every bucket advances through its epochs at the same pace.
_GOLDEN = 0.6180339887498949
_BLOCK = 1 << 14


class Order:
    """An endless, shuffled stream over images in groups (buckets), one group a step.

    groups: disjoint arrays of image indices, none empty. Every image is seen once an epoch of its group, in a new
    seeded permutation each epoch.
    """

    def __init__(self, groups: list[np.ndarray], *, batch: int, seed: int):
        assert groups and all(len(group) for group in groups)
        self.groups, self.batch, self.seed = groups, batch, seed
        share = np.array([len(group) for group in groups], dtype=float)
        self._edges = np.cumsum(share / share.sum())[:-1]
        self._offset = (fold(seed, 1) % (1 << 30)) / (1 << 30)
        self._group_of_step = np.zeros(0, dtype=np.int64)
        self._turn_of_step = np.zeros(0, dtype=np.int64)
        self._extending = threading.Lock()  # workers that cross a block's edge together must not shrink the table

    def group(self, step: int) -> int:
        """The group that `step` draws from."""
        self._extend(step)
        return int(self._group_of_step[step])

    def indices(self, step: int) -> np.ndarray:
        """Image indices [B] of a step."""
        group = self.group(step)
        first = int(self._turn_of_step[step]) * self.batch
        size = len(self.groups[group])
        places = np.arange(first, first + self.batch)
        out = np.empty(self.batch, dtype=np.int64)
        for epoch in range(places[0] // size, places[-1] // size + 1):
            here = places // size == epoch
            out[here] = self.groups[group][self._permutation(group, epoch)[places[here] % size]]
        return out

    def _extend(self, step: int) -> None:
        """Know the group of every step up to `step`, and how many earlier steps drew from the same."""
        if step < len(self._group_of_step):
            return
        with self._extending:
            if step >= len(self._group_of_step):
                self._build(step)

    def _build(self, step: int) -> None:
        total = (step // _BLOCK + 1) * _BLOCK
        position = (self._offset + np.arange(total) * _GOLDEN) % 1.0
        group = np.searchsorted(self._edges, position, side="right")
        turn = np.empty(total, dtype=np.int64)
        for index in range(len(self.groups)):
            here = group == index
            turn[here] = np.arange(here.sum())
        self._turn_of_step = turn  # before the groups, which other threads look at first
        self._group_of_step = group

    @lru_cache(maxsize=8)  # noqa: B019 -- one Order lives as long as its run
    def _permutation(self, group: int, epoch: int) -> np.ndarray:
        return slot_generator(self.seed, 2, group, epoch).permutation(len(self.groups[group]))


def slot_generator(seed: int, *place: int) -> np.random.Generator:
    """The random numbers of one place (step and slot, or epoch): made afresh from the key, never remembered."""
    return np.random.Generator(np.random.PCG64(fold(seed, *place)))
