"""Problems of a data set, one line each, and their report."""

from collections import Counter
from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)
MAX_LISTED = 100  # names in one line; the line gives the count too


@dataclass(frozen=True)
class Problem:
    """One finding.

    level: "error" (training or evaluation would fail or be wrong), "warning" (probably a mistake), "note".
    code: short name of the check. where: file and record. value: the wrong value as text. remedy: the change in a clean
    copy, empty for none.
    """

    level: str
    code: str
    split: str
    where: str
    value: str
    message: str
    remedy: str = ""

    def line(self) -> str:
        """`level [code] split: where: message`, on one line."""
        return f"{self.level} [{self.code}] {self.split}: {self.where}: {self.message}"


@dataclass(frozen=True)
class Report:
    """All problems, in the order of splits and checks."""

    problems: tuple[Problem, ...]

    def of(self, level: str) -> tuple[Problem, ...]:
        """The problems of one level."""
        return tuple(problem for problem in self.problems if problem.level == level)

    @property
    def num_errors(self) -> int:
        """Problems of level "error": the exit code is non-zero where there are any."""
        return len(self.of(ERROR))

    def lines(self) -> list[str]:
        """Every problem on a line of its own, errors first, and a last line with the counts."""
        listed = [problem.line() for level in LEVELS for problem in self.of(level)]
        counts = Counter(problem.level for problem in self.problems)
        total = ", ".join(f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in LEVELS)
        return [*listed, total]


def some(names: list[str]) -> str:
    """A list for a message: all names, or the first MAX_LISTED and how many more there are."""
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
