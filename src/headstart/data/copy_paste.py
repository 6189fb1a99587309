"""Copy-paste (Ghiasi et al. 2021): objects of one image, cut out by their masks, pasted onto another.

Both images are under large-scale jitter first. A random part of the objects is pasted, its size uniform between none
and all (as MMDetection has it), without blending (the paper: "simply composing without any blending has similar
performance"). H, W of the padded image, M side of a mask frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstart.batch import InputSpec
from headstart.data.upload import to_device
from headstart.data.views import View, stack_images
from headstart.data.visible import Objects


@dataclass(frozen=True)
class Paste:
    """What is pasted onto an image: the other image as decoded, its view, its objects, and their pixels [H,W] bool."""

    image: np.ndarray
    view: View
    objects: Objects
    alpha: np.ndarray


def choose(candidates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random part of the candidates, in their order; its size is uniform between none and all."""
    count = int(generator.integers(len(candidates) + 1))
    return candidates[np.sort(generator.permutation(len(candidates))[:count])]


def alpha_of(objects: Objects, shape: tuple[int, int]) -> np.ndarray:
    """The pixels [H,W] bool that any of the objects covers.

    A pixel is covered where the frame, sampled bilinearly at its centre and zero outside, is at least one half: the
    rule by which predicted masks are pasted (`evaluate.rle`).
    """
    alpha = np.zeros(shape, bool)
    for box, frame in zip(objects.boxes, objects.frames):
        low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        rows = _weights(low[1], high[1], box[1], box[3], len(frame))
        columns = _weights(low[0], high[0], box[0], box[2], len(frame))
        alpha[low[1] : high[1], low[0] : high[0]] |= rows @ frame.astype(np.float32) @ columns.T >= 0.5
    return alpha


def _weights(first: int, last: int, low: float, high: float, side: int) -> np.ndarray:
    """Weights [P,M] of a frame's cells, from low to high, at the centres of the pixels first..last-1."""
    cell = (np.arange(first, last) + 0.5 - low) / (high - low) * side - 0.5
    return np.clip(1 - np.abs(cell[:, None] - np.arange(side)), 0, None).astype(np.float32)


def paste_images(batch: Tensor, pastes: Sequence[Paste | None], convention: InputSpec) -> Tensor:
    """The batch [B,3,H,W] with the pixels of each paste in place of its own; changed in place."""
    for canvas, paste in zip(batch, pastes):
        if paste is not None:
            other = stack_images([paste.image], [paste.view], batch.shape[2:], convention, batch.device)[0]
            canvas.copy_(torch.where(to_device(paste.alpha, batch.device), other, canvas))
    return batch
