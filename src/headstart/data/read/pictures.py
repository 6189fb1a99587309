"""Pictures of annotation files of which each describes one: found by the file's name, wherever they lie."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from headstart.data.images import SUFFIXES, without_copies
from headstart.data.read.text import walk

Named = tuple[Path, str]  # an annotation file, and the picture's name as it has it


def find_pictures(root: Path, annotations: Sequence[Named], image_dir: Path | None) -> tuple[Path, list[str]]:
    """The folder that holds all pictures, and the picture of each annotation file relative to it.

    A picture has the stem of its annotation file, else the name written there; of several, that beside the file, then
    that of the folder of the same name, then that of the folder that fits most files. Without one, the name as written.
    ValueError where several of one folder fit.
    """
    pictures = without_copies(p for p in walk(image_dir or root) if p.suffix.lower() in SUFFIXES)
    by_stem: dict[str, dict[Path, list[str]]] = {}
    for picture in sorted(pictures):
        by_stem.setdefault(picture.stem, {}).setdefault(picture.parent, []).append(picture.name)
    fits = [by_stem.get(file.stem) or by_stem.get(_base(written).stem, {}) for file, written in annotations]
    counts = Counter(folder for folders in fits for folder in folders)
    ranks = {folder: rank for rank, (folder, _) in enumerate(sorted(counts.items(), key=lambda x: (-x[1], x[0])))}
    found = [
        _choose(file, written, folders, ranks) if folders else None
        for (file, written), folders in zip(annotations, fits)
    ]
    folders = {picture.parent for picture in found if picture}
    usual = min(ranks, key=ranks.__getitem__, default=image_dir or root / "JPEGImages")
    base = Path(os.path.commonpath(folders)) if folders else usual
    missing = "" if usual == base else f"{usual.relative_to(base).as_posix()}/"
    return base, [
        picture.relative_to(base).as_posix() if picture else missing + (written or f"{file.stem}.jpg")
        for picture, (file, written) in zip(found, annotations)
    ]


def _base(written: str) -> PureWindowsPath:
    """The name in a path as Windows or POSIX writes it."""
    return PureWindowsPath(PureWindowsPath(written).name)


def _choose(file: Path, written: str, folders: dict[Path, list[str]], ranks: dict[Path, int]) -> Path:
    folder = min(folders, key=lambda one: (one != file.parent, one.name != file.parent.name, ranks[one]))
    names, name = folders[folder], _base(written).name
    if len(names) > 1 and name not in names:
        raise ValueError(f"{file}: fits the pictures {_listed(names)}: expected one, or its name in 'filename'")
    return folder / (name if name in names else names[0])


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)
