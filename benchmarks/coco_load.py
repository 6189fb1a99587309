"""Seconds, processor seconds and peak memory of reading an annotation file of COCO's size.

    python benchmarks/coco_load.py [--images 118287 --instances 860001 --points 23] [--json FILE]

Generates the file in a temporary folder (about half a GiB, removed afterwards), reads it in a fresh process and prints
one JSON line. The goal is at most 15 s and 4 GiB for train2017's counts. Linux and macOS.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import keep

NUM_CATEGORIES = 80
CROWD_EVERY = 86  # train2017 has about 10,000 crowd regions among 860,001 instances


def generate(path: Path, num_images: int, num_instances: int, points: int) -> None:
    """A COCO file with polygons of `points` points on average, crowd RLE, and annotations in no order of images."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        for i in range(num_images):
            url = f"http://images.example.org/train/{i:012d}.jpg"
            record = {"license": 3, "file_name": f"{i:012d}.jpg", "coco_url": url, "height": 480, "width": 640, "id": i}
            file.write(("," if i else "") + json.dumps(record))
        file.write('], "annotations": [')
        for start in range(0, num_instances, 10_000):
            count = min(10_000, num_instances - start)
            sizes = rng.integers(3, 2 * points - 2, count)
            coords = rng.uniform(0, 480, (int(sizes.sum()), 2)).round(2)
            images = rng.integers(0, num_images, count)
            records, at = [], 0
            for n, size in enumerate(sizes):
                polygon = coords[at : at + size]
                at += size
                records.append(annotation(start + n, int(images[n]), polygon))
            file.write(("," if start else "") + json.dumps(records)[1:-1])
        categories = [{"supercategory": "thing", "id": c + 1, "name": f"class {c}"} for c in range(NUM_CATEGORIES)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def annotation(own: int, image: int, polygon: np.ndarray) -> dict:
    """One annotation record in COCO's order of fields."""
    low, high = polygon.min(0), polygon.max(0)
    crowd = own % CROWD_EVERY == 0
    runs = [1000, *[100] * 200, 640 * 480 - 21_000]
    return {
        "segmentation": {"counts": runs, "size": [480, 640]} if crowd else [polygon.ravel().tolist()],
        "area": round(float((high - low).prod()), 4),
        "iscrowd": int(crowd),
        "image_id": image,
        "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
        "category_id": own % NUM_CATEGORIES + 1,
        "id": own,
    }


def measure(path: Path) -> None:
    """Read the file and print what it took; the parent runs this in a process of its own."""
    from headstart.data.read import coco

    start, processor = time.perf_counter(), time.process_time()
    dataset = coco.read(path)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB on Linux
    report = {
        "images": dataset.num_images,
        "instances": dataset.num_annotations,
        "coordinates": dataset.coords.size,
        "file_gib": round(path.stat().st_size / 2**30, 3),
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2),
    }
    print(json.dumps(report))


def main() -> None:
    """Generate, measure, clean up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--instances", type=int, default=860_001)
    parser.add_argument("--points", type=int, default=23, help="average points of a polygon")
    parser.add_argument("--read", type=Path, help="measure this file instead of a generated one")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    arguments = parser.parse_args()
    if arguments.read:
        measure(arguments.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        generate(path, arguments.images, arguments.instances, arguments.points)
        command = [sys.executable, __file__, "--read", str(path)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
    print(printed, end="")
    keep(arguments.json, json.loads(printed))


if __name__ == "__main__":
    main()
