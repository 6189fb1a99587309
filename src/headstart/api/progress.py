"""Progress as lines of text, for notebooks, scripts and logs: often at first, then every tenth of the time so far."""

import time
from collections.abc import Callable

from headstart.verdict.numbers import span

LEAST = 10.0  # seconds between two lines


class ProgressLines:
    """Says a share in percent, a note and the time left, at the first call, at 100 % and when a line is due."""

    def __init__(
        self, name: str, say: Callable[[str], None] = print, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.say, self.clock = name, say, clock
        self.begun: tuple[float, float] | None = None  # time and percent of the first call
        self.due = 0.0
        self.is_over = False

    def __call__(self, percent: float, note: str) -> None:
        """Tell that `percent` is done."""
        now = self.clock()
        self.begun = self.begun or (now, percent)
        if self.is_over or (now < self.due and percent < 100):
            return
        spent, gained = now - self.begun[0], percent - self.begun[1]
        self.is_over = percent >= 100
        self.due = now + max(LEAST, spent / 10)
        left = f", {span(spent * (100 - percent) / gained)} left" if gained > 0 and percent < 100 else ""
        self.say(f"{self.name}: {percent:.0f} %, {note}{left}")
