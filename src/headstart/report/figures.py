"""Figures for papers, SVG and PNG, in the manner of the paper's figures 1, 2, 5, 7 and 8."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from headstart.files import write_whole
from headstart.report.cost import Cost, public_cost
from headstart.report.facts import Facts, Row, Stretch
from headstart.report.paper import SAMPLES, sample_figure
from headstart.report.tables import ErrorRow
from headstart.study.folder import TRAIN, StudyFolder
from headstart.verdict.numbers import fraction_name, metric_name
from headstart.weights.public import find_training

# As in the paper, random starts are purple and the first start with weights is green; all are distinct for the common
# kinds of colour vision, and by lightness in grey.
RANDOM_COLOURS = ("#8e3b8c", "#d55e00")
WEIGHTS_COLOURS = ("#009e73", "#0072b2", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "headstart",  # the same figure is the same file
}
PNG_DPI = 200
MARGINS = {"left": 0.55, "right": 0.15, "bottom": 0.55, "top": 0.35}  # of a panel, in inches
LABEL_INCHES = 0.36  # from an axis to its label: fixed like the margins, a search for a free place takes long
TITLE = 1.02  # of the panel's height
MOST_TICKS = 5  # intervals of an axis
GREY = "#555555"
_BARS = ("box.AP", "box.AP50", "box.AP75", "mask.AP", "mask.AP50", "mask.AP75")
_SHORT = {"classification": "class", "localisation": "location", "background": "backgr."}


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
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
            figure.set_dpi(PNG_DPI)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            write_whole(directory / f"{name}.png", _png(np.asarray(canvas.buffer_rgba())[..., :3]))


def curve_figure(facts: Facts, stretches: Sequence[Stretch]) -> Figure:
    """Box and mask AP over steps at one fraction, all schedules of all arms overlaid (the paper's figure 1)."""
    main = ("box.AP", "mask.AP", "keypoints.AP", "class.top1", "semantic.mIoU")
    names = [name for name in main if name in facts.metrics][:2]
    figure, panels = _panels(len(names), width=4.6, height=3.4)
    for axes, name in zip(panels, names):
        for arm, colour in arm_colours(facts.folder).items():
            own = [stretch for stretch in stretches if stretch.arm == arm]
            _lines(axes, own, name, colour, 100, label=arm)
            _seeds(axes, own, name, colour)
            for stretch in own:
                if stretch.schedule:
                    offset = (3, -9 if _is_lowest(stretch, stretches, name) else 3)
                    end = stretch.x["steps"][-1], 100 * stretch.means[name][-1]
                    axes.plot(*end, "o", color=colour, markersize=3.5)
                    axes.annotate(stretch.schedule, end, offset, textcoords="offset points", fontsize=7, color=colour)
        _over_steps(axes, facts, stretches, metric_name(name))
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.legend(loc="lower right")
    return figure


def training_figure(facts: Facts, stretches: Sequence[Stretch], losses: Sequence[Stretch]) -> Figure:
    """Training loss beside the question's metric, on training images too where evaluated (the paper's figure 7)."""
    figure, (left, right) = _panels(2, width=4.2, height=3.2)
    metric = facts.folder.metric.rpartition(":")[2]
    for arm, colour in arm_colours(facts.folder).items():
        _lines(left, [s for s in losses if s.arm == arm], "loss", colour, 1, linewidth=1.0, label=arm)
        own = [s for s in stretches if s.arm == arm]
        for name, style in ((f"{TRAIN}:{metric}", ":"), (metric, "-")):
            _lines(right, [s for s in own if name in s.y], name, colour, 100, linestyle=style)
    _over_steps(left, facts, losses, "training loss")
    _over_steps(right, facts, losses, metric_name(metric))
    right.plot([], [], "-", color=GREY, label="validation")
    if any(f"{TRAIN}:{metric}" in stretch.y for stretch in stretches):
        right.plot([], [], ":", color=GREY, label="training images")
    for axes, place in ((left, "upper right"), (right, "lower right")):
        axes.set_ylim(0, None)
        axes.legend(loc=place)
    return figure


def error_figure(facts: Facts, tables: Mapping[str, Sequence[ErrorRow]]) -> Figure:
    """AP50 that each error type costs each arm, for boxes and masks."""
    figure, panels = _panels(len(tables), width=4.4, height=2.9)
    num = len(facts.folder.arms)
    for axes, (kind, rows) in zip(panels, tables.items()):
        for place, (arm, colour) in enumerate(arm_colours(facts.folder).items()):
            values = [row.gains.get(arm) for row in rows]
            means = [100 * value.mean if value else 0.0 for value in values]
            places = np.arange(len(rows)) + (place - (num - 1) / 2) * 0.8 / num
            bars = axes.bar(places, means, 0.76 / num, color=colour, label=arm)
            axes.bar_label(bars, [f"{mean:.1f}" for mean in means], fontsize=6, padding=1)
        axes.set_xticks(range(len(rows)), [_SHORT.get(row.name, row.name) for row in rows], fontsize=7)
        _finish(axes, f"{kind} AP50 lost, points")
    return figure


def cost_figure(facts: Facts, costs: Sequence[tuple[str, str, Cost, Cost]]) -> Figure:
    """Images, instances and pixels seen (the paper's figure 2); of each bar arm, label, training and pre-training."""
    colours, bars = arm_colours(facts.folder), {}
    for effort in SAMPLES:
        parts = [(getattr(before, effort), getattr(own, effort)) for _, _, own, before in costs]
        bars[effort] = [(label, *part, colours[arm], "") for (arm, label, *_), part in zip(costs, parts)]
    return _sample_bars(bars)


def paper_samples_figure() -> Figure:
    """The paper's figure 2 by its recipe: samples of pre-training and fine-tuning against training from scratch."""
    start, bars = public_cost(find_training("rethinking-imagenet")), {}
    for effort, (tuned, scratch) in sample_figure().items():
        before = getattr(start, effort)
        above = [f"{value:.3g}".replace("e+", "e") for value in (tuned, scratch)]
        bars[effort] = [
            ("pre-trained\n2x", before, tuned - before, WEIGHTS_COLOURS[0], above[0]),
            ("random\n6x", 0.0, scratch, RANDOM_COLOURS[0], above[1]),
        ]
    return _sample_bars(bars)


def metric_figure(facts: Facts) -> Figure:
    """Six metrics of both arms at the longest common schedule of the largest fraction (the paper's figure 5)."""
    names = [name for name in _BARS if name in facts.metrics] or [facts.folder.metric]
    columns = [(metric_name(name), name, *facts.folder.headline_cell) for name in names]
    return _score_figure(facts, columns, 1.15, f"points at {facts.folder.headline_cell[0]}")


def fraction_figure(facts: Facts, rows: Sequence[Row]) -> Figure:
    """The question's metric at the longest common schedule, by share of the data (the paper's figure 8)."""
    labels = [f"{row['images']:,} images" if row["images"] else f"{100 * row['fraction']:g} %" for row in rows]
    metric = facts.folder.metric
    columns = [
        (f"{label}\n{row['schedule']}", metric, row["schedule"], row["fraction"]) for label, row in zip(labels, rows)
    ]
    return _score_figure(facts, columns, 1.5, metric_name(metric))


def _score_figure(facts: Facts, columns: Sequence[tuple[str, str, str, float]], width: float, label: str) -> Figure:
    """Bars of both arms; of each pair its label, metric, schedule and fraction. Dashes are single seeds."""
    folder = facts.folder
    figure, (axes,) = _panels(1, width=max(3.2, width * len(columns)), height=2.9)
    for side, arm in ((-0.2, folder.baseline), (0.2, folder.candidate)):
        scores = [100 * facts.scores(metric, arm, schedule, fraction) for _, metric, schedule, fraction in columns]
        means = [np.nanmean(values) if np.isfinite(values).any() else 0.0 for values in scores]
        bars = axes.bar(np.arange(len(columns)) + side, means, 0.36, color=arm_colours(folder)[arm], label=arm)
        axes.bar_label(bars, [f"{mean:.1f}" for mean in means], fontsize=7, padding=2)
        dashes = [(n + side, v) for n, own in enumerate(scores) if np.isfinite(own).sum() > 1 for v in own]
        if dashes:
            axes.plot(*zip(*dashes), "_", color="black", markersize=6, markeredgewidth=0.8)
    axes.set_xticks(range(len(columns)), [label for label, *_ in columns], fontsize=7.5)
    _finish(axes, label)
    return figure


def _sample_bars(counts: Mapping[str, Sequence[tuple[str, float, float, str, str]]]) -> Figure:
    """A panel a count; of each bar its label, hatched part, plain part on it, colour, and the text above it."""
    figure, panels = _panels(len(counts), width=2.4, height=2.9)
    for axes, (effort, bars) in zip(panels, counts.items()):
        for place, (_, before, own, colour, text) in enumerate(bars):
            axes.bar(place, before, color="white", edgecolor=colour, hatch="////", width=0.62)
            axes.bar(place, own, bottom=before, color=colour, edgecolor=colour, width=0.62)
            above = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
            axes.annotate(text, (place, before + own), (0, 2), **above)
        axes.set_xticks(range(len(bars)), [label for label, *_ in bars], fontsize=7.5)
        axes.set_title(f"{effort} seen", fontsize=9, y=TITLE)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.1)
    panels[1].set_xlabel("hatched: pre-training", fontsize=7.5)
    return figure


def _png(pixels: np.ndarray) -> bytes:
    """uint8 [H,W,3] as PNG without row filters: Pillow, which tries four a row, takes three times as long."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a row begins with its filter, 0: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    density = struct.pack(">IIB", *[round(PNG_DPI / 0.0254)] * 2, 1)  # pixels a metre
    parts = ((b"IHDR", header), (b"pHYs", density), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _panels(num: int, *, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side, each of this size in inches; margins are fixed: a layout engine takes most of the time."""
    figure = Figure((width * num, height))
    panels = figure.subplots(1, num, squeeze=False)[0]
    left, right, bottom, top = MARGINS.values()
    inner = width - left - right, height - bottom - top
    figure.subplots_adjust(
        left=left / width / num, right=1 - right / width / num, bottom=bottom / height, top=1 - top / height,
        wspace=(left + right) / inner[0],
    )  # fmt: skip
    for axes in panels:
        axes.locator_params(nbins=MOST_TICKS)
        axes.xaxis.set_label_coords(0.5, -LABEL_INCHES / inner[1])
        axes.yaxis.set_label_coords(-LABEL_INCHES / inner[0], 0.5)
    return figure, panels


def _lines(axes: Axes, stretches: Sequence[Stretch], name: str, colour: str, factor: float, **style: object) -> None:
    """Means over seeds of all stretches as one line with gaps: a line each takes long to draw."""
    x = [value for stretch in stretches for value in (*stretch.x["steps"], np.nan)]
    y = [factor * value for stretch in stretches for value in (*stretch.means[name], np.nan)]
    axes.plot(x, y, **{"color": colour, "linewidth": 1.3} | style)


def _seeds(axes: Axes, stretches: Sequence[Stretch], name: str, colour: str) -> None:
    apart = [(stretch, seed) for stretch in stretches if len(stretch.seeds) > 1 for seed in stretch.y[name]]
    x = [value for stretch, _ in apart for value in (*stretch.x["steps"], np.nan)]
    y = [100 * value for _, seed in apart for value in (*seed, np.nan)]
    axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.4)


def _is_lowest(stretch: Stretch, stretches: Sequence[Stretch], name: str) -> bool:
    """Whether a schedule ends below that of every other arm, so that labels do not cover each other."""
    others = [s for s in stretches if s.schedule == stretch.schedule and s.arm != stretch.arm]
    return bool(others) and all(stretch.means[name][-1] < other.means[name][-1] for other in others)


def _over_steps(axes: Axes, facts: Facts, stretches: Sequence[Stretch], label: str) -> None:
    fraction = stretches[0].fraction
    axes.set(xlabel="steps", ylabel=label, xlim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(fraction_name(fraction, facts.folder.num_images.get(fraction)), fontsize=9, y=TITLE)


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=2, fontsize=8)
