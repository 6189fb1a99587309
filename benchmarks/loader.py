"""How fast images come from JPEG files to a batch, and whether a step waits for them.

    python benchmarks/loader.py [--images N] [--steps N] [--seconds S] [--threads N] [--json FILE]

Writes photographs-like JPEG files of 640 x 480 pixels into a temporary folder. First the stream alone: images a second
and core (processor time), decoding, resizing, normalising and targets included. Then train steps of R18-FPN, 8 images
of 256 px, each on the stream (one decoding thread) and then again on the batch that it brought; the ratio of the two.
The steps end early, after one pair at least, where another pair would take longer than `--seconds` in all.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from cases import TWO_FC
from PIL import Image, ImageFilter
from record import keep
from step import train_step

from headstart.recipe.load import load_recipe
from headstart.tasks import detection

SIZE = (640, 480)  # COCO's most frequent
SHORT = 256
OBJECTS = 7  # COCO's mean


def write_images(root: Path, num: int) -> None:
    """Blurred noise as JPEG of quality 90, some 100 kB a file as COCO's are, with polygons as objects."""
    rng = np.random.default_rng(0)
    document = {"images": [], "annotations": [], "categories": [{"id": c + 1, "name": f"c{c}"} for c in range(80)]}
    for number in range(1, num + 1):
        pixels = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5)).save(root / f"{number}.jpg", quality=90)
        document["images"].append({"id": number, "file_name": f"{number}.jpg", "width": SIZE[0], "height": SIZE[1]})
        for _ in range(OBJECTS):
            x, y, w, h = rng.uniform([0, 0, 20, 20], [300, 200, 300, 250]).tolist()
            outline = [x, y, x + w, y, x + w / 2, y + h]
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(rng.integers(80)) + 1,
                    "bbox": [x, y, w, h],
                    "segmentation": [outline],
                    "area": w * h / 2,
                    "iscrowd": 0,
                }
            )
    (root / "train.json").write_text(json.dumps(document), encoding="utf-8")


def make_task(root: Path, short: int, num_workers: int):
    """The task of R18-FPN on these files, nothing cached."""
    data = {
        "data.train": str(root / "train.json"),
        "data.train_images": str(root),
        "data.val": str(root / "train.json"),
    }
    data |= {"data.val_images": str(root), "data.cache": False, "data.num_workers": num_workers, "train.batch": 8}
    sizes = {"input.short": [short], "input.long": 4 * short // 3, "input.test_short": short, "input.test_long": short}
    return detection.make_task(load_recipe("base", data | sizes | TWO_FC | {"model.backbone.depth": 18}))


def images_per_second(root: Path, short: int, steps: int) -> float:
    """Images a second of processor time, from the file to the batch."""
    task = make_task(root, short, 0)
    since = time.process_time()
    for _ in task.batches(0, steps, torch.device("cpu")):
        pass
    return 8 * steps / (time.process_time() - since)


def waiting(root: Path, steps: int, limit: float) -> tuple[list[float], list[float]]:
    """Seconds of steps on the stream, and of each again on the batch that it brought: the same work, no loader.

    After one pair, ends where another would pass `limit` seconds in all.
    """
    task = make_task(root, SHORT, 1)
    task.model.train()
    stream = iter(task.batches(0, steps + 2, torch.device("cpu")))
    chosen = [next(stream)]
    step = train_step(task.model, lambda: task.losses(task.model, chosen[0]))
    step()
    real, kept = [], []
    for _ in range(steps):
        since = time.perf_counter()
        chosen[0] = next(stream)
        step()
        real.append(time.perf_counter() - since)
        since = time.perf_counter()
        step()
        kept.append(time.perf_counter() - since)
        if sum(real) + sum(kept) + real[-1] + kept[-1] > limit:
            break
    return real, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=math.inf, help="limit of the steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="keep the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images)
        speeds = {}
        for short in (SHORT, 800):
            speeds[short] = images_per_second(Path(folder), short, 4)
            print(f"stream at {short} px: {speeds[short]:.0f} images/s a core", flush=True)
        real, kept = waiting(Path(folder), args.steps, args.seconds)
    ratios = sorted(ours / again for ours, again in zip(real, kept, strict=True))
    print(
        f"train step: {statistics.median(real):.2f} s from files, {statistics.median(kept):.2f} s on the same batches "
        f"kept; ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f}, goal 1.03)"
    )
    keep(args.json, {"images per second and core": speeds, "from files": real, "same batches in memory": kept})


if __name__ == "__main__":
    main()
