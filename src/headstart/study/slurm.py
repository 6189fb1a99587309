"""A study as Slurm job arrays: one array for each level of the segment graph, one task for each segment."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.files import write_whole
from headstart.study.plan import Segment
from headstart.study.prepare import Prepared
from headstart.study.run import check_threads, find_segments, refuse_auto

# As sbatch(1) takes them: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]; names.
_FORMS = {
    "time": (re.compile(r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}"), "such as 90, 8:00:00 or 1-12"),
    "partition": (re.compile(r"[A-Za-z0-9_][\w.+-]*(,[A-Za-z0-9_][\w.+-]*)*", re.ASCII), "one name, or several: a,b"),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Job:
    """Resources of each task on Slurm; several GPUs mean as many processes, started by torchrun on one machine.

    `time` and `partition` are passed to Slurm as they are; None leaves its defaults.
    """

    cpus: int = 1
    gpus: int = 0
    time: str | None = None
    partition: str | None = None


@dataclass(frozen=True)
class Submission:
    """The script that submits all job arrays, and the segments of each level in their order."""

    script: Path
    levels: tuple[tuple[str, ...], ...]


def write_jobs(prepared: Prepared, study: str, overrides: Sequence[str], out: str | Path, job: Job) -> Submission:
    """Write `slurm/` into the study's directory: level-N.sh (an array), report.sh, and submit.sh, which chains them.

    `study` and `overrides` are the words of the command line, which every task repeats. A level begins when the one
    before has succeeded. Finished segments are left out: after a failure or a time limit the same call writes the rest.
    A task that has begun continues at its last checkpoint. ValueError where nothing is left, for control characters
    anywhere, and for a folder whose name an #SBATCH line cannot quote.
    """
    _check_words(study, overrides, out, job)
    if not job.gpus:
        check_threads(prepared)
    refuse_auto(prepared)
    directory = Path(out) / prepared.study.name
    done, _ = find_segments(prepared, directory, whole=True)
    levels = levels_of(prepared.plan.segments, set(done))
    if not levels:
        raise ValueError(f"{directory}: every segment is finished, so there is nothing to submit; see study report")
    folder = directory / "slurm"
    odd = re.search(r"[\"\\]", str(folder.resolve())) or _CONTROL.search(str(folder.resolve()))
    if odd:
        raise ValueError(f"{str(folder.resolve())!r}: holds {odd[0]!r}, which the #SBATCH line of the log cannot quote")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("level-*.sh"):
        old.unlink()
    options = [f"--cpus-per-task={job.cpus}", "--requeue", *_options(job)]
    options += [f"--gpus-per-node={job.gpus}"] if job.gpus else []
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={job.gpus}", "-m"] if job.gpus > 1 else []
    source = str(Path(study).resolve()) if Path(study).is_file() else study
    begin = shlex.join([sys.executable, "-m", *launcher, "headstart", "study", "segment", source])
    end = shlex.join([*overrides, "--out", str(out)])
    for number, names in enumerate(levels):
        own = [f"--array=0-{len(names) - 1}", *options]
        text = (
            _header(f"{prepared.study.name}-level-{number}", folder, own, "%x-%a-%A.log")
            + f"segments=({' '.join(map(shlex.quote, names))})\n"
            + f'exec {begin} "${{segments[$SLURM_ARRAY_TASK_ID]}}" {end}\n'
        )
        write_whole(folder / f"level-{number}.sh", text)
    header = _header(f"{prepared.study.name}-report", folder, _options(job), "%x-%j.log")
    words = [sys.executable, "-m", "headstart", "study", "report", str(directory)]
    write_whole(folder / "report.sh", f"{header}exec {shlex.join(words)}\n")
    script = write_whole(folder / "submit.sh", _submit(folder, len(levels)))
    script.chmod(0o755)
    return Submission(script, levels)


def levels_of(segments: Sequence[Segment], done: set[str]) -> tuple[tuple[str, ...], ...]:
    """Names of the segments that are missing, each in the first level after all that it needs."""
    level: dict[str, int] = {}
    for segment in segments:  # each comes after those that it needs
        if segment.name not in done:
            level[segment.name] = max((level[name] + 1 for name in segment.needs if name in level), default=0)
    return tuple(
        tuple(name for name, own in level.items() if own == number)
        for number in range(max(level.values(), default=-1) + 1)
    )


def _check_words(study: str, overrides: Sequence[str], out: str | Path, job: Job) -> None:
    """ValueError for control characters, and for a time or partition that Slurm would not take."""
    for name, value in _given(job):
        form, example = _FORMS[name]
        if not form.fullmatch(value):
            raise ValueError(f"{name}: {value!r}, expected one word, as Slurm's --{name} takes it: {example}")
    words = {"study": study, "out": str(out), "working directory": str(Path.cwd()), "Python": sys.executable}
    for name, value in [*words.items(), *(("override", text) for text in overrides)]:
        if _CONTROL.search(value):
            raise ValueError(f"{name}: {value!r} holds control characters, which no job script should; expected none")


def _submit(folder: Path, num_levels: int) -> str:
    """Text of submit.sh, each array after the one before; --parsable prints the job's number, and ;CLUSTER if any."""
    lines = ["#!/bin/bash", "set -euo pipefail", f"cd {shlex.quote(str(folder.resolve()))}"]
    scripts = [*(f"level-{number}.sh" for number in range(num_levels)), "report.sh"]
    for number, script in enumerate(scripts):
        after = '--dependency=afterok:"${job%%;*}" ' if number else ""
        lines += [f"job=$(sbatch --parsable {after}{script})", f'echo "{script}: job $job"']
    return "\n".join(lines) + "\n"


def _header(name: str, folder: Path, options: Sequence[str], log: str) -> str:
    """First lines of a job: its name, its log in `folder` (%% stands for %), and the current directory."""
    place = str(folder.resolve()).replace("%", "%%")
    lines = [f"--job-name={name}", f'--output="{place}/{log}"', *options]
    begin = "".join(f"#SBATCH {line}\n" for line in lines)
    return f"#!/bin/bash\n{begin}set -euo pipefail\ncd {shlex.quote(str(Path.cwd()))}\n"


def _given(job: Job) -> list[tuple[str, str]]:
    return [(name, value) for name, value in (("time", job.time), ("partition", job.partition)) if value is not None]


def _options(job: Job) -> list[str]:
    return [f"--{name}={value}" for name, value in _given(job)]
