"""Commands that write data sets: in another format, with other classes, several as one."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli.console import Force, Json, answer
from headstart.files import refuse_overwrite

if TYPE_CHECKING:
    from headstart.data.dataset import Dataset


class Format(StrEnum):
    """Formats that are written."""

    COCO = "coco"
    VOC = "voc"
    YOLO = "yolo"


Images = Annotated[Path | None, typer.Option(help="Folder of the pictures, where it is elsewhere.")]
Out = Annotated[Path, typer.Option(help="Output file, COCO JSON; the pictures stay where they are.")]
Drop = Annotated[list[str] | None, typer.Option(help="Class to leave out with its objects; repeatable.")]


def convert(
    path: Annotated[str, typer.Argument(help="Data set of any format, or one split of it as PATH:SPLIT.")],
    out: Annotated[Path, typer.Argument(help="COCO JSON to write; for VOC and YOLO a new folder.")],
    to: Annotated[Format, typer.Option(help="Format to write.")] = Format.COCO,
    images: Images = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a data set in another format.

    COCO JSON is one split, and its pictures stay where they are. A VOC or YOLO folder has all splits, unless one is
    named, and copies of the pictures.
    """
    from headstart.data.read import open_whole
    from headstart.data.write import open_splits, write_voc, write_yolo

    if to is Format.COCO:
        _write_coco(open_whole(path, images, split), [path], out, force=force, as_json=as_json)
        return
    if force:
        raise ValueError("--force: has no effect with --to voc and yolo, whose folder must be new; expected none")
    splits = open_splits(path, images, split)
    lost = (write_yolo if to is Format.YOLO else write_voc)(splits, out)
    notes = [*(note for data in splits.values() for note in data.notes), *lost]
    counts = {name: _counts(data) for name, data in splits.items()}
    told = [f"{name}: {_text(found)}" for name, found in counts.items()]
    answer(as_json, {"folder": str(out), "splits": counts, "notes": notes}, *notes, *told, f"{to.upper()}: {out}")


def rename(
    path: Annotated[str, typer.Argument(help="Data set of any format, or one split of it as PATH:SPLIT.")],
    names: Annotated[
        list[str] | None, typer.Argument(help="OLD=NEW, any number of them; one NEW may be given to several.")
    ] = None,
    out: Out = Path("renamed.json"),
    drop: Drop = None,
    images: Images = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Rename classes, make several one, or leave some out; the result is COCO JSON."""
    from headstart.data.classes import rename_classes
    from headstart.data.read import open_whole

    data = rename_classes(open_whole(path, images), _class_map(names), drop or ())
    _write_coco(data, [path], out, force=force, as_json=as_json)


def merge(
    paths: Annotated[list[str], typer.Argument(help="Data sets of any formats, or splits of them as PATH:SPLIT.")],
    out: Out = Path("merged.json"),
    rename: Annotated[
        list[str] | None, typer.Option(help="OLD=NEW, a class in each set that has it; repeatable.")
    ] = None,
    drop: Drop = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Folder of the pictures of each set, in the same order.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write several data sets as one; classes of one name are one. The result is COCO JSON."""
    from headstart.data.classes import merge as merge_sets
    from headstart.data.classes import rename_classes
    from headstart.data.read import open_whole

    folders = [*(images or ()), *[None] * len(paths)]
    if len(images or ()) > len(paths):
        raise ValueError(f"images: {len(images)} folders for {len(paths)} data sets: expected at most one each")
    parts = [open_whole(path, folder) for path, folder in zip(paths, folders)]
    known = {name for part in parts for name in part.class_names}
    names, dropped = _class_map(rename), drop or []
    for name in (*names, *dropped):
        if name not in known:
            raise ValueError(f"class {name!r}: is in none of the sets, expected one of {', '.join(sorted(known))}")
    chosen = [
        rename_classes(
            part,
            {old: new for old, new in names.items() if old in part.class_names},
            [name for name in dropped if name in part.class_names],
        )
        for part in parts
    ]
    _write_coco(merge_sets(chosen), paths, out, force=force, as_json=as_json)


def _class_map(texts: list[str] | None) -> dict[str, str]:
    """{old: new} of OLD=NEW texts; ValueError for a class that is given two names."""
    names: dict[str, str] = {}
    for text in texts or ():
        old, sign, new = text.partition("=")
        if not sign or not old:
            raise ValueError(f"{text!r}: expected OLD=NEW, names of classes")
        if names.setdefault(old, new) != new:
            raise ValueError(f"class {old!r}: is renamed twice, to {names[old]!r} and {new!r}; expected one name")
    return names


def _write_coco(data: "Dataset", paths: Sequence[str], out: Path, *, force: bool, as_json: bool) -> None:
    """Write the data set made of `paths` and print its counts."""
    from headstart.data.read import annotation_files
    from headstart.data.read.coco import write

    if out.suffix.lower() != ".json":
        raise ValueError(f"{out}: is not the name of a COCO file, expected one that ends in .json")
    read = (file for path in paths for file in annotation_files(path))
    refuse_overwrite([(out, Path(data.path))], inputs=read, force=force)
    write(data, out)
    found = _counts(data)
    facts = {"file": str(out), "image_dir": str(data.image_dir), **found, "notes": data.notes}
    answer(as_json, facts, *data.notes, f"{_text(found)}: {out} (images in {data.image_dir})")


def _counts(data: "Dataset") -> dict[str, Any]:
    return {"images": data.num_images, "objects": data.num_annotations, "classes": list(data.class_names)}


def _text(counts: dict[str, Any]) -> str:
    return f"{counts['images']} images, {counts['objects']} objects, {len(counts['classes'])} classes"
