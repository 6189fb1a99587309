"""Main numbers of a study as tiles under the headline."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.report.cost import StartCost
from headstart.report.facts import Facts
from headstart.report.findings import Findings
from headstart.verdict import numbers
from headstart.verdict.curves import Crossover
from headstart.verdict.numbers import minus
from headstart.verdict.verdict import Verdict
from headstart.verdict.words import crossing_interval, difference_text, margin_text


@dataclass(frozen=True)
class Tile:
    """One number at the top: label, value, note, and the arm whose colour it has (or None)."""

    label: str
    value: str
    note: str
    arm: str | None = None


def make_tiles(facts: Facts, findings: Findings) -> list[Tile]:
    """Differences at the shortest and longest schedule and each amount of data; crossover; price of starts."""
    folder = facts.folder
    most = [entry for entry in findings.comparisons if folder.fractions and entry.fraction == folder.fractions[0]]
    tiles = [
        _lead_tile(f"at {entry.schedule}", entry.verdict, when)
        for entry, when in zip(most[:1] + most[1:][-1:], ("early", "at the end"))
    ]
    if findings.crossover:
        tiles.append(_crossover_tile(findings.crossover))
    for fraction in folder.fractions[1:]:
        for entry in [entry for entry in findings.comparisons if entry.fraction == fraction][-1:]:
            tiles.append(_lead_tile(f"{numbers.share(fraction)} of the data", entry.verdict, f"at {entry.schedule}"))
    return [*tiles, *(_start_tile(arm, start) for arm, start in facts.starts.items() if start.whole.images)]


def _lead_tile(label: str, found: Verdict, when: str) -> Tile:
    """An arm is named as ahead only where the rule decided so; every difference has its interval, or none."""
    text = difference_text(found)
    if found.obstacle:
        return Tile(label, "no answer", minus(f"{found.obstacle.title}; difference {text}"))
    if found.outcome in ("equivalent", "not worse"):
        value = "level" if found.outcome == "equivalent" else f"{found.rule.candidate} not worse"
        return Tile(label, value, minus(f"{when}, margin {margin_text(found.rule.margin)}: difference {text}"))
    leader = found.rule.candidate if found.outcome == "better" else found.rule.baseline
    size = numbers.signed(abs(found.mean)).replace("+", "")
    return Tile(label, f"{size} points", minus(f"{leader} is ahead {when}: difference {text}"), leader)


def _crossover_tile(found: Crossover) -> Tile:
    near = f"{found.candidate} within {margin_text(found.within)} of {found.baseline}"
    at = f"{'from' if found.x == found.start else '≈'} {numbers.amount(found.x or 0)} steps"
    label, value = near if found.within else f"{found.candidate} catches up", "not yet" if found.x is None else at
    return Tile(label, value, crossing_interval(found))


def _start_tile(arm: str, start: StartCost) -> Tile:
    took = "public weights" if start.public else f"{numbers.span(start.whole.seconds)} of pre-training"
    shared = "counted to one use" if start.uses == 1 else f"amortised over {start.uses:,g} uses"
    return Tile(f"start of {arm}", f"{numbers.large(start.whole.images)} images", f"{took}, {shared}", arm)
