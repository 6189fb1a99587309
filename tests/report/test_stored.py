"""Files of a study and its runs, each entry wrong in turn: one line naming file and field, never a traceback."""

import json
import re
import shutil

import pytest
import yaml

from headstart.report import build as report
from headstart.report import pictures
from headstart.report.build import build_report
from headstart.report.pictures import Gallery, make_gallery
from headstart.study.folder import read_study_folder
from headstart.study.results import read_variants
from study_folder import build_study

LOOK = {"date": "2026-01-02", "schedule": "2x", "fraction": 1.0, "seeds": [0, 1, 2], "alpha": 0.05}
LOOK |= {"outcome": "not decidable", "obstacle": "open"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    options = {"schedules": ("1x", "2x"), "fractions": (1.0,), "log_every": 100}
    return build_study(tmp_path_factory.mktemp("written"), **options)


@pytest.fixture
def study(written, tmp_path, monkeypatch):
    """A copy of a study and its data, to be damaged; nothing is drawn."""
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])
    monkeypatch.setattr(pictures, "make_gallery", lambda folder: Gallery("none"))
    return shutil.copytree(written.parents[1], tmp_path / "copy") / "runs" / written.name


def run_of(study, arm="scratch"):
    """The tail of the longest schedule of an arm: it has every file but an audit."""
    runs = read_study_folder(study).runs.values()
    return next(run.directory for run in runs if (run.segment.arm, run.segment.schedule) == (arm, "2x"))


def trunk_of(study):
    runs = read_study_folder(study).runs.values()
    return next(run.directory for run in runs if run.segment.kind == "trunk" and run.segment.start == 0)


def changed(document, place, value):
    """A document with the entry at a dotted place changed, or removed for None."""
    *parents, leaf = (int(part) if part.isdigit() else part for part in place.split("."))
    node = document
    for part in parents:
        node = node[part]
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    return document


def refused(study, path, message):
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}$") as error:
        build_report(study)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", 3, r"format = 3: expected int <= 2"),
        ("batch", None, "batch: missing"),
        ("batch", "8", r"batch = '8': expected int"),
        ("bach", 8, r"'bach': unknown field, did you mean 'batch'\?"),
        ("segments.0.stop", None, r"segments\[0\]\.stop: missing"),
        ("segments.0.stop", 2.5, r"segments\[0\]\.stop = 2\.5: expected int"),
        ("segments.0.kind", "tale", r"segments\[0\]\.kind = 'tale': invalid enum value 'tale'"),
        ("segments.0.extra", 1, r"'segments\[0\]\.extra': unknown field"),
        ("segments.1.parent", "nobody", r"segment 'nobody' is not known, .*"),
        ("cells.0.segments", [], r"cells\[0\]\.segments = \[\]: expected array of length >= 1"),
        ("cells.0.segments.0", "nobody", r"cell pretrained-f1-s0-1x: segment 'nobody' is not known, .*"),
        ("differences.0.declared", "yes", r"differences\[0\]\.declared = 'yes': expected bool"),
        ("num_images", {"all": 8}, r"a key of num_images: .*"),
        ("notes", None, "notes: missing"),
        ("looks", [{}], r"looks\[0\]\.date: missing"),
        ("looks", [LOOK | {"date": "2026-13-01"}], r"looks\[0\]\.date = '2026-13-01': .*"),
        ("looks", [LOOK | {"seeds": []}], r"looks\[0\]\.seeds = \[\]: expected array of length >= 1"),
        ("looks", [LOOK | {"seeds": [-1]}], r"looks\[0\]\.seeds\[0\] = -1: expected int >= 0"),
        ("looks", [LOOK | {"alpha": 0}], r"looks\[0\]\.alpha = 0: expected float > 0\.0"),
        ("looks", [LOOK | {"outcome": "certain"}], r"looks\[0\]\.outcome = 'certain': invalid enum value 'certain'"),
        ("looks", [LOOK | {"note": 1}], r"'looks\[0\]\.note': unknown field"),
        ("looks", [LOOK] * 1001, r"looks = .*: expected array of length <= 1000"),
    ],
)
def test_plan_json(study, place, value, message):
    path = study / "plan.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    refused(study, path, message)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"batch": 1e999}', b'{"batch": NaN}', b"[" * 9999]
)
def test_a_plan_that_is_none(study, content):
    (study / "plan.json").write_bytes(content)
    refused(study, study / "plan.json", ".*")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("seeds", ["one"], "seeds.*"),
        ("colour", 1, "study key 'colour' is not known, .*"),
        ("arms", None, "arms: missing"),
        ("rule.margin", "wide", "rule.*"),
        ("arms.slow", {}, r"arms = \['pretrained', 'scratch', 'slow'\]: expected \['pretrained', 'scratch'\] as in .*"),
        ("fractions", [0.5], r"fractions = \[0\.5\]: expected \[.*\] as in plan\.json, or a new run of it"),
    ],
)
def test_study_yaml(study, place, value, message):
    path = study / "study.yaml"
    path.write_text(yaml.safe_dump(changed(yaml.safe_load(path.read_text()), place, value)))
    refused(study, path, message)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("segment.json", "format", 9, "format = 9: expected int <= 1"),
        ("segment.json", "num_images", None, "num_images: missing"),
        ("segment.json", "fingerprint", 3, "fingerprint = 3: expected str"),
        ("segment.json", "fingerprnt", "", r"'fingerprnt': unknown field, did you mean 'fingerprint'\?"),
        ("environment.json", "cpus", "two", "cpus = 'two': expected int.*"),
        ("environment.json", "headstart", None, "headstart: missing"),
        ("environment.json", "colour", "red", "'colour': unknown field"),
        ("audit.json", "rows.0.num_params", "many", r"rows\[0\]\.num_params = 'many': expected int"),
        ("audit.json", "rows.0.norm", None, r"rows\[0\]\.norm: missing"),
        ("audit.json", "extra", 1, "'extra': unknown field"),
    ],
)
def test_files_of_a_run(study, name, place, value, message):
    path = trunk_of(study) / name
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    refused(study, path, message)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("box.counts.missed", None, r"\[\.\.\.\]\.counts\.missed: missing"),
        ("box.gains.missed", "much", r"\[\.\.\.\]\.gains\.missed: expected float \| null, got str"),
        ("boxes", {}, r"a key of the content: invalid enum value 'boxes'"),
    ],
)
def test_error_types(study, place, value, message):
    path = run_of(study) / "errors-600.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    refused(study, path, message)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("kind", None, "line 2: kind: missing"),
        ("kind", "trian", r"line 2: kind = 'trian': invalid enum value 'trian'"),
        ("step", "ten", r"line 2: step = 'ten': expected int"),
        ("loss", None, "line 2: loss: missing"),
        ("loss", "low", r"line 2: loss = 'low': expected float.*"),
        ("losses.mask", "low", r"line 2: losses\[\.\.\.\]: expected float, got str"),
        ("los", 1.0, r"line 2: 'los': unknown field, did you mean 'loss'\?"),
    ],
)
def test_rows(study, place, value, message):
    path = run_of(study) / "rows.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(changed(json.loads(lines[1]), place, value))
    path.write_text("\n".join(lines) + "\n")
    refused(study, path, message)


def test_a_number_that_is_not_finite_is_no_row(study):
    path = run_of(study) / "rows.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace('"loss": 0', '"loss": 1e999 , "rate": 0'), *lines[2:]]))
    refused(study, path, "line 2.*")


def test_changes_of_segments(study):
    path = study / "segments.jsonl"
    path.write_text('{"name": "a", "directory": "b", "finished": "yes"}\n')
    refused(study, path, "line 1: finished = 'yes': expected bool")


def test_variants(tmp_path):
    path = tmp_path / "variants.jsonl"
    row = {"kind": "eval", "variant": "tta", "patch": {}, "step": 3, "metrics": {}}
    path.write_text(json.dumps(row) + "\n")
    assert read_variants(tmp_path) == [row]
    path.write_text(json.dumps({key: value for key, value in row.items() if key != "patch"}) + "\n")
    with pytest.raises(ValueError, match=rf"^{path}: line 1: patch: missing$"):
        read_variants(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [("data.val", 3, "data.val: 3 is not valid"), ("data.vall", "x", "data.vall: unknown field"), ("data", 5, "")],
)
def test_the_recipe_of_a_run(study, place, value, message):
    path = run_of(study, "pretrained") / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(yaml.safe_load(path.read_text()), place, value)))
    note = make_gallery(read_study_folder(study)).note
    assert note.startswith(f"Pictures cannot be drawn: {path}: {message}") and "\n" not in note


def test_files_written_before_formats_were_stated_are_read(study):
    for path in (study / "plan.json", trunk_of(study) / "segment.json"):
        content = json.loads(path.read_text())
        content.pop("format", None)
        path.write_text(json.dumps(content))
    build_report(study)
