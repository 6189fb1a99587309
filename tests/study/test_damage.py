"""Torn files of finished segments: named, run again, and everything as before; and two studies with the same runs."""

import errno
import shutil
import threading

import pytest
from faults import Fault, Injector

from headstart.files import locked
from headstart.study.folder import _holds
from headstart.study.prepare import prepare
from headstart.study.run import run_named, run_study
from headstart.study.spec import parse_study
from headstart.training import run as training
from headstart.training.rows import read_rows
from tiny import outcome, tiny_study

TRUNK, TAIL = "scratch-f1-s0-trunk-0-5", "scratch-f1-s0-2x-5-8"


def prepared_study(data_root, **changes):
    study = tiny_study(data_root, arms={"scratch": {}}, pretrain={}, schedules=["2x"], **changes)
    return prepare(parse_study(study, source="tiny"))


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
    """A trunk and its tail."""
    return run_study(prepared_study(data_root), tmp_path_factory.mktemp("study"))


@pytest.fixture
def study(finished, tmp_path):
    """A copy to damage."""
    return shutil.copytree(finished, tmp_path / "tiny")


def directory_of(study, name):
    return study / outcome(study)[name][0]


def run_again(data_root, study, **options):
    """The steps that each segment takes, and what is said."""
    steps, said = {}, []
    run_study(
        prepared_study(data_root), study.parent, say=said.append, **options,
        progress=lambda segment, step, values: steps.setdefault(segment.name, []).append(step),
    )  # fmt: skip
    return steps, said


def tear(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:.*is not a whole checkpoint")
def test_a_torn_trunk_is_run_again_for_a_missing_tail(finished, data_root, study):
    trunk = directory_of(study, TRUNK)
    shutil.rmtree(directory_of(study, TAIL))
    tear(trunk / "checkpoints/00000005.pt")
    steps, said = run_again(data_root, study)
    assert steps == {TRUNK: [4, 5], TAIL: [6, 7, 8]}
    assert len(said) == 1 and said[0].startswith(f"segment {TRUNK} runs again: {trunk}/checkpoints/00000005.pt: ")
    assert outcome(study) == outcome(finished)


@pytest.mark.filterwarnings("ignore:.*is not a whole checkpoint")
def test_a_chain_of_damaged_trunks_is_run_again_for_a_missing_tail(data_root, tmp_path):
    arms = {"arms": {"scratch": {}}, "pretrain": {}, "schedules": ["2x", "3x"]}
    prepared = prepare(parse_study(tiny_study(data_root, **arms), source="tiny"))
    study = run_study(prepared, tmp_path)
    before = outcome(study)
    last = prepared.plan.segments[-1]
    chain = prepared.plan.ancestors(last)
    assert len(chain) == 2 and last.kind == "tail"
    shutil.rmtree(study / before[last.name][0])
    for segment in chain:
        flip(max((study / before[segment.name][0] / "checkpoints").iterdir()))
    steps, said = {}, []
    run_study(
        prepared, tmp_path, say=said.append,
        progress=lambda segment, step, values: steps.setdefault(segment.name, []).append(step),
    )  # fmt: skip
    assert set(steps) == {segment.name for segment in (*chain, last)} and outcome(study) == before
    for segment in chain:
        assert any(line.startswith(f"segment {segment.name} runs again: ") for line in said)


@pytest.mark.filterwarnings("ignore:.*is not a whole checkpoint")
@pytest.mark.parametrize(("segment", "step"), [(TRUNK, 5), (TAIL, 8)])
def test_a_flipped_bit_of_a_finished_segment_is_found_by_rehash(finished, data_root, study, segment, step):
    path = directory_of(study, segment) / f"checkpoints/{step:08d}.pt"
    flip(path)
    assert run_again(data_root, study) == ({}, [])
    steps, said = run_again(data_root, study, rehash=True)
    assert set(steps) == {segment} and len(said) == 1
    assert said[0].startswith(f"segment {segment} runs again: {path}: is not a whole checkpoint")
    assert outcome(study) == outcome(finished) and run_again(data_root, study, rehash=True) == ({}, [])


def test_a_task_of_a_cluster_names_a_torn_trunk(data_root, study):
    trunk = directory_of(study, TRUNK)
    shutil.rmtree(directory_of(study, TAIL))
    tear(trunk / "checkpoints/00000005.pt")
    with (
        pytest.warns(UserWarning, match=r"trunk-0-5 runs again: .*00000005\.pt"),
        pytest.raises(ValueError, match=f"{TAIL}: needs {TRUNK}, which is not finished"),
    ):
        run_named(prepared_study(data_root), TAIL, study.parent)


@pytest.mark.filterwarnings("ignore:.*is not a whole checkpoint")
def test_torn_weights_of_a_pre_training_are_made_again(data_root, tmp_path):
    changes = tiny_study(data_root, schedules=["2x"])
    del changes["arms"]["scratch"]
    prepared = prepare(parse_study(changes, source="tiny"))
    study = run_study(prepared, tmp_path)
    before, weights = outcome(study), directory_of(study, "pretrain-forms") / "checkpoints/00000004.pt"
    tear(weights)
    said = []
    run_study(prepared, tmp_path, say=said.append)
    assert len(said) == 1 and said[0].startswith(f"segment pretrain-forms runs again: {weights}: ")
    assert outcome(study) == before


@pytest.mark.parametrize("name", ["segment.json", "environment.json", "audit.json"])
@pytest.mark.parametrize("content", [b"", b'{"sp', b"\0" * 40])
def test_a_torn_file_beside_the_rows_is_written_again(finished, data_root, study, name, content):
    path = directory_of(study, TRUNK) / name
    path.write_bytes(content)
    steps, said = run_again(data_root, study)
    assert steps == {} and len(said) == 1
    assert said[0].startswith(f"segment {TRUNK} runs again: {path}: is not JSON")
    assert path.read_bytes() == (directory_of(finished, TRUNK) / name).read_bytes()
    assert outcome(study) == outcome(finished) and run_again(data_root, study) == ({}, [])


def test_a_torn_file_of_another_study_stops_none(finished, data_root, tmp_path):
    shared = tmp_path / "shared"
    (shared / "other-0123").mkdir(parents=True)
    (shared / "other-0123/segment.json").write_text("")
    directory = run_study(prepared_study(data_root, runs="shared"), tmp_path)
    assert {name: found[1] for name, found in outcome(directory).items()} == {
        name: found[1] for name, found in outcome(finished).items()
    }


def test_two_studies_that_share_runs_wait_for_each_other(finished, data_root, tmp_path, monkeypatch):
    """The first stops in the middle of its trunk until the second has come to the same segment."""

    def impatient(path, *, taken, wait=0.0):
        if taken == "this run is being trained" and threading.current_thread() is threading.main_thread():
            arrived.set()
        return locked(path, taken=taken, wait=wait if wait == float("inf") else 0.0)

    monkeypatch.setattr(training, "locked", impatient)
    began, arrived = threading.Event(), threading.Event()

    def hold(segment, step, values):
        if segment.name == TRUNK and step == 2:
            began.set()
            assert arrived.wait(30)

    first = threading.Thread(
        target=run_study, args=(prepared_study(data_root, runs="shared", name="first"), tmp_path),
        kwargs={"progress": hold},
    )  # fmt: skip
    first.start()
    assert began.wait(30)
    steps = []
    second = run_study(
        prepared_study(data_root, runs="shared", name="second"), tmp_path,
        progress=lambda segment, step, values: steps.append((segment.name, step)),
    )  # fmt: skip
    first.join(30)
    assert TRUNK not in {name for name, _ in steps}
    assert {name: found[1] for name, found in outcome(second).items()} == {
        name: found[1] for name, found in outcome(finished).items()
    }
    assert [row["kind"] for row in read_rows(directory_of(second, TRUNK) / "rows.jsonl")].count("start") == 1


def test_a_study_file_that_cannot_be_read_is_not_another_study(study):
    file = study / "study.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"# mine\n{text}", encoding="utf-8")
    assert _holds(file, text) and not _holds(file, text.replace("name: tiny", "name: other"))
    injector = Injector([study], Fault("read", 1, errno.EIO))
    with injector.installed(), pytest.raises(OSError) as caught:
        _holds(file, text)
    assert caught.value.filename == str(file)
    file.write_bytes(b"\xff")
    assert not _holds(file, text)
