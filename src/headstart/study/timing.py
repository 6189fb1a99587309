"""How long a step and an evaluated image take here: a few real steps of a throw-away model."""

import time
from concurrent.futures import ProcessPoolExecutor

import torch

from headstart.recipe import AnyRecipe
from headstart.study.definition import PRETRAIN_PREFIX
from headstart.study.forecast import Load
from headstart.study.run import Prepared, arm_recipe, pretrain_recipe
from headstart.study.variants import variants_worth
from headstart.study.workers import worker_context
from headstart.train import distributed
from headstart.train.run import make_task, settings_of
from headstart.train.task import Task, parameter_groups

WARM_UP, TIMED = 2, 6  # steps; the first two pay for caches and memory


def measure_apart(prepared: Prepared) -> dict[str, Load]:
    """`measure_loads` in a process of its own, which gives its memory back before the study begins."""
    with ProcessPoolExecutor(1, worker_context()) as pool:
        return pool.submit(measure_loads, prepared).result()


def measure_loads(prepared: Prepared) -> dict[str, Load]:
    """The load of every arm and pre-training, timed on this machine. Arms of the same shape are timed once."""
    loads: dict[str, Load] = {}
    timed: dict[str, tuple[float, float]] = {}
    for name in prepared.plan_arms():
        if name.startswith(PRETRAIN_PREFIX):
            recipe = pretrain_recipe(prepared.study, name.removeprefix(PRETRAIN_PREFIX), prepared.overrides)[0]
            num_images = {}
        else:
            recipe = arm_recipe(prepared.study, name, prepared.overrides)[0]
            num_images = prepared.num_images
        # The start changes neither shapes nor costs, unless something is frozen.
        key = recipe.model_copy(update={"name": "", "start": None}).model_dump_json() + recipe.start.freeze
        if recipe.train.threads is not None:
            torch.set_num_threads(recipe.train.threads)
        task = make_task(recipe)
        if key not in timed:
            timed[key] = (seconds_per_step(task, recipe), seconds_per_image(task))
        step, image = timed[key]
        settings = settings_of(recipe, task)
        loads[name] = Load(
            batch=recipe.train.batch,
            num_images=num_images or {1.0: task.num_images},
            seconds_per_step=step,
            seconds_per_eval_image=image,
            num_eval_images=task.num_eval_images + task.num_eval_train_images,
            eval_every=settings.eval_every,
            variants=0.0 if name.startswith(PRETRAIN_PREFIX) else variants_worth(prepared.study.also_evaluate, recipe),
        )
    return loads


def seconds_per_step(task: Task, recipe: AnyRecipe) -> float:
    """Median seconds of a training step, loading included."""
    device = distributed.device()
    model = task.model.to(device).train()
    optimizer = torch.optim.SGD(parameter_groups(model, weight_decay=0.0, norm_weight_decay=0.0), lr=0.0, foreach=True)
    seconds, since = [], time.perf_counter()
    for batch in task.batches(0, WARM_UP + TIMED, device):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            loss = sum(task.losses(model, batch).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for the step to be done
        seconds.append(time.perf_counter() - since)
        since = time.perf_counter()
    return sorted(seconds[WARM_UP:])[TIMED // 2]


def seconds_per_image(task: Task) -> float:
    """Seconds of an evaluation, by its images.

    A random model finds more than a trained one, so this is on the high side.
    """
    since = time.perf_counter()
    task.model.eval()
    task.evaluate(distributed.device())
    return (time.perf_counter() - since) / max(task.num_eval_images, 1)
