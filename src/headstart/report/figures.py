"""Figures for papers, SVG and PNG, in the manner of the paper's figures 1, 2, 5 and 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from headstart.report.mistakes import MistakeRow
from headstart.report.series import Stretch, metrics_of
from headstart.report.tables import fraction_table
from headstart.study.cost import Cost, public_cost, sample_figure
from headstart.study.folder import TRAIN, StudyFolder
from headstart.verdict.numbers import file_part, fraction_name, metric_name
from headstart.weights.public import find_training

# As in the paper, random starts are purple and the first start with weights is green; all are told apart by the common
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
TITLE = 1.02  # of the panel's height: matplotlib's own search for a free place takes a sixth of the time of a figure
_BARS = ("box.AP", "box.AP50", "box.AP75", "mask.AP", "mask.AP50", "mask.AP75")


def arm_colours(folder: StudyFolder) -> dict[str, str]:
    """A colour for each arm that stays the same everywhere."""
    colours = {True: iter(RANDOM_COLOURS * len(folder.arms)), False: iter(WEIGHTS_COLOURS * len(folder.arms))}
    return {arm: next(colours[arm in folder.random_arms]) for arm in folder.arms}


def write_figures(
    folder: StudyFolder,
    stretches: Sequence[Stretch],
    costs: Sequence[tuple[str, str, Cost, Cost]],
    directory: Path,
    *,
    losses: Sequence[Stretch] = (),
    mistakes: Mapping[str, Sequence[MistakeRow]] | None = None,
) -> list[Path]:
    """Write all figures there are data for; returns their paths without ending, of which .svg and .png exist.

    costs: of each bar the arm, its label, the training and the pre-training.
    """
    directory.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(STYLE):
        for fraction in folder.fractions:
            own = [stretch for stretch in stretches if stretch.fraction == fraction]
            if own:
                figures[f"curves-{file_part(fraction)}"] = curve_figure(folder, own, fraction)
            logged = [stretch for stretch in losses if stretch.fraction == fraction]
            if own and logged:
                figures[f"training-{file_part(fraction)}"] = training_figure(folder, own, logged, fraction)
        if costs:
            figures["cost"] = cost_figure(folder, costs)
        rows = [row for row in fraction_table(folder) if row["gap"]] if folder.baseline else []
        if rows:
            figures["metrics"] = metric_figure(folder)
        if mistakes:
            figures["errors"] = mistake_figure(folder, mistakes)
        if folder.settings.get("paper"):
            figures["paper-samples"] = paper_samples_figure()
        if len(rows) > 1:
            figures["fractions"] = fraction_figure(folder, rows)
        for name, figure in figures.items():
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
            figure.savefig(
                directory / f"{name}.png", dpi=200, metadata={"Software": None}, pil_kwargs={"compress_level": 2}
            )
    return [directory / name for name in figures]


def curve_figure(folder: StudyFolder, stretches: Sequence[Stretch], fraction: float) -> Figure:
    """Box and mask AP over steps, all schedules of all arms overlaid (the paper's figure 1)."""
    names = [
        name
        for name in ("box.AP", "mask.AP", "keypoints.AP", "class.top1", "semantic.mIoU")
        if name in metrics_of(folder)
    ][:2]
    figure, panels = _panels(len(names), width=4.6, height=3.4)
    for axes, name in zip(panels, names):
        for arm, colour in arm_colours(folder).items():
            for stretch in (s for s in stretches if s.arm == arm):
                _curve(axes, stretch, name, colour, below=_is_lowest(stretch, stretches, name))
            axes.plot([], [], color=colour, label=arm)
        axes.set(xlabel="steps", ylabel=metric_name(name), xlim=(0, None), ylim=(0, 1.06 * axes.get_ylim()[1]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(loc="lower right")
        axes.set_title(fraction_name(fraction, folder.num_images.get(fraction)), fontsize=9, y=TITLE)
    return figure


def _panels(num: int, *, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side, each of this size in inches; margins are fixed: a layout engine takes most of the time."""
    figure = Figure((width * num, height))
    panels = figure.subplots(1, num, squeeze=False)[0]
    left, right, bottom, top = 0.55, 0.15, 0.55, 0.35
    grid = {
        "left": left / width / num,
        "right": 1 - right / width / num,
        "bottom": bottom / height,
        "top": 1 - top / height,
    }
    figure.subplots_adjust(**grid, wspace=(left + right) / (width - left - right))
    return figure, panels


def _is_lowest(stretch: Stretch, stretches: Sequence[Stretch], name: str) -> bool:
    """Whether a schedule ends below that of every other arm, so that labels do not cover each other."""
    others = [s for s in stretches if s.schedule == stretch.schedule and s.arm != stretch.arm]
    return bool(others) and all(stretch.mean(name)[-1] < other.mean(name)[-1] for other in others)


def _curve(axes: Axes, stretch: Stretch, name: str, colour: str, *, below: bool) -> None:
    x, y = stretch.x["steps"], [100 * value for value in stretch.mean(name)]
    axes.plot(x, y, color=colour, linewidth=1.3)
    if len(stretch.seeds) > 1:  # all seeds in one line with gaps: a line each takes three times as long to draw
        apart = [[*(100 * value for value in seed), np.nan] for seed in stretch.y[name]]
        axes.plot([*x, np.nan] * len(apart), np.concatenate(apart), color=colour, linewidth=0.5, alpha=0.4)
    if stretch.schedule:
        axes.plot(x[-1], y[-1], "o", color=colour, markersize=3.5)
        offset = (3, -9) if below else (3, 3)
        axes.annotate(stretch.schedule, (x[-1], y[-1]), offset, textcoords="offset points", fontsize=7, color=colour)


def training_figure(
    folder: StudyFolder, stretches: Sequence[Stretch], losses: Sequence[Stretch], fraction: float
) -> Figure:
    """Training loss beside the question's metric, on training images too where they were judged (paper's figure 7)."""
    figure, (left, right) = _panels(2, width=4.2, height=3.2)
    metric = folder.metric.rpartition(":")[2]
    for arm, colour in arm_colours(folder).items():
        for stretch in (s for s in losses if s.arm == arm):
            left.plot(stretch.x["steps"], stretch.mean("loss"), color=colour, linewidth=1.0)
        for stretch in (s for s in stretches if s.arm == arm):
            for name, style in ((f"{TRAIN}:{metric}", ":"), (metric, "-")):
                if name in stretch.y:
                    y = [100 * value for value in stretch.mean(name)]
                    right.plot(stretch.x["steps"], y, style, color=colour, linewidth=1.3)
        left.plot([], [], color=colour, label=arm)
    left.set(ylabel="training loss", ylim=(0, None))
    right.set(ylabel=metric_name(metric), ylim=(0, None))
    right.plot([], [], "-", color="#555555", label="validation")
    if any(f"{TRAIN}:{metric}" in stretch.y for stretch in stretches):
        right.plot([], [], ":", color="#555555", label="training images")
    for axes in (left, right):
        axes.set(xlabel="steps", xlim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(fraction_name(fraction, folder.num_images.get(fraction)), fontsize=9, y=TITLE)
    left.legend(loc="upper right")
    right.legend(loc="lower right")
    return figure


def mistake_figure(folder: StudyFolder, mistakes: Mapping[str, Sequence[MistakeRow]]) -> Figure:
    """AP50 that each type of mistake costs each arm, for boxes and masks."""
    figure, panels = _panels(len(mistakes), width=4.4, height=2.9)
    colours, num = arm_colours(folder), len(folder.arms)
    for axes, (kind, rows) in zip(panels, mistakes.items()):
        for place, arm in enumerate(folder.arms):
            values = [row.gains.get(arm) for row in rows]
            means = [100 * value.mean if value else 0.0 for value in values]
            bars = axes.bar(np.arange(len(rows)) + (place - (num - 1) / 2) * 0.8 / num, means, 0.76 / num)
            for bar in bars:
                bar.set_color(colours[arm])
            bars.set_label(arm)
            axes.bar_label(bars, [f"{mean:.1f}" for mean in means], fontsize=6, padding=1)
        axes.set_xticks(range(len(rows)), [_short_name(row.name) for row in rows], fontsize=7)
        _finish(axes, f"{kind} AP50 lost, points")
    return figure


def _short_name(name: str) -> str:
    return {"classification": "class", "localisation": "location", "background": "backgr."}.get(name, name)


def paper_samples_figure() -> Figure:
    """The paper's figure 2 from its recipe: samples of pre-training and fine-tuning against training from scratch."""
    figure, panels = _panels(3, width=2.4, height=2.9)
    before = public_cost(find_training("rethinking-imagenet"))
    for axes, (effort, (tuned, scratch)) in zip(panels, sample_figure().items()):
        first = getattr(before, effort)
        axes.bar(0, first, color="white", edgecolor=WEIGHTS_COLOURS[0], hatch="////", width=0.62)
        axes.bar(0, tuned - first, bottom=first, color=WEIGHTS_COLOURS[0], edgecolor=WEIGHTS_COLOURS[0], width=0.62)
        axes.bar(1, scratch, color=RANDOM_COLOURS[0], edgecolor=RANDOM_COLOURS[0], width=0.62)
        for place, value in enumerate((tuned, scratch)):
            axes.annotate(f"{value:.3g}".replace("e+", "e"), (place, value), (0, 2), textcoords="offset points",
                          ha="center", fontsize=7)  # fmt: skip
        axes.set_xticks((0, 1), ["pre-trained\n2x", "random\n6x"], fontsize=7.5)
        axes.set_title(f"{effort} seen", fontsize=9, y=TITLE)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.1)
    panels[1].set_xlabel("hatched: pre-training", fontsize=7.5)
    return figure


def cost_figure(folder: StudyFolder, costs: Sequence[tuple[str, str, Cost, Cost]]) -> Figure:
    """Images, instances and pixels seen, pre-training hatched below training (the paper's figure 2)."""
    figure, panels = _panels(3, width=2.4, height=2.9)
    colours = arm_colours(folder)
    for axes, effort in zip(panels, ("images", "instances", "pixels")):
        for place, (arm, _, training, before) in enumerate(costs):
            first, second = getattr(before, effort), getattr(training, effort)
            axes.bar(place, first, color="white", edgecolor=colours[arm], hatch="////", width=0.62)
            axes.bar(place, second, bottom=first, color=colours[arm], edgecolor=colours[arm], width=0.62)
        axes.set_xticks(range(len(costs)), [label for _, label, _, _ in costs], fontsize=7.5)
        axes.set_title(f"{effort} seen", fontsize=9, y=TITLE)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="x", visible=False)
    panels[1].set_xlabel("hatched: pre-training", fontsize=7.5)
    return figure


def metric_figure(folder: StudyFolder) -> Figure:
    """Six metrics of both arms at the longest common schedule of the largest fraction (the paper's figure 5)."""
    names = [name for name in _BARS if name in metrics_of(folder)] or [folder.metric]
    last, fraction = folder.headline_cell
    figure, (axes,) = _panels(1, width=max(3.2, 1.15 * len(names)), height=2.9)
    for side, arm in ((-0.2, folder.baseline), (0.2, folder.candidate)):
        scores = [100 * folder.scores(name, arm, last, fraction) for name in names]
        _bars(axes, np.arange(len(names)) + side, scores, arm_colours(folder)[arm], arm)
    axes.set_xticks(range(len(names)), [metric_name(name) for name in names], fontsize=7.5)
    _finish(axes, f"points at {last}")
    return figure


def fraction_figure(folder: StudyFolder, rows: Sequence[dict]) -> Figure:
    """The question's metric at the longest common schedule, by share of the data (the paper's figure 8)."""
    figure, (axes,) = _panels(1, width=max(3.2, 1.5 * len(rows)), height=2.9)
    for side, arm in ((-0.2, folder.baseline), (0.2, folder.candidate)):
        scores = [100 * folder.scores(folder.metric, arm, row["schedule"], row["fraction"]) for row in rows]
        _bars(axes, np.arange(len(rows)) + side, scores, arm_colours(folder)[arm], arm)
    labels = [f"{row['images']:,} images" if row["images"] else f"{100 * row['fraction']:g} %" for row in rows]
    axes.set_xticks(range(len(rows)), [f"{label}\n{row['schedule']}" for label, row in zip(labels, rows)], fontsize=7.5)
    _finish(axes, metric_name(folder.metric))
    return figure


def _bars(axes: Axes, places: np.ndarray, scores: Sequence[np.ndarray], colour: str, label: str) -> None:
    means = [np.nanmean(values) if np.isfinite(values).any() else 0.0 for values in scores]
    bars = axes.bar(places, means, 0.36, color=colour, label=label)
    axes.bar_label(bars, [f"{mean:.1f}" for mean in means], fontsize=7, padding=2)
    for place, values in zip(places, scores):
        if np.isfinite(values).sum() > 1:
            axes.plot(np.full(len(values), place), values, "_", color="black", markersize=6, markeredgewidth=0.8)


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=2, fontsize=8)
