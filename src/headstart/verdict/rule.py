"""Decision rule of a study, fixed before the first run, the seeds that it needs, and the looks so far.

Scores are in 0..1; differences are candidate minus baseline.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, isnan, log2
from typing import Literal

from headstart.verdict.looks import error_rate, nominal_rate
from headstart.verdict.paired import MOST_FLIPPED, t_power

POWER = 0.8  # chance of a decision at the number of seeds advised (Cohen's convention)
MOST_SEEDS = 1_000  # more are not advised: the mean is then close to the margin
KINDS = ("equivalence", "non_inferiority", "superiority")
SCOPES = ("converged", "schedule")
_ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Decision rule, fixed before the first run: metric, arms, margin (in 0..1), level and test.

    kind "equivalence" tests for a difference below the margin, by two one-sided tests. "non_inferiority" tests that the
    candidate is not worse by more than the margin. "superiority" tests that one arm is better by more than the margin,
    which may be 0. Claims about the margin are tested one-sided at `alpha`, claims of a difference two-sided.
    looks are the numbers of seeds at which the rule is applied, until it decides; none: once, at all seeds.
    scope "converged" asks about arms that have stopped rising, "schedule" about training of the given length.
    """

    metric: str
    baseline: str
    candidate: str
    margin: float
    level: float = 0.95
    test: Literal["t", "sign_flip"] = "t"
    min_seeds: int = 3
    kind: Literal["equivalence", "non_inferiority", "superiority"] = "equivalence"
    looks: tuple[int, ...] = ()
    scope: Literal["converged", "schedule"] = "converged"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1 or (self.margin == 0 and self.kind != "superiority"):
            raise ValueError(f"rule.margin is {self.margin}, expected above 0 and below 1: 0.01 is one AP point")
        if not 0.5 < self.level < 1:
            raise ValueError(f"rule.level is {self.level}, expected a share between 0.5 and 1 such as 0.95")
        if self.min_seeds < 2:
            raise ValueError(
                f"rule.min_seeds is {self.min_seeds}, expected at least 2: one seed has no standard deviation"
            )
        choices = ("test", self.test, ("t", "sign_flip")), ("kind", self.kind, KINDS), ("scope", self.scope, SCOPES)
        for field, value, known in choices:
            if value not in known:
                raise ValueError(f"rule.{field} is {value!r}, expected one of {', '.join(known)}")
        if any(low >= high for low, high in pairwise((self.min_seeds - 1, *self.looks))):
            raise ValueError(
                f"rule.looks is {list(self.looks)}, expected ascending numbers of seeds from min_seeds = "
                f"{self.min_seeds} on, such as [3, 5, 8]"
            )

    @property
    def claim(self) -> str:
        """The rule but for its level and looks, which the error rate of a look tells."""
        arms = f"{self.candidate} against {self.baseline}"
        test = f"{self.test} over at least {self.min_seeds} seeds"
        return f"{self.metric} of {arms}: {self.kind}, margin {self.margin:g}, {test}, {self.scope}"

    @property
    def whole_alpha(self) -> float:
        """Error rate of all looks together, 1 - level without its rounding error."""
        return round(1 - self.level, 12)

    @property
    def alpha(self) -> float:
        """Error rate of one look: with `looks` the nominal one, with which all of them keep the level together."""
        if not self.looks:
            return self.whole_alpha
        return nominal_rate(self.looks, self.whole_alpha, test=self.test, sides=self.sides)

    @property
    def look_level(self) -> float:
        """Level of the intervals of one look: `level`, or the nominal one of `looks`."""
        return 1 - self.alpha if self.looks else self.level

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the tests that may err: 2 for claims of a difference, 1 for those about the margin."""
        return (2,) if self.kind == "superiority" else (1, 2)

    @property
    def most_seeds(self) -> int:
        """Most seeds that are advised: the exact sign-flip test takes no more than MOST_FLIPPED."""
        return MOST_FLIPPED if self.test == "sign_flip" else MOST_SEEDS

    @property
    def lead(self) -> float:
        """Smallest difference that counts as better: the margin for superiority, else 0."""
        return self.margin if self.kind == "superiority" else 0.0


def fewest_seeds(rule: Rule, sides: int | None = None) -> int:
    """Fewest seeds with which the rule's test can reach its level for claims of so many sides, by default for any.

    A sign-flip p value is at least 2 / 2^S two-sided, and 1 / 2^S for one-sided claims about a margin.
    """
    return 2 if rule.test == "t" else max(2, ceil(log2((sides or min(rule.sides)) / rule.alpha) - 1e-9))


def seeds_needed(rule: Rule, mean: float, sd: float) -> int | None:
    """Seeds for a power of at least 80 % if the true mean and standard deviation were as observed.

    None where they are unknown or more than `Rule.most_seeds` would be needed. The sd of few seeds is a rough estimate:
    read the number as an order of magnitude.
    """
    if isnan(mean) or isnan(sd):
        return None
    fewest = max(rule.min_seeds, fewest_seeds(rule))
    if sd < 1e-12:
        return fewest
    counts = range(fewest, rule.most_seeds + 1)
    place = bisect_left(counts, True, key=lambda n: _power(rule, mean / sd, rule.margin / sd, n) >= POWER)
    return counts[place] if place < len(counts) else None


def smallest_difference(rule: Rule, num_seeds: int, sd: float) -> float:
    """True difference, in 0..1, that `num_seeds` decide with a power of 80 % if their differences have this sd.

    For a two-sided claim of a difference, beyond the margin for superiority. inf below `fewest_seeds`.
    """
    if num_seeds < fewest_seeds(rule, 2):
        return inf
    effects = range(1, 10_000)  # hundredths of the sd; two seeds need 25 of it
    place = bisect_left(effects, True, key=lambda e: t_power(e / 100, num_seeds, rule.alpha / 2) >= POWER)
    return rule.lead + effects[min(place, len(effects) - 1)] / 100 * sd


def _power(rule: Rule, mean: float, margin: float, num_seeds: int) -> float:
    """Power with means in units of the sd: that of the likelier claim, a lower bound."""
    lead = margin if rule.kind == "superiority" else 0.0
    difference = t_power(abs(mean) - lead, num_seeds, rule.alpha / 2) if num_seeds >= fewest_seeds(rule, 2) else 0.0
    below, above = (t_power(room, num_seeds, rule.alpha) for room in (margin + mean, margin - mean))
    by_margin = {"equivalence": max(0.0, below + above - 1), "non_inferiority": below, "superiority": 0.0}
    return max(difference, by_margin[rule.kind])


@dataclass(frozen=True)
class History:
    """Looks at one comparison, (seeds, error rate of the test) each; those that could not decide do not count.

    is_changed: an earlier one asked something else (`Rule.claim`).
    """

    rule: Rule
    looks: tuple[tuple[int, float], ...]
    is_changed: bool = False

    @classmethod
    def of(
        cls, rule: Rule, earlier: Iterable[tuple[int, float]], num_seeds: int, *, is_changed: bool = False
    ) -> History:
        """The history of a look at so many seeds after earlier ones, (seeds, error rate), at the same comparison."""
        least, made = max(rule.min_seeds, fewest_seeds(rule)), {num_seeds: rule.alpha}
        for count, alpha in earlier:
            if count <= num_seeds:  # of as many seeds too: the rule may have been changed after that look
                made[count] = max(alpha, made.get(count, 0.0))
        looks = tuple(sorted((count, alpha) for count, alpha in made.items() if count >= least))
        return cls(rule, looks, is_changed)

    @property
    def is_planned(self) -> bool:
        """True if the rule foresaw these looks: all together then keep its level."""
        if self.is_changed:
            return False
        if not self.rule.looks:
            return len(self.looks) < 2
        return all(count in self.rule.looks and alpha <= self.rule.alpha for count, alpha in self.looks)

    @property
    def name(self) -> str:
        """Name of the present look by its number: "Second look"."""
        number = len(self.looks)
        return f"{_ORDINALS[number - 1] if number <= len(_ORDINALS) else f'{number}th'} look"

    @property
    def level(self) -> str:
        """The true error rate of these looks, in percent, by simulation."""
        rate = 100 * error_rate(self.looks, test=self.rule.test, sides=self.rule.sides)
        return f"{rate:.0f} %" if rate >= 100 * self.rule.whole_alpha + 1 else f"{rate:.1f} %"

    @property
    def mark(self) -> str:
        """End of a title at a look that was not planned, or after which the rule was changed; else empty."""
        if self.is_planned:
            return ""
        if self.is_changed:
            return " (the rule was changed after a look)"
        if len(self.looks) == 1:
            return " (the rule was changed after a look at these seeds)"
        return f" ({self.name.lower()}: the true level is about {self.level})"

    @property
    def sentence(self) -> str:
        """The place of a planned look, or the true level or change of rule of others; empty for a single look."""
        rule = self.rule
        if self.is_changed:
            return (
                f"The rule was changed after a look, so its error rate of {100 * rule.whole_alpha:g} % does not hold."
            )
        if not self.is_planned:
            if len(self.looks) == 1:
                rate = 100 * self.looks[0][1]
                return f"The rule was changed after a look at these seeds, which had an error rate of {rate:g} %."
            return (
                f"{self.name}: the true level is about {self.level}, not {100 * rule.whole_alpha:g} % "
                "(how often such looks claim what is not so)."
            )
        if not self.looks or len(rule.looks) < 2:
            return ""
        place = rule.looks.index(self.looks[-1][0]) + 1
        return f"Look {place} of {len(rule.looks)}, all planned before the first run: {looks_text(rule)}."


def planned_looks(rule: Rule) -> str:
    """The numbers of seeds at which a rule is applied."""
    *first, last = map(str, rule.looks)
    return f"looks at {', '.join(first)} and {last} seeds" if first else f"one look at {last} seeds"


def looks_text(rule: Rule) -> str:
    """The planned looks of a rule and their error rates."""
    if len(rule.looks) == 1:
        return planned_looks(rule)
    return (
        f"{planned_looks(rule)} until it decides, each at an error rate of "
        f"{100 * rule.alpha:.3g} %, so that all together keep {100 * rule.whole_alpha:g} %"
    )
