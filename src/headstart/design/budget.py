"""Seeds, schedules and amounts of data that fit the hours, and the differences that they can decide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from headstart.study.forecast import Load, makespan
from headstart.study.plan import Plan
from headstart.verdict.earned import ImageCounts, points_up
from headstart.verdict.rule import Rule, smallest_difference

# Seeds, a quarter of the data or not, and the least steps of such a plan. After 240 steps of 8 images the ImageNet arm
# of `bccd` was at 55.8 of its best 57.1 points (docs/results.md). More steps are worth more than a fourth and fifth
# seed, as scratch still rose after 960. A second amount of data comes last.
TRIED: tuple[tuple[int, bool, int], ...] = ((5, True, 3000), (5, False, 1500), (3, False, 300), (1, False, 0))
MOST_STEPS, LEAST_STEPS = 20_000, 60
RESERVE = 0.1  # of the time, for the report and steps that are slower than those timed
# Standard deviation over seeds of a difference of AP: 0.010 to 0.033, with a median of 0.02, where schedules end in the
# studies of docs/results/studies whose arms both have 20 AP.
SPREAD = 0.02


@dataclass(frozen=True)
class Budget:
    """Seeds, steps of the longest schedule, whether a quarter of the data is trained too, and the expected seconds."""

    seeds: int
    steps: int
    quarter: bool
    seconds: float


def fit(
    plan_of: Callable[[int, bool], Plan], loads: Mapping[str, Load], *, steps: int, seconds: float, jobs: int
) -> Budget:
    """The first of TRIED whose longest schedule reaches its least number of steps in the seconds.

    plan_of(seeds, quarter): the study at `steps` steps. Times are linear in the steps, as the number of evaluations of
    a schedule is fixed. The last of TRIED has no least number: its steps may be too few, even 0.
    """
    available, idle = seconds * (1 - RESERVE), {k: replace(load, seconds_per_step=0.0) for k, load in loads.items()}
    for seeds, quarter, least in TRIED:
        plan = plan_of(seeds, quarter)
        fixed, whole = makespan(plan, idle, jobs), makespan(plan, loads, jobs)
        affordable = min(MOST_STEPS, int(steps * (available - fixed) / max(whole - fixed, 1e-9)))
        if affordable >= least:
            break
    affordable = max(0, affordable)
    return Budget(seeds, affordable, quarter, fixed + (whole - fixed) * affordable / steps)


def limits(rule: Rule, seeds: int, num_val: int, num_images: int) -> list[str]:
    """Sentences on the differences that so many seeds and validation images can decide, and on what would help."""
    points = f"{100 * SPREAD:g} points" + " of accuracy" * (rule.metric == "top1")
    images = ImageCounts(num_val, num_images)
    if seeds < rule.min_seeds:
        found = [
            f"{seeds} seed decides nothing: the rule asks for {rule.min_seeds}; the report will show a direction, and "
            "the command and hours of the missing seeds"
        ]
    else:
        decided = smallest_difference(rule, seeds, SPREAD)
        found = [
            f"{seeds} seeds decide a difference of {points_up(decided)} points or more, if seeds scatter by {points} "
            f"as in earlier studies; smaller ones may stay open; below {100 * rule.margin:g} they do not matter"
        ]
    if images.are_few:
        cannot = f"{images.obstacle.title}: {images.obstacle.reason}"
        return [cannot, f"what could: {images.remedy}", *(found if seeds < rule.min_seeds else [])]
    found.append(
        f"the answer is about these {num_val} validation images; other images of the same kind could move the "
        f"difference by {points_up(images.width)} points, which the report measures"
    )
    return found


def schedule_fields(steps: int, batch: int, num_images: int) -> dict[str, tuple[str, str]]:
    """Fields of the schedule with their reasons, for `steps` steps at 2x."""
    base = max(1, steps // 2)
    epochs = steps * batch / num_images
    every = max(1, base // 3)
    why = "what fits the hours" if steps < MOST_STEPS else "no study of `ask` is longer, whatever the hours"
    return {
        "train.base": (f"{base} steps", f"1x; 2x are {2 * base:,} steps, {epochs:.3g} epochs: {why}"),
        "train.warmup": (f"{min(100, max(1, base // 4))} steps", "the recipe's 100, or a quarter of 1x"),
        "evaluate.every": (f"{every} steps", "six points on each curve"),
        "checkpoint.every": (f"{every} steps", ""),
    }
