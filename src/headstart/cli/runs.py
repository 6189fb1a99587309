"""Verbs that train a recipe, and evaluate, use, export and verify the result."""

from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headstart.cli.console import (
    Force,
    Json,
    Overrides,
    Quiet,
    Rehash,
    answer,
    describe_run,
    messages,
    patch_of,
    print_json,
    progress,
    resolved,
    say,
    show,
)
from headstart.files import refuse_overwrite

Weights = Annotated[str, typer.Option(help="Weights of the checkpoint: live, or ema for the averages of train.ema.")]
Out = Annotated[Path, typer.Option(help="Parent folder of run directories.")]


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    out: Out = Path("runs"),
    rehash: Rehash = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe; a finished run is not repeated, and a killed one resumes."""
    from headstart.ops import processes as distributed
    from headstart.tasks import data_fingerprint, num_training_images
    from headstart.training.run import train as train_run
    from headstart.weights.checkpoint import point_latest

    found, origins = resolved(recipe, overrides)
    distributed.start_processes(found.device)
    on, writes = messages(as_json, quiet), distributed.is_writer()
    total = describe_run(found, num_training_images(found), on) if writes else 1
    if rehash:
        data_fingerprint(found, rehash=True)
    with progress(found.name, total, quiet=quiet) as update:
        result = train_run(
            found,
            out,
            provenance=origins,
            progress=lambda step, values: update(step, f"loss {values['loss']:.3f}"),
            say=partial(say, on=on) if writes else None,
        )
    if writes:
        point_latest(result.directory)
    if writes and as_json:
        print_json({"run": str(result.directory), "checkpoint": str(result.checkpoint), "metrics": result.metrics})
    elif writes:
        _show_metrics(result.metrics)
        say(f"run: {result.directory}")
    distributed.stop_processes()


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A shipped classification recipe or a YAML file.")],
    overrides: Overrides = None,
    out: Out = Path("runs"),
    rehash: Rehash = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on image folders, to pre-train the backbone of a detector."""
    found, _ = resolved(recipe, overrides)
    if found.task != "classification":
        raise ValueError(
            f"recipe {recipe!r}: task is {found.task!r}, pretrain expects a classification recipe such as demo_pretrain"
        )
    train(recipe, overrides, out, rehash, as_json, quiet)


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint or a run directory.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="COCO JSON, VOC folder or YOLO data.yaml; 'train', or nothing, for a set of the recipe's own."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Image folder of a COCO JSON.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a VOC or YOLO set.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of label maps, for a segmentation model.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the predictions as COCO JSON.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also show the AP of each class.")] = False,
    weights: Weights = "live",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    overrides: Overrides = None,
) -> None:
    """COCO box, mask and keypoint AP, or mIoU, of a checkpoint, in its run's precision.

    Overrides such as evaluate.tta.enabled=true, device=cpu, train.precision=fp32.
    """
    from headstart.ops.memory import keep_freed_memory
    from headstart.tasks import TASKS
    from headstart.tasks.predict import load_trained

    trained = load_trained(checkpoint, patch_of(overrides), weights=weights)
    if trained.device.type == "cpu":
        keep_freed_memory()
    _say_if_slow(trained.recipe.train.precision, trained.device.type, messages(as_json, quiet))
    if save is not None:
        refuse_overwrite([(save, checkpoint)], force=True)  # never over the checkpoint; the task knows its other inputs
    functions = TASKS[trained.recipe.task].trained_functions()
    result = functions.evaluate_files(trained, data, images, split, labels, save, force=force)
    if as_json:
        classes = {"per_class": result.per_class} if per_class else {}
        saved = {} if save is None else {"predictions": str(save)}
        print_json({"metrics": result.metrics, **classes, **saved})
        return
    _show_metrics(result.metrics)
    if per_class:
        _show_classes(result.per_class)
    if save is not None:
        say(f"predictions: {save}")


def _say_if_slow(precision: str, device: str, on: Console) -> None:
    """Print a line if bf16 is requested on hardware without it."""
    from headstart.hardware import choose_precision, native_bf16

    if precision == "bf16" and not native_bf16(device).value:
        say(choose_precision(precision, device).line("train.precision"), on)


def _show_metrics(metrics: dict[str, dict[str, float | None]]) -> None:
    for kind, values in metrics.items():
        show(kind, list(values), [_in_points(values)])


def _show_classes(per_class: dict[str, dict[str, dict[str, float]]]) -> None:
    for kind, classes in per_class.items():
        rows = [[name, *_in_points(values)] for name, values in classes.items()]
        show(f"{kind}, by class", ["class", *next(iter(classes.values()), {})], rows)


def _in_points(values: dict[str, float | None]) -> list[str]:
    return ["-" if value is None or value != value else f"{100 * value:.1f}" for value in values.values()]


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint or a run directory.")],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders or patterns such as 'photos/*.jpg'; and overrides such as device=cpu."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output folder for drawings and predictions.json.")] = Path("predictions"),
    score: Annotated[float, typer.Option(help="Lowest score to draw and write.", min=0.0, max=1.0)] = 0.5,
    weights: Weights = "live",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw detections on images, and write them as COCO JSON; label maps (PNG) of a segmentation model."""
    from headstart.tasks import TASKS
    from headstart.tasks.predict import image_files, load_trained

    overrides = [text for text in images if "=" in text and not Path(text).exists()]
    files = image_files([text for text in images if text not in overrides])
    trained = load_trained(checkpoint, patch_of(overrides), weights=weights)
    _say_if_slow(trained.recipe.train.precision, trained.device.type, messages(as_json, quiet))
    if out.is_dir() and any(path.is_dir() and path.samefile(out) for path in map(Path, images)):
        raise ValueError(f"--out: {out} is a folder of the images, which pictures must not join; expected another one")
    targets = [(out / f"{path.stem}.png", path) for path in files]
    is_segmentation = trained.recipe.task == "segmentation"
    if is_segmentation:
        targets += [(out / f"{path.stem}-labels.png", path) for path in files]
    else:
        targets.append((out / "predictions.json", checkpoint))
    refuse_overwrite(targets, force=force)
    out.mkdir(parents=True, exist_ok=True)
    functions = TASKS[trained.recipe.task].trained_functions()
    with progress("predict", len(files), quiet=quiet) as update:
        done = count(1)
        counts = functions.predict_files(trained, files, out, score=score, advance=lambda: update(next(done)))
    classes = dict(zip(trained.category_ids, trained.class_names))
    values = f" (values: {', '.join(f'{own} {name}' for own, name in classes.items())})" if is_segmentation else ""
    told = f"{', '.join(f'{value:,} {name}' for name, value in counts.items())}: {out}{values}"
    written = [str(path) for path, _ in targets]
    answer(as_json, {**counts, "out": str(out), "files": written, "classes": classes}, told)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint or a run directory.")],
    out: Annotated[Path, typer.Argument(help="File to write: .safetensors, .pt2 (torch.export) or .onnx.")],
    size: Annotated[
        str | None, typer.Option(help="Padded size of a program's images, HEIGHTxWIDTH; by default the recipe's.")
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="Image or folder to compare a program on; by default images of the validation set."),
    ] = None,
    weights: Weights = "live",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export a trained model, on the CPU in fp32; a program is written only if its detections equal the model's."""
    from headstart.tasks.export import export_program, export_weights, parse_size

    refuse_overwrite([(out, checkpoint)], inputs=check or (), force=force)
    if out.suffix in (".pt2", ".onnx"):
        equal = export_program(checkpoint, out, size=parse_size(size), images=check or (), weights=weights)
        facts = {"file": str(out), "detections_equal": equal}
        told = f"its {equal} detections equal those of the model without test-time augmentation"
    elif size or check:
        raise ValueError(f"{out}: --size and --check are for programs (.pt2, .onnx) and have no effect on weights")
    else:
        export_weights(checkpoint, out, weights=weights)
        facts, told = {"file": str(out)}, "weights with their recipe; eval, predict and start.weights take it"
    answer(as_json, facts, f"{out}: {told}")


def verify(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="device=cpu and the like; else as the run was", metavar="[device=VALUE]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Re-run the last stretch of a run and compare rows and weights bit for bit; exit code 1 if they differ."""
    from headstart.training.verify import verify as verify_run

    patch = patch_of(overrides)
    for field in patch:
        if field != "device":
            raise ValueError(f"override {field}: a run is verified as it was, expected device=auto, cpu, cuda or mps")
    found = verify_run(run, patch.get("device"))
    answer(as_json, asdict(found) | {"directory": str(found.directory)}, found.line())
    if found.differences:
        raise typer.Exit(1)
