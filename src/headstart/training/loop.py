"""Training loop: batch, learning rate, forward, finite check, backward, clip, step, row; in view, without hooks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart.data.digests import refuse_changed
from headstart.ops import memory
from headstart.ops import processes as distributed
from headstart.recipe.recipe import AnyRecipe
from headstart.recipe.schedule import due, duration
from headstart.tasks.task import Task
from headstart.training.averages import Average, holding, live_norms, precise_statistics
from headstart.training.lineage import Span
from headstart.training.optimizer import make_optimizer, part_factors, require_finite, set_rate
from headstart.training.rows import COUNTERS, Clock, OnRow, Row, Rows
from headstart.weights import checkpoint
from headstart.weights.files import tensors_digest
from headstart.weights.freeze import set_train_mode

Progress = Callable[[int, dict[str, Any]], None]


def run(
    task: Task,
    recipe: AnyRecipe,
    span: Span,
    directory: Path,
    start: checkpoint.StartPoint,
    *,
    device: torch.device,
    keep: dict[str, Any],
    progress: Progress | None = None,
    on_row: OnRow | None = None,
) -> Path:
    """Train a recipe from `start` to the end of `span` on a device, in a run directory; returns the final checkpoint.

    A trunk stops without a final evaluation, so its rows equal those of an uninterrupted run. Checkpoints at the steps
    `span.marks` are also saved, and kept.
    `keep` (recipe, classes, audit) goes into every checkpoint, so that one alone suffices to evaluate, predict and
    resume.
    Raises FloatingPointError for a step whose loss is not finite: before its update on a CPU; on other devices, where
    losses stay until a row or a checkpoint needs them, before the next of these is written. Also for weights that are
    not finite where a checkpoint is due, which is then not written. ValueError, and no checkpoint, once a file of the
    data has changed.
    """
    train, freeze, schedule, stop = recipe.train, recipe.start.freeze, span.schedule, span.stop
    eval_every, save_every = periods(recipe, task)
    freed = memory.FreedMemory()
    freed.give_back()  # by the run before this one in the same process
    memory.reset_peak(device)
    task.model.to(device)
    optimizer = make_optimizer(task.model, train, schedule.base_rate)
    step, counters, window, clock = 0, dict.fromkeys(COUNTERS, 0), {}, Clock()
    if start.state is not None:
        task.model.load_state_dict(start.state["model"])
        optimizer.load_state_dict(start.state["optimizer"])
        step, counters, window = start.step, dict(start.state["counters"]), dict(start.state["window"])
        clock = Clock(start.state["seconds"])
    average = None if train.ema is None else Average(task.model, train.ema, (start.state or {}).get("average"))
    model = distributed.wrap(torch.compile(task.model) if train.compile else task.model, device)
    writer = distributed.is_writer()
    own = start.source == "checkpoint"
    rows = Rows(directory, after_step=step if own else None, on_row=on_row) if writer else None
    if rows and not own:
        path = None if start.path is None else start.path.as_posix()
        used = {"device": device.type, "precision": "bf16" if train.bf16 else "fp32"}
        length = {"source": start.source, "path": path, "total": schedule.total, "stop": stop}
        rows.write(Row(kind="start", step=step, **length, **used))
    set_train_mode(task.model, freeze)
    batches, evaluated, unread, values = task.batches(step, stop, device), (-1, {}), [], {}
    end = -1 if span.is_trunk else stop

    while step < stop:
        clock.switch("other")
        batch = next(batches)
        clock.switch("train")
        rate = schedule.rate(step)
        set_rate(optimizer, rate)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=train.bf16):
            losses = task.losses(model, batch)
        loss = sum(losses.values())
        logged, evaluates = (due(step + 1, every, end) for every in (train.log_every, eval_every))
        saves = due(step + 1, save_every, stop) or step + 1 in span.marks
        unread.append(torch.stack([value.detach().float() for value in losses.values()]))
        if _read_at_once(device) or logged or evaluates or saves:
            for values in _finite(unread, list(losses), step, task):
                for name, value in values.items():
                    window.setdefault(name, []).append(value)
            unread = []
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = _clipped_norm(task.model, train.clip_norm, read=logged)
        optimizer.step()
        step += 1
        if average is not None:
            average.update(step)

        clock.switch("other")
        for name, amount in zip(COUNTERS, (train.batch, *task.counts(step - 1), task.flops(batch)), strict=True):
            counters[name] += amount
        if progress and writer and values:
            progress(step, {"loss": sum(values.values())})
        if rows and logged:
            means = {name: math.fsum(series) / len(series) for name, series in window.items()}
            rows.write(
                Row(
                    kind="train",
                    step=step,
                    **counters,
                    rate=rate,
                    loss=math.fsum(means.values()),
                    losses=means,
                    grad_norm=norm,
                    seconds=clock.read(),
                )
            )
        if logged:
            window = {}
        if evaluates:
            clock.switch("eval")
            distributed.share_buffers(task.model)
            evaluated = step, _precise(task, recipe, step, device)
            with holding(task.model, evaluated[1]):
                task.model.eval()
                results = {"val": task.evaluate(device)}
                if task.evaluate_train is not None:
                    results["train"] = task.evaluate_train(device)
            if average is not None:
                with holding(task.model, average.weights):
                    average.statistics = _precise(task, recipe, step, device)
                    with holding(task.model, average.statistics):
                        task.model.eval()
                        results["ema"] = task.evaluate(device)
            set_train_mode(task.model, freeze)
            for name, result in results.items() if rows else ():
                evaluated_on = {"split": "val", "weights": "ema"} if name == "ema" else {"split": name}
                rows.write(
                    Row(
                        kind="eval",
                        step=step,
                        **evaluated_on,
                        **counters,
                        metrics=result.metrics,
                        per_class=result.per_class,
                        seconds=clock.read(),
                    )
                )
            if rows and step == stop:
                results.get("ema", results["val"]).save(directory, step)  # evidence of the weights that are judged
            freed.give_back()
        if rows and saves:
            clock.switch("other")
            statistics = evaluated[1] if evaluated[0] == step else {}
            require_finite(task.model, optimizer, statistics, step)
            refuse_changed(task.files)
            rows.sync()
            state = {
                "model": task.model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "counters": counters,
                "window": window,
                "statistics": statistics,
                "rows": rows.steps,
                "seconds": clock.read(),
            }
            if average is not None:
                state["average"] = average.state()
            checkpoint.save(checkpoint.path_of(directory, step), state | keep)
            checkpoint.prune(directory, step, span.marks)
    final = checkpoint.path_of(directory, stop)
    if rows:
        rows.write(
            Row(
                kind="end",
                step=stop,
                **counters,
                checkpoint=final.relative_to(directory).as_posix(),
                hash=tensors_digest(task.model.state_dict()),
                memory=memory.peak(device),
                seconds=clock.read(),
            )
        )
        rows.close()
    distributed.barrier()
    return final


def periods(recipe: AnyRecipe, task: Task) -> tuple[int, int]:
    """Steps between two evaluations and between two checkpoints, 0 meaning at the end only.

    ValueError for settings that the task's model has no use for.
    """
    if recipe.evaluate.precise_bn and not live_norms(task.model, recipe.start.freeze):
        raise ValueError(
            f"evaluate.precise_bn: {recipe.evaluate.precise_bn}, but start.freeze {recipe.start.freeze!r} leaves no "
            "BatchNorm whose statistics follow the batches; expected 0"
        )
    part_factors(task.model, recipe.train)
    options = {"batch": recipe.train.batch, "num_images": task.num_images}
    eval_every = duration(recipe.evaluate.every, field="evaluate.every", **options)
    return eval_every, duration(recipe.checkpoint.every, field="checkpoint.every", **options)


def _precise(task: Task, recipe: AnyRecipe, step: int, device: torch.device) -> dict[str, torch.Tensor]:
    """PreciseBN statistics for an evaluation, from the batches of the next steps; none if PreciseBN is off."""
    if not recipe.evaluate.precise_bn:
        return {}

    def forward(batch: Any) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.train.bf16):
            task.losses(task.model, batch)

    batches = task.batches(step, step + recipe.evaluate.precise_bn, device)
    return precise_statistics(task.model, forward, batches, freeze=recipe.start.freeze)


def _read_at_once(device: torch.device) -> bool:
    """True if losses are read at every step: on a CPU; elsewhere the host would wait for the device."""
    return device.type == "cpu"


def _finite(unread: list[torch.Tensor], names: list[str], last: int, task: Task) -> list[dict[str, float]]:
    """Losses of the steps up to `last`, averaged over processes; one transfer to the host for all.

    FloatingPointError naming step and images if one is not finite.
    """
    read = [dict(zip(names, row, strict=True)) for row in distributed.mean_over_processes(torch.stack(unread)).tolist()]
    for step, values in enumerate(read, start=last + 1 - len(read)):
        if not all(math.isfinite(value) for value in values.values()):
            listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            own = task.describe(next(iter(task.batches(step, step + 1, torch.device("cpu")))))
            images = ", ".join(distributed.gather(own))  # the losses are those of all processes
            seen = "stopped before the update" if step == last else f"seen at step {last}; nothing was saved since"
            raise FloatingPointError(f"step {step}: the loss is not finite ({listed}) on {images}; {seen}")
    return read


def _clipped_norm(model: nn.Module, limit: float | None, *, read: bool) -> float | None:
    """L2 norm of all gradients before they are clipped to `limit` (None: not clipped); None unless `read`."""
    if not read and limit is None:
        return None
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if limit is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return float(norm) if read else None
