"""The study as one object for Python and notebooks; the same functions as the command line calls."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.design.propose import Question, is_begun, propose, study_name, summary
from headstart.report.build import build_report
from headstart.study.folder import STUDY_FILE, is_current, read_plan
from headstart.study.plan import Plan
from headstart.study.prepare import Prepared, prepare, refuse_undeclared
from headstart.study.run import default_jobs, run_study
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
        for part in looks_of(self.prepared, self.directory):
            page = report_of(run_study(part, self.out, jobs=jobs))
        return page

    def report(self) -> Path:
        """Write the report of what is there so far; returns its path."""
        return build_report(self.directory)


from collections.abc import Callable, Iterator, Sequence
