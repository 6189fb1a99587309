"""The learning rate as a pure function of the step, and durations with a unit.

`step` counts finished updates: the update that makes step s into s + 1 uses `rate(s)`. Nothing here has state, so
resuming and branching need only the step.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

# Where the two drops are, as distances from the end in units of the base length. The paper keeps "the last 60k and
# 20k iterations" whatever the total; the older 1x drops at 60k and 80k of 90k, and Detectron's 1.44x (130k: 100k,
# 120k) keeps that shorter tail too.
LONG_TAIL = (Fraction(2, 3), Fraction(2, 9))
LEGACY_TAIL = (Fraction(1, 3), Fraction(1, 9))

MOST_STEPS = 10**8  # 11 days at a hundred steps a second; the paper's longest run has a million
MOST_MULTIPLE = 10_000  # of the base; the paper's longest schedule is 11x
MOST_IMAGES = 10**12  # seen in all: MOST_STEPS of 10,000 images

_NAME = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(x|k| steps)", re.ASCII)
_DURATION = re.compile(r"(\d[\d_,]{0,19}(?:\.\d{1,12})?)\s{0,9}([kM]?)\s{0,9}(steps?|epochs?|images?)", re.ASCII)
_MULTIPLES = {"": 1, "k": 1_000, "M": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up to `base_rate`, then constant, then `factor` at each drop.

    total, drops and warmup are steps; drops are absolute and ascend, and the learning rate falls at step >= drop.
    warmup_from is the share of base_rate at step 0. No drops and no warm-up are both fine.
    Raises ValueError when the drops do not fit between the end of the warm-up and the total.
    """

    total: int
    drops: tuple[int, ...] = ()
    factor: float = 0.1
    warmup: int
    warmup_from: float
    base_rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "drops", tuple(self.drops))
        _check_steps("total", self.total, least=1)
        _check_steps("warmup", self.warmup, least=0)
        for drop in self.drops:
            _check_steps("drops", drop, least=0)
        if not self.base_rate > 0:
            raise ValueError(f"schedule.base_rate is {self.base_rate}, expected more than 0")
        if not 0 < self.factor <= 1:
            raise ValueError(f"schedule.factor is {self.factor}, expected more than 0 and at most 1")
        if not 0 <= self.warmup_from <= 1:
            raise ValueError(f"schedule.warmup_from is {self.warmup_from}, expected a share between 0 and 1")
        if any(a >= b for a, b in zip(self.drops, self.drops[1:], strict=False)):
            raise ValueError(f"schedule.drops are {list(self.drops)}, expected ascending steps")
        if self.drops and self.drops[-1] >= self.total:
            raise ValueError(f"schedule.drops has {self.drops[-1]}, expected less than the total of {self.total} steps")
        if self.warmup > self.first_drop:
            raise ValueError(
                f"schedule.warmup is {self.warmup} steps, expected at most {self.first_drop}: "
                f"the constant part ends there (total {self.total})"
            )

    @classmethod
    def nx(
        cls,
        n: float | Fraction,
        base: int,
        *,
        base_rate: float,
        warmup: int,
        warmup_from: float,
        factor: float = 0.1,
    ) -> Schedule:
        """COCO's Nx schedule: n * base steps, drops a fixed distance before the end; its 1x is 90k steps of 16 images.

        n >= 2 drops 2/3 and 2/9 of a base before the end (60k and 20k at a base of 90k); below 2, the older rule of
        1/3 and 1/9 holds (1x: 60k and 80k of 90k). Steps are rounded to the nearest whole one. Two such schedules that
        differ only in n share everything before the earlier first drop.
        Raises ValueError for an n whose tail does not fit. Source: section 4 of arXiv 1811.08883, Detectron's configs.
        """
        _check_steps("base", base, least=1)
        tail, total = LONG_TAIL if n >= 2 else LEGACY_TAIL, round(Fraction(n) * base)
        # Without those that rounding made zero or equal (bases of a few steps).
        distances = list(dict.fromkeys(steps for part in tail if (steps := round(part * base)) > 0))
        if distances and total <= distances[0]:
            raise ValueError(
                f"schedule.total is {total} steps, expected more than {distances[0]}, the length of its tail"
            )
        drops = tuple(total - distance for distance in distances)
        return cls(total=total, drops=drops, factor=factor, warmup=warmup, warmup_from=warmup_from, base_rate=base_rate)

    @property
    def first_drop(self) -> int:
        """The step at which the constant part ends; the total where nothing drops."""
        return self.drops[0] if self.drops else self.total

    def rate(self, step: int) -> float:
        """Learning rate of the update that follows `step` finished ones; past the total the last rate holds."""
        if step < self.warmup:
            return self.base_rate * (self.warmup_from + (1 - self.warmup_from) * step / self.warmup)
        return self.base_rate * self.factor ** sum(step >= drop for drop in self.drops)


def parse_schedule(name: str) -> tuple[Fraction, str]:
    """Length and unit of a schedule's name: "6x" is (6, "x"), "220k" and "220000 steps" are (220000, "steps").

    Anything else, a length of 0 and a part of a step are a ValueError.
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    length = Fraction(found[1]) * (1000 if found[2] == "k" else 1) if found else Fraction(0)
    unit = "x" if found and found[2] == "x" else "steps"
    if not length or (unit == "steps" and length.denominator != 1):
        in_data = isinstance(name, str) and name.rstrip().endswith(("epochs", "epoch", "images"))
        raise ValueError(
            f'schedule {reprlib.repr(name)} is not known, expected a multiple of the base such as "2x" or "1.44x", '
            'or steps such as "220k" or "18000 steps"' + f"; train.base takes {name!r}, and 1x is as long" * in_data
        )
    if length > (MOST_MULTIPLE if unit == "x" else MOST_STEPS):
        raise ValueError(f"schedule {name!r} is too long, expected at most {MOST_MULTIPLE:,}x or {MOST_STEPS:,} steps")
    return length, unit


def multiple_of(name: str, base: int, *, scale: Fraction = Fraction(1)) -> Fraction:
    """The exact N of a schedule's name for a base of `base` steps: "6x" is 6, "220k" is 220,000 * scale / base.

    `scale` is reference batch / batch: a schedule named in steps keeps its images when the batch changes.
    """
    _check_steps("base", base, least=1)
    length, unit = parse_schedule(name)
    multiple = length if unit == "x" else length * scale / base
    if multiple > MOST_MULTIPLE:
        raise ValueError(
            f"schedule {name!r} is {float(multiple):,.0f} times the base of {base} steps, expected at most "
            f"{MOST_MULTIPLE:,} times"
        )
    return multiple


def shared_until(a: Schedule, b: Schedule) -> int:
    """Number of first steps for which two schedules give the same rate; symmetric.

    0 where warm-up or base rate differ; the shorter total where they never part before it.
    """
    if (a.warmup, a.warmup_from, a.base_rate) != (b.warmup, b.warmup_from, b.base_rate):
        return 0
    end = min(a.total, b.total)
    parts = (step for step in sorted({*a.drops, *b.drops}) if step < end and a.rate(step) != b.rate(step))
    return next(parts, end)


def due(step: int, every: int, total: int) -> bool:
    """True if periodic work falls on `step` finished updates: each `every` steps and always at the end.

    Never at step 0, where nothing has been done; `every` = 0 means at the end only.
    A segment that stops before its total passes its own stop as `total` to have the work done there.
    """
    return step == total or (every > 0 and step > 0 and step % every == 0)


def duration(text: str | int, *, batch: int, num_images: int, field: str = "duration") -> int:
    """Steps of "500 steps", "12 epochs", "90k images" or a plain int (steps); 0 is allowed.

    Epochs and images are rounded up to whole steps of `batch` images. k and M multiply by a thousand and a million.
    Raises ValueError, naming `field`, for a missing or unknown unit and for a part of a step.
    """
    amount, unit = parse_duration(text, field=field)
    images = amount * {"step": batch, "epoch": num_images, "image": 1}[unit]
    return ceil(images / batch)


def parse_duration(text: str | int, *, field: str = "duration") -> tuple[Fraction, str]:
    """Amount and unit (step, epoch or image) of a duration: "90k images" is (90000, "image"), 5 is (5, "step").

    Errors as `duration`, and for more than any run could have.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        amount, unit = Fraction(text), "step"
    else:
        found = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise ValueError(
                f"{field} is {reprlib.repr(text)}, expected a number with a unit: "
                '"500 steps", "12 epochs", "90k images"'
            )
        amount = Fraction(found[1].replace(",", "").replace("_", "")) * _MULTIPLES[found[2]]
        unit = found[3].rstrip("s")
    if unit == "step" and amount.denominator != 1:
        raise ValueError(f"{field} is {text!r}, expected a whole number of steps")
    most = {"step": MOST_STEPS, "epoch": MOST_STEPS, "image": MOST_IMAGES}[unit]
    if amount > most:
        raise ValueError(f"{field} is {reprlib.repr(text)}, expected at most {most:,} {unit}s")
    return amount, unit


def describe(steps: int, batch: int, num_images: int) -> str:
    """A duration in all three units: "90,000 steps = 12.2 epochs = 1,440,000 images"."""
    images = steps * batch
    epochs = images / num_images
    counted = f"{steps:,} step{'' if steps == 1 else 's'}"
    return f"{counted} = {epochs:,.{1 if epochs >= 1 or not epochs else 3}f} epochs = {images:,} images"


def _check_steps(field: str, value: int, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"schedule.{field} is {value!r}, expected a whole number of steps, at least {least}")
    if value > MOST_STEPS:
        raise ValueError(f"schedule.{field} is {value:,} steps, expected at most {MOST_STEPS:,}")
