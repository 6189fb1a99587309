"""Costs of recipes on this machine: seconds of a step, an evaluated image and a start; parameters and multiply-adds."""

import json
import platform
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from headstart.files import json_text, write_whole
from headstart.hardware import choose_device
from headstart.model.build import build
from headstart.model.flops import num_parameters, predict_macs
from headstart.ops import memory
from headstart.ops import processes as distributed
from headstart.recipe.load import choices_of
from headstart.recipe.recipe import AnyRecipe
from headstart.study.begin.rehearse import check_start, of_one_gpu, refuse_missing_weights
from headstart.study.forecast import Load, load_key
from headstart.study.prepare import Prepared, marks_of
from headstart.study.spec import PRETRAIN_PREFIX
from headstart.study.variants import variants_worth
from headstart.tasks import TASKS, make_task
from headstart.tasks.settle import mask_choice
from headstart.tasks.task import Task, input_size
from headstart.training.loop import periods
from headstart.training.optimizer import checkpoint_bytes, make_optimizer
from headstart.training.pool import worker_pool
from headstart.weights.checkpoint import KEPT
from headstart.weights.freeze import freeze, set_train_mode

WARM_UP, TIMED = 2, 10  # steps; the first two also fill caches and allocate memory
EVALUATED = 128  # images at most
_SECONDS = ("seconds_per_step", "seconds_per_eval_image", "seconds_to_start")


def hardware_lines(prepared: Prepared) -> list[str]:
    """Choices on this machine for the recipes of a study, with reasons: one line for each value of a field."""
    asked = {
        name: choices_of(recipe) | mask_choice(recipe, *prepared.recipes[name])
        for name, recipe in prepared.asked.items()
    }
    lines: list[str] = []
    for field in dict.fromkeys(field for choices in asked.values() for field in choices):
        said: dict[str, list[str]] = {}
        for name, choices in asked.items():
            if field not in choices:
                continue
            said.setdefault(choices[field].line(field), []).append(name)
        lines += [line if len(said) == 1 else f"{', '.join(names)}: {line}" for line, names in said.items()]
    return lines


def measure_apart(prepared: Prepared, jobs: int = 1) -> dict[str, Load]:
    """Means of `measure_loads` over `jobs` processes, which free their memory before the study begins.

    As many processes measure at a time as segments will run, because these share caches and memory.
    """
    refuse_missing_weights(prepared)
    with worker_pool(jobs) as pool:
        found = list(pool.map(measure_loads, [prepared] * jobs))
    means = {
        name: {field: fmean(getattr(loads[name], field) for loads in found) for field in _SECONDS} for name in found[0]
    }
    return {name: replace(load, **means[name]) for name, load in found[0].items()}


def kept_loads(path: Path, prepared: Prepared, jobs: int) -> dict[str, Load]:
    """Loads that an earlier call of the same study measured on this machine; else they are measured now and kept.

    A study that continues is not timed again.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["asked"] == _asked(prepared, jobs):
            return {
                name: Load(**own | {"num_images": {float(key): number for key, number in own["num_images"].items()}})
                for name, own in kept["loads"].items()
            }
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, torn by a kill, or of another version: measure
    loads = measure_apart(prepared, jobs)
    keep_loads(path, prepared, jobs, loads)
    return loads


def keep_loads(path: Path, prepared: Prepared, jobs: int, loads: Mapping[str, Load]) -> None:
    """Write the loads of a study, so that `kept_loads` need not measure them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"asked": _asked(prepared, jobs), "loads": {name: asdict(load) for name, load in loads.items()}}
    write_whole(path, json_text(content))


def _asked(prepared: Prepared, jobs: int) -> list[Any]:
    recipes = [recipe.model_dump_json() for recipe in prepared.asked.values()]  # their files may be edited
    asked = [prepared.study.model_dump_json(), *recipes, repr(prepared.num_images), jobs]
    return [*asked, platform.node(), torch.__version__]


def measure_loads(prepared: Prepared) -> dict[str, Load]:
    """The load of every arm and pre-training, timed on this machine. Arms of the same shape are timed once."""
    loads: dict[str, Load] = {}
    timed: dict[str, tuple[float, float, float, int]] = {}
    for name in prepared.plan_arms():
        recipe, is_pretraining = prepared.recipes[name][0], name.startswith(PRETRAIN_PREFIX)
        # The start changes neither shapes nor costs, unless something is frozen.
        key = recipe.model_copy(update={"name": "", "start": None}).model_dump_json() + recipe.start.freeze
        device = distributed.device(recipe.device)
        if device.type == "cpu":
            memory.keep_freed_memory()  # as the runs will
        memory.FreedMemory().give_back()  # by the arm before
        memory.reset_peak(device)
        since = time.perf_counter()
        task = make_task(of_one_gpu(recipe))
        start = time.perf_counter() - since
        check_start(prepared, name, task, recipe)
        if key not in timed:
            with distributed.threads(recipe.train.threads):
                step, image = seconds_per_step(task, recipe, device), seconds_per_image(task, device)
            timed[key] = step, image, start, memory.peak(device) or 0
        step, image, start, peak = timed[key]
        eval_every, save_every = periods(recipe, task)
        loads[name] = Load(
            batch=recipe.train.batch,
            num_images=prepared.pretrain_images[name.removeprefix(PRETRAIN_PREFIX)]
            if is_pretraining
            else prepared.num_images,
            seconds_per_step=step,
            seconds_per_eval_image=image,
            seconds_to_start=start,
            num_eval_images=task.num_eval_images * (1 if recipe.train.ema is None else 2) + task.num_eval_train_images,
            eval_every=eval_every,
            checkpoint_bytes=checkpoint_bytes(task.model, recipe.train),
            save_every=save_every,
            peak_bytes=peak,
            variants=0.0 if is_pretraining else variants_worth(prepared.study.also_evaluate, recipe),
        )
    return loads


def memory_need(prepared: Prepared, loads: Mapping[str, Load]) -> tuple[int, int | None]:
    """Bytes of the arm that takes most memory, and bytes of memory there are; 0 and None where unknown."""
    most = max(loads, key=lambda name: loads[name].peak_bytes)
    return loads[most].peak_bytes, memory.limit(choose_device(prepared.recipes[most][0].device).value)


def disk_need(prepared: Prepared, loads: Mapping[str, Load], finished: Collection[str] = ()) -> tuple[int, int, int]:
    """Checkpoints that a finished study keeps, their bytes, and the bytes that segments not `finished` will add."""
    files = need = left = 0
    for segment in prepared.plan.segments:
        key = load_key(segment)
        marks = marks_of(prepared.recipes[key][0], prepared, segment) if segment.kind == "trunk" else ()
        every = loads[key].save_every or segment.stop
        steps = sorted({*range(every * (segment.start // every + 1), segment.stop, every), *marks, segment.stop})
        kept = len({*steps[-KEPT:], *marks})
        files, need = files + kept, need + kept * loads[key].checkpoint_bytes
        left += 0 if segment.name in finished else kept * loads[key].checkpoint_bytes
    return files, need, left


def model_costs(recipe: AnyRecipe) -> dict[str, str]:
    """Parameters and multiply-adds of a recipe's model, for COCO's or ImageNet's number of classes."""
    num_channels, size, num = len(recipe.input.mean), input_size(recipe), TASKS[recipe.task].num_classes
    # Some of timm's constructors compute with values; ours only need shapes.
    with torch.device("cpu" if recipe.model.backbone.kind == "timm" else "meta"):
        model = build(recipe, num, num_keypoints=17)
    macs = predict_macs(model, *size, num_channels=num_channels)
    return {
        f"parameters ({num} classes)": f"{num_parameters(model):,}",
        f"GMAC of an image of {size[0]} x {size[1]} ({num} classes)": f"{macs / 1e9:.2f}",
    }


def seconds_per_step(task: Task, recipe: AnyRecipe, device: torch.device) -> float:
    """Mean seconds of a training step, loading included; the mean, because slow steps occur in runs too."""
    model = task.model.to(device)
    freeze(model, recipe.start.freeze)
    set_train_mode(model, recipe.start.freeze)
    optimizer = make_optimizer(model, recipe.train, 0.0)
    seconds, since = [], time.perf_counter()
    for batch in task.batches(0, WARM_UP + TIMED, device):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.train.bf16):
            loss = sum(task.losses(model, batch).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for the step to be done
        seconds.append(time.perf_counter() - since)
        since = time.perf_counter()
    return fmean(seconds[WARM_UP:])


def seconds_per_image(task: Task, device: torch.device) -> float:
    """Seconds of an evaluation for each image.

    A random model finds more than a trained one, so the estimate is high.
    """
    num = min(task.num_eval_images, EVALUATED) if task.evaluate_first else task.num_eval_images
    since = time.perf_counter()
    task.model.eval()
    if task.evaluate_first:
        task.evaluate_first(device, num)
    else:
        task.evaluate(device)
    return (time.perf_counter() - since) / max(num, 1)
