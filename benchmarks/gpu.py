"""Check parity on a GPU, then time train steps there: ours in three forms, and torchvision's Mask R-CNN.

    python benchmarks/gpu.py [mlperf gn-scratch ...] [--batches 2 8 16] [--json FILE]

First, with the same weights, our detections must be torchvision's on this device (fp32, no TF32). Then every model
of MODELS takes steps of SGD under bf16 autocast at 800 x 1344 pixels: eager, compiled, compiled with CUDA graphs; and
torchvision's. Images a second, peak memory, and the share of the model's floor. A step that does not fit into memory
or does not run is a row that says so. Without a GPU the same path runs small, eager only, and proves nothing about
speed.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import TWO_FC, Case, inputs, pair
from torch import nn

from headstart.weights.freeze import freeze, set_train_mode

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
GN_101 = {"model.backbone.depth": 101}
GN_X101 = GN_101 | {"model.backbone.groups": 32, "model.backbone.group_width": 8}


@dataclass(frozen=True)
class Timed:
    """A model to time: recipe changes, what is frozen, and its floor.

    floor: images a second of one H200 at 790 TFLOP/s and 4.3 TB/s, the two not overlapped, counted from the model's
    operations and from each map being written once and read twice; None where it has not been counted.
    """

    name: str
    changes: dict[str, Any]
    freeze: str = "none"
    floor: float | None = None


MODELS = {
    model.name: model
    for model in (
        Timed("mlperf", TWO_FC | {"model.norm": "frozen_batch"}, "stage1", 318),  # MLPerf Training v3.1's model
        Timed("gn-scratch", {}, "none", 197),
        Timed("sync-bn-scratch", {"model.norm": "sync_batch"}),
        Timed("r101-gn-scratch", GN_101, "none", 155),
        Timed("x101-gn-scratch", GN_X101, "none", 100),
    )
}
FORMS = {"eager": None, "compiled": "default", "graphs": "reduce-overhead"} if ON_GPU else {"eager": None}
# The CPU path: the same models at a quarter of the width and a small image.
SMALL = {"model.backbone.width": 16, "model.norm_groups": 4, "model.pyramid_channels": 16, "model.box.num_regions": 16}
SMALL |= {"model.box.conv_channels": 16, "model.mask.conv_channels": 16, "model.box.fc_width": 32}


def case_of(model: Timed, batch: int) -> Case:
    """The model's inputs: MLPerf's padded shape with COCO's seven objects an image; tiny without a GPU."""
    if ON_GPU:
        return Case(model.name, batch, 800, 7, 80, changes=model.changes, width=1344)
    return Case(model.name, batch, 64, 3, 5, changes=model.changes | SMALL, width=128)


def check_parity() -> float:
    """The share of torchvision's detections that ours hold too, within 0.05 pixels and 1e-3 of score.

    With GroupNorm, because a random net without live statistics grows until every score is one. Many scores are nearly
    equal, so the last places of the two lists may hold different ones.
    """
    case = Case("parity", 2, 512 if ON_GPU else 128, 3, 80 if ON_GPU else 5)
    ours, theirs = pair(case)
    batch, (images, _) = inputs(case)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ours, theirs = ours.to(DEVICE).eval(), theirs.to(DEVICE).eval()
    with torch.no_grad():
        found = ours.predict(batch.images.to(DEVICE), batch.sizes.to(DEVICE))
        wanted = theirs([image.to(DEVICE) for image in images])
    same = []
    for slot, one in enumerate(wanted):
        distance = (found.boxes[slot].unsqueeze(0) - one["boxes"].unsqueeze(1)).abs().amax(dim=2)
        score = (found.scores[slot].unsqueeze(0) - one["scores"].unsqueeze(1)).abs()
        close = (distance < 0.05) & (score < 1e-3) & (found.labels[slot].unsqueeze(0) == one["labels"].unsqueeze(1) - 1)
        same.append(close.any(dim=1))
    share = float(torch.cat(same).float().mean())
    assert share >= 0.98, f"parity: only {share:.1%} of torchvision's detections are ours too"
    return share


def step_of(model: nn.Module, losses: Callable[[], dict[str, torch.Tensor]]) -> Callable[[], None]:
    """One step of SGD under bf16 autocast; with a rate so small that repeats do the same work."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, fused=True)

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            loss = sum(losses().values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def measure(step: Callable[[], None], batch: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of a step, images a second and peak GiB, after three steps for caches and compilation."""
    try:
        since = time.perf_counter()
        for _ in range(3):
            step()
        wait()
        warm_up = time.perf_counter() - since
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            since = time.perf_counter()
            step()
            wait()
            seconds.append(time.perf_counter() - since)
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    except Exception as error:  # a form that cannot run is a finding, and the other forms are still worth timing
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"}
    median = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() / 2**30 if ON_GPU else None
    return {
        "ms": 1e3 * median,
        "spread_ms": [1e3 * min(seconds), 1e3 * max(seconds)],
        "images_per_second": batch / median,
        "peak_GiB": peak,
        "warm_up_s": warm_up,
    }


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def time_model(model: Timed, num: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Every form of one model at one batch size."""
    ours, theirs = pair(case_of(model, num))
    batch, (images, targets) = inputs(case_of(model, num))
    ours, theirs, batch = ours.to(DEVICE), theirs.to(DEVICE).train(), batch.to(DEVICE)
    batch = dataclasses.replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
    freeze(ours, model.freeze)
    set_train_mode(ours, model.freeze)
    if model.freeze == "stage1":
        for name, parameter in theirs.backbone.body.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    found = {}
    for form, mode in FORMS.items():
        forward = ours if mode is None else torch.compile(ours, mode=mode)
        found[form] = measure(step_of(ours, lambda forward=forward: forward(batch)), num, repeats)
        torch.compiler.reset()
    images = [image.to(DEVICE) for image in images]
    targets = [{name: value.to(DEVICE) for name, value in target.items()} for target in targets]
    found["torchvision"] = measure(step_of(theirs, lambda: theirs(images, targets)), num, repeats)
    return found


def table(model: Timed, num: int, found: dict[str, dict[str, Any]]) -> str:
    """The rows of one model at one batch size."""
    lines = []
    for form, row in found.items():
        head = f"{model.name:18}{num:>4} {form:12}"
        if "error" in row:
            lines.append(f"{head}{row['error']}")
            continue
        share = f"{row['images_per_second'] / model.floor:6.0%} of the floor" if model.floor and ON_GPU else ""
        peak = "" if row["peak_GiB"] is None else f"{row['peak_GiB']:7.1f} GiB"
        lines.append(f"{head}{row['ms']:9.1f} ms{row['images_per_second']:9.1f} images/s{peak}  {share}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all, if none is named")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64] if ON_GPU else [2])
    parser.add_argument("--repeats", type=int, default=10 if ON_GPU else 2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    unknown = [name for name in args.models if name not in MODELS]
    if unknown:
        parser.error(f"{unknown[0]}: no such model; expected some of {', '.join(MODELS)}")
    print(f"on {torch.cuda.get_device_name() if ON_GPU else 'a CPU, small: no statement about speed'}")
    print(f"parity: {check_parity():.1%} of torchvision's detections are ours too", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    found: dict[str, dict[int, Any]] = {}
    for name in args.models or MODELS:
        for num in args.batches:
            found.setdefault(name, {})[num] = time_model(MODELS[name], num, args.repeats)
            print(table(MODELS[name], num, found[name][num]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
