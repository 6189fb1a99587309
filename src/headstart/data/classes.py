"""Data sets with other classes, and several as one."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from headstart.data.dataset import Dataset


def rename_classes(data: Dataset, names: Mapping[str, str], dropped: Collection[str] = ()) -> Dataset:
    """A data set with classes renamed {old: new} or dropped with their objects; classes of one new name become one.

    A class keeps its id; classes that become one keep the lowest. Images without objects stay. ValueError for a class
    that is not there, an empty name, and where no class is left.
    """
    for name in (*names, *dropped):
        if name not in data.class_names:
            near = get_close_matches(name, data.class_names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(data.class_names[:20])}"
            raise ValueError(f"{data.path}: class {name!r} is not there, {hint}")
    if "" in names.values():
        raise ValueError(f"{data.path}: a class is given no name; expected OLD=NEW, or --drop")
    wanted = [None if name in dropped else names.get(name, name) for name in data.class_names]
    kept = list(dict.fromkeys(name for name in wanted if name is not None))
    if not kept:
        raise ValueError(f"{data.path}: every class is dropped; expected one that stays")
    places = np.array([-1 if name is None else kept.index(name) for name in wanted])
    stays = places[data.labels] >= 0
    taken = data.take(annotations=stays)
    return replace(
        taken,
        labels=places[taken.labels].astype(np.int32),
        class_names=tuple(kept),
        category_ids=np.array([data.category_ids[wanted.index(name)] for name in kept], np.int64),
    )


def merge(parts: Sequence[Dataset]) -> Dataset:
    """Several data sets as one: classes of one name are one, in the order in which they come.

    Ids of images, annotations and classes stay where they do not clash; else they are counted anew from 1. Pictures
    keep their places: their names are relative to the folder that holds all of them. ValueError for a picture that two
    sets have, and for sets of other keypoints.
    """
    first = parts[0]
    for part in parts:
        if part.keypoint_names != first.keypoint_names or part.skeleton != first.skeleton:
            raise ValueError(f"{part.path}: other keypoints than those of {first.path}; expected the same in all")
    folder = Path(os.path.commonpath([os.path.abspath(part.image_dir) for part in parts]))  # without `..`
    names = [
        Path(os.path.relpath(part.image_path(i), folder)).as_posix() for part in parts for i in range(part.num_images)
    ]
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise ValueError(f"{folder / twice}: is in two of the data sets; expected each picture in one")
    ids = _class_ids(parts)
    order = list(ids)
    offsets = ("first", "polygon_first", "coord_first")
    shifts = np.cumsum([0, *(part.num_annotations for part in parts)])
    return replace(
        first,
        path=" + ".join(part.path for part in parts),
        image_dir=folder,
        file_names=tuple(names),
        image_ids=_ids([part.image_ids for part in parts]),
        annotation_ids=_ids([part.annotation_ids for part in parts]),
        category_ids=np.array(list(ids.values()), np.int64),
        class_names=tuple(order),
        labels=np.concatenate(
            [np.array([order.index(name) for name in part.class_names], np.int32)[part.labels] for part in parts]
        ),
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("heights", "widths", "boxes", "crowd", "difficult", "areas", "segment_kind", "coords")
        },
        **{name: _offsets([getattr(part, name) for part in parts]) for name in offsets},
        rles={int(shift) + n: mask for part, shift in zip(parts, shifts) for n, mask in part.rles.items()},
        keypoints=None if first.keypoints is None else np.concatenate([part.keypoints for part in parts]),
        notes=tuple(note for part in parts for note in part.notes),
    )


def _class_ids(parts: Sequence[Dataset]) -> dict[str, int]:
    """{name: id} of all classes, by id; those of the sets where one id is one name throughout, else counted from 1."""
    pairs = {pair for part in parts for pair in zip(part.class_names, part.category_ids.tolist())}
    names, ids = ({pair[place] for pair in pairs} for place in (0, 1))
    if len(names) == len(ids) == len(pairs):
        return dict(sorted(pairs, key=lambda pair: pair[1]))
    found = dict.fromkeys(name for part in parts for name in part.class_names)
    return {name: number for number, name in enumerate(found, start=1)}


def _ids(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Ids of all parts, as they are where all differ, else counted from 1."""
    whole = np.concatenate(parts)
    return whole if len(np.unique(whole)) == len(whole) else np.arange(1, len(whole) + 1, dtype=np.int64)


def _offsets(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Offsets of groups that follow one another."""
    ends = np.cumsum([0, *(part[-1] for part in parts)])
    return np.concatenate([[0], *(part[1:] + end for part, end in zip(parts, ends))]).astype(np.int64)
