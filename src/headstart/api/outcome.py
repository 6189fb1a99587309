"""The verdict of a study as an object: headline, difference with its interval, scores, and the report's path."""

from dataclasses import dataclass
from html import escape
from math import isclose, isfinite
from pathlib import Path
from typing import Any

from headstart.study.folder import read_study_folder
from headstart.study.results import StudyFolder
from headstart.typed_json import read_json
from headstart.verdict.numbers import metric_name, points, score
from headstart.verdict.words import ONE_SEED


@dataclass(frozen=True)
class ScoreDifference:
    """Candidate minus baseline in 0..1, with its interval over seeds (None for one seed)."""

    candidate: str
    baseline: str
    mean: float
    low: float | None
    high: float | None
    level: float
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.candidate} minus {self.baseline}: {points(self.mean)} points ({self.interval})"

    @property
    def interval(self) -> str:
        """The interval in points, in words."""
        if self.low is None or self.high is None:
            return ONE_SEED
        return f"{100 * self.level:.3g} % interval {points(self.low)} to {points(self.high)}, {self.num_seeds} seeds"


@dataclass(frozen=True, repr=False)
class StudyResult:
    """A study's verdict and numbers, as its report states them; metrics and differences are in 0..1.

    scores {arm: a value a seed, None where it has not finished} and the difference are those of the headline: the
    longest schedule on the most data. state: "decided", or why there is no answer. rows: one dictionary a cell, the
    columns of tables/cells.csv. next_commands: those towards an answer, where there is none.
    """

    report: Path
    study: str
    headline: str
    text: str
    state: str
    metric: str
    scores: dict[str, tuple[float | None, ...]]
    difference: ScoreDifference | None
    next_commands: tuple[str, ...]
    rows: list[dict[str, Any]]

    @property
    def is_decided(self) -> bool:
        """True if the rule's conclusion stands."""
        return self.state == "decided"

    def page(self, *, height: int = 900) -> "ReportPage":
        """The whole report, which a notebook shows in its output (megabytes, kept in the notebook)."""
        return ReportPage(self.report, height)

    def __repr__(self) -> str:
        difference = f", {self.difference}" if self.difference else ""
        return f"StudyResult({self.study}: {self.headline!r}{difference}, report {str(self.report)!r})"

    def _repr_html_(self) -> str:
        ends = {arm: [score(value) for value in values] for arm, values in self.scores.items()}
        lines = "".join(
            f"<tr><th>{escape(arm)}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
            for arm, values in ends.items()
        )
        heads = "".join(f"<th>{seed}</th>" for seed in dict.fromkeys(row["seed"] for row in self.rows))
        parts = [
            f"<h3>{escape(self.study)}: {escape(self.headline)}</h3><p>{escape(self.text)}</p>",
            f"<table><tr><th>{escape(metric_name(self.metric))}, seed</th>{heads}</tr>{lines}</table>" if lines else "",
            *(f"<p>Next: <code>{escape(command)}</code></p>" for command in self.next_commands),
            f"<p>Report: <code>{escape(str(self.report))}</code>; <code>.page()</code> shows it here</p>",
        ]
        return "".join(parts)


@dataclass(frozen=True)
class ReportPage:
    """A report for the output of a notebook's cell."""

    path: Path
    height: int

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width:100%;height:{self.height}px;border:0"></iframe>'


def result_of(report: Path) -> StudyResult:
    """The result that a report in a study's directory states."""
    folder = read_study_folder(report.parent)
    cell = folder.headline_cell
    found = {arm: folder.scores(folder.metric, arm, *cell).tolist() for arm in folder.arms} if cell else {}
    told = read_json(report.with_name("report.json"), dict[str, Any])
    return StudyResult(
        report=report,
        study=folder.name,
        headline=told["title"],
        text=told["text"],
        state=told["state"],
        metric=folder.metric,
        scores={arm: tuple(v if isfinite(v) else None for v in values) for arm, values in found.items()},
        difference=_difference(folder, told["comparisons"]),
        next_commands=tuple(step["command"] for step in told["next_with_seconds"]),
        rows=told["cells"],
    )


def _difference(folder: StudyFolder, comparisons: list[dict[str, Any]]) -> ScoreDifference | None:
    """The comparison of the headline's cell; None before both arms have finished it."""
    rule, (schedule, fraction) = folder.rule, folder.headline_cell or (None, 0.0)
    for told in comparisons:
        if rule and told["schedule"] == schedule and isclose(told["fraction"], fraction, rel_tol=1e-5):  # rounded there
            half = told["half_width"]
            low, high = (None, None) if half is None else (told["mean"] - half, told["mean"] + half)
            number = len(told["differences"])
            return ScoreDifference(rule.candidate, rule.baseline, told["mean"], low, high, rule.look_level, number)
    return None
