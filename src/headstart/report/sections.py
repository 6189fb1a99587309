"""Sections of a report that are pivots of the facts, in the order of the page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import structs

from headstart.report import figures, tables
from headstart.report.cost import UNKNOWN, Cost, outside_weights
from headstart.report.differences import compared, difference_rows, starts_differ, tuning_rows
from headstart.report.facts import Facts, Row, Stretch
from headstart.report.findings import Findings
from headstart.report.page import Section
from headstart.report.references import SOURCE, earlier_study, sample_figure, table_1
from headstart.study.results import Run
from headstart.tasks import METRIC_KINDS
from headstart.training.stored import AUDIT_FILE, ENVIRONMENT_FILE, Environment
from headstart.verdict import numbers
from headstart.verdict.numbers import metric_name, minus
from headstart.verdict.verdict import Verdict
from headstart.verdict.words import crossing_interval, difference_text, margin_text, rule_sentence
from headstart.weights.audits.record import Audit


@dataclass(frozen=True)
class Tile:
    """One number at the top: label, value, note, and the arm whose colour it has (or None)."""

    label: str
    value: str
    note: str
    arm: str | None = None


def verdict(facts: Facts, findings: Findings) -> Section:
    """The question, the verdict by its rule, and the main numbers."""
    folder = facts.folder
    asked = [arm for arm in folder.arms if arm in (folder.baseline, folder.candidate)] or folder.arms
    question = "Do you need the head start?" if starts_differ(folder) else f"{' or '.join(asked)}?"
    rule = rule_sentence(folder.rule, folder.looks) if folder.rule else None
    averaged = {run.segment.arm for run in folder.runs.values() if run.weights == "ema"}.intersection(folder.arms)
    context = {"question": question, "rule": rule, "tiles": _tiles(facts, findings), "averaged": sorted(averaged)}
    return Section("verdict", context=context)


def answers(facts: Facts, findings: Findings) -> Section:
    """Questions of a reader, and both arms at equal effort."""
    return Section("answers", "Answers" if findings.answers else None)


def curves(facts: Facts, findings: Findings) -> Section:
    """Learning curves and training loss."""
    folder, drawn = facts.folder, {}
    for fraction in folder.fractions:
        own, logged = ([s for s in every if s.fraction == fraction] for every in (facts.stretches, facts.losses))
        if own:
            drawn[f"curves-f{fraction:g}"] = partial(figures.curve_figure, facts, own)
        if own and logged:
            drawn[f"training-f{fraction:g}"] = partial(figures.training_figure, facts, own, logged)
    names = (*facts.metrics, *facts.train_metrics)
    schedules = list(dict.fromkeys(name for fraction in folder.fractions for name in folder.schedules(fraction)))
    return Section(
        "curves",
        "Curves",
        context={"metrics": names, "schedules": schedules, "present": bool(facts.stretches), "paid": facts.starts}
        | {"earlier": earlier_study(folder.study.beside)},
        data={
            "metrics": [{"id": name, "name": metric_name(name)} for name in names],
            "metric": metric_name(folder.metric),
            "stretches": [_stretch(stretch, 100) for stretch in facts.stretches],
            "losses": [_stretch(stretch, 1) for stretch in facts.losses],
            "pretraining": dict.fromkeys(outside_weights(folder), _efforts(UNKNOWN))
            | {arm: _efforts(start.share.without_evaluation) for arm, start in facts.starts.items()},
        },
        figures=drawn,
    )


def schedules(facts: Facts, findings: Findings) -> Section:
    """Scores at the end of each schedule, and the paper's."""
    return Section(
        "schedules",
        "Schedules",
        context={
            "present": bool(facts.stretches),
            "schedule_tables": tables.schedule_tables(facts),
            "verdicts": {(entry.fraction, entry.schedule): entry.verdict for entry in findings.comparisons},
            "paper": table_1(),
            "paper_source": SOURCE,
        },
    )


def data(facts: Facts, findings: Findings) -> Section:
    """Scores of both arms by number of training images."""
    rows = tables.fraction_table(facts.folder)
    points = [
        {"arm": arm, "images": row["images"], "schedule": row["schedule"], "seeds": [100 * v for v in number.seeds]}
        for row in rows
        for arm, number in row["longest"].items()
        if number and row["images"]
    ]
    known, several = [row for row in rows if row["gap"]], len({point["images"] for point in points}) > 1
    drawn = {"metrics": partial(figures.metric_figure, facts)} if rows and rows[0]["gap"] else {}  # headline's cell
    if len(known) > 1:
        drawn["fractions"] = partial(figures.fraction_figure, facts, known)
    return Section("data", "Data", context={"rows": rows, "several": several}, data={"few": points}, figures=drawn)


def cost(facts: Facts, findings: Findings) -> Section:
    """Samples, operations and time of every cell in four ways, and of the pre-training."""
    folder = facts.folder
    settled = {arm: [tables.settled_schedule(folder, arm, f) for f in folder.fractions] for arm in folder.arms}
    drawn, bars = {}, []
    for arm in (folder.baseline, folder.candidate) if folder.baseline else ():
        schedule = settled[arm][0]
        if mean := facts.mean_costs.get((arm, schedule, folder.fractions[0])):
            bars.append((arm, f"{arm} {schedule}", mean["alone"], mean["pretraining"]))
    if bars:
        drawn["cost"] = partial(figures.cost_figure, facts, bars)
    papers = sample_figure() if folder.study.paper else None
    if papers:
        drawn["paper-samples"] = figures.paper_samples_figure
    ways = ("alone", "as_spent", "pretraining", "pretraining_spent")
    return Section(
        "cost",
        "Cost",
        context={
            "lines": tables.cost_lines(facts),
            "starts": facts.starts,
            "paper_bars": papers,
            "has_flops": any(cost.alone.flops > 0 for own in facts.costs.values() for cost in own),
        },
        data={
            "costs": [
                {"arm": arm, "schedule": schedule, "fraction": fraction} | {way: _efforts(mean[way]) for way in ways}
                for (arm, schedule, fraction), mean in facts.mean_costs.items()
            ],
            "settled": settled,
        },
        figures=drawn,
    )


def classes(facts: Facts, findings: Findings) -> Section:
    """Scores of both arms by class, and AP by size of objects."""
    found, sizes, rule = tables.class_tables(facts.folder), tables.size_table(facts), facts.folder.rule
    gaps = [abs(row["gap"].mean) for rows in (sizes, *found.values()) for row in rows if row["gap"]]
    widest = max([rule.margin if rule else 0.01, *gaps])  # of all tables, so that a bar means the same in each
    names = {kind: metric_name(f"{kind}.{METRIC_KINDS[kind].per_class}") for kind in found}
    return Section("classes", "Classes", context={"classes": found, "names": names, "sizes": sizes, "widest": widest})


def mistakes(facts: Facts, findings: Findings) -> Section:
    """Error types of each arm."""
    found = tables.error_tables(facts.folder)
    shown = {
        kind: [
            {
                "type": row.name,
                "meaning": row.meaning,
                "gains": {arm: value and 100 * value.mean for arm, value in row.gains.items()},
                "counts": {arm: value and value.mean for arm, value in row.counts.items()},
            }
            for row in rows
        ]
        for kind, rows in found.items()
    }
    drawn = {"errors": partial(figures.error_figure, facts, found)} if found else {}
    context, data = {"mistakes": found}, {"mistakes": shown}
    return Section("mistakes", "Mistakes" if found else None, context=context, data=data, figures=drawn)


def audit(facts: Facts, findings: Findings) -> Section:
    """Start of each arm, differences between the arms, and their tuning."""
    rows, same = difference_rows(facts.folder), compared(facts.folder)
    context = {"audits": _audits(facts), "differences": rows, "same": same, "tuning": tuning_rows(facts.folder)}
    return Section("audit", "Audit", context=context, summary={"differences": rows, "compared": same})


def plan(facts: Facts, findings: Findings) -> Section:
    """Cells, segments and environments."""
    environments: dict[str, Row] = {}
    for run in facts.folder.runs.values():
        if found := run.fact(ENVIRONMENT_FILE, Environment):
            entry = environments.setdefault(repr(found), {"facts": structs.asdict(found), "num": 0})
            entry["num"] += 1
    context = {"environments": list(environments.values())}
    return Section("plan", "Plan", context=context, summary={"notes": list(facts.folder.plan.notes)})


def trace(facts: Facts, findings: Findings) -> Section:
    """Source of each number: run and weights of every cell, and all rows as CSV."""
    rows = {"cells": facts.cells, "curves": facts.curves, "classes": facts.classes, "errors": facts.errors}
    if findings.resampled is not None:
        names = [f"seed {seed}" for seed in facts.folder.seeds]
        drawn = enumerate(findings.resampled.T.tolist())  # candidate minus baseline on each resample of the test images
        rows["resamples"] = [{"resample": number} | dict(zip(names, values)) for number, values in drawn]
    summary = {name: rows[name] for name in ("cells", "errors")}
    return Section("trace", "Trace", context={"cells": facts.cells}, summary=summary, tables=rows)


def _stretch(stretch: Stretch, factor: float) -> dict[str, Any]:
    names = ("arm", "fraction", "schedule", "start", "seeds", "x")
    y = {name: [[factor * value for value in seed] for seed in seeds] for name, seeds in stretch.y.items()}
    return {name: getattr(stretch, name) for name in names} | {"y": y}


def _efforts(cost: Cost) -> dict[str, float]:
    return {name: getattr(cost, name) for name in ("images", "instances", "pixels", "flops", "seconds")}


def _audits(facts: Facts) -> list[Row]:
    """One audit for each arm and pre-training, that of its first run, with the runs whose audit differs."""
    found: dict[str, list[tuple[Run, Audit]]] = {}
    for run in facts.folder.runs.values():
        if content := run.fact(AUDIT_FILE, Audit):
            label = f"pre-training {run.segment.arm}" if run.segment.kind == "pretrain" else run.segment.arm
            found.setdefault(label, []).append((run, content))
    made = []
    for label, entries in found.items():
        first, content = entries[0]
        others = [run.place(facts.folder.path) for run, other in entries if other.rows != content.rows]
        own = {"label": label, "run": first.place(facts.folder.path), "audit": content}
        made.append(own | {"num": len(entries), "others": others})
    return made


def _tiles(facts: Facts, findings: Findings) -> list[Tile]:
    """Differences at the shortest and longest schedule and each amount of data; crossover; price of starts."""
    folder, crossing = facts.folder, findings.crossover
    most = [entry for entry in findings.comparisons if folder.fractions and entry.fraction == folder.fractions[0]]
    tiles = []
    for entry in most[:1] + most[1:][-1:]:
        when = "at the end" if (entry.schedule, entry.fraction) == folder.headline_cell else "early"
        tiles.append(_lead_tile(f"at {entry.schedule}", entry.verdict, when))
    if crossing:
        near = f"{crossing.candidate} within {margin_text(crossing.within)} of {crossing.baseline}"
        at = f"{'from' if crossing.x == crossing.start else '≈'} {numbers.amount(crossing.x or 0)} steps"
        label = near if crossing.within else f"{crossing.candidate} catches up"
        value = at if crossing.x is not None else "not at the end" if crossing.reached else "not yet"
        tiles.append(Tile(label, value, crossing_interval(crossing)))
    for fraction in folder.fractions[1:]:
        for entry in [entry for entry in findings.comparisons if entry.fraction == fraction][-1:]:
            tiles.append(_lead_tile(f"{numbers.share(fraction)} of the data", entry.verdict, f"at {entry.schedule}"))
    for arm, start in facts.starts.items():
        if start.whole.images > 0:
            took = "public weights" if start.public else f"{numbers.span(start.whole.seconds)} of pre-training"
            shared = "counted to one use" if start.uses == 1 else f"amortised over {start.uses:,g} uses"
            images = f"{numbers.large(start.whole.images)} images"
            tiles.append(Tile(f"start of {arm}", images, f"{took}, {shared}", arm))
    return tiles


def _lead_tile(label: str, found: Verdict, when: str) -> Tile:
    """The tile of a comparison; an arm is named as ahead only where the rule decided so."""
    text = difference_text(found)
    if found.obstacle:
        return Tile(label, "no answer", minus(f"{found.obstacle.title}; difference {text}"))
    if found.outcome in ("equivalent", "not worse"):
        value = "level" if found.outcome == "equivalent" else f"{found.rule.candidate} not worse"
        return Tile(label, value, minus(f"{when}, margin {margin_text(found.rule.margin)}: difference {text}"))
    leader = found.rule.candidate if found.outcome == "better" else found.rule.baseline
    size = numbers.signed(abs(found.mean)).replace("+", "")
    return Tile(label, f"{size} points", minus(f"{leader} is ahead {when}: difference {text}"), leader)
