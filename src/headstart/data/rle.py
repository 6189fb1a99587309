"""COCO run-length masks: checked, compressed, measured and sampled without decoding the image.

Runs alternate background and object, starting with background, along columns (pixel y + H * x).
"""

import numpy as np
from pycocotools import mask as coco_mask

_LONGEST = 8  # characters (5 bits each) of one run: more than any image needs, and no overflow of int64


def runs(counts: bytes) -> np.ndarray:
    """Run lengths int64 [R] of COCO's compressed counts.

    Each run is a signed number in groups of 5 bits, least significant first, bit 6 for "more follows"; from the fourth
    on it is the difference to the run two before (the format of cocoapi's rleToString). ValueError if malformed.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise ValueError("counts that are whole COCO run-length text")
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise ValueError("counts whose every run fits an image")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def checked(segmentation: dict, height: int, width: int) -> dict:
    """A COCO segmentation dict as {"size": [h, w], "counts": bytes}, compressed.

    Takes counts as a list (uncompressed), text or bytes. ValueError whose text is what was expected instead: the size
    must be the image's, runs non-negative, and cover the image exactly (pycocotools itself would write out of bounds).
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"RLE with size [{height}, {width}], that of the image (got size {size!r})")
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int}:
            raise ValueError("RLE with counts that are integers")
        lengths = np.array(counts, np.float64)  # float: a huge integer is refused below, not an overflow
    elif isinstance(counts, str | bytes):
        lengths = runs(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    else:
        raise ValueError("RLE with counts, a list of integers or text")
    if lengths.size and lengths.min() < 0:
        raise ValueError("RLE with counts of 0 or more")
    if lengths.sum() != height * width:
        raise ValueError(f"RLE whose runs add up to {height} * {width} = {height * width} (got {lengths.sum():.0f})")
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def area(rle: dict) -> int:
    """Number of object pixels of a checked RLE."""
    return int(runs(rle["counts"])[1::2].sum())


def decode(rle: dict) -> np.ndarray:
    """Bool [H, W] of a checked RLE."""
    height, width = rle["size"]
    lengths = runs(rle["counts"])
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def sample(rle: dict, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bool [R, C]: the mask at integer pixel rows [R] and columns [C]; outside the image False."""
    height, width = rle["size"]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    ends = np.cumsum(runs(rle["counts"]))
    run = np.searchsorted(ends, rows[:, None] + height * columns[None, :], side="right")
    return inside & (run % 2 == 1)
