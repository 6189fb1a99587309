"""Plans of studies: cells, and segments with shared trunks, in the order in which they run.

While the learning rate is constant the length of a schedule changes nothing. The schedules of one arm, fraction and
seed therefore share one trunk up to the first drop of each. A cell is the trunk up to there plus its own tail, bit for
bit the same as a run of its own. A branch leaves another arm's trunk and has its own tails. Pure: no files or model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from msgspec import Meta, Struct

from headstart.recipe.schedule import Schedule, shared_until
from headstart.study.spec import StudySpec, check_names


class Cell(Struct, frozen=True, forbid_unknown_fields=True):
    """One arm, schedule, fraction and seed; `segments` names what makes it up, trunk first, its tail last."""

    arm: str
    schedule: str
    fraction: float
    seed: int
    total: int
    segments: Annotated[tuple[str, ...], Meta(min_length=1)]

    @property
    def name(self) -> str:
        return f"{lineage_name(self.arm, self.fraction, self.seed)}-{self.schedule}"


class Segment(Struct, frozen=True, forbid_unknown_fields=True):
    """One stretch of training, steps start..stop, named like "scratch-f1-s0-trunk-0-200".

    kind "pretrain" makes weights (arm is then the entry of `pretrain`); "trunk" is shared, "tail" ends one schedule.
    schedule is None for all but tails. parent is the segment whose last checkpoint this one continues; weights_from
    the pre-training that its lineage began with. A pre-training that does not follow its arm has fraction 1, seed 0.
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

    @property
    def needs(self) -> frozenset[str]:
        """The segments that must be finished before this one begins."""
        return frozenset(name for name in (self.parent, self.weights_from) if name)


@dataclass(frozen=True)
class Plan:
    """Segments in an order in which each comes after what it needs, and the cells they make up.

    notes lists settings without effect. Step counts leave out pre-training, which `steps_pretrain` counts.
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

    def ancestors(self, segment: Segment) -> list[Segment]:
        """All segments that must be finished before one begins, in the order of the plan."""
        needed = set(segment.needs)
        for other in reversed(self.segments):
            if other.name in needed:
                needed |= other.needs
        return [other for other in self.segments if other.name in needed]

    def cells_of(self) -> dict[str, list[Cell]]:
        """The cells that need each segment, by segment name; pre-training counts for every cell that began with it."""
        by_name = {segment.name: segment for segment in self.segments}
        users: dict[str, list[Cell]] = {segment.name: [] for segment in self.segments}
        for cell in self.cells:
            weights = by_name[cell.segments[0]].weights_from
            for name in (*([weights] if weights else []), *cell.segments):
                users[name].append(cell)
        return users


def schedule_names(study: StudySpec) -> tuple[str, ...]:
    """Every schedule that any arm and fraction of the study uses, each once, in order of first use."""
    used = (name for entry in study.fractions for arm in study.arms for name in study.schedules_of(arm, entry))
    return tuple(dict.fromkeys(used))


def expand(
    study: StudySpec,
    schedules: Mapping[str, Schedule],
    *,
    arm_schedules: Mapping[str, Mapping[str, Schedule]] | None = None,
    pretrain_steps: Mapping[str, int] | None = None,
    branch_steps: Mapping[str, int] | None = None,
) -> Plan:
    """The plan of a study, given its schedules by name and the steps of each pre-training that an arm uses.

    Numbers of images must be shares by now (`StudySpec.on`). arm_schedules replaces `schedules` for arms whose patch
    changes rate, warm-up or base length. branch_steps are the steps that each branch runs by itself.
    Segments are ordered by seed, so that one whole seed finishes early. Within a seed pre-training comes first, then
    fractions and arms, branches after the arms that they leave.
    Raises ValueError naming the field for schedules that are missing or that cannot share a trunk when asked to.
    """
    assert all(entry.fraction is not None for entry in study.fractions), study.fractions
    segments: list[Segment] = []
    cells: list[Cell] = []
    for seed in study.seeds:
        segments += _pretraining(study, seed, pretrain_steps or {}, {segment.name for segment in segments})
        for entry in study.fractions:
            chosen: dict[str, dict[str, Schedule]] = {}
            for arm in study.arms:
                names, known = study.schedules_of(arm, entry), (arm_schedules or {}).get(arm, schedules)
                check_names(names, known, "schedules:")
                chosen[arm] = {name: known[name] for name in names}
            cuts = _cuts(study, entry.fraction, chosen, branch_steps or {})
            trunks = {arm: _trunk(study, arm, entry.fraction, seed, cuts) for arm in study.arms}
            for arm in sorted(study.arms, key=lambda arm: study.branch_of(arm) is not None):
                branch = study.branch_of(arm)
                trunk = trunks[branch.parent if branch else arm]
                tails = _tails(study, arm, entry.fraction, seed, chosen[arm], cuts[arm], trunk)
                segments += sorted([*trunks[arm], *tails], key=_order)
                for tail in tails:
                    parts = (*_names(trunk, tail.start), tail.name)
                    cells.append(Cell(arm, tail.schedule, tail.fraction, tail.seed, tail.stop, parts))
    unused = [name for name in study.pretrain if name not in {study.pretraining_of(arm) for arm in study.arms}]
    notes = tuple(f"pretrain.{name} has no effect: no arm starts from it" for name in unused)
    return Plan(tuple(segments), tuple(cells), notes)


def lineage_name(arm: str, fraction: float, seed: int) -> str:
    """The part of a name that arm, fraction and seed give: "scratch-f0.1-s0"."""
    return f"{arm}-f{fraction:.6g}-s{seed}"


def _pretraining(study: StudySpec, seed: int, steps: Mapping[str, int], known: Collection[str]) -> list[Segment]:
    found: dict[str, Segment] = {}
    for arm in filter(study.pretraining_of, study.arms):
        entry = study.pretraining_of(arm)
        check_names([entry], steps, "pretrain: steps of")
        for own in study.fractions:
            name, *place = study.pretrain_place(arm, own.fraction, seed)
            found.setdefault(name, Segment(name, "pretrain", entry, *place, None, 0, steps[entry]))
            if (other := found[name].arm) != entry:
                raise ValueError(f"pretrain.{entry}: its run {name} has the name of one of {other!r}; expected another")
    return [segment for name, segment in found.items() if name not in known]


def _trunk(
    study: StudySpec, arm: str, fraction: float, seed: int, cuts: Mapping[str, Mapping[str, int]]
) -> list[Segment]:
    """The trunk of an arm in parts, which end where a schedule first drops or a branch leaves."""
    if study.branch_of(arm):
        return []
    branches = [child for child in study.arms if (branch := study.branch_of(child)) and branch.parent == arm]
    steps = {step for name in (arm, *branches) for step in cuts[name].values()}
    segments, (weights, *_) = [], study.pretrain_place(arm, fraction, seed)
    for start, stop in pairwise(sorted({0, *steps})):
        name = f"{lineage_name(arm, fraction, seed)}-trunk-{start}-{stop}"
        parent = segments[-1].name if segments else None
        segments.append(Segment(name, "trunk", arm, fraction, seed, None, start, stop, parent, weights))
    return segments


def _tails(
    study: StudySpec,
    arm: str,
    fraction: float,
    seed: int,
    schedules: Mapping[str, Schedule],
    cuts: Mapping[str, int],
    trunk: list[Segment],
) -> list[Segment]:
    """The end of each schedule, from where it leaves the trunk."""
    tails, (weights, *_) = [], study.pretrain_place(arm, fraction, seed)
    for schedule, numbers in schedules.items():
        start, stop = cuts[schedule], numbers.total
        label = schedule.replace(" ", "")  # names become folders: "18000 steps"
        name = f"{lineage_name(arm, fraction, seed)}-{label}-{start}-{stop}"
        parent = next(iter(_names(trunk, start)[-1:]), None)
        tails.append(Segment(name, "tail", arm, fraction, seed, schedule, start, stop, parent, weights))
    return tails


def _names(trunk: list[Segment], stop: int) -> tuple[str, ...]:
    return tuple(segment.name for segment in trunk if segment.stop <= stop)


def _order(segment: Segment) -> tuple[int, bool, int]:
    """Sort key: a tail follows the part of the trunk that it leaves, so that the first schedule finishes early."""
    is_tail = segment.kind == "tail"
    return (segment.start if is_tail else segment.stop, is_tail, segment.stop)


def _cuts(
    study: StudySpec, fraction: float, chosen: Mapping[str, Mapping[str, Schedule]], branch_steps: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """Steps at which each schedule of each arm leaves the trunk: its first drop, or the beginning of the branch."""
    branches = {arm: branch.parent for arm in study.arms if (branch := study.branch_of(arm))}
    check_names(branches, branch_steps, "arms: steps of the branch")
    cuts = {
        arm: _drops(schedules) if study.share else dict.fromkeys(schedules, 0)
        for arm, schedules in chosen.items()
        if arm not in branches
    }
    for arm, parent in branches.items():
        cuts[arm] = {name: schedule.total - branch_steps[arm] for name, schedule in chosen[arm].items()}
        for name, schedule in chosen[arm].items():
            _check_branch_point(arm, name, schedule, cuts[arm][name], parent, list(chosen[parent].values()), fraction)
    return cuts


def _check_branch_point(
    arm: str, name: str, own: Schedule, step: int, parent: str, trunk: list[Schedule], fraction: float
) -> None:
    """Refuse a step at which parent and branch are not both at their constant rate."""
    longest = max(schedule.first_drop for schedule in trunk)
    first, last = max(1, own.warmup, *(schedule.warmup for schedule in trunk)), min(longest, own.first_drop)
    if not first <= step <= last:
        raise ValueError(
            f"arms.{arm}.last: the last {own.total - step:,} of the {own.total:,} steps of {name} begin at step "
            f"{step:,}, expected a step from {first:,} to {last:,}: the trunk of {parent!r} at fraction {fraction:g} "
            f"has its constant rate until step {longest:,}, and {name} drops at {own.first_drop:,}"
        )


def _drops(schedules: Mapping[str, Schedule]) -> dict[str, int]:
    """First drop of each schedule, where it leaves the trunk; ValueError for schedules that differ before."""
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
