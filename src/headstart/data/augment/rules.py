"""Random views of training images, functions of a generator: scales, windows, flips, quarter turns, mosaics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from headstart.data.augment.colour import ColourJitter
from headstart.data.augment.own import Transform
from headstart.data.dataset import Dataset
from headstart.data.order import Resize, group_by_bucket
from headstart.data.views import View


@dataclass(frozen=True)
class Jitter:
    """Large-scale jitter: an image fitted into `crop` x `crop` pixels, times a ratio in low..high, and cut to these."""

    low: float
    high: float
    crop: int


def draw_window(
    height: int,
    width: int,
    jitter: Jitter,
    flip: float,
    generator: np.random.Generator,
    room: tuple[int, int] | None = None,
) -> View:
    """Random view under large-scale jitter: ratio, window position where the image is larger, flip.

    room: (height, width) of the largest window; None: that of the crop. Ratio and fit as in Detectron2 (ResizeScale,
    FixedSizeCrop); the window's position is drawn for each direction separately, as in TensorFlow's original
    (resize_and_crop_image). Always draws four numbers.
    """
    crop = jitter.crop
    scale = generator.uniform(jitter.low, jitter.high) * crop / max(height, width)
    whole = max(round(height * scale), 1), max(round(width * scale), 1)
    room = room or (crop, crop)
    size = min(whole[0], room[0]), min(whole[1], room[1])
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

    The part of the square inside the image is at the top left of the view, as in all views; the released code keeps its
    place in the square, padded with zeros.
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


@dataclass(frozen=True)
class Quadrant:
    """One of four parts of a padded image that meet at `centre` (y, x), of `room` (height, width)."""

    centre: tuple[int, int]
    room: tuple[int, int]
    below: bool
    right: bool

    def place(self, size: tuple[int, int]) -> tuple[int, int]:
        """(top, left) of a view of this size: it touches the centre."""
        top = self.centre[0] - (0 if self.below else size[0])
        return top, self.centre[1] - (0 if self.right else size[1])


def draw_quadrants(side: int, generator: np.random.Generator) -> list[Quadrant]:
    """Four quadrants of a square, upper left first; their centre is uniform in its middle half (YOLOv4's mosaic)."""
    y, x = (round(side * (0.25 + 0.5 * place)) for place in generator.random(2).tolist())
    places = ((below, right) for below in (False, True) for right in (False, True))
    return [Quadrant((y, x), (side - y if b else y, side - x if r else x), b, r) for b, r in places]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image: `jitter` or `crop` replaces `shorts`, `long`.

    `copy_paste` and `mosaic` (a probability) need `jitter`. `transform` changes the pixels of an image before all else.
    """

    shorts: tuple[int, ...]
    long: int
    flip: float
    jitter: Jitter | None = None
    copy_paste: bool = False
    crop: Crop | None = None
    colour: ColourJitter | None = None
    flip_vertical: float = 0.0
    quarter_turns: bool = False
    mosaic: float = 0.0
    transform: Transform | None = None

    @property
    def most_images(self) -> int:
        """Images whose objects one place of a batch may show together."""
        return (4 if self.mosaic else 1) + self.copy_paste

    def view(self, height: int, width: int, generator: np.random.Generator, quadrant: Quadrant | None = None) -> View:
        """Random view of an image of this size, in a quadrant of a mosaic if one is given."""
        # Drawn only where enabled, so that views of recipes without flips and turns stay the same.
        upside_down = self.flip_vertical > 0 and bool(generator.random() < self.flip_vertical)
        turn = (int(generator.integers(4)) if self.quarter_turns else 0) + 2 * upside_down
        if self.jitter is not None:
            room = quadrant and (quadrant.room[::-1] if turn % 2 else quadrant.room)
            view = draw_window(height, width, self.jitter, self.flip, generator, room)
        elif self.crop is not None:
            view = draw_crop(height, width, self.crop, self.flip, generator)
        else:
            view = draw_view(height, width, self.shorts, self.long, self.flip, generator)
        size = view.size[::-1] if turn % 2 else view.size
        place = quadrant.place(size) if quadrant else (0, 0)
        return replace(view, size=size, flip=view.flip != upside_down, turn=turn % 4, place=place)

    def mosaic_of(self, num_images: int, generator: np.random.Generator) -> list[tuple[Quadrant, int]]:
        """Quadrants of a mosaic, each with a uniformly drawn image index, -1 for the first; [] without a mosaic."""
        if self.jitter is None or generator.random() >= self.mosaic:
            return []
        others = generator.integers(num_images, size=3).tolist()
        return list(zip(draw_quadrants(self.jitter.crop, generator), [-1, *others]))

    def groups(self, dataset: Dataset, *, smallest: int) -> dict[tuple[int, int], np.ndarray]:
        """Image indices by padded size; no group is smaller than `smallest` unless it is the only one.

        With quarter turns padded images are squares, so that an image fits however it is turned.
        """
        side = self.jitter.crop if self.jitter else self.crop.size if self.crop else None
        if side is not None:
            return {(side, side): np.arange(dataset.num_images)}
        largest = Resize(max(self.shorts), self.long)
        groups = group_by_bucket(dataset.heights, dataset.widths, largest, smallest=smallest)
        if not self.quarter_turns:
            return groups
        sides = sorted({max(bucket) for bucket in groups})
        same = {side: [members for bucket, members in groups.items() if max(bucket) == side] for side in sides}
        return {(side, side): np.sort(np.concatenate(members)) for side, members in same.items()}
