"""Time by turns two ways to compute the weight gradient of 3x3 convolutions, and dense layers with their gradients.

    python benchmarks/convolution.py [--repeats N] [--json FILE]

Gradients in channels-last memory by oneDNN and by our nine products, dense layers by torch's F.linear (MKL) and by
oneDNN. Fastest of the repeats in ms, with all usable cores, for the sizes of our networks at 800 and 256 px and of the
demo.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from record import keep

from headstart.ops.memory import keep_freed_memory
from headstart.ops.products import OneDNNLinear, weight_gradient

SIZES = (  # images, channels, side
    (1, 64, 200), (1, 128, 100), (1, 256, 50), (1, 512, 25),  # R50's stages at 800 px
    (1, 256, 200), (4, 256, 64),  # the pyramid's largest map at 800 and 256 px
    (512, 256, 7), (8, 64, 24),  # regions of a box head; the demo's largest map
)  # fmt: skip
DENSE = (  # rows, width, width
    (512, 12544, 1024), (2048, 12544, 1024),  # a box head's first layer at 1 and 4 images
    (40000, 64, 256), (2500, 1024, 256),  # 1x1 convolutions of R50 at 800 px
    (768, 1568, 256),  # the demo's box head
)  # fmt: skip


def measure(batch: int, channels: int, side: int, repeats: int) -> dict[str, float]:
    """Milliseconds of both for x [batch, channels, side, side] and as many channels out."""
    x, grad = (torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    once = (1, 1)

    def theirs() -> torch.Tensor:
        asked = (False, True, False)
        return torch.ops.aten.convolution_backward(grad, x, weight, None, once, once, once, False, (0, 0), 1, asked)[1]

    def ours() -> torch.Tensor:
        return weight_gradient(x, grad)

    return by_turns({"oneDNN": theirs, "products": ours}, repeats)


def measure_dense(rows: int, before: int, after: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a dense layer and its three gradients, for x [rows, before] and a weight [after, before]."""
    x, weight, bias = (torch.randn(*size, requires_grad=True) for size in ((rows, before), (after, before), (after,)))
    grad = torch.randn(rows, after)

    def step(layer: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x, weight, bias), (x, weight, bias), grad)

    return by_turns({"MKL": step(F.linear), "oneDNN": step(OneDNNLinear.apply)}, repeats)


def by_turns(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of the fastest call of each, after one that is not counted."""
    fastest = dict.fromkeys(works, float("inf"))
    for repeat in range(repeats + 1):
        for name, work in works.items():
            since = time.perf_counter()
            work()
            if repeat:
                fastest[name] = min(fastest[name], 1e3 * (time.perf_counter() - since))
    return fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="keep the figures here")
    args = parser.parse_args()
    keep_freed_memory()
    found = {}
    for size in SIZES:
        found[f"{size[0]} x {size[1]} x {size[2]} x {size[2]}"] = measure(*size, args.repeats)
    for size in DENSE:
        found[f"{size[0]} x {size[1]} to {size[2]}"] = measure_dense(*size, args.repeats)
    for name, times in found.items():
        print(f"{name:22}" + "".join(f"{value:10.1f} ms {way}" for way, value in times.items()))
    keep(args.json, found)


if __name__ == "__main__":
    main()
