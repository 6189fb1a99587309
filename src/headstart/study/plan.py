"""From a study to what is actually run: cells, and segments with shared trunks, in the order to run them.

While the rate is constant the length of a schedule changes nothing, so the schedules of one arm, fraction and seed
share one trunk up to the first drop of each. A cell is then the trunk up to there plus its own tail, bit for bit the
same as a run of its own. Pure: no files, no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from headstart.schedule import Schedule, multiple_of, shared_until
from headstart.study.definition import Study, check_names


@dataclass(frozen=True)
class Cell:
    """One arm, schedule, fraction and seed; `segments` names what makes it up, trunk first, its tail last."""

    arm: str
    schedule: str
    fraction: float
    seed: int
    total: int
    segments: tuple[str, ...] = field(compare=False)

    @property
    def name(self) -> str:
        return f"{lineage_name(self.arm, self.fraction, self.seed)}-{self.schedule}"


@dataclass(frozen=True)
class Segment:
    """One stretch of training, steps start..stop, named like "scratch-f1-s0-trunk-0-200".

    kind "pretrain" makes weights (arm is then the entry of `pretrain`); "trunk" is shared, "tail" ends one schedule.
    schedule is None for all but tails. parent is the segment whose last checkpoint this one continues; weights_from
    the pre-training that its lineage began with. fraction and seed of a pre-training are 1 and 0: it is done once.
    """

    name: str
    kind: Literal["pretrain", "trunk", "tail"]
    arm: str
    fraction: float
    seed: int
    schedule: str | None
    start: int
    stop: int
    parent: str | None = None
    weights_from: str | None = None

    @property
    def steps(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """Segments in an order in which each comes after what it needs, and the cells they make up.

    notes lists settings without effect. Step counts leave pre-training out, which has its own.
    """

    segments: tuple[Segment, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    @property
    def steps_alone(self) -> int:
        """Steps if every cell were run by itself."""
        return sum(cell.total for cell in self.cells)

    @property
    def steps_shared(self) -> int:
        """Steps that are really run."""
        return sum(segment.steps for segment in self.segments if segment.kind != "pretrain")

    @property
    def steps_pretrain(self) -> int:
        return sum(segment.steps for segment in self.segments if segment.kind == "pretrain")

    @property
    def saving(self) -> float:
        """Share of the steps that sharing trunks saves, 0..1."""
        return 1 - self.steps_shared / self.steps_alone

    def cells_of(self) -> dict[str, list[Cell]]:
        """The cells that need each segment, by segment name; pre-training counts for every cell that began with it."""
        by_name = {segment.name: segment for segment in self.segments}
        users: dict[str, list[Cell]] = {segment.name: [] for segment in self.segments}
        for cell in self.cells:
            weights = by_name[cell.segments[0]].weights_from
            for name in (*([weights] if weights else []), *cell.segments):
                users[name].append(cell)
        return users


def make_schedules(
    names: Iterable[str], *, base: int, base_rate: float, warmup: int, warmup_from: float, factor: float = 0.1
) -> dict[str, Schedule]:
    """The schedules of these names; a ValueError names the field and the schedule that cannot be made."""
    made = {}
    for name in names:
        try:
            made[name] = Schedule.nx(
                multiple_of(name, base),
                base,
                base_rate=base_rate,
                warmup=warmup,
                warmup_from=warmup_from,
                factor=factor,
            )
        except ValueError as error:
            raise ValueError(f"schedules: {name} with a base of {base} steps: {error}") from None
    return made


def schedule_names(study: Study) -> tuple[str, ...]:
    """Every schedule that any arm and fraction of the study uses, each once, in order of first use."""
    used = (name for entry in study.fractions for arm in study.arms for name in study.schedules_of(arm, entry))
    return tuple(dict.fromkeys(used))


def expand(
    study: Study,
    schedules: Mapping[str, Schedule],
    *,
    arm_schedules: Mapping[str, Mapping[str, Schedule]] | None = None,
    pretrain_steps: Mapping[str, int] | None = None,
) -> Plan:
    """The plan of a study, given its schedules by name and the steps of each pre-training that an arm uses.

    Numbers of images must be shares by now (`Study.on`).
    arm_schedules replaces `schedules` for arms whose patch changes rate, warm-up or base length.
    Pre-training comes first, then seed by seed, so that one whole seed is soon there; then by fraction and arm.
    Raises ValueError naming the field for schedules that are missing or that cannot share a trunk when asked to.
    """
    assert all(entry.fraction is not None for entry in study.fractions), study.fractions
    segments = _pretraining(study, pretrain_steps or {})
    cells: list[Cell] = []
    for seed in study.seeds:
        for entry in study.fractions:
            for arm in study.arms:
                known = (arm_schedules or {}).get(arm, schedules)
                names = study.schedules_of(arm, entry)
                check_names(names, known, "schedules:")
                chosen = {name: known[name] for name in names}
                made, parts = _lineage(study, arm, entry.fraction, seed, chosen)
                segments.extend(made)
                cells.extend(Cell(arm, name, entry.fraction, seed, chosen[name].total, parts[name]) for name in names)
    unused = [name for name in study.pretrain if name not in {study.pretraining_of(arm) for arm in study.arms}]
    notes = tuple(f"pretrain.{name} has no effect: no arm starts from it" for name in unused)
    return Plan(tuple(segments), tuple(cells), notes)


def lineage_name(arm: str, fraction: float, seed: int) -> str:
    """The part of a name that arm, fraction and seed give: "scratch-f0.1-s0"."""
    return f"{arm}-f{fraction:.6g}-s{seed}"


def _pretraining(study: Study, steps: Mapping[str, int]) -> list[Segment]:
    used = dict.fromkeys(name for arm in study.arms if (name := study.pretraining_of(arm)))
    check_names(used, steps, "pretrain: steps of")
    return [Segment(f"pretrain-{name}", "pretrain", name, 1.0, 0, None, 0, steps[name]) for name in used]


def _lineage(
    study: Study, arm: str, fraction: float, seed: int, schedules: Mapping[str, Schedule]
) -> tuple[list[Segment], dict[str, tuple[str, ...]]]:
    """Trunks between consecutive first drops and one tail a schedule; with them the segments of each schedule."""
    cuts = _cuts(schedules) if study.share else {}
    prefix = lineage_name(arm, fraction, seed)
    pretraining = study.pretraining_of(arm)
    weights_from = f"pretrain-{pretraining}" if pretraining else None
    segments: list[Segment] = []
    trunk: tuple[str, ...] = ()
    parts: dict[str, tuple[str, ...]] = {}

    def add(kind: Literal["trunk", "tail"], label: str, schedule: str | None, start: int, stop: int) -> str:
        name = f"{prefix}-{label}-{start}-{stop}".replace(" ", "")  # names become folders: "18000 steps"
        parent = trunk[-1] if trunk else None
        segments.append(Segment(name, kind, arm, fraction, seed, schedule, start, stop, parent, weights_from))
        return name

    reached = 0
    for name, schedule in sorted(schedules.items(), key=lambda item: (cuts.get(item[0], 0), item[1].total)):
        cut = cuts.get(name, 0)
        if cut > reached:
            trunk += (add("trunk", "trunk", None, reached, cut),)
            reached = cut
        parts[name] = (*trunk, add("tail", name, name, cut, schedule.total))
    return segments, parts


def _cuts(schedules: Mapping[str, Schedule]) -> dict[str, int]:
    """Where each schedule leaves the trunk: its first drop. Refuses schedules that part before that."""
    ordered = sorted(schedules.items(), key=lambda item: item[1].first_drop)
    for name, schedule in ordered:
        if not schedule.drops:
            raise ValueError(f"schedules: {name} has no drop, so no tail of its own, expected share: false")
    for (short, a), (long, b) in pairwise(ordered):
        if shared_until(a, b) < a.first_drop:
            raise ValueError(
                f"schedules: {short} and {long} cannot share a trunk: their rates differ from step "
                f"{shared_until(a, b):,} on, expected the same rate until step {a.first_drop:,}, or share: false"
            )
    return {name: schedule.first_drop for name, schedule in ordered}
