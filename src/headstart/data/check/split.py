"""Division of a data set into training and validation images: near-duplicates stay together, classes are spread evenly.

Letters: I images, C classes, G groups of images, V = SIDE * SIDE values of a thumbnail.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from headstart.data.dataset import Dataset
from headstart.data.images import thumbnail
from headstart.data.read import Source, open_whole, write_split_file
from headstart.hardware import usable_cores

SIDE = 16
# Correlation of thumbnails from which pictures count as near-duplicates (benchmarks/near_duplicates.py). Nine of ten
# copies at JPEG quality 30, of half the size or a fifth brighter: 0.98 or more; two views of one blood smear: 0.99. The
# nearest of different pictures: 0.75 among 364 blood smears, 0.90 among 400 damaged cars.
ALIKE = 0.95
LEAST_CONTRAST = 1.0  # grey levels, standard deviation: in a flatter thumbnail only noise would correlate
MOST_COMPARED = 50_000  # images: a minute of one core; the time grows with their square
_BLOCK = 2048  # rows of the correlation matrix at a time: 0.4 GB with MOST_COMPARED columns


@dataclass(frozen=True)
class Division:
    """A split file that was written: its images, and the groups of those that stay together.

    by_name: whether a pattern of names made groups too. compared: False where there were too many images to look for
    near-duplicates.
    """

    file: Path
    train: int
    val: int
    groups: int
    by_name: bool
    compared: bool

    def lines(self) -> list[str]:
        """The division in lines for people."""
        kept = self.train + self.val - self.groups
        lines = [
            f"{self.file}: {self.train} training and {self.val} validation images",
            f"{self.groups} groups: {kept} more pictures that repeat one of another"
            f"{' or share a name' if self.by_name else ''}, on one side together",
        ]
        if not self.compared:
            lines.append(f"more than {MOST_COMPARED:,} images: near-duplicates were not looked for (only --groups)")
        return lines


def split_dataset(
    path: str | Path, out: Path, *, images: Path | None = None, share: float, seed: int, groups: str | None = None
) -> Division:
    """Divide a data set (or PATH:SPLIT) and write the split file."""
    place = Source.parse(path, images)
    dataset = open_whole(place.path, place.image_dir, place.split)
    numbers = group_images(dataset, groups)
    held_out = divide(dataset, numbers, share, seed)
    names = {
        part: [name for name, own in zip(dataset.file_names, held_out) if own == is_val]
        for part, is_val in (("train", False), ("val", True))
    }
    settings = {"seed": seed, "share": share, "groups": groups}
    write_split_file(out, place.path, place.image_dir, place.split, names, **settings)
    return Division(
        file=out,
        train=len(names["train"]),
        val=len(names["val"]),
        groups=len(np.unique(numbers)),
        by_name=groups is not None,
        compared=dataset.num_images <= MOST_COMPARED,
    )


def thumbnails(dataset: Dataset) -> NDArray[np.float32]:
    """Thumbnails [I, V] of mean 0 and norm 1; zero for flat pictures. ValueError for an unreadable file."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        paths = [dataset.image_path(i) for i in range(dataset.num_images)]
        found = np.stack(list(pool.map(lambda path: thumbnail(path, SIDE).ravel(), paths)))
    return normalised(found)


def normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [I, V] with mean 0 and norm 1, so that products are correlations; zero for flat ones."""
    centred = values - values.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.where(norms > LEAST_CONTRAST * SIDE, centred / np.maximum(norms, 1e-6), 0).astype(np.float32)


def alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs (index in one, index in other) of thumbnails that are near-duplicates, mirrored ones included."""
    mirrored = one.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(one), -1)
    pairs = [np.zeros((2, 0), np.intp)]
    for start in range(0, len(one), _BLOCK):
        part = slice(start, start + _BLOCK)
        found = np.argwhere(np.maximum(one[part] @ other.T, mirrored[part] @ other.T) >= ALIKE).T
        pairs.append(found + np.array([[start], [0]]))
    first, second = np.concatenate(pairs, 1)
    return first, second


def group_images(dataset: Dataset, pattern: str | None = None) -> NDArray[np.int32]:
    """The group of each image, int32 [I]: near-duplicates, and names of which `pattern` finds the same text.

    pattern: a regular expression; its first parenthesised part, if any, else all of the match is the text. Near-
    duplicates are looked for among at most MOST_COMPARED images. ValueError for no pattern, and one that fits no name.
    """
    small = thumbnails(dataset) if dataset.num_images <= MOST_COMPARED else np.zeros((0, SIDE * SIDE), np.float32)
    first, second = alike(small, small)
    if pattern is not None:
        try:
            matches = [re.search(pattern, name) for name in dataset.file_names]
        except re.error as error:
            raise ValueError(f"groups = {pattern!r}: not a regular expression ({error})") from None
        texts = [None if m is None else (m[1] if m.re.groups else m[0]) for m in matches]
        members: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            if text is not None:
                members.setdefault(text, []).append(i)
        if not members:
            raise ValueError(f"groups = {pattern!r}: fits no file name, such as {dataset.file_names[0]!r}")
        chains = [(a, b) for same in members.values() for a, b in pairwise(same)]
        first = np.concatenate([first, [a for a, _ in chains]]).astype(np.intp)
        second = np.concatenate([second, [b for _, b in chains]]).astype(np.intp)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(dataset.num_images,) * 2)
    return connected_components(graph, directed=False)[1]


def divide(dataset: Dataset, groups: Sequence[int] | NDArray[np.int32], share: float, seed: int) -> NDArray[np.bool_]:
    """Bool [I], true for validation: whole groups, about `share` of the images of each class and of all.

    Iterative stratification (Sechidis et al. 2011) on groups: the class with the fewest open images is divided first.
    A function of its arguments alone. ValueError unless both parts get a group.
    """
    if not 0 < share < 1:
        raise ValueError(f"share = {share}: expected a share of the images between 0 and 1")
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    num_groups = int(numbers.max()) + 1
    if num_groups < 2:
        raise ValueError(
            f"{dataset.path}: all {dataset.num_images} images are one group of near-duplicates, or of one name: "
            "expected at least two groups to divide"
        )
    in_image = np.zeros((dataset.num_images, dataset.num_classes + 1))  # the last column counts all images
    in_image[dataset.image_of[~dataset.crowd], dataset.labels[~dataset.crowd]] = 1
    in_image[:, -1] = 1
    counts = np.zeros((num_groups, dataset.num_classes + 1))
    np.add.at(counts, numbers, in_image)
    need = np.stack([(1 - share) * counts.sum(0), share * counts.sum(0)])  # of training and validation
    order = np.random.RandomState(seed).permutation(num_groups)
    order = order[np.argsort(-counts[order, -1], kind="stable")]  # large groups first: the small ones even out
    part = np.full(num_groups, -1)
    while (part < 0).any():
        left = counts[part < 0].sum(0)
        column = min(np.flatnonzero(left), key=lambda c: (left[c], c))
        for group in order[(part[order] < 0) & (counts[order, column] > 0)]:
            better = max((0, 1), key=lambda side: (need[side, column], need[side, -1]))
            part[group] = better
            need[better] -= counts[group]
    for side in (0, 1):
        if not (part == side).any():
            part[order[-1]] = side
    return (part == 1)[numbers]
