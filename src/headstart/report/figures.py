"""Figures for papers, SVG and PNG, in the manner of the paper's figures 1, 2, 5, 7 and 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headstart.report import plots
from headstart.report.cost import Cost, public_cost
from headstart.report.facts import Facts, Row, Stretch
from headstart.report.plots import GREY, RANDOM_COLOURS, TITLE, WEIGHTS_COLOURS, arm_colours
from headstart.report.references import SAMPLES, sample_figure
from headstart.report.tables import ErrorRow
from headstart.study.results import NAN
from headstart.verdict.numbers import TRAIN, fraction_name, metric_name
from headstart.weights.public import find_training

_BARS = ("box.AP", "box.AP50", "box.AP75", "mask.AP", "mask.AP50", "mask.AP75")
_SHORT = {"classification": "class", "localisation": "location", "background": "backgr."}


def curve_figure(facts: Facts, stretches: Sequence[Stretch]) -> Figure:
    """Box and mask AP over steps at one fraction, all schedules of all arms overlaid (the paper's figure 1)."""
    main = ("box.AP", "mask.AP", "keypoints.AP", "class.top1", "semantic.mIoU")
    names = [name for name in main if name in facts.metrics][:2]
    figure, panels = plots.panels(len(names), width=4.6, height=3.4)
    colours = arm_colours(facts.folder)
    for axes, name in zip(panels, names):
        for arm, colour in colours.items():
            own = [stretch for stretch in stretches if stretch.arm == arm]
            seeds = [(s.x["steps"], seed) for s in own if len(s.seeds) > 1 for seed in s.y[name]]
            plots.lines(axes, [(s.x["steps"], s.means[name]) for s in own], 100, color=colour)
            plots.lines(axes, seeds, 100, color=colour, linewidth=0.5, alpha=0.4)
        ends = [(s, s.x["steps"][-1], 100 * s.means[name][-1]) for s in stretches if s.schedule]
        axes.set(xlim=(0, None), ylim=(0, 1.06 * axes.get_ylim()[1]))
        for stretch, x, y in ends:
            colour = colours[stretch.arm]
            axes.plot(x, y, "o", color=colour, markersize=3.5)
            others = [s for s in stretches if s.schedule == stretch.schedule and s.arm != stretch.arm]
            is_lowest = others and all(stretch.means[name][-1] < s.means[name][-1] for s in others)
            plots.text(axes, x, y, stretch.schedule, (3, -3 if is_lowest else 3), 7, "left", color=colour)
        _frame_steps(axes, facts, stretches, metric_name(name))
        plots.key(axes, colours, "lower right")
    return figure


def training_figure(facts: Facts, stretches: Sequence[Stretch], losses: Sequence[Stretch]) -> Figure:
    """Training loss beside the question's metric, on training images too where evaluated (the paper's figure 7)."""
    figure, (left, right) = plots.panels(2, width=4.2, height=3.2)
    metric, colours = facts.metric.rpartition(":")[2], arm_colours(facts.folder)
    styles = {metric: "-", f"{TRAIN}:{metric}": ":"}
    drawn = [name for name in styles if any(name in stretch.y for stretch in stretches)]
    for arm, colour in colours.items():
        own = [(s.x["steps"], s.means["loss"]) for s in losses if s.arm == arm]
        plots.lines(left, own, 1, color=colour, linewidth=1.0)
        for name in drawn:
            own = [(s.x["steps"], s.means[name]) for s in stretches if s.arm == arm]
            plots.lines(right, own, 100, color=colour, linestyle=styles[name])
    for axes, label in ((left, "training loss"), (right, metric_name(metric))):
        axes.set(xlim=(0, None), ylim=(0, None))
        _frame_steps(axes, facts, losses, label)
    plots.key(left, colours, "upper right")
    names = {metric: "— validation", f"{TRAIN}:{metric}": "··· training images"}
    plots.key(right, {names[name]: GREY for name in drawn}, "lower right")
    return figure


def error_figure(facts: Facts, tables: Mapping[str, Sequence[ErrorRow]]) -> Figure:
    """AP50 that each error type costs each arm, for boxes and masks."""
    figure, panels = plots.panels(len(tables), width=4.4, height=2.9)
    colours = arm_colours(facts.folder)
    for axes, (kind, rows) in zip(panels, tables.items()):
        means = {
            arm: [100 * value.mean if value else NAN for value in [row.gains.get(arm) for row in rows]]
            for arm in colours
        }
        plots.grouped_bars(axes, means, colours, 6)
        plots.frame(axes, f"{kind} AP50 lost, points", names=[_SHORT.get(row.name, row.name) for row in rows])
    return figure


def cost_figure(facts: Facts, costs: Sequence[tuple[str, str, Cost, Cost]]) -> Figure:
    """Images, instances and pixels seen (the paper's figure 2); costs: (arm, label, training, pre-training) a bar."""
    colours, bars = arm_colours(facts.folder), {}
    for effort in SAMPLES:
        parts = [(getattr(before, effort), getattr(own, effort)) for _, _, own, before in costs]
        bars[effort] = [
            (label, np.nan_to_num(before), own, colours[arm], "+ ?" if np.isnan(before) else "")
            for (arm, label, *_), (before, own) in zip(costs, parts)
        ]
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
    """Bars of both arms; columns: label, metric, schedule and fraction of each pair. Dashes are single seeds."""
    folder = facts.folder
    colours = {arm: arm_colours(folder)[arm] for arm in (folder.baseline, folder.candidate)}
    figure, (axes,) = plots.panels(1, width=max(3.2, width * len(columns)), height=2.9)
    scores = {
        arm: [100 * folder.scores(metric, arm, schedule, fraction) for _, metric, schedule, fraction in columns]
        for arm in colours
    }
    means = {
        arm: [np.nanmean(values) if np.isfinite(values).any() else NAN for values in own] for arm, own in scores.items()
    }
    plots.grouped_bars(axes, means, colours, 7, scores)
    plots.frame(axes, label, names=[name for name, *_ in columns])
    return figure


def _sample_bars(counts: Mapping[str, Sequence[tuple[str, float, float, str, str]]]) -> Figure:
    """One panel for each count; a bar is (label, hatched part, plain part above it, colour, text on top)."""
    figure, panels = plots.panels(len(counts), width=2.4, height=2.9)
    for axes, (effort, bars) in zip(panels, counts.items()):
        for place, (_, before, own, colour, _) in enumerate(bars):
            axes.bar(place, before, color="white", edgecolor=colour, hatch="////", width=0.62)
            axes.bar(place, own, bottom=before, color=colour, edgecolor=colour, width=0.62)
        axes.margins(y=0.1)
        axes.set_ylim(axes.get_ylim())
        for place, (_, before, own, _, text) in enumerate(bars):
            plots.text(axes, place, before + own, text, (0, 2), 7)
        plots.frame(axes, "", "hatched: pre-training" if axes is panels[1] else "", names=[label for label, *_ in bars])
        axes.set_title(f"{effort} seen", fontsize=9, y=TITLE)
    return figure


def _frame_steps(axes: Axes, facts: Facts, stretches: Sequence[Stretch], label: str) -> None:
    fraction = stretches[0].fraction
    plots.frame(axes, label, "steps")
    axes.set_title(fraction_name(fraction, facts.folder.num_images.get(fraction)), fontsize=9, y=TITLE)
