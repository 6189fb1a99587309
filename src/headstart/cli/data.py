"""Commands about data sets."""

from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.console import Force, Json, Overrides, answer, patch_of, print_json, progress, say, show
from headstart.files import refuse_overwrite, write_whole

app = typer.Typer(no_args_is_help=True)


@app.command()
def shapes(
    out: Annotated[Path, typer.Argument(help="Output folder.")],
    images: Annotated[int, typer.Option(help="Number of training images.", min=1)] = 800,
    val: Annotated[int, typer.Option(help="Number of validation images.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Seed; equal seeds give equal bytes.", min=0)] = 0,
    size: Annotated[int | None, typer.Option(help="Side in pixels (default: 96, or 64 with --classes).")] = None,
    classes: Annotated[
        bool,
        typer.Option("--classes", help="Write image folders of single objects, in other classes, for pre-training."),
    ] = False,
    keypoints: Annotated[bool, typer.Option("--keypoints", help="Add five keypoints to one class (arrow).")] = False,
    semantic: Annotated[bool, typer.Option("--semantic", help="Also write a label map (PNG) per image.")] = False,
    objects: Annotated[int | None, typer.Option(help="Most objects in a scene (default: 6, the most).")] = None,
    smallest: Annotated[
        float | None,
        typer.Option(help="Least longer side of an object, as a share of the scene's (default: 0.1; at most 0.6)."),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Class to draw in scenes; repeatable (default: all eight).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Generate the built-in data: procedural scenes as COCO JSON and images, or image folders for pre-training."""
    from headstart.data.shapes.scenes import Layout
    from headstart.data.shapes.write import generate, generate_classes

    scenes = {"keypoints": keypoints, "semantic": semantic, "objects": objects, "smallest": smallest, "kind": kind}
    given = [name for name, value in scenes.items() if not (value is None or value is False or value == [])]
    if classes and given:
        raise ValueError(f"--{given[0]} is about scenes, and --classes writes single objects; expected one of the two")
    chosen = {name: scenes[name] for name in ("objects", "smallest") if name in given}
    chosen |= {"kinds": tuple(kind)} if kind else {}
    options = {} if classes else {"keypoints": keypoints, "semantic": semantic, "layout": Layout(**chosen)}
    with progress("shapes", (images + val) * (2 if semantic else 1)) as update:
        done = count(1)
        made = (generate_classes if classes else generate)(
            out,
            images,
            val,
            seed,
            size if size is not None else 64 if classes else 96,
            progress=lambda: update(next(done)),
            **options,
        )
    files = [str(path) for path in made]
    answer(as_json, {"files": files}, *files)


@app.command()
def check(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Data set, or training and validation set: COCO JSON, VOC folder[:SPLIT], YOLO data.yaml[:SPLIT]."
        ),
    ],
    images: Annotated[
        list[Path] | None, typer.Option(help="Image folder of each COCO JSON, in the same order.")
    ] = None,
    labels: Annotated[
        list[Path] | None, typer.Option(help="Folder of label maps (PNG) of each data set, in the same order.")
    ] = None,
    ignore: Annotated[
        list[int] | None,
        typer.Option(min=0, max=255, help="Value of label maps to ignore; may be repeated (default: 255)."),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write a copy without unusable entries here; one data set only.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List every problem of a data set by file, id and value; exit code 1 on errors."""
    from headstart.data.check import doctor

    named = doctor.sources(paths, images)
    if fix is not None and len(paths) > 1:
        raise ValueError(f"--fix {fix}: {len(paths)} data sets given, expected one")
    if labels and len(labels) > len(named):
        raise ValueError(f"labels: {len(labels)} folders for {len(named)} data sets: expected at most one each")
    report = doctor.check(named, labels=dict(zip(named, labels or ())), ignore=ignore or (255,))
    if not as_json:
        say("\n".join(report.lines()))
    changes = [] if fix is None else doctor.fix(paths[0], fix, image_dir=images[0] if images else None)
    if as_json:
        problems = [asdict(problem) for problem in report.problems]
        print_json({"errors": report.num_errors, "problems": problems, "changes": changes})
    elif changes:
        say("\n".join(changes))
    if report.num_errors:
        raise typer.Exit(1)


@app.command()
def stats(
    path: Annotated[str, typer.Argument(help="COCO JSON, VOC folder or YOLO data.yaml.")],
    images: Annotated[Path | None, typer.Option(help="Image folder of a COCO JSON.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a VOC or YOLO data set.")] = None,
    as_json: Json = False,
) -> None:
    """Count images, instances and pixels."""
    from headstart.data.check import doctor
    from headstart.data.read import open_whole

    found = doctor.stats(open_whole(path, images, split))
    if as_json:
        print_json(found)
        return
    show(
        path,
        ["", ""],
        [
            [key, f"{value:,}" if isinstance(value, int) else value]
            for key, value in found.items()
            if not isinstance(value, dict)
        ],
    )
    for key, table in found.items():
        if isinstance(table, dict):
            show(key, ["", ""], [[name, f"{value:,}"] for name, value in table.items()])


@app.command()
def view(
    path: Annotated[str, typer.Argument(help="COCO JSON, VOC folder or YOLO data.yaml.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Output file: a PNG, or an HTML page with captions.")] = Path("view.png"),
    images: Annotated[Path | None, typer.Option(help="Image folder of a COCO JSON.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a VOC or YOLO data set.")] = None,
    num: Annotated[int, typer.Option(help="Number of images.", min=1, max=400)] = 12,
    seed: Annotated[int, typer.Option(help="Seed that draws the images.", min=0, max=2**32 - 1)] = 0,
    augmented: Annotated[
        bool, typer.Option("--augmented", help="As training shows them: after the augmentation of a recipe.")
    ] = False,
    recipe: Annotated[str, typer.Option(help="Detection recipe of --augmented.")] = "base",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw a contact sheet of images with boxes, masks, keypoints and class names; overrides change the recipe."""
    from headstart.data.read import open_annotated
    from headstart.recipe.load import load_recipe
    from headstart.tasks import contact_sheet

    if out.suffix.lower() not in (".png", ".html"):
        raise ValueError(f"{out}: is not the name of a picture or page, expected one that ends in .png or .html")
    if not augmented and (overrides or recipe != "base"):
        raise ValueError("--recipe and overrides: have no effect without --augmented; expected it, or none of them")
    data = open_annotated(path, images, split)
    refuse_overwrite([(out, Path(path))], inputs=map(data.image_path, range(data.num_images)), force=force)
    if augmented:
        found = load_recipe(recipe, {"seed": seed, **patch_of(overrides)})
        if found.task != "detection":
            raise ValueError(f"--recipe: {recipe} is of {found.task}, expected a detection recipe")
        shown = contact_sheet.augmented(found, data, num)
    else:
        shown = contact_sheet.annotated(data, num, seed)
    counted = f"{len(shown)} {'views ' if augmented else ''}of {data.num_images} images"
    if out.suffix.lower() == ".html":
        write_whole(out, contact_sheet.html_sheet(f"{path}: {counted}", shown))
    else:
        contact_sheet.contact_sheet([each.picture for each in shown]).save(out)
    answer(as_json, {"file": str(out), "images": len(shown), "of": data.num_images}, f"{counted}: {out}")


@app.command()
def split(
    path: Annotated[str, typer.Argument(help="Data set of any format, or one split of it as PATH:SPLIT.")],
    out: Annotated[Path, typer.Argument(help="Split file to write (JSON); other commands take FILE:train, FILE:val.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures, where it is elsewhere.")] = None,
    share: Annotated[float, typer.Option(help="Share of the images in the validation set.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed; equal seeds give equal splits.", min=0)] = 0,
    groups: Annotated[
        str | None,
        typer.Option(help="Regular expression: names with the same text there stay together, such as '^(cow[0-9]+)_'."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Divide a data set into training and validation images; near-duplicates stay together, classes are spread evenly.

    Nothing is copied or moved: the file lists names.
    """
    from headstart.data.check.split import split_dataset
    from headstart.data.read import annotation_files

    if out.suffix.lower() != ".json":
        raise ValueError(f"{out}: is not the name of a split file, expected one that ends in .json")
    refuse_overwrite([(out, Path(path))], inputs=annotation_files(path), force=force)
    found = split_dataset(path, out, images=images, share=share, seed=seed, groups=groups)
    use = f"use it as {out}:train and {out}:val, with every command and in recipes"
    answer(as_json, asdict(found) | {"file": str(out)}, *found.lines(), use)
