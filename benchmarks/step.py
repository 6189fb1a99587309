"""Time a train step and inference of ours and torchvision's Mask R-CNN in one process, by turns.

    python benchmarks/step.py [demo r50-256 r50-800 lite0-192 …] [--threads N] [--repeats N] [--seconds S] [--json FILE]

Both have the same weights, images, objects, sampling sizes and threads (benchmarks/cases.py); medians and the spread
over the repeats, after one step that is not counted; fewer repeats, but one at least, where more would take longer than
`--seconds`; the ratio of the medians, and of the fastest of each, which a busy
machine moves less. "Net alone" is ours without all that is written around the layers; "bf16" is ours under autocast
against torchvision in fp32, and left out where the processor does not compute it natively. The shares inside products
and inside other layers, parts, and peak memory (a fresh process each) follow. `--clock cpu` counts processor time
instead of the clock's: for one thread on a machine that is busy with something else.
"""

import argparse
import ctypes
import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cases import CASES, Case, inputs, pair
from parts import shares, stopwatch
from record import keep
from torch import Tensor

from headstart.batch import Batch
from headstart.hardware import native_bf16, usable_cores
from headstart.model.detector import Detector
from headstart.ops.memory import keep_freed_memory

PRODUCTS = (
    "aten::mkldnn_convolution",
    "aten::_convolution",  # its own time is a transposed convolution's
    "aten::convolution_backward",
    "aten::_slow_conv2d_forward",
    "aten::_slow_conv2d_backward",
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::mkldnn_linear",
    "mkldnn::_linear_pointwise",
)
LAYERS = (  # what any implementation of the same net calls as well
    "aten::native_batch_norm",
    "aten::native_batch_norm_backward",
    "aten::native_group_norm",
    "aten::native_group_norm_backward",
    "aten::clamp_min_",
    "aten::threshold_backward",
    "aten::max_pool2d_with_indices",
    "aten::max_pool2d_with_indices_backward",
    "aten::upsample_nearest2d",
    "aten::upsample_nearest2d_backward",
    "aten::_fused_sgd_",
)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
GOALS = {"demo": 0.4, "r18-256": 0.5, "r50-256": 0.5, "r50-800": 0.8, "lite0-192": 0.5}
INFERENCE_GOALS = dict.fromkeys(GOALS, 0.7) | {"lite0-192": 0.5}
BACKBONE_GOAL = 0.55  # seconds of one AVX2 thread, EfficientNet-Lite0 at 8 x 192 x 256 px


def train_step(model: torch.nn.Module, losses: Callable, *, bf16: bool = False) -> Callable[[], None]:
    """One step of SGD on a fixed batch; with a rate so small that repeats do the same work."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = sum(losses().values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def net_alone(ours: Detector, batch: Batch) -> Callable[[], dict[str, Tensor]]:
    """The same layers on the same regions with a mean for a loss: no proposals, suppression, targets, sampling, losses.

    What a step cannot do without, so the floor for all that is written around the net.
    """
    asked = [(ours.rpn, "predict_at"), (ours.box_head, "predict"), (ours.mask_head, "predict")]
    with ExitStack() as stack:
        seen = [stack.enter_context(mock.patch.object(p, name, wraps=getattr(p, name))) for p, name in asked]
        ours(batch)
    given = [call.call_args.args[1:] for call in seen]

    def losses() -> dict[str, Tensor]:
        features = ours.features(batch.images)
        with torch.no_grad():
            ours.rpn.predict(features)
        outputs = [getattr(part, name)(features, *rest) for (part, name), rest in zip(asked, given, strict=True)]
        flat = [out for output in outputs for out in (output if isinstance(output, tuple) else (output,))]
        return {str(place): out.mean() for place, out in enumerate(flat)}

    return losses


def backbone_alone(model: torch.nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward and backward of the backbone without its pyramid; torchvision's in channels-last memory too."""
    body = model.backbone if isinstance(model, Detector) else model.backbone.body

    def work() -> None:
        sum(out.mean() for out in body(images)).backward()

    return work


def timed(
    works: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float], limit: float
) -> dict[str, list[float]]:
    """Seconds of each work, taken in turns; after one repeat, ends where another would pass `limit` seconds in all."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    began = time.perf_counter()
    for repeat in range(repeats + 1):
        round_began = time.perf_counter()
        for name, work in works.items():
            start = clock()
            work()
            if repeat:
                seconds[name].append(clock() - start)
        now = time.perf_counter()
        if repeat and now + (now - round_began) - began > limit:
            break
    return seconds


def measure(case: Case, repeats: int, clock: Callable[[], float], limit: float, *, train_only: bool = False) -> dict:
    """Everything about one case, or of its train step alone the time and the parts, as plain data; seconds."""
    ours, theirs = pair(case)
    batch, (images, targets) = inputs(case)
    ours.train()
    theirs.train()
    step = train_step(ours, lambda: ours(batch))
    works = {
        "ours": step,
        "net alone": train_step(ours, net_alone(ours, batch)),
        "theirs": train_step(theirs, lambda: theirs(images, targets)),
    }
    if not train_only and native_bf16("cpu").value:
        works["ours bf16"] = train_step(ours, lambda: ours(batch), bf16=True)
    if case.load().model.backbone.kind == "timm":
        works |= {side: backbone_alone(net, batch.images) for side, net in (("backbone", ours), ("timm", theirs))}
    train = timed(works, repeats, clock, limit)
    with stopwatch(ours, clock) as parts:
        step()
    found = {"train": train, "parts": shares(parts), "operators": operators(step)}
    if train_only:
        return found
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        works = {"ours": lambda: ours.predict(batch.images, batch.sizes), "theirs": lambda: theirs(images)}
        inference = timed(works, repeats, clock, limit)
        predicting = operators(works["ours"])
    memory = {side: memory_of(case.name, side) for side in ("ours", "theirs")}
    return {**found, "inference": inference, "inference operators": predicting, "memory": memory}


def operators(step: Callable[[], Any]) -> dict[str, float]:
    """The shares of a step's operator time that are spent inside products, and inside the net's other layers."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total, kinds = sum(spent.values()), {"products": PRODUCTS, "layers": LAYERS}
    return {kind: sum(spent.get(name, 0.0) for name in names) / total for kind, names in kinds.items()}


def memory_of(name: str, side: str) -> float:
    """Peak memory of a train step above that of the model at rest, in MiB, in a process of its own (Linux)."""
    command = [sys.executable, __file__, name, "--memory", side, "--threads", str(torch.get_num_threads())]
    command += ["--plain-malloc"] * ("--plain-malloc" in sys.argv)
    return float(subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout)


def print_memory(case: Case, side: str) -> None:
    """The work of `memory_of`'s process."""
    ours, theirs = pair(case)
    batch, (images, targets) = inputs(case)
    losses = (lambda: ours(batch)) if side == "ours" else (lambda: theirs(images, targets))
    step = train_step((ours if side == "ours" else theirs).train(), losses)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building the models left behind must not hide what a step takes
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    step()
    step()
    print((status("VmHWM") - before) / 1024)


def status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def table(name: str, found: dict) -> str:
    """What was found, for reading."""

    def line(label: str, ours: list[float], theirs: list[float], goal: float | None = None) -> str:
        ratios = (f"{which(ours) / which(theirs):8.2f}" for which in (statistics.median, min))
        spread = [f"{1e3 * statistics.median(s):8.0f} ({1e3 * min(s):.0f}-{1e3 * max(s):.0f})" for s in (ours, theirs)]
        return f"{label:28}{spread[0]:>26}{spread[1]:>26}{''.join(ratios)}{'' if goal is None else f'   goal {goal}'}"

    train, large = found["train"], name == "r50-800"
    lines = [
        f"{name:28}{'ours ms':>26}{'torchvision ms':>26}{'ratio':>8}{'fastest':>8}",
        line("train step", train["ours"], train["theirs"], GOALS.get(name)),
        line("of it the net alone", train["net alone"], train["theirs"]),
    ]
    if "backbone" in train:
        lines.append(line("backbone alone", train["backbone"], train["timm"]))
    if "inference" in found:
        inference, (ours, theirs) = found["inference"], (found["memory"][side] for side in ("ours", "theirs"))
        if "ours bf16" in train:
            lines.append(line("train step, ours in bf16", train["ours bf16"], train["theirs"], 0.55 if large else None))
        lines += [
            line("inference", inference["ours"], inference["theirs"], INFERENCE_GOALS.get(name)),
            f"{'peak memory MiB':28}{ours:26.0f}{theirs:26.0f}{ours / theirs:8.2f}",
        ]
    lines += [
        f"of our train step's operators: inside convolutions and matrix products {found['operators']['products']:.0%}, "
        f"norms, activations, pooling and SGD {found['operators']['layers']:.0%}",
        "parts of our train step: " + ", ".join(f"{part} {share:.1%}" for part, share in found["parts"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all, if none is named")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=math.inf, help="limit of training, and of inference")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train-only", action="store_true", help="leave out bf16, inference and memory")
    parser.add_argument("--plain-malloc", action="store_true", help="leave the C library's memory settings alone")
    parser.add_argument("--memory", choices=("ours", "theirs"), help="print this side's peak memory only")
    args = parser.parse_args()
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f"{unknown[0]}: no such case; expected some of {', '.join(CASES)}")
    torch.set_num_threads(args.threads)
    if not args.plain_malloc:
        keep_freed_memory()  # as every run of ours does; both sides gain
    if args.memory:
        return print_memory(CASES[args.cases[0]], args.memory)
    found, native = {}, native_bf16("cpu")
    if not args.train_only and not native.value:
        print(f"steps in bf16 are left out: {native.reason}\n", flush=True)
    for name in args.cases or CASES:
        repeats = 5 * args.repeats if CASES[name].side < 100 else args.repeats
        found[name] = measure(CASES[name], repeats, CLOCKS[args.clock], args.seconds, train_only=args.train_only)
        print(table(name, found[name]) + "\n", flush=True)
    keep(args.json, {"threads": args.threads, "clock": args.clock, "cases": found})


if __name__ == "__main__":
    main()
