"""Textures and colours of the embedded data.

A texture is a pattern, float64 [H, W] in 0..1, that mixes two colours (RGB, 0..255).
All arithmetic is float64: a picture is rounded to bytes only once, so that a processor's last bit does not change it.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]

PATTERNS = ("plain", "gradient", "stripes", "checks", "spots", "clouds", "blotches")
MIN_CONTRAST = 75.0  # RGB distance between an object and what it lies on; below about 50 forms were hard to see by eye
NUM_CANDIDATES = 10  # colours tried for that contrast; the farthest is taken where none reaches it


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
