"""Time the weight gradient of 3x3 convolutions in channels-last memory: oneDNN's and our nine products, by turns.

    python benchmarks/convolution.py [--repeats N] [--json FILE]

Fastest of the repeats in ms, with all usable cores, for the sizes of our networks at 800 and 256 px and of the demo.
"""

import argparse
import time
from pathlib import Path

import torch
from record import keep

from headstart.ops.convolution import weight_gradient
from headstart.training.memory import keep_freed_memory

SIZES = (  # images, channels, side
    (1, 64, 200), (1, 128, 100), (1, 256, 50), (1, 512, 25),  # R50's stages at 800 px
    (1, 256, 200), (4, 256, 64),  # the pyramid's largest map at 800 and 256 px
    (512, 256, 7), (8, 64, 24),  # regions of a box head; the demo's largest map
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

    fastest = {"oneDNN": float("inf"), "products": float("inf")}
    for repeat in range(repeats + 1):
        for name, work in (("oneDNN", theirs), ("products", ours)):
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
        name = f"{size[0]} x {size[1]} x {size[2]} x {size[2]}"
        found[name] = measure(*size, args.repeats)
        print(
            f"{name:22}{found[name]['oneDNN']:10.1f} ms oneDNN{found[name]['products']:10.1f} ms products", flush=True
        )
    keep(args.json, found)


if __name__ == "__main__":
    main()
