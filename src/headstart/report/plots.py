"""Elements of the figures: panels, frames with grid and numbers, bars, keys, and files as SVG and PNG.

Ticks, legends and annotations are plain lines and texts: matplotlib's own take half of the time of a figure.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from headstart.files import replacing, write_whole
from headstart.study.results import StudyFolder

# As in the paper, random starts are purple and the first start with weights is green; all are distinct for the common
# kinds of colour vision, and by lightness in grey.
RANDOM_COLOURS = ("#8e3b8c", "#d55e00")
WEIGHTS_COLOURS = ("#009e73", "#0072b2", "#e69f00", "#56b4e9")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "headstart",  # the same figure is the same file
}
PNG_DPI = 200
LEFT, RIGHT, BOTTOM, TOP = 0.55, 0.15, 0.55, 0.35  # margins of a panel, in inches
LABEL = 28  # from an axis to its label, in points
TITLE = 1.03  # of the panel's height
MOST_TICKS = 5  # intervals of an axis
GRID = "#e4e4e4"
GREY = "#555555"


def arm_colours(folder: StudyFolder) -> dict[str, str]:
    """A colour for each arm that stays the same everywhere."""
    colours = {True: iter(RANDOM_COLOURS * len(folder.arms)), False: iter(WEIGHTS_COLOURS * len(folder.arms))}
    return {arm: next(colours[arm in folder.random_arms]) for arm in folder.arms}


def write_figures(figures: Mapping[str, Callable[[], Figure]], directory: Path) -> None:
    """Draw figures and write each as NAME.svg and NAME.png."""
    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, make in figures.items():
            figure = make()
            with replacing(directory / f"{name}.svg") as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None})
            figure.set_dpi(PNG_DPI)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            write_whole(directory / f"{name}.png", _png(np.asarray(canvas.buffer_rgba())[..., :3]))


def panels(num: int, *, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side, each of this size in inches; margins are fixed, as a layout engine is slow."""
    figure = Figure((width * num, height))
    inner = width - LEFT - RIGHT, height - BOTTOM - TOP
    boxes = [((n * width + LEFT) / width / num, BOTTOM / height) for n in range(num)]
    return figure, [figure.add_axes((*corner, inner[0] / width / num, inner[1] / height)) for corner in boxes]


def lines(axes: Axes, lines: Sequence[tuple[Sequence[float], Sequence[float]]], factor: float, **style: object) -> None:
    """Draw all lines of one style as a single line with gaps, which is faster than a line each."""
    x = [value for xs, _ in lines for value in (*xs, np.nan)]
    y = [factor * value for _, ys in lines for value in (*ys, np.nan)]
    axes.plot(x, y, **{"linewidth": 1.3} | style)


def grouped_bars(
    axes: Axes,
    means: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    text_size: float,
    seeds: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> None:
    """Draw bars of all arms side by side with their heights above them, and dashes for single seeds; nothing at nan."""
    width, places = 0.8 / len(means), {}
    for n, arm in enumerate(means):
        places[arm] = np.arange(len(means[arm])) + (n - (len(means) - 1) / 2) * width
        axes.bar(places[arm], means[arm], 0.95 * width, color=colours[arm])
        dashes = [(x, v) for x, own in zip(places[arm], (seeds or {}).get(arm, ())) if len(own) > 1 for v in own]
        if dashes:
            axes.plot(*zip(*dashes), "_", color="black", markersize=6, markeredgewidth=0.8)
    axes.margins(y=0.14)
    axes.set_ylim(axes.get_ylim())
    for arm, own in means.items():
        for x, mean in zip(places[arm], own):
            if isfinite(mean):
                text(axes, x, mean, f"{mean:.1f}", (0, 1), text_size)
    key(axes, colours, "above")


def frame(axes: Axes, y_label: str, x_label: str = "", *, names: Sequence[str] = ()) -> None:
    """Draw grid, numbers and labels for the final limits of the axes; names replace the numbers 0, 1, ..."""
    count = EngFormatter(sep="")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    numbers = _ticks(low, high)
    lines_across = [((left, value), (right, value)) for value in numbers]
    for value in numbers:
        text(axes, left, value, count(value) if high >= 1000 else f"{value:g}", (-4, 0), 9, "right")
    for value, name in enumerate(names):
        text(axes, value, low, name, (0, -4), 7.5)
    for value in () if names else _ticks(left, right):
        lines_across.append(((value, low), (value, high)))
        text(axes, value, low, count(value), (0, -4), 9)
    axes.add_artist(LineCollection(lines_across, color=GRID, linewidth=0.6, zorder=0))
    middle = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    axes.text(0.5, -LABEL / _points(axes)[1], x_label, **middle)
    axes.text(-LABEL / _points(axes)[0], 0.5, y_label, rotation=90, **middle)
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)


def _ticks(low: float, high: float) -> list[float]:
    values = MaxNLocator(MOST_TICKS).tick_values(low, high)
    return [float(value) for value in values if low <= value <= high]


def _points(axes: Axes) -> np.ndarray:
    """Width and height of a panel in points."""
    return 72 * axes.figure.get_size_inches() * axes.get_position().size


def text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    offset: tuple[float, float],
    size: float,
    ha: str = "center",
    **style: str,
) -> None:
    """Draw text near a point of axes whose limits are final; the offset is in points, its sign the side."""
    spans = np.array([np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())])
    dx, dy = np.array(offset) * spans / _points(axes)
    va = {1: "bottom", 0: "center", -1: "top"}[int(np.sign(offset[1]))]
    axes.text(x + dx, y + dy, text, fontsize=size, ha=ha, va=va, **style)


def key(axes: Axes, colours: Mapping[str, str], place: str) -> None:
    """Draw names in their colours, below each other in a corner or side by side above the panel."""
    line = 12 / _points(axes)[1]
    for n, (name, colour) in enumerate(colours.items()):
        text = name if colour == GREY else f"■ {name}"
        x, y, ha = 0.98, 0.03 + line * (len(colours) - 1 - n), "right"
        if place == "upper right":
            y = 0.93 - line * n
        elif place == "above":
            x, y, ha = n / len(colours), TITLE, "left"
        axes.text(x, y, text, color=colour, fontsize=8, ha=ha, transform=axes.transAxes)


def _png(pixels: np.ndarray) -> bytes:
    """PNG of uint8 [H,W,3], without row filters: Pillow tries four a row and takes three times as long."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a row begins with its filter, 0: none
    rows[:, 1:].reshape(height, width, 3)[:] = pixels  # a view: one copy
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    density = struct.pack(">IIB", *[round(PNG_DPI / 0.0254)] * 2, 1)  # pixels a metre
    parts = ((b"IHDR", header), (b"pHYs", density), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
