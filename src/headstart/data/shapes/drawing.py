"""Drawing of the embedded data: outlines of its classes and their rasterisation, textures and colours.

Letters: V vertices, H x W pixels, S samples per pixel and axis.
An outline is a simple polygon (concave or not, without holes), float64 [V, 2] as (x, y) with y pointing down.
A texture is a pattern, float64 [H, W] in 0..1, that mixes two colours (RGB, 0..255).
All arithmetic is float64: a picture is rounded to bytes only once, so that a processor's last bit does not change it.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from headstart.ops.polygons import even_odd

Points = NDArray[np.float64]
Form = Callable[[float], Points]
Field = NDArray[np.float64]

NUM_ARC = 40  # vertices on a full circle: at a radius of 29 px the chords stay within 0.1 px of it
SAMPLES = 3  # odd, so that the middle sample of a pixel is its centre: one raster gives the mask and the soft edge
PATTERNS = ("plain", "gradient", "stripes", "checks", "spots", "clouds", "blotches")
MIN_CONTRAST = 75.0  # RGB distance between an object and what it lies on; below about 50 forms were hard to see by eye
NUM_CANDIDATES = 10  # colours tried for that contrast; the farthest is taken where none reaches it


def _arc(start: float, stop: float, num: int, centre: float = 0.0) -> Points:
    angle = np.linspace(start, stop, num)
    return np.stack([centre + np.cos(angle), np.sin(angle)], axis=1)


def _regular(num: int) -> Points:
    return _arc(0.0, 2 * np.pi, num + 1)[:-1]


def _spiked(num: int, inner: float) -> Points:
    points = _regular(2 * num)
    points[1::2] *= inner
    return points


def _stroked(least: float, more: float, points: Callable[[float], list[tuple[float, float]]]) -> Form:
    """Form of straight sides whose width of a stroke, or half of it, is between `least` and `more` above that."""
    return lambda vary: np.array(points(least + more * vary), dtype=np.float64)


def _crescent(vary: float) -> Points:
    """A disc without the part that a second disc of the same radius, moved to the right, covers."""
    shift = 0.6 + 0.25 * vary
    horn = np.arccos(shift / 2)
    outer = _arc(horn, 2 * np.pi - horn, NUM_ARC * 3 // 4)
    inner = _arc(np.pi + horn, np.pi - horn, NUM_ARC // 2, centre=shift)
    return np.concatenate([outer, inner[1:-1]])


def _arrow(vary: float) -> Points:
    a, neck = 0.2 + 0.08 * vary, 0.1 + 0.2 * vary
    return np.array([(-1, -a), (neck, -a), (neck, -0.7), (1, 0), (neck, 0.7), (neck, a), (-1, a)])


def _heart(vary: float) -> Points:
    """The curve (16 sin^3 t, 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t), its tip and notch included."""
    t = np.linspace(0, 2 * np.pi, NUM_ARC + 1)[:-1]
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -(y + 2.5) / 16], axis=1)


def _letter_h(vary: float) -> Points:
    a, b = 0.4 - 0.14 * vary, 0.16 + 0.06 * vary
    return np.array([(-0.85, -1), (-a, -1), (-a, -b), (a, -b), (a, -1), (0.85, -1), (0.85, 1), (a, 1), (a, b), (-a, b),
                     (-a, 1), (-0.85, 1)])  # fmt: skip


# Each maps `vary` in 0..1 (proportions within the class) to an outline of about the unit circle's size.
DETECTION_FORMS: dict[str, Form] = {
    "disc": lambda vary: _regular(NUM_ARC),
    "square": lambda vary: _regular(4),
    "triangle": lambda vary: _regular(3),
    "star": lambda vary: _spiked(5, 0.36 + 0.12 * vary),
    "cross": _stroked(0.24, 0.12, lambda a: [
        (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]),
    "crescent": _crescent,
    "arrow": _arrow,
    "heart": _heart,
}  # fmt: skip
CLASSIFICATION_FORMS: dict[str, Form] = {
    "ellipse": lambda vary: _regular(NUM_ARC) * (1.0, 0.42 + 0.13 * vary),
    "letter_t": _stroked(0.16, 0.08, lambda a: [
        (-0.9, -1), (0.9, -1), (0.9, 2 * a - 1), (a, 2 * a - 1), (a, 1), (-a, 1), (-a, 2 * a - 1), (-0.9, 2 * a - 1)]),
    "hexagram": lambda vary: _spiked(6, 0.5 + 0.12 * vary),
    "chevron": _stroked(0.45, 0.2, lambda a: [
        (-0.6, -1), (a - 0.6, -1), (0.7, 0), (a - 0.6, 1), (-0.6, 1), (0.7 - a, 0)]),
    "letter_h": _letter_h,
    "kite": lambda vary: np.array([(-1, 0), (-0.4, -0.6), (1, 0), (-0.4, 0.6)]) * (1.0, 0.85 + 0.3 * vary),
    "letter_z": _stroked(0.3, 0.1, lambda a: [
        (-0.85, -1), (0.85, -1), (0.85, a - 1), (a - 0.45, 1 - a), (0.85, 1 - a), (0.85, 1), (-0.85, 1),
        (-0.85, 1 - a), (0.45 - a, a - 1), (-0.85, a - 1)]),
    "half_disc": lambda vary: _arc(0.0, np.pi, NUM_ARC // 2),
    "letter_u": _stroked(0.32, 0.1, lambda a: [
        (-0.85, -1), (a - 0.85, -1), (a - 0.85, 1 - a), (0.85 - a, 1 - a), (0.85 - a, -1), (0.85, -1), (0.85, 1),
        (-0.85, 1)]),
    "heptagon": lambda vary: _regular(7),
    "letter_f": _stroked(0.32, 0.12, lambda a: [
        (-0.7, -1), (0.7, -1), (0.7, a - 1), (a - 0.7, a - 1), (a - 0.7, -0.1), (0.4, -0.1), (0.4, a - 0.1),
        (a - 0.7, a - 0.1), (a - 0.7, 1), (-0.7, 1)]),
    "bar": _stroked(0.2, 0.12, lambda a: [(-1, -a), (1, -a), (1, a), (-1, a)]),
}  # fmt: skip


def place(form: Form, rng: np.random.Generator, extent: float, centre: tuple[float, float]) -> Points:
    """Vary, stretch and turn a form, and put it into the picture: float64 [V, 2] pixels, rounded to hundredths.

    `extent` is the longer side of its bounding box and `centre` the middle of that box, both in pixels.
    Rounding happens here, so that masks, boxes and the written polygon all come from the same numbers.
    """
    vary, stretch, angle = rng.random(), np.exp(rng.uniform(-0.15, 0.15)), rng.uniform(0, 2 * np.pi)
    points = form(vary) * (stretch, 1.0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = points @ turn
    low, high = points.min(axis=0), points.max(axis=0)
    return np.round((points - (low + high) / 2) * (extent / (high - low).max()) + centre, 2)


def rasterise(polygon: Points, size: int) -> tuple[int, int, NDArray[np.bool_]]:
    """Sample points of a size x size picture that lie inside a polygon (even-odd rule).

    Returns (top, left, inside [h * SAMPLES, w * SAMPLES]) of the pixels its bounding box touches, clipped to the
    picture; h or w is 0 where it lies wholly outside. Samples are the centres of SAMPLES x SAMPLES cells of each pixel.
    """
    left, top = np.clip(np.floor(polygon.min(axis=0)), 0, size).astype(int)
    right, bottom = np.clip(np.ceil(polygon.max(axis=0)), 0, size).astype(int)
    rows, columns = (bottom - top) * SAMPLES, (right - left) * SAMPLES
    y = top + (np.arange(rows) + 0.5) / SAMPLES
    (x0, y0), (x1, y1) = polygon.T, np.concatenate([polygon[1:], polygon[:1]]).T
    edge, row = np.nonzero((y0[:, None] <= y) != (y1[:, None] <= y))
    # In pixels, unlike `polygons.inside`: samples on an edge are common, and rounding decides the bytes of a seed.
    crossing = x0[edge] + (y[row] - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    return int(top), int(left), even_odd(row, np.ceil((crossing - left) * SAMPLES - 0.5), rows, columns)


def centres(samples: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Samples at the pixel centres: bool [h, w]."""
    return samples[SAMPLES // 2 :: SAMPLES, SAMPLES // 2 :: SAMPLES]


def coverage(samples: NDArray[np.bool_]) -> Points:
    """Share of each pixel's samples that lie inside: float64 [h, w] in 0..1."""
    counts = samples.view(np.uint8)
    rows = sum(counts[start::SAMPLES] for start in range(SAMPLES))
    return sum(rows[:, start::SAMPLES] for start in range(SAMPLES)) / SAMPLES**2


@cache
def _interpolation(num: int, knots: int) -> Field:
    """Weights [num, knots] that interpolate `knots` values smoothly at `num` pixel centres."""
    position = (np.arange(num) + 0.5) / num * (knots - 1)
    first = np.minimum(position.astype(int), knots - 2)
    t = position - first
    t = t * t * (3 - 2 * t)
    weights = np.zeros((num, knots))
    weights[np.arange(num), first] = 1 - t
    weights[np.arange(num), first + 1] = t
    return weights


def noise(rng: np.random.Generator, height: int, width: int) -> Field:
    """Multi-scale noise [H, W] about 0 with a standard deviation near 0.5: three grids, halving in strength."""
    knots = int(rng.integers(2, 5))
    total = np.zeros((height, width))
    for octave in range(3):
        grid = rng.standard_normal((knots, knots))
        total += _interpolation(height, knots) @ grid @ _interpolation(width, knots).T * 0.5**octave
        knots = 2 * knots
    return total * 0.6


def pattern(rng: np.random.Generator, height: int, width: int) -> Field:
    """One of PATTERNS at a random angle, period and sharpness: float64 [H, W] in 0..1."""
    kind = PATTERNS[rng.integers(len(PATTERNS))]
    angle, sharpness, phase = rng.uniform(0, np.pi), rng.uniform(0.5, 3.0), rng.uniform(0, 2 * np.pi, 2)
    if kind == "plain":
        return np.full((height, width), 0.5)
    if kind in ("clouds", "blotches"):
        return np.clip(0.5 + noise(rng, height, width) * (0.6 if kind == "clouds" else 3.0), 0, 1)
    x, y = np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind == "gradient":
        return (u - u.min()) / max(u.max() - u.min(), 1.0)
    wave = 2 * np.pi / rng.uniform(4.0, 14.0)  # periods in pixels: from just resolved to about the smallest objects
    if kind == "stripes":
        value = np.sin(wave * u + phase[0])
    elif kind == "checks":
        value = np.sin(wave * u + phase[0]) * np.sin(wave * v + phase[1]) * 1.5
    else:
        value = np.cos(wave * u + phase[0]) + np.cos(wave * v + phase[1]) - 0.7
    return np.clip(0.5 + 0.5 * sharpness * value, 0, 1)


def colours(rng: np.random.Generator, num: int) -> Field:
    """Random colours of moderate saturation: float64 [num, 3] RGB in 0..255."""
    hue, saturation, value = rng.random(num), rng.uniform(0.05, 0.6, num), rng.uniform(0.2, 0.97, num)
    k = (np.array([5.0, 3.0, 1.0]) + hue[:, None] * 6) % 6
    return 255 * value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))


def contrasting(rng: np.random.Generator, avoid: Field) -> Field:
    """A random colour [3] at least MIN_CONTRAST from every colour of `avoid` [A, 3], or the farthest one tried."""
    candidates = colours(rng, NUM_CANDIDATES)
    distance = np.sqrt(((candidates[:, None] - avoid) ** 2).sum(axis=2)).min(axis=1)
    return candidates[np.argmax(np.minimum(distance, MIN_CONTRAST))]


def textured(rng: np.random.Generator, height: int, width: int, base: Field, spread: float) -> Field:
    """A textured, softly lit surface [3, H, W] from the colour `base` towards another, as far as `spread` (0..1)."""
    other = spread * (colours(rng, 1)[0] - base)
    mix, light = pattern(rng, height, width), 1 + 0.12 * noise(rng, height, width)
    surface = other[:, None, None] * mix
    surface += base[:, None, None]
    surface *= light
    return surface
