"""Training and studies for Python and notebooks; the same functions as the command line calls."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.api.outcome import StudyResult, result_of
from headstart.design.propose import Question, is_begun, propose, study_name, summary
from headstart.ops import processes as distributed
from headstart.recipe.recipe import AnyRecipe, schedule_of
from headstart.report.build import build_report
from headstart.study.folder import STUDY_FILE, is_current, read_plan
from headstart.study.forecast import ProgressLines, WorkDone
from headstart.study.plan import Plan, Segment
from headstart.study.prepare import Prepared, prepare, refuse_undeclared
from headstart.study.run import default_jobs, run_study
from headstart.study.spec import define_study
from headstart.tasks import num_training_images
from headstart.training import run as training
from headstart.training.lineage import RunResult
from headstart.training.rows import OnRow
from headstart.verdict.numbers import counted


def train(
    recipe: AnyRecipe, out: str | Path = "runs", *, on_row: OnRow | None = None, quiet: bool = False
) -> RunResult:
    """Train a recipe in its own directory below `out`; a finished run is found again, a killed one continues.

    on_row hears each row as it is written. Progress, device, precision and notes are printed unless `quiet`.
    ValueError for anything given wrong, before the first step; FloatingPointError for a loss or weights that are not
    finite.
    """
    if quiet or not distributed.is_writer():
        return training.train(recipe, out, on_row=on_row)
    lines, total = ProgressLines(recipe.name), schedule_of(recipe, num_training_images(recipe)).total

    def update(step: int, values: dict[str, Any]) -> None:
        lines(100 * step / total, f"step {step:,} of {total:,}, loss {values['loss']:.3f}")

    return training.train(recipe, out, progress=update, say=print, on_row=on_row)


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

    def __repr__(self) -> str:
        study, plan = self.prepared.study, self.plan
        parts = [", ".join(study.arms), ", ".join(self.prepared.schedules[next(iter(study.arms))])]
        counts = f"{counted(len(study.seeds), 'seed')}, {len(plan.cells)} cells in {len(plan.segments)} segments"
        return f"Study({study.name}: {'; '.join(parts)}; {counts}; {str(self.directory)!r})"

    def run(self, *, jobs: int = 1, quiet: bool = False) -> StudyResult:
        """Run what is missing, `jobs` segments at a time, look by look, write the report, and return its verdict.

        Progress is printed unless `quiet`. Stop it at any time; the same call continues.
        """
        refuse_undeclared(self.prepared)
        for part in looks_of(self.prepared, self.directory):
            page = report_of(run_study(part, self.out, jobs=jobs) if quiet else _run_aloud(part, self.out, jobs))
        return result_of(page)

    def report(self) -> StudyResult:
        """Write the report of what is there so far, and return what it says."""
        return result_of(build_report(self.directory))


def _run_aloud(prepared: Prepared, out: Path, jobs: int) -> Path:
    """Run what is missing of a study and print progress by steps; returns the study's directory."""
    plan, lines = prepared.plan, ProgressLines(f"study {prepared.study.name}")
    work = WorkDone({segment.name: float(segment.steps) for segment in plan.segments})

    def update(segment: Segment, step: int, values: dict[str, Any]) -> None:
        done, before = work.update(segment.name, (step - segment.start) / segment.steps)
        lines(done, f"{segment.name} step {step:,}, loss {values['loss']:.3f}", before)

    def finish(name: str, found: bool) -> None:
        done, before = work.update(name, 1.0, found=found)
        lines(done, f"{name} done", before)

    return run_study(prepared, out, jobs=jobs, progress=update, finished=finish, say=print)


def looks_of(prepared: Prepared, directory: Path) -> Iterator[Prepared]:
    """Yield the study up to each look of its rule, while the look before was open; the whole study without looks.

    Run each part and write its report (`report_of`) before requesting the next: `directory` must hold the outcome. A
    look that ends in an obstacle which more seeds do not remove is the last one.
    """
    study = prepared.study
    for count in study.rule.looks if study.rule else ():
        if count < len(study.seeds):
            yield prepare(study.model_copy(update={"seeds": study.seeds[:count]}), prepared.overrides)
            if not read_plan(directory).is_open:
                return
    yield prepared


def report_of(directory: Path) -> Path:
    """Path of the report of a study's directory, written anew unless it is current."""
    return directory / "report.html" if is_current(directory) else build_report(directory)


def ask(
    data: str | Path | Sequence[str | Path],
    hours: float,
    *,
    images: str | Path | Sequence[str | Path] = (),
    labels: str | Path | Sequence[str | Path] = (),
    start: str | Sequence[str] = (),
    name: str | None = None,
    out: str | Path = "runs",
    fix: bool = False,
    groups: str | None = None,
    quiet: bool = False,
) -> StudyResult:
    """From a data set, or a training and a validation set, to the report on its starts in so many hours.

    Finds the format, checks, divides where there is no split, chooses settings and writes OUT/NAME/study.yaml with the
    reasons; then runs that study. The same call continues one that has begun. labels: folders of label maps. start:
    names of `weights list` or files, by default ImageNet's. fix: go on with a clean copy of data with errors. quiet:
    print nothing. ValueError for data that cannot be read, errors in them, and hours that teach nothing.
    """
    paths, pictures, maps, starts = (
        [given] if isinstance(given, str | Path) else given for given in (data, images, labels, start)
    )
    question = Question(
        tuple(map(str, paths)), hours, tuple(map(Path, pictures)), tuple(map(str, starts)), groups, fix,
        tuple(map(Path, maps)),
    )  # fmt: skip
    name = name or study_name(question)
    directory = Path(out) / name
    say: Callable[[str], None] = (lambda line: None) if quiet else print
    if not is_begun(question, directory):
        for line in summary(propose(question, directory, say=say)):
            say(line)
    study = Study.read(directory / STUDY_FILE, out=out)
    return study.run(jobs=default_jobs(study.prepared), quiet=quiet)
