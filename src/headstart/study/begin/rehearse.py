"""Rehearsal of a study: each arm's start loaded, audited and trained for one step, before the first segment runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from headstart.data.images import load_image
from headstart.hardware import choose_device, usable_cores
from headstart.model.build import input_spec
from headstart.ops import processes as distributed
from headstart.recipe.recipe import AnyRecipe
from headstart.study.forecast import load_key
from headstart.study.plan import Segment
from headstart.study.prepare import Prepared, on_fraction
from headstart.study.spec import PRETRAIN_PREFIX
from headstart.tasks import make_task
from headstart.tasks.task import Task
from headstart.training.lineage import RunResult
from headstart.training.start import prepare_start
from headstart.weights.files import WeightFile
from headstart.weights.freeze import freeze, set_train_mode
from headstart.weights.input import input_differences
from headstart.weights.load import load_weights
from headstart.weights.public import locate

MOST_DECODED = 2_000  # images of both sets whose pixels are compared, in seconds; larger sets by the bytes of files


def refuse_missing_weights(prepared: Prepared) -> None:
    """ValueError naming the arm for a weights file that is not there, or a package that is not installed."""
    for name, (recipe, _) in prepared.recipes.items():
        weights = recipe.start.weights
        if weights is None or str(weights).startswith(PRETRAIN_PREFIX):
            continue
        try:
            if not os.path.isfile(path := locate(weights)):
                raise ValueError(f"{path}: no such weight file")
        except ValueError as error:
            raise ValueError(f"{_where(prepared, name)}: {error}") from None


def starts_of(prepared: Prepared, segments: Iterable[Segment], done: Mapping[str, RunResult]) -> dict[str, Path | None]:
    """Starts to rehearse before `segments` run, by `load_key`, each with the checkpoint that the study made for it.

    None: the study has not made these weights yet, or the recipe names its own.
    """
    made = {s.arm: s.weights_from for s in prepared.plan.segments if s.kind != "pretrain" and s.weights_from in done}
    return {key: done[made[key]].checkpoint if key in made else None for key in map(load_key, segments)}


def rehearse(prepared: Prepared, name: str, weights: Path | None = None, gpus: int = 0) -> tuple[str, ...]:
    """Load, audit and train the start of an arm, or of "pretrain:NAME", for one step; nothing is written.

    Returns the validation images that are training images too, of a pre-training also those of the arms. ValueError
    naming the arm for whatever is wrong. Weights that a pre-training is still to make are checked by the shapes and the
    input of its network. gpus: see `of_one_gpu`.
    """
    recipe = prepared.recipes[name][0]
    if not name.startswith(PRETRAIN_PREFIX):
        recipe = on_fraction(recipe, max(prepared.num_images))
    task = make_task(of_one_gpu(recipe, gpus))
    check_start(prepared, name, task, recipe, weights)
    device = distributed.device(recipe.device)
    model = task.model.to(device)
    with distributed.threads(recipe.train.threads):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.train.bf16):
            loss = sum(task.losses(model, next(iter(task.batches(0, 1, device)))).values())
        loss.backward()
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"{_where(prepared, name)}: the first loss is {float(loss)}, expected a finite one")
    task.model.to("cpu")
    torch.cuda.empty_cache()  # of this process: those of a segment may be others, on the same GPU
    if name.startswith(PRETRAIN_PREFIX) and (seen := _seen_before(prepared, task)):
        return seen
    return task.overlap or same_pictures(task)


def of_one_gpu(recipe: AnyRecipe, gpus: int = 0) -> AnyRecipe:
    """A recipe with one GPU's share of its batch, where its processes, or `gpus` of a cluster, have a GPU each.

    A single process that tries a step would need all of their memory for the whole batch.
    """
    parts = max(recipe.processes, gpus)
    if parts == 1 or choose_device(recipe.device).value != "cuda":
        return recipe
    share = recipe.train.model_copy(update={"batch": max(recipe.train.batch // parts, 1)})
    return recipe.model_copy(update={"processes": 1, "train": share})


def check_start(prepared: Prepared, name: str, task: Task, recipe: AnyRecipe, weights: Path | None = None) -> None:
    """Put the start of an arm into its task's model, audited; ValueError naming the arm where it cannot be."""
    start, pretrained = recipe.start, str(recipe.start.weights).startswith(PRETRAIN_PREFIX)
    try:
        if weights is None and pretrained and start.kind != "random":
            source = prepared.recipes[str(start.weights)][0]
            made = make_task(source).model.state_dict()
            file = WeightFile(str(start.weights), "", made, "headstart", input_spec(source))
            own = input_spec(recipe)
            report = load_weights(task.model, file, scope=start.kind, input=own, stem=start.stem)
            for difference in input_differences(own, report.source_input):
                raise ValueError(f"{difference}: the normalisation of {start.weights}")
        elif name.startswith(PRETRAIN_PREFIX) or prepared.study.branch_of(name) is None:
            own = start if weights is None else start.model_copy(update={"weights": str(weights)})
            prepare_start(task.model, recipe.model_copy(update={"start": own}), task.classes)
            return
        freeze(task.model, start.freeze)  # a branch starts from its parent's checkpoint
        set_train_mode(task.model, start.freeze)
    except ValueError as error:
        raise ValueError(f"{_where(prepared, name)}: {error}") from None


def same_pictures(task: Task) -> tuple[str, ...]:
    """Validation images whose pixels are those of a training image, as `headstart data check` compares them.

    Empty for more than MOST_DECODED images in all. Files that cannot be read match nothing.
    """
    train, val = (list(content.images) for content in task.contents)
    if len(train) + len(val) > MOST_DECODED:
        return ()
    with ThreadPoolExecutor(usable_cores()) as pool:
        known, found = set(pool.map(_pixels, train)), list(pool.map(_pixels, val))
    return tuple(path for path, digest in zip(val, found) if digest and digest in known)


def _seen_before(prepared: Prepared, task: Task) -> tuple[str, ...]:
    """Validation images of the arms that are training images of a pre-training, by the bytes of their files."""
    return make_task(prepared.first_recipe).contents[1].shared_with(task.contents[0])


def refuse_overlap(prepared: Prepared, shared: tuple[str, ...]) -> None:
    """ValueError for validation images that are training images too, unless the study allows them."""
    if shared and not prepared.study.allow_overlap:
        raise ValueError(
            f"study {prepared.study.name}: {len(shared):,} validation images are training images too (first: "
            f"{shared[0]}); remove them (`headstart data check` lists them), or set allow_overlap: true in the study "
            "file, which the report then says"
        )


def _pixels(path: str) -> bytes:
    try:
        pixels = load_image(path)
    except ValueError:
        return b""
    return hashlib.sha1(repr(pixels.shape).encode() + pixels.tobytes(), usedforsecurity=False).digest()


def _where(prepared: Prepared, name: str) -> str:
    return f"study {prepared.study.name}: {name if name.startswith(PRETRAIN_PREFIX) else f'arm {name}'}"
