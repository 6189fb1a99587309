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


def looks_of(prepared: Prepared, directory: Path) -> Iterator[Prepared]:
    """The study up to each look of its rule in turn, while the look before it was open; without looks the whole study.

    Run each part and write its report (`report_of`) before the next is asked for: `directory` then says how it ended.
    A look that ends in an obstacle which more seeds do not remove is the last one too.
    """
    study = prepared.study
    for count in study.rule.looks if study.rule else ():
        if count < len(study.seeds):
            yield prepare(study.model_copy(update={"seeds": study.seeds[:count]}), prepared.overrides)
            if not read_plan(directory).is_open:
                return
    yield prepared


def report_of(directory: Path) -> Path:
    """The report of a study's directory, written anew unless it is that of what is there."""
    return directory / "report.html" if is_current(directory) else build_report(directory)


def ask(
    data: str | Path | Sequence[str | Path],
    hours: float,
    *,
    images: Sequence[str | Path] = (),
    labels: Sequence[str | Path] = (),
    start: Sequence[str] = (),
    name: str | None = None,
    out: str | Path = "runs",
    fix: bool = False,
    groups: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """From a data set, or a training and a validation set, to the report on its starts in so many hours.

    Finds the format, checks, divides where there is no split, chooses settings and writes OUT/NAME/study.yaml with the
    reasons; then runs that study. The same call continues one that has begun. labels: folders of label maps. start:
    names of `weights list` or files, by default ImageNet's. fix: go on with a clean copy of data with errors. Returns
    the report's path. ValueError for data that cannot be read, errors in them, and hours that teach nothing.
    """
    paths = [data] if isinstance(data, str | Path) else list(data)
    question = Question(
        tuple(map(str, paths)), hours, tuple(map(Path, images)), tuple(start), groups, fix, tuple(map(Path, labels))
    )
    name = name or study_name(question)
    directory = Path(out) / name
    if not is_begun(question, directory):
        for line in summary(propose(question, directory, say=say)):
            say(line)
    study = Study.read(directory / STUDY_FILE, out=out)
    return study.run(jobs=default_jobs(study.prepared))
