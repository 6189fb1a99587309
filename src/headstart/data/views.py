"""Decoded images to a batch on the device: resize, crop, flip, normalise, pad; boxes and keypoints move along.

B images, n objects, K keypoints. Masks are in the box frame, so that only boxes move.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.batch import InputSpec
from headstart.data.augment.colour import Colour, recolour
from headstart.data.order import Resize


def to_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """An array as a tensor on a device; on a CPU it shares the array's memory.

    For a GPU the copy is from page-locked memory: from pageable memory it would wait for all queued work (CUDA's
    rule), and the host could never be a step ahead.
    """
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class View:
    """Geometry of one image in a batch: its visible size (height, width), and whether it is mirrored.

    The image is resized to `whole` (None: to `size`), cut to the window of `size` with its upper left corner at
    (top, left) `corner`, then mirrored.
    """

    size: tuple[int, int]
    flip: bool
    whole: tuple[int, int] | None = None
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Jitter:
    """Large-scale jitter: an image fitted into `crop` x `crop` pixels, times a ratio in low..high, and cut to these."""

    low: float
    high: float
    crop: int


def draw_window(height: int, width: int, jitter: Jitter, flip: float, generator: np.random.Generator) -> View:
    """Random view under large-scale jitter: ratio, window position where the image is larger, flip.

    Ratio and fit as in Detectron2 (ResizeScale, FixedSizeCrop); the window's position is drawn for each direction
    separately, as in TensorFlow's original (resize_and_crop_image). Always draws four numbers.
    """
    crop = jitter.crop
    scale = generator.uniform(jitter.low, jitter.high) * crop / max(height, width)
    whole = max(round(height * scale), 1), max(round(width * scale), 1)
    size = min(whole[0], crop), min(whole[1], crop)
    top, left = (round(place * (a - b)) for place, a, b in zip(generator.random(2).tolist(), whole, size))
    return View(size, bool(generator.random() < flip), whole, (top, left))


@dataclass(frozen=True)
class Crop:
    """CornerNet's random crop: a square of one of `scales` times `size` pixels of the image, resized to `size`.

    border: least distance of the square's centre from the image's border, in pixels; halved until it fits.
    """

    size: int
    scales: tuple[float, ...]
    border: int


def draw_crop(height: int, width: int, crop: Crop, flip: float, generator: np.random.Generator) -> View:
    """Random view under CornerNet's crop. Always draws four numbers.

    What lies in the image is at the top left of the view, as in all views; the released code leaves it where it lies in
    the square, between zeros.
    """
    place, *centre, coin = generator.random(4).tolist()
    scale = crop.scales[int(place * len(crop.scales))]
    whole = max(round(height / scale), 1), max(round(width / scale), 1)
    corner, size = [], []
    for side, along, limit in zip((height, width), centre, whole):
        border = crop.border
        while border and side - border <= border:
            border //= 2
        start = round((border + along * (side - 2 * border)) / scale - crop.size / 2)
        corner.append(max(start, 0))
        size.append(min(start + crop.size, limit) - corner[-1])
    return View((size[0], size[1]), coin < flip, whole, (corner[0], corner[1]))


def draw_view(
    height: int, width: int, shorts: Sequence[int], long: int, flip: float, generator: np.random.Generator
) -> View:
    """Random view of a whole image; always draws two numbers, so that streams stay aligned."""
    short = shorts[int(generator.integers(len(shorts)))]
    return View(Resize(short, long).size(height, width), bool(generator.random() < flip))


def stack_images(
    images: Sequence[np.ndarray],
    views: Sequence[View],
    bucket: tuple[int, int],
    spec: InputSpec,
    device: torch.device | str,
    colours: Sequence[Colour] = (),
) -> Tensor:
    """Images [h,w,C] in 0..255 as a float batch [B,C,H,W]: resized (bilinear, antialiased), normalised, zero-padded.

    colours: changes of their colours before the normalisation, one an image, or none.

    In memory the channels come last, as decoders give them and convolutions take them. Rows of pixels are normalised as
    rows of numbers, because a loop over three channels at a time is slow.
    """
    channels, (height, width) = len(spec.mean), bucket
    batch = torch.zeros((len(images), height, width * channels), device=device)
    mean = to_device(np.array(spec.mean, dtype=np.float32), device).repeat(width)
    scale = 1.0 / to_device(np.array(spec.std, dtype=np.float32), device).repeat(width)
    for slot, (rows, image, view) in enumerate(zip(batch, images, views)):
        pixels = to_device(image, device)
        whole = view.whole or view.size
        if tuple(pixels.shape[:2]) != whole:
            planes = pixels.permute(2, 0, 1).unsqueeze(0).float()
            planes = F.interpolate(planes, whole, mode="bilinear", antialias=True, align_corners=False)
            pixels = planes[0].permute(1, 2, 0)
        if whole != view.size:
            (top, left), (rows_seen, columns_seen) = view.corner, view.size
            pixels = pixels[top : top + rows_seen, left : left + columns_seen]
        if colours:
            pixels = recolour(pixels.float(), colours[slot])
        if spec.order == "bgr":
            pixels = pixels.flip(2)
        if view.flip:
            pixels = pixels.flip(1)
        used = view.size[1] * channels
        torch.sub(pixels.flatten(1), mean[:used], out=rows[: view.size[0], :used]).mul_(scale[:used])
    return batch.view(len(images), height, width, channels).permute(0, 3, 1, 2)


def move_boxes(boxes: np.ndarray, original: tuple[int, int], view: View) -> np.ndarray:
    """Boxes [n,4] XYXY of an image of size `original` (height, width), in pixels of its view; not cut to its window."""
    boxes = boxes * _scale(original, view)[[0, 1, 0, 1]] - _corner(view)[[0, 1, 0, 1]]
    return _mirrored(boxes, view.size[1]) if view.flip else boxes


def move_boxes_back(boxes: np.ndarray, original: tuple[int, int], view: View) -> np.ndarray:
    """The inverse of `move_boxes`."""
    boxes = _mirrored(boxes, view.size[1]) if view.flip else boxes
    return (boxes + _corner(view)[[0, 1, 0, 1]]) / _scale(original, view)[[0, 1, 0, 1]]


def _mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _scale(original: tuple[int, int], view: View) -> np.ndarray:
    """(x, y) pixels of the whole resized image a pixel of the original."""
    height, width = view.whole or view.size
    return np.array([width / original[1], height / original[0]])


def _corner(view: View) -> np.ndarray:
    """(x, y) of the window in the whole resized image."""
    return np.array([float(view.corner[1]), float(view.corner[0])])


def move_keypoints(
    keypoints: np.ndarray, original: tuple[int, int], view: View, left_right: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Keypoints [n,K,3] (x, y, visibility) in pixels of a view; a mirror swaps left and right."""
    moved = keypoints * np.append(_scale(original, view), 1.0) - np.append(_corner(view), 0.0)
    if view.flip:
        moved[..., 0] = view.size[1] - moved[..., 0]
        for a, b in left_right:
            moved[:, [a, b]] = moved[:, [b, a]]
    return moved
