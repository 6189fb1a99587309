"""Data of a question: the format found, checked, repaired if asked for, and divided where they come undivided."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headstart.data.check import ERROR, Problem, Report, doctor
from headstart.data.check.split import alike, divide, group_images, split_dataset, thumbnails
from headstart.data.dataset import Dataset
from headstart.data.read import Source, detect_format, find_layout, open_dataset, read_split_file, splits_of
from headstart.data.read.coco import write
from headstart.design.pixels import find_maps, open_pixels, write_split
from headstart.verdict.numbers import counted

SHARE = 0.2  # of the images for validation: the usual 80/20 (Ultralytics' autosplit: 90/10)
SHARE_OF_FEW, FEW = 1 / 3, 100  # of fewer images: a fifth of them would tell nothing
HARMLESS = ("box-degenerate",)  # errors of single boxes, which readers leave out

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """Training and validation images with the places that recipes name; how: their origin in a few words.

    Of the kind "pixels", labels are folders of label maps, and ignored their values for unknown pixels.
    """

    kind: str
    train: Dataset
    val: Dataset
    places: tuple[Source, Source]
    how: str
    labels: tuple[Path, ...] = ()
    ignored: tuple[int, ...] = ()


def find_data(
    paths: Sequence[str | Path], directory: Path, *, images: Sequence[Path] = (), labels: Sequence[Path] = (),
    fix: bool = False, groups: str | None = None, say: Say,
) -> Found:  # fmt: skip
    """Training and validation set of one or two paths, checked; files written for them go into `directory`.

    One path: its splits train and val (else test), or a division that keeps near-duplicates together. ValueError for
    errors in the data, which `say` has listed. With `fix` a clean copy is written instead, without validation pictures
    that are training pictures.
    """
    if not 1 <= len(paths) <= 2 or len(images) > len(paths):
        raise ValueError(f"{len(paths)} data sets, {len(images)} image folders: expected one or two, and one each")
    given = [Source.parse(p, images[n] if n < len(images) else None) for n, p in enumerate(paths)]
    if labels and len(labels) != len(paths):
        raise ValueError(f"--labels: {len(labels)} folders for {len(paths)} data sets: expected one each")
    maps = dict(zip(("train", "val") if len(given) == 2 else ("all",), zip(given, labels))) or _maps_of(given)
    if maps:
        return _find_pixels(maps, given[0].path, directory, groups=groups, say=say)
    layouts = [find_layout(place.path) for place in given]
    kind = layouts[0].kind
    if kind == "split":
        kind = detect_format(read_split_file(given[0].path)[1])
    if len(given) == 2:
        places, how = given, "given"
    else:
        known = splits_of(layouts[0]) if given[0].split is None else {}
        names = [name for name in ("train", "val", "test") if name in known]
        chosen = names[:2] if "train" in names else names[:1]
        places = [Source(known[name].path, given[0].image_dir, known[name].split) for name in chosen]
        how = " and ".join(chosen)
        if "test" in names[len(chosen) :]:
            say("split test is left alone: choose nothing by it, and judge the final model on it once")
        if len(places) < 2:
            whole = replace(known["all"], image_dir=given[0].image_dir) if "all" in known else given[0]
            places, how = places or [whole], "divided here"
    say(f"format: {_FORMATS.get(kind, kind)}; training and validation set: {how}")
    if len(places) == 2 and _same_images(*places):
        say("training and validation set are the same images: divided here instead")
        places, how = places[:1], "divided here"
    _refuse_groups(groups, how)
    places = _checked(dict(zip(("train", "val"), places)), kind, directory, fix=fix, say=say)
    if len(places) == 1:
        place = places[0]
        share = share_of(open_dataset(place.path, place.image_dir, place.split).num_images)
        file = directory / "split.json"
        path = f"{place.path}:{place.split}" if place.split else place.path
        for line in split_dataset(path, file, images=place.image_dir, share=share, seed=0, groups=groups).lines():
            say(line)
        places = [Source(file, None, part) for part in ("train", "val")]
    train, val = (open_dataset(place.path, place.image_dir, place.split) for place in places)
    if how != "divided here" and (twins := len(np.unique(alike(thumbnails(val), thumbnails(train))[0]))):
        say(
            f"{twins} of {val.num_images} validation pictures are near-duplicates of training pictures: scores will be "
            "too high; `headstart data split` divides without them"
        )
    return Found(kind, train, val, (places[0], places[1]), how)


_FORMATS = {
    "pixels": "label maps",
    "coco": "COCO JSON", "voc": "PASCAL VOC", "yolo": "YOLO", "csv": "CSV", "folders": "one folder of images a class",
}  # fmt: skip


def _maps_of(given: Sequence[Source]) -> dict[str, tuple[Source, Path]]:
    """Pictures and label maps of a folder that has no other format, by split; ValueError for a folder of neither."""
    root = given[0].path
    if len(given) != 1 or given[0].split is not None or not root.is_dir():
        return {}
    try:
        unknown = None
        if find_layout(root).kind != "folders":
            return {}
    except ValueError as error:
        expected = "8-bit PNGs (grey or palette) named as the pictures, in a folder such as masks/"
        unknown = f"{error}; label maps are {expected}"
    found = find_maps(root)
    if unknown and not found:
        raise ValueError(unknown)
    return {name: (Source(one), maps) for name, (one, maps) in found.items()}


def _find_pixels(
    maps: dict[str, tuple[Source, Path]], root: Path, directory: Path, *, groups: str | None, say: Say
) -> Found:
    """Label maps as training and validation set, checked; COCO files with their images and classes are written."""
    names = [name for name in ("train", "val", "test") if name in maps][:2] if "train" in maps else list(maps)[:1]
    opened, ignored = open_pixels([maps[name] for name in names], root)
    how = "divided here" if len(names) == 1 else " and ".join(names)
    say(f"format: {_FORMATS['pixels']}; training and validation set: {how}")
    _refuse_groups(groups, how)
    if left_out := sum(each.left_out for each in opened):
        say(f"{counted(left_out, 'picture')} without a label map left out")
    if len(names) == 1:
        whole = opened[0].dataset
        held_out = divide(whole, group_images(whole, groups), share_of(whole.num_images), 0)
        chosen = [(opened[0], np.flatnonzero(~held_out)), (opened[0], np.flatnonzero(held_out))]
    else:
        chosen = [(each, np.arange(each.dataset.num_images)) for each in opened]
    labels = tuple(each.labels for each, _ in chosen)
    places = {part: write_split(*own, directory / f"{part}.json") for part, own in zip(("train", "val"), chosen)}
    report = doctor.check(places, labels=dict(zip(places, labels)), ignore=ignored)
    _refuse(report, report.of(ERROR), say, "mend them")
    train, val = (open_dataset(place.path, place.image_dir) for place in places.values())
    return Found("pixels", train, val, (places["train"], places["val"]), how, labels, ignored)


def _refuse_groups(groups: str | None, how: str) -> None:
    """ValueError for a pattern of names where nothing is divided."""
    if groups is not None and how != "divided here":
        raise ValueError(
            f"groups = {groups!r}: has no effect on a training and a validation set ({how}); expected none"
        )


def share_of(num_images: int) -> float:
    """Share of so many images for validation."""
    return SHARE if num_images >= FEW else SHARE_OF_FEW


def _same_images(*places: Source) -> bool:
    """True if two places have the same pictures; False where one of them cannot be read, which the check will say."""
    found = [doctor.read_usable(place, "")[0] for place in places]
    paths = [{os.path.realpath(data.image_path(i)) for i in range(data.num_images)} for data in found if data]
    return len(paths) == len(places) and paths[0] == paths[1]


def _checked(sources: dict[str, Source], kind: str, directory: Path, *, fix: bool, say: Say) -> list[Source]:
    """The splits, or with `fix` clean copies of those with errors; ValueError for errors that stay.

    Class folders have no clean copy: their classes are folders of images, and a copy is a COCO file.
    """
    report = doctor.check(sources)
    if not (serious := [problem for problem in report.of(ERROR) if problem.code not in HARMLESS]):
        left = sum(problem.code in HARMLESS for problem in report.problems)
        boxes = "; boxes without width or height are left out" if left else ""
        say(f"data check: {report.lines()[-1]}{boxes}; `headstart data check` lists them")
        return list(sources.values())
    if not fix or kind == "folders":
        way = "mend them"
        if kind != "folders" and all(problem.code != "file" for problem in serious):  # else a file is not readable
            way += ", or add --fix to go on with a clean copy (your files stay as they are)"
        _refuse(report, serious, say, way)
    mended = {name: _mend(name, place, directory, serious, say) for name, place in sources.items()}
    again = [problem for problem in doctor.check(mended).of(ERROR) if problem.code not in HARMLESS]
    if again:
        raise ValueError(f"{len(again)} errors stay after --fix; the first: {again[0].line()}")
    return list(mended.values())


def _refuse(report: Report, serious: Sequence[Problem], say: Say, way: str) -> None:
    """ValueError where there are serious problems, all listed."""
    for line in report.lines() if serious else ():
        say(line)
    if serious:
        raise ValueError(f"the data have {counted(len(serious), 'error')} (`headstart data check` lists them); {way}")


def _mend(name: str, place: Source, directory: Path, problems: list[Problem], say: Say) -> Source:
    """A clean copy of a split as COCO JSON; the split itself where it has no error."""
    own = [problem for problem in problems if problem.split == name]
    if not own:
        return place
    out, shared = directory / f"{name}.json", {problem.value for problem in own if problem.code == "split-overlap"}
    out.unlink(missing_ok=True)
    path = f"{place.path}:{place.split}" if place.split else place.path
    for line in doctor.fix(path, out, image_dir=place.image_dir):
        say(line)
    usable, _ = doctor.read_usable(place, name)
    assert usable is not None, "fix raises where nothing is usable"
    folder = usable.image_dir
    if shared:
        clean = open_dataset(out, folder)
        kept = [i for i, file in enumerate(clean.file_names) if file not in shared]
        write(clean.take(kept), out)
        say(f"{len(shared)} pictures of {name} left out: they are in the other set too")
    return Source(out, folder)
