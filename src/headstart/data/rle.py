"""COCO run-length masks: checked, measured, sampled, and pasted from box frames without a mask of the whole image.

Runs alternate background and object, starting with background, down the columns: pixel (y, x) of an H x W image has
place x * H + y. Compressed, each run (from the fourth on minus the run two before it) is written in groups of five
bits, lowest first, bit 6 set where another group follows, plus 48 to be printable (rleToString in cocoapi).
Letters: n masks, M cells along a side of a mask, H, W height and width of the image, R runs.
"""

from itertools import pairwise

import numpy as np
from pycocotools import mask as coco_mask

_LONGEST = 8  # groups of five bits read of one run: more than any image needs, and no overflow of int64
_LONGEST_WRITTEN = 7  # 7 * 5 = 35 bits hold any run of an image below 2**31 pixels, and its sign
# Pixels of one pass over many crops: 32 MB of float32, which bounds the memory and is enough to hide the cost of calls.
_MAX_PIXELS = 1 << 23


def runs(counts: bytes) -> np.ndarray:
    """Run lengths int64 [R] of COCO's compressed counts.

    ValueError, whose text is what was expected, if malformed.
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


def paste_rle(scores, boxes, height: int, width: int, *, threshold: float = 0.5) -> list[dict]:
    """Compressed COCO RLE of each predicted mask, pasted into its box.

    scores [n, M, M] in 0..1 over the box (rows = y); boxes [n, 4] XYXY pixels of the image; both numpy or torch.
    A pixel belongs to the mask where the bilinear sample at its centre, zero outside the grid, is at least `threshold`:
    the centre (x + 0.5, y + 0.5) falls at u = (x + 0.5 - x1) / (x2 - x1) * M - 0.5 in cells, and so for y (the exact
    form of Detectron2's paste). Parts outside the image are cut off; a box without an extent gives an empty mask.
    Raises ValueError for a threshold outside (0, 1], for which pixels far from the box would count.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected more than 0 and at most 1")
    scores, boxes = _array(scores, np.float32), _array(boxes, np.float64).reshape(-1, 4)
    assert scores.ndim == 3 and scores.shape[1] == scores.shape[2] and len(scores) == len(boxes), scores.shape
    x_range = _pixel_range(boxes[:, 0], boxes[:, 2], width, scores.shape[2], threshold)
    y_range = _pixel_range(boxes[:, 1], boxes[:, 3], height, scores.shape[1], threshold)
    empty = (x_range[1] <= x_range[0]) | (y_range[1] <= y_range[0])
    x_range[:, empty], y_range[:, empty] = 0, 0
    rles: list[dict] = []
    cells = (x_range[1] - x_range[0]) * (y_range[1] - y_range[0] + 1)
    for part in _parts(cells):
        samples = _sample(scores[part], boxes[part], x_range[:, part], y_range[:, part])
        corners = np.stack([x_range[0, part], y_range[0, part]], axis=1)
        sizes = np.stack([x_range[1, part], y_range[1, part]], axis=1) - corners
        rles += _encode(samples >= np.float32(threshold), corners, sizes, height, width)
    return rles


def compress(counts: np.ndarray, first: np.ndarray, height: int, width: int) -> list[dict]:
    """Compressed RLE dicts from run lengths.

    counts int64 [R] of all masks one after the other; those of mask m are counts[first[m]:first[m + 1]], first [n + 1].
    """
    place = np.arange(len(counts)) - np.repeat(first[:-1], np.diff(first))
    values = counts.copy()
    later = np.flatnonzero(place > 2)
    values[later] -= counts[later - 2]
    groups = np.ones(len(values), np.int64)
    for size in range(1, _LONGEST_WRITTEN):  # a group of five bits more wherever the value does not fit with its sign
        groups += (values >= 1 << (5 * size - 1)) | (values < -(1 << (5 * size - 1)))
    last = np.cumsum(groups)
    number = np.arange(last[-1] if len(last) else 0) - np.repeat(last - groups, groups)
    letters = (np.repeat(values, groups) >> (5 * number)) & 31
    letters[number < np.repeat(groups - 1, groups)] += 32  # another group follows
    text = (letters + 48).astype(np.uint8).tobytes()
    ends = np.concatenate([[0], last])[first].tolist()
    return [{"size": [height, width], "counts": text[begin:end]} for begin, end in pairwise(ends)]


def _array(values, dtype) -> np.ndarray:
    if hasattr(values, "detach"):  # torch, on any device and of any float type; numpy has no bfloat16
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype)


def _pixel_range(low: np.ndarray, high: np.ndarray, size: int, num_cells: int, threshold: float) -> np.ndarray:
    """First pixel and one past the last, int64 [2, n], outside of which no sample can reach the threshold.

    A sample reaches it at most 1 - threshold cells beyond the outer cell centres; widened to whole pixels.
    """
    extent = high - low
    margin = extent / num_cells * (0.5 - threshold)
    flat = ~(extent > 0)
    first = np.floor(np.where(flat, 0, low - margin) - 0.5)
    last = np.ceil(np.where(flat, 0, high + margin) + 0.5)
    pixels = np.clip(np.stack([first, last]), 0, size).astype(np.int64)
    pixels[:, flat] = 0
    return pixels


def _parts(cells: np.ndarray) -> list[slice]:
    """Cut n masks into consecutive parts of about _MAX_PIXELS cells, at least one mask each."""
    parts, begin = [], 0
    total = np.concatenate([[0], np.cumsum(cells)])
    while begin < len(cells):
        end = max(int(np.searchsorted(total, total[begin] + _MAX_PIXELS, side="right")) - 1, begin + 1)
        parts.append(slice(begin, end))
        begin = end
    return parts


def _sample(scores: np.ndarray, boxes: np.ndarray, x_range: np.ndarray, y_range: np.ndarray) -> np.ndarray:
    """Samples of every mask on its own pixels, flat, column after column, with one zero below each column.

    Bilinear sampling is separable: column weights [w, M] times scores [M, M] times row weights [M, h + 1]. Two products
    a mask cost less than gathering four neighbours a pixel; torch's, because numpy's slow down 100-fold where two
    threads share a busy machine (both measured, 28 cells and 300 pixels).
    """
    import torch  # here, because reading annotations needs no torch

    num_cells = scores.shape[1]
    across, x_first = _weights(boxes[:, 0], boxes[:, 2], x_range, num_cells, 0)
    down, y_first = _weights(boxes[:, 1], boxes[:, 3], y_range, num_cells, 1)
    columns = torch.from_numpy(scores).transpose(1, 2)
    across, down = torch.from_numpy(across), torch.from_numpy(down).T
    pixels = torch.empty(sum((b - a) * (d - c) for a, b, c, d in zip(x_first, x_first[1:], y_first, y_first[1:])))
    begin = 0
    for index, (x, x_end, y, y_end) in enumerate(zip(x_first, x_first[1:], y_first, y_first[1:])):
        end = begin + (x_end - x) * (y_end - y)
        out = pixels[begin:end].view(x_end - x, y_end - y)
        torch.mm(across[x:x_end] @ columns[index], down[:, y:y_end], out=out)
        begin = end
    return pixels.numpy()


def _weights(low, high, pixels: np.ndarray, num_cells: int, num_zeros: int) -> tuple[np.ndarray, list[int]]:
    """Weight of each cell in each pixel of all masks, float32 [R, M], and first row of each mask.

    `num_zeros` rows without any weight follow the rows of each mask that has pixels.
    """
    sizes = pixels[1] - pixels[0]
    sizes = sizes + num_zeros * (sizes > 0)
    first = np.concatenate([[0], np.cumsum(sizes)])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    pixel = np.arange(first[-1]) - first[owner] + pixels[0, owner]
    extent = np.where(high > low, high - low, 1.0)
    place = (pixel + 0.5 - low[owner]) / extent[owner] * num_cells - 0.5
    cell = np.floor(place)
    weights = np.zeros((first[-1], num_cells), np.float32)
    visible = pixel < pixels[1, owner]
    for offset, weight in ((0, 1 - (place - cell)), (1, place - cell)):
        rows = np.flatnonzero(visible & (cell + offset >= 0) & (cell + offset < num_cells))
        weights[rows, cell[rows].astype(np.int64) + offset] = weight[rows]
    return weights, first.tolist()


def _encode(cells: np.ndarray, corners: np.ndarray, sizes: np.ndarray, height: int, width: int) -> list[dict]:
    """Compressed RLE of crops inside the image.

    cells: bool, all crops one after the other, each column after column with one False below each column, so that no
    run leaves its column; corners, sizes int64 [n, 2] (x, y), (w, h) of the crops.
    """
    lengths = sizes[:, 0] * (sizes[:, 1] + 1)
    first = np.concatenate([[0], np.cumsum(lengths)])
    edges = np.flatnonzero(cells[1:] != cells[:-1]) + 1
    if len(cells) and cells[0]:
        edges = np.concatenate([[0], edges])
    owner = np.searchsorted(first, edges[0::2], side="right") - 1  # the runs of ones are edges[0::2] to edges[1::2]
    column, row = np.divmod(edges - np.repeat(first[owner], 2), np.repeat(sizes[owner, 1] + 1, 2))
    place = (column + np.repeat(corners[owner, 0], 2)) * height + row + np.repeat(corners[owner, 1], 2)
    begins, ends = place[0::2], place[1::2]
    keep_begin, keep_end = np.ones((2, len(owner)), bool)
    # A run that reaches the bottom of the image goes on at the top of the next column.
    joined = (ends[:-1] == begins[1:]) & (owner[:-1] == owner[1:])
    keep_begin[1:], keep_end[:-1] = ~joined, ~joined
    return _splice(begins[keep_begin], ends[keep_end], owner[keep_begin], len(sizes), height, width)


def _splice(begins, ends, owner, num_masks: int, height: int, width: int) -> list[dict]:
    """Compressed RLE from the runs of ones as places in the whole image, sorted by mask and place."""
    total = height * width
    num_runs = np.bincount(owner, minlength=num_masks)
    first = np.concatenate([[0], np.cumsum(2 * num_runs + 1)])  # 0, begin, end, begin, end, ..., total
    slot = np.arange(len(owner)) * 2 + owner
    edges = np.empty(first[-1], np.int64)
    edges[slot], edges[slot + 1] = begins, ends
    edges[first[1:] - 1] = total
    counts = np.diff(edges, prepend=0)
    counts[first[:-1]] = edges[first[:-1]]
    keep = np.ones(len(counts), bool)  # a last run of no zeros is not written, except as the only run of an empty image
    keep[first[1:] - 1] = (counts[first[1:] - 1] > 0) | (num_runs == 0)
    first_kept = np.concatenate([[0], np.cumsum(keep)])[first]
    return compress(counts[keep], first_kept, height, width)
