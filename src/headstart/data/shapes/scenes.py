"""Pictures of the embedded data, drawn from seeds: scenes with annotated objects, and single objects.

Classes are told apart by form alone: colours, textures, rotation, proportions and size are drawn independently of them.
Every picture is a pure function of (seed, set, split, index, size).
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from headstart.data.shapes import drawing
from headstart.ops.polygons import area

NAMES = tuple(drawing.DETECTION_FORMS)
CATEGORY_IDS = (1, 2, 4, 7, 8, 11, 16, 21)  # with gaps, as COCO's own: a reader that takes ids for labels shows at once
CLASSIFICATION_NAMES = tuple(drawing.CLASSIFICATION_FORMS)

# The class with keypoints: {name: vertex of its outline}. The arrow points to its tip; left and right are as seen by
# one who walks towards it, so that a mirror swaps them.
KEYPOINT_CLASS = "arrow"
KEYPOINTS = {"tip": 3, "left_wing": 2, "right_wing": 4, "left_tail": 0, "right_tail": 6}
SKELETON = ((1, 2), (1, 3), (2, 4), (3, 5), (4, 5))  # counted from 1, as COCO does
BACKGROUND = 0  # the value of label maps where there is no object; no category has it

MAX_OBJECTS = 6
NEGATIVE_SHARE = 0.08  # scenes without any object
SCALE = (0.10, 0.60)  # longer side of an object over the side of a scene
CLASSIFICATION_SCALE = (0.20, 0.90)  # 13 to 58 px at 64 px: the sizes in pixels that the 96-px scenes have
MIN_VISIBLE = 0.25  # of an object's own area; a layout that would hide more is drawn again
MIN_PIXELS = 12
NUM_TRIES = 20

Image8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Most objects of a scene, least longer side of one over the scene's, classes drawn. ValueError out of range."""

    objects: int = MAX_OBJECTS
    smallest: float = SCALE[0]
    kinds: tuple[str, ...] = NAMES

    def __post_init__(self) -> None:
        for field, least, most in (("objects", 1, MAX_OBJECTS), ("smallest", *SCALE)):
            if not least <= (value := getattr(self, field)) <= most:
                raise ValueError(f"{field}: {value}, expected {least} to {most}")
        unknown = [name for name in self.kinds if name not in NAMES]
        if unknown or not self.kinds:
            raise ValueError(f"kind: {', '.join(unknown) or 'none'}, expected some of {', '.join(NAMES)}")

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of the classes drawn, ascending."""
        return tuple(label for label, name in enumerate(NAMES) if name in self.kinds)

    @property
    def categories(self) -> dict[int, str]:
        """Category ids and names of the classes drawn."""
        return {CATEGORY_IDS[label]: NAMES[label] for label in self.labels}


USUAL = Layout()


@dataclass(frozen=True)
class Placed:
    """One object of a scene: its label, outline [V, 2] in pixels, and raster with its upper left pixel."""

    label: int
    polygon: drawing.Points
    top: int
    left: int
    inside: NDArray[np.bool_]


def _generator(seed: int, purpose: str, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}/{split}".encode()), index])


def _stamp(owner: NDArray[np.int64], item: Placed, value: int) -> NDArray[np.int64]:
    result = owner.copy()
    mask = drawing.centres(item.inside)
    result[item.top : item.top + mask.shape[0], item.left : item.left + mask.shape[1]][mask] = value
    return result


def _try_object(rng: np.random.Generator, size: int, layout: Layout) -> Placed:
    label = layout.labels[rng.integers(len(layout.labels))]
    extent = size * np.exp(rng.uniform(*np.log((layout.smallest, SCALE[1]))))
    polygon = drawing.place(drawing.DETECTION_FORMS[NAMES[label]], rng, extent, tuple(rng.uniform(0, size, 2)))
    return Placed(label, polygon, *drawing.rasterise(polygon, size))


def _lay_out(rng: np.random.Generator, size: int, layout: Layout) -> tuple[list[Placed], NDArray[np.int64]]:
    """Objects from back to front, and the owner of each pixel: int64 [size, size], 0 background, n the n-th object.

    An object that would leave itself or an earlier one less than MIN_VISIBLE is drawn again, NUM_TRIES times, then
    left out: every object that can be seen is annotated.
    """
    owner = np.zeros((size, size), dtype=np.int64)
    placed: list[Placed] = []
    needed = [0.0]
    num_objects = 0 if rng.random() < NEGATIVE_SHARE else int(rng.integers(1, layout.objects + 1))
    for _ in range(num_objects):
        for _ in range(NUM_TRIES):
            item = _try_object(rng, size, layout)
            trial = _stamp(owner, item, len(placed) + 1)
            least = [*needed, max(MIN_VISIBLE * area(item.polygon), MIN_PIXELS)]
            if (np.bincount(trial.ravel(), minlength=len(least)) >= least).all():
                owner, needed = trial, least
                placed.append(item)
                break
    return placed, owner


def _paint(rng: np.random.Generator, canvas: NDArray[np.float64], item: Placed) -> None:
    """Lay a textured object over the canvas [3, S, S], in place, in a colour unlike what it covers.

    Planes come first because NumPy's inner loop over three interleaved channels costs three times as much.
    """
    alpha = drawing.coverage(item.inside)
    height, width = alpha.shape
    under = canvas[:, item.top : item.top + height, item.left : item.left + width]
    covered = under[:, alpha > 0]
    order = covered.sum(axis=0)
    below = np.stack([covered[:, order.argmin()], covered[:, order.argmax()], covered.mean(axis=1)])
    base = drawing.contrasting(rng, below)
    change = drawing.textured(rng, height, width, base, rng.uniform(0.0, 0.45))
    change -= under
    change *= alpha
    under += change


def _render(rng: np.random.Generator, size: int, placed: list[Placed]) -> Image8:
    canvas = drawing.textured(rng, size, size, drawing.colours(rng, 1)[0], rng.uniform(0.0, 0.6))
    for item in placed:
        _paint(rng, canvas, item)
    canvas += rng.standard_normal((size, size)) * rng.uniform(0.0, 5.0)  # grain, in grey levels
    canvas += 0.5
    return np.ascontiguousarray(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 0))


def scene(
    index: int, *, seed: int, split: str, size: int, keypoints: bool = False, layout: Layout = USUAL
) -> tuple[Image8, list[dict]]:
    """One scene: the picture uint8 [size, size, 3] and its COCO annotations, without `id` and `image_id`.

    Box and area are those of the visible pixels. An object in full view is given as a polygon; one that is partly
    covered or cut by the border as compressed RLE of what can be seen. About 8 % of scenes have no objects.
    With `keypoints` those of KEYPOINT_CLASS have them, which changes nothing else.
    """
    rng = _generator(seed, "detection", split, index)
    placed, owner = _lay_out(rng, size, layout)
    image = _render(rng, size, placed)
    annotations = [_annotate(item, owner == number) for number, item in enumerate(placed, 1)]
    for number, item in enumerate(placed if keypoints else (), 1):
        if NAMES[item.label] == KEYPOINT_CLASS:
            annotations[number - 1] |= _keypoints(item, owner, number)
    return image, annotations


def label_map(index: int, *, seed: int, split: str, size: int, layout: Layout = USUAL) -> Image8:
    """The category id of each pixel of a scene, uint8 [size, size]; BACKGROUND where there is none."""
    placed, owner = _lay_out(_generator(seed, "detection", split, index), size, layout)
    ids = np.array([BACKGROUND, *(CATEGORY_IDS[item.label] for item in placed)], np.uint8)
    return ids[owner]


def _keypoints(item: Placed, owner: NDArray[np.int64], number: int) -> dict:
    """COCO's fields: x, y as pixel indices (a vertex at 3.5 is the centre of pixel 3), and a visibility.

    2: can be seen; 1: a later object owns the vertex's pixel; 0: outside the picture.
    """
    values = []
    for x, y in item.polygon[list(KEYPOINTS.values())]:
        column, row = int(np.floor(x)), int(np.floor(y))
        if 0 <= column < len(owner) and 0 <= row < len(owner):
            values += [round(float(x) - 0.5, 2), round(float(y) - 0.5, 2), 1 if owner[row, column] > number else 2]
        else:
            values += [0.0, 0.0, 0]
    return {"keypoints": values, "num_keypoints": sum(value > 0 for value in values[2::3])}


def _annotate(item: Placed, visible: NDArray[np.bool_]) -> dict:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    num_pixels = int(visible.sum())
    within = item.polygon.min() >= 0 and item.polygon.max() <= len(visible)
    if within and num_pixels == drawing.centres(item.inside).sum():
        segmentation = [item.polygon.ravel().tolist()]
    else:
        rle = coco_mask.encode(np.asfortranarray(visible, dtype=np.uint8))
        segmentation = {"size": list(visible.shape), "counts": rle["counts"].decode("ascii")}
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {
        "category_id": CATEGORY_IDS[item.label], "bbox": [float(value) for value in box], "area": float(num_pixels),
        "iscrowd": 0, "segmentation": segmentation,
    }  # fmt: skip


def single(index: int, *, seed: int, split: str, size: int, num_classes: int) -> tuple[Image8, int]:
    """One classification picture, uint8 [size, size, 3], and its label `index % num_classes`.

    One object, wholly in view; in half of the pictures off the centre as far as its size allows.
    """
    rng = _generator(seed, "classification", split, index)
    label = index % num_classes
    extent = size * np.exp(rng.uniform(*np.log(CLASSIFICATION_SCALE)))
    room = (size - extent) / 2 * (1.0 if rng.random() < 0.5 else 0.25)
    centre = tuple(size / 2 + rng.uniform(-room, room, 2))
    polygon = drawing.place(drawing.CLASSIFICATION_FORMS[CLASSIFICATION_NAMES[label]], rng, extent, centre)
    item = Placed(label, polygon, *drawing.rasterise(polygon, size))
    return _render(rng, size, [item]), label
