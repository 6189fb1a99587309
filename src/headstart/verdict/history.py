"""History of looks at one comparison: whether the rule planned them, their true error rate, and sentences on both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headstart.verdict.looks import error_rate
from headstart.verdict.rule import Rule, fewest_seeds

_ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth")


@dataclass(frozen=True)
class History:
    """Looks up to the present one, (seeds, error rate of its test) each; those that could not decide do not count."""

    rule: Rule
    looks: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, rule: Rule, earlier: Iterable[tuple[int, float]], num_seeds: int) -> History:
        """The history of a look at so many seeds after earlier ones, (seeds, error rate), at the same comparison."""
        least, made = max(rule.min_seeds, fewest_seeds(rule)), {num_seeds: rule.alpha}
        for count, alpha in earlier:
            if count < num_seeds:
                made[count] = max(alpha, made.get(count, 0.0))
        return cls(rule, tuple(sorted((count, alpha) for count, alpha in made.items() if count >= least)))

    @property
    def is_planned(self) -> bool:
        """True if the rule foresaw these looks: all together then keep its level."""
        if not self.rule.looks:
            return len(self.looks) < 2
        return all(count in self.rule.looks and alpha <= self.rule.alpha for count, alpha in self.looks)

    @property
    def name(self) -> str:
        """The present look among those that were not planned: "Second look"."""
        number = len(self.looks)
        return f"{_ORDINALS[number - 1] if number <= len(_ORDINALS) else f'{number}th'} look"

    @property
    def level(self) -> str:
        """The true error rate of these looks, in percent, by simulation."""
        rate = 100 * error_rate(self.looks, test=self.rule.test, sides=self.rule.sides)
        return f"{rate:.0f} %" if rate >= 100 * self.rule.whole_alpha + 1 else f"{rate:.1f} %"

    @property
    def mark(self) -> str:
        """The end of a title at a look that was not planned; else empty."""
        return "" if self.is_planned else f" ({self.name.lower()}: the true level is about {self.level})"

    @property
    def sentence(self) -> str:
        """The place of a look among those planned, or the true level of those that were not; empty for a single one."""
        rule = self.rule
        if not self.is_planned:
            return (
                f"{self.name}: the true level is about {self.level}, not {100 * rule.whole_alpha:g} % "
                "(how often such looks claim what is not so)."
            )
        if not self.looks or len(rule.looks) < 2:
            return ""
        place = rule.looks.index(self.looks[-1][0]) + 1
        return f"Look {place} of {len(rule.looks)}, all planned before the first run: {looks_text(rule)}."


def looks_text(rule: Rule) -> str:
    """The planned looks of a rule and their error rates."""
    *first, last = map(str, rule.looks)
    if not first:
        return f"one look at {last} seeds"
    return (
        f"looks at {', '.join(first)} and {last} seeds until it decides, each at an error rate of "
        f"{100 * rule.alpha:.3g} %, so that all together keep {100 * rule.whole_alpha:g} %"
    )
