"""Decoded images to a batch on the device: resize, crop, flip, turn, normalise, pad; boxes and keypoints move along.

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

    The image is resized to `whole` (None: to the window), cut to a window with its upper left corner at (top, left)
    `corner`, mirrored, turned by `turn` quarters counter-clockwise, and put at (top, left) `place` of the padded image.
    A vertical flip is a mirror and two quarters.
    """

    size: tuple[int, int]
    flip: bool
    whole: tuple[int, int] | None = None
    corner: tuple[int, int] = (0, 0)
    turn: int = 0
    place: tuple[int, int] = (0, 0)

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of the window before it is turned."""
        return self.size[::-1] if self.turn % 2 else self.size

    @property
    def end(self) -> tuple[int, int]:
        """(bottom, right) of what is visible, in the padded image."""
        return self.place[0] + self.size[0], self.place[1] + self.size[1]


def stack_images(
    images: Sequence[np.ndarray],
    views: Sequence[View],
    bucket: tuple[int, int],
    spec: InputSpec,
    device: torch.device | str,
    colours: Sequence[Colour] = (),
    slots: Sequence[int] | None = None,
) -> Tensor:
    """Images [h,w,C] in 0..255 as a float batch [B,C,H,W]: resized (bilinear, antialiased), normalised, zero-padded.

    slots: place 0..B-1 in the batch of each image, where several share one; None: one image each. colours: change of
    colours of each place before the normalisation, or none.

    In memory the channels come last, as decoders give them and convolutions take them. Rows of pixels are normalised as
    rows of numbers, because a loop over three channels at a time is slow.
    """
    channels, (height, width) = len(spec.mean), bucket
    slots = range(len(images)) if slots is None else slots
    num = max(slots, default=-1) + 1
    batch = torch.zeros((num, height, width * channels), device=device)
    mean = to_device(np.array(spec.mean, dtype=np.float32), device).repeat(width)
    scale = 1.0 / to_device(np.array(spec.std, dtype=np.float32), device).repeat(width)
    for slot, image, view in zip(slots, images, views, strict=True):
        pixels = to_device(image, device)
        whole = view.whole or view.window
        if tuple(pixels.shape[:2]) != whole:
            planes = pixels.permute(2, 0, 1).unsqueeze(0).float()
            planes = F.interpolate(planes, whole, mode="bilinear", antialias=True, align_corners=False)
            pixels = planes[0].permute(1, 2, 0)
        if whole != view.window:
            (top, left), (rows_seen, columns_seen) = view.corner, view.window
            pixels = pixels[top : top + rows_seen, left : left + columns_seen]
        if colours:
            pixels = recolour(pixels.float(), colours[slot])
        if spec.order == "bgr":
            pixels = pixels.flip(2)
        if view.flip:
            pixels = pixels.flip(1)
        if view.turn:
            pixels = torch.rot90(pixels, view.turn, (0, 1))
        (top, left), (bottom, right) = view.place, view.end
        used = (right - left) * channels
        seen = batch[slot, top:bottom, left * channels : right * channels]
        torch.sub(pixels.flatten(1), mean[:used], out=seen).mul_(scale[:used])
    return batch.view(num, height, width, channels).permute(0, 3, 1, 2)


def move_boxes(boxes: np.ndarray, original: tuple[int, int], view: View) -> np.ndarray:
    """Boxes [n,4] XYXY of an image of size `original` (height, width), in pixels of the padded image; not cut."""
    boxes = boxes * _scale(original, view)[[0, 1, 0, 1]] - _xy(view.corner)[[0, 1, 0, 1]]
    boxes = _mirrored(boxes, view.window[1]) if view.flip else boxes
    return _turned(boxes, view.window, view.turn) + _xy(view.place)[[0, 1, 0, 1]]


def move_boxes_back(boxes: np.ndarray, original: tuple[int, int], view: View) -> np.ndarray:
    """The inverse of `move_boxes`."""
    boxes = _turned(boxes - _xy(view.place)[[0, 1, 0, 1]], view.size, -view.turn % 4)
    boxes = _mirrored(boxes, view.window[1]) if view.flip else boxes
    return (boxes + _xy(view.corner)[[0, 1, 0, 1]]) / _scale(original, view)[[0, 1, 0, 1]]


def _mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _turned(boxes: np.ndarray, size: tuple[int, int], turn: int) -> np.ndarray:
    """Boxes after `turn` quarters counter-clockwise of an image of this size (height, width)."""
    height, width = size
    for _ in range(turn):
        boxes = np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)
        height, width = width, height
    return boxes


def move_frames(frames: np.ndarray, view: View) -> np.ndarray:
    """Mask frames [..., M, M] of an image over the same boxes in its view."""
    frames = frames[..., ::-1] if view.flip else frames
    return np.rot90(frames, view.turn, (-2, -1)) if view.turn else frames


def _scale(original: tuple[int, int], view: View) -> np.ndarray:
    """(x, y) pixels of the whole resized image per pixel of the original."""
    height, width = view.whole or view.window
    return np.array([width / original[1], height / original[0]])


def _xy(place: tuple[int, int]) -> np.ndarray:
    return np.array([float(place[1]), float(place[0])])


def move_keypoints(
    keypoints: np.ndarray, original: tuple[int, int], view: View, left_right: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Keypoints [n,K,3] (x, y, visibility) in pixels of the padded image.

    A mirror swaps left and right, and so does a vertical flip; a turn does not.
    """
    moved = keypoints * np.append(_scale(original, view), 1.0) - np.append(_xy(view.corner), 0.0)
    if view.flip:
        moved[..., 0] = view.window[1] - moved[..., 0]
        for a, b in left_right:
            moved[:, [a, b]] = moved[:, [b, a]]
    height, width = view.window
    for _ in range(view.turn):
        moved[..., 0], moved[..., 1] = moved[..., 1], width - moved[..., 0]
        height, width = width, height
    moved[..., :2] += _xy(view.place)
    return moved
