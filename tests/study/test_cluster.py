"""A study on a cluster ends with the same weights as here: as Slurm's arrays, and on Ray with a worker killed."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cli_call import call
from headstart.study import slurm
from headstart.study.prepare import prepare
from headstart.study.ray import Cluster
from headstart.study.run import run_named, run_study
from headstart.study.slurm import Job, levels_of, write_jobs
from headstart.study.spec import parse_study
from headstart.weights import checkpoint
from tiny import outcome, tiny_study, write_study

# Submits by running: prints a number, and leaves a line with the dependency and the script's options; then every task.
SBATCH = """#!/bin/bash
number=$(($(wc -l < "$LOG") + 100))
echo "$number $*" >> "$LOG"
echo "$number;cluster"
script=${!#}
range=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
for task in $(seq 0 "${range:-0}"); do SLURM_ARRAY_TASK_ID=$task bash "$script"; done
"""
PYTHON = """#!/bin/bash
printf '%q ' "$@" >> "$COMMANDS"
echo "in $(pwd)" >> "$COMMANDS"
"""


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def submitted(script, tmp_path):
    """What bash does with the scripts: (lines of sbatch, commands of the tasks), in order."""
    (tmp_path / "log").write_text("")
    commands = tmp_path / "commands"
    commands.write_text("")
    program(tmp_path / "sbatch", SBATCH)
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "COMMANDS": str(commands)}
    subprocess.run(["bash", script], env={**os.environ, **places}, check=True, capture_output=True)
    return (tmp_path / "log").read_text().splitlines(), commands.read_text().splitlines()


def test_slurm_arrays_finish_the_study_as_here(monkeypatch, capsys, data_root, tmp_path):
    """bash reads the scripts with a false sbatch and a false Python; the commands they come to are then run here."""
    study = tiny_study(data_root, schedules=["2x"])
    here = run_study(prepare(parse_study(study, source="tiny")), tmp_path / "here")
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    file = write_study(folder / "study's.yaml", study)
    monkeypatch.setattr(slurm.sys, "executable", str(program(tmp_path / "python", PYTHON)))
    answer = call(
        monkeypatch, capsys, "study", "slurm", file.name, "train.log_every=3", "--out", "the runs",
        "--time", "8:00:00", "--partition", "long", "--cpus", 2,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "level 0: 2 segments, from pretrain-forms on" in answer.out
    jobs, commands = submitted(folder / "the runs/tiny/slurm/submit.sh", tmp_path)
    assert [line.split()[1:] for line in jobs] == [
        ["--parsable", "level-0.sh"],
        ["--parsable", "--dependency=afterok:100", "level-1.sh"],
        ["--parsable", "--dependency=afterok:101", "level-2.sh"],
        ["--parsable", "--dependency=afterok:102", "report.sh"],
    ]
    script = (folder / "the runs/tiny/slurm/level-0.sh").read_text()
    for option in ("--array=0-1", "--cpus-per-task=2", "--time=8:00:00", "--partition=long", "--requeue"):
        assert f"\n#SBATCH {option}\n" in script
    assert len(commands) == 6 and commands[-1].startswith("-m headstart study report the\\ runs/tiny ")
    for line in commands[:-1]:
        command, _, where = line.rpartition(" in ")
        words = shlex.split(command)
        assert words[:2] == ["-m", "headstart"] and where == str(folder)
        answer = call(monkeypatch, capsys, *words[2:])
        assert answer.code == 0, answer.err
    assert outcome(folder / "the runs/tiny") == outcome(here)
    answer = call(monkeypatch, capsys, "study", "slurm", file.name, "train.log_every=3", "--out", "the runs")
    assert answer.code == 2 and "every segment is finished, so there is nothing to submit" in answer.err


@pytest.fixture(scope="module")
def begun(data_root, tmp_path_factory):
    """A study of which one trunk has been run by name."""
    out = tmp_path_factory.mktemp("begun")
    prepared = prepare(parse_study(tiny_study(data_root), source="tiny"))
    run_named(prepared, "scratch-f1-s0-trunk-0-5", out)
    return prepared, out


def test_levels_come_after_what_they_need(begun):
    prepared, _ = begun
    levels = levels_of(prepared.plan.segments, {"scratch-f1-s0-trunk-0-5"})
    where = {name: number for number, names in enumerate(levels) for name in names}
    assert len(where) == len(prepared.plan.segments) - 1
    for segment in prepared.plan.segments:
        before = [where[name] for name in segment.needs if name in where]
        if segment.name in where:
            assert where[segment.name] == max((number + 1 for number in before), default=0)
    assert levels_of(prepared.plan.segments, {segment.name for segment in prepared.plan.segments}) == ()
    last = next(segment for segment in prepared.plan.segments if segment.name == "pretrained-f1-s0-3x-9-12")
    assert [segment.name for segment in prepared.plan.ancestors(last)] == [
        "pretrain-forms", "pretrained-f1-s0-trunk-0-5", "pretrained-f1-s0-trunk-5-9",
    ]  # fmt: skip


def test_several_gpus_are_processes_of_torchrun(begun):
    prepared, out = begun
    found = write_jobs(prepared, "tiny", ["train.batch=8"], out, Job(cpus=16, gpus=8))
    script = (found.script.parent / "level-0.sh").read_text()
    assert "\n#SBATCH --gpus-per-node=8\n" in script and "scratch-f1-s0-trunk-5-9" in script
    assert "trunk-0-5 " not in script.replace("pretrained-f1-s0-trunk-0-5", "")
    command = "-m torch.distributed.run --standalone --nproc-per-node=8 -m headstart study segment tiny"
    assert re.search(rf"\nexec \S+ {command} \"\${{segments\[\$SLURM_ARRAY_TASK_ID\]}}\" train\.batch=8 --out ", script)


@pytest.mark.parametrize("time", ["90", "90:30", "8:00:00", "1-12", "1-12:30", "1-12:30:15"])
def test_slurm_takes_its_own_forms_of_time(begun, time):
    prepared, out = begun
    script = write_jobs(prepared, "tiny", [], out, Job(time=time, partition="long,gpu_1.a-b+c")).script
    text = (script.parent / "level-0.sh").read_text()
    assert f"\n#SBATCH --time={time}\n#SBATCH --partition=long,gpu_1.a-b+c\n" in text


@pytest.mark.parametrize("field", ["time", "partition"])
@pytest.mark.parametrize(
    "value",
    ["", "1\ntouch owned", "1;touch", "$(touch owned)", "1 #", "-1", "1:", "a\x1b", "\u0661", '"', "a,,b", "1-"],
)
def test_other_words_for_slurm_are_refused(begun, field, value):
    prepared, out = begun
    if (field, value) != ("partition", "1-"):
        with pytest.raises(
            ValueError, match=rf"^{field}: .*, expected one word, as Slurm's --{field} takes it: "
        ) as error:
            write_jobs(prepared, "tiny", [], out, Job(**{field: value}))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize("where", ["study", "out", "working directory", "override"])
def test_control_characters_reach_no_job_script(monkeypatch, begun, tmp_path, where, sign):
    prepared, _ = begun
    hostile = f"x{sign}touch owned"
    words = {"study": "tiny", "out": str(tmp_path / "runs"), "override": "seed=1"} | {where: hostile}
    monkeypatch.chdir(tmp_path)
    if where == "working directory":
        (tmp_path / hostile).mkdir()
        monkeypatch.chdir(tmp_path / hostile)
    with pytest.raises(ValueError, match=rf"^{where}: .* holds control characters") as error:
        write_jobs(prepared, words["study"], [words["override"]], words["out"], Job())
    assert sign not in str(error.value) and not list(tmp_path.rglob("*.sh"))


@pytest.mark.parametrize("sign", ['"', "\\", "\n"])
def test_a_folder_that_an_sbatch_line_cannot_quote_is_refused(monkeypatch, begun, tmp_path, sign):
    """The folder may be reached by a link too: what counts is where it lies."""
    prepared, _ = begun
    (tmp_path / f"a{sign}b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / f"a{sign}b")
    with pytest.raises(ValueError, match="which the #SBATCH line of the log cannot quote"):
        write_jobs(prepared, "tiny", [], tmp_path / "link", Job())
    assert not list(tmp_path.rglob("*.sh"))


def test_every_word_of_a_job_is_quoted(monkeypatch, begun, tmp_path):
    """bash runs the scripts; a word that it took for shell would leave a file. Scripts of others stay."""
    prepared, _ = begun
    folder = tmp_path / "a 'b' $(touch owned) `touch owned` ; touch owned & %j"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(slurm.sys, "executable", str(program(tmp_path / "python $(touch owned)", PYTHON)))
    found = write_jobs(prepared, "tiny", ["name=$(touch owned);x"], "the 'runs' $(touch owned)", Job())
    own = found.script.parent / "mine.sh"
    own.write_text("mine")
    found = write_jobs(prepared, "tiny", ["name=$(touch owned);x"], "the 'runs' $(touch owned)", Job())
    assert own.read_text() == "mine"
    _, commands = submitted(found.script, tmp_path)
    words = shlex.split(commands[0].rpartition(" in ")[0])
    assert words[-3:] == ["name=$(touch owned);x", "--out", "the 'runs' $(touch owned)"]
    assert not list(tmp_path.rglob("owned"))
    output = re.search(
        r'^#SBATCH --output="(.*)/%x-%a-%A\.log"$', (found.script.parent / "level-0.sh").read_text(), re.M
    )
    assert output[1].replace("%%", "%") == str(found.script.parent.resolve()) and "%%j" in output[1]


def test_a_segment_by_name_is_refused_before_its_trunk(monkeypatch, capsys, begun, data_root, tmp_path):
    prepared, out = begun
    plan = json.loads((out / "tiny/plan.json").read_text())
    assert [entry["name"] for entry in plan["segments"] if entry["finished"]] == ["scratch-f1-s0-trunk-0-5"]
    with pytest.raises(ValueError, match=r"segment scratch-f1-s0-3x-9-12: needs scratch-f1-s0-trunk-5-9, which is not"):
        run_named(prepared, "scratch-f1-s0-3x-9-12", out)
    file = write_study(tmp_path / "study.yaml", tiny_study(data_root))

    def refused(*arguments, expected):
        answer = call(monkeypatch, capsys, "study", *arguments, "--out", tmp_path)
        assert answer.code == 2 and len(answer.err.splitlines()) == 1 and expected in answer.err, answer

    refused("segment", file, "scratch-f1-s0-trunk-0-6", expected="'scratch-f1-s0-trunk-0-6' is not known, did you mean")
    refused("run", file, "--executor", "rya", expected="executor 'rya' is not known, did you mean 'ray'?")
    refused("run", file, "--gpus", 1, expected="gpus: 1 has no effect with --executor local")
    refused("run", file, "--executor", "ray", "--jobs", 2, expected="jobs: 2 has no effect with --executor ray")
    refused("slurm", file, "--time", "8 hours", expected="time: '8 hours', expected one word")
    refused("slurm", file, "train.threads=null", expected="train.threads of base is null")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(
        "run", file, "--executor", "ray", expected="ray is not installed, expected pip install 'headstart[cluster]'"
    )


def longer(data_root):
    """Two seeds from scratch at 2x, long enough to be met at work, with a checkpoint after every step."""
    study = tiny_study(data_root, arms={"scratch": {}}, pretrain={}, schedules=["2x"], seeds=2)
    study["set"] |= {"train.base": "20 steps", "checkpoint.every": "1 steps", "evaluate.every": "0 steps"}
    return study


def ray_workers():
    """Processes that run a task of Ray below this one: {number: their title}."""
    parents, titles = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            titles[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue

    def is_ours(number):
        while number > 1 and number != os.getpid():
            number = parents.get(number, 0)
        return number == os.getpid()

    return {number: title for number, title in titles.items() if title.startswith("ray::") and is_ours(number)}


def kill_one_at_work(directory, killed):
    """Wait until a trunk from scratch has a few checkpoints, and kill the worker that makes them."""
    until = time.monotonic() + 120
    while not killed and time.monotonic() < until:
        time.sleep(0.005)
        for run in directory.glob("scratch-f1-s0-trunk-*"):
            steps = checkpoint.steps_saved(run)
            at_work = [n for n, title in ray_workers().items() if "scratch-f1-s0-trunk" in title] if steps else []
            if steps and 2 <= steps[-1] < 20 and at_work:
                os.kill(at_work[0], signal.SIGKILL)
                killed.append((checkpoint.steps_saved(run)[-1], at_work[0]))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: make test extras=cluster")
@pytest.mark.filterwarnings("ignore")
def test_ray_with_a_killed_worker_ends_as_here(monkeypatch, data_root, tmp_path):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import ray

    prepared = prepare(parse_study(longer(data_root), source="tiny"))
    here = run_study(prepared, tmp_path / "here")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    killed, told = [], []
    killer = threading.Thread(target=kill_one_at_work, args=(tmp_path / "there/tiny", killed), daemon=True)
    killer.start()
    try:
        there = run_study(
            prepared, tmp_path / "there", cluster=Cluster(), finished=lambda name, found: told.append(name)
        )
        with pytest.raises(ValueError, match=r"no machine of the Ray cluster has 1 CPUs and 2 GPUs.*at most 2 and 0"):
            run_study(prepared, tmp_path / "none", cluster=Cluster(gpus=2))
        study = longer(data_root)
        study["set"]["train.rate"] = 1e6
        with pytest.raises(FloatingPointError, match=r"step \d+: the loss is not finite"):
            run_study(prepare(parse_study(study, source="tiny")), tmp_path / "bad", cluster=Cluster())
    finally:
        ray.shutdown()
    killer.join(timeout=5)
    assert len(killed) == 1 and killed[0][0] < 26, "no worker was met at work"
    assert sorted(told) == sorted(segment.name for segment in prepared.plan.segments)
    assert outcome(there) == outcome(here)
