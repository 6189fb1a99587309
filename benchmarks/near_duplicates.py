"""Correlations by which `data split` tells near-duplicates: the nearest pairs of a folder, and copies of its pictures.

python benchmarks/near_duplicates.py FOLDER [NUMBER]
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.data.check.split import ALIKE, SIDE, normalised
from headstart.data.images import SUFFIXES, load_image, thumbnail

COPIES = {
    "JPEG quality 30": lambda image: _saved(image, 30),
    "half the size": lambda image: image.resize((max(1, image.width // 2), max(1, image.height // 2))),
    "a fifth brighter": lambda image: image.point(lambda value: min(255, int(1.2 * value))),
    "3 % cut off": lambda image: image.crop((image.width * 3 // 100, image.height * 3 // 100, *image.size)),
}


def _saved(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()


def main(folder: str, number: str = "400") -> None:
    """Print the nearest pairs and the correlations of copies."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)[: int(number)]
    own = normalised(np.stack([thumbnail(path, SIDE).ravel() for path in paths]))
    found = own @ own.T - 2 * np.eye(len(own))
    print(f"{len(paths)} pictures, {int((found >= ALIKE).sum()) // 2} pairs of at least {ALIKE}")
    for place in np.argsort(-found, axis=None)[:10:2]:
        a, b = divmod(int(place), len(own))
        print(f"  {found[a, b]:.3f} {paths[a].name} {paths[b].name}")
    images = [Image.fromarray(load_image(path)) for path in paths[:80]]
    for name, make in COPIES.items():
        copies = normalised(np.stack([_small(make(image)) for image in images]))
        low, usual = np.quantile((copies * own[: len(copies)]).sum(1), [0.1, 0.5])
        print(f"{name}: correlation {low:.3f} or more in nine of ten, {usual:.3f} in the median")


if __name__ == "__main__":
    main(*sys.argv[1:])
