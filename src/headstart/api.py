"""The study as one object for Python and notebooks; the same functions as the command line calls."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.report.build import build_report
from headstart.study.folder import is_current, read_plan
from headstart.study.plan import Plan
from headstart.study.prepare import Prepared, prepare, refuse_undeclared
from headstart.study.run import run_study
from headstart.study.spec import define_study


@dataclass(frozen=True)
class Study:
    """A study ready to run: its plan, and the folder of its directory."""

    prepared: Prepared
    out: Path

    @classmethod
    def read(cls, name: str | Path, overrides: dict[str, Any] | None = None, *, out: str | Path = "runs") -> "Study":
        """A shipped study or a YAML file; ValueError for one that could not run.

        overrides such as {"size": "small", "seeds": 3, "arms.scratch.train.rate": 0.01, "train.batch": 4}.
        """
        study, patch = define_study(name, overrides)
        if study.account is not None:
            raise ValueError(
                f"study {study.name}: account: it only counts what its arms would see, so it has no segments; "
                "expected `study plan` or `study run`"
            )
        return cls(prepare(study, patch), Path(out))

    @property
    def plan(self) -> Plan:
        """Cells and segments."""
        return self.prepared.plan

    @property
    def directory(self) -> Path:
        """The study's directory."""
        return self.out / self.prepared.study.name

    def run(self, *, jobs: int = 1) -> Path:
        """Run what is missing, `jobs` segments at a time, look by look, and write the report; returns its path."""
        refuse_undeclared(self.prepared)
        return run_looks(self.prepared, lambda prepared: run_study(prepared, self.out, jobs=jobs))

    def report(self) -> Path:
        """Write the report of what is there so far; returns its path."""
        return build_report(self.directory)


def run_looks(prepared: Prepared, run: Callable[[Prepared], Path]) -> Path:
    """Run a study up to each look of its rule in turn until no further seeds are needed; returns the report's path.

    run: runs what is missing of a study, and returns its directory. Without looks it runs once, on all seeds. A look
    that ends in an obstacle which more seeds do not remove is the last one too.
    """
    study, num_seeds = prepared.study, len(prepared.study.seeds)
    for count in study.rule.looks if study.rule else ():
        if count < num_seeds:
            part = prepare(study.model_copy(update={"seeds": study.seeds[:count]}), prepared.overrides)
            page = _report_of(directory := run(part))
            if not read_plan(directory).is_open:
                return page
    return _report_of(run(prepared))


def _report_of(directory: Path) -> Path:
    return directory / "report.html" if is_current(directory) else build_report(directory)
