"""Error types, over-fitting, shares of weights, measured differences: each in the report as its source has it."""

import csv
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import study_folder
from headstart.api.outcome import result_of
from headstart.data.read import open_dataset, write_split_file
from headstart.data.shapes.write import generate
from headstart.metrics.records import Records
from headstart.report import build as report
from headstart.report import figures, pictures, plots, sections
from headstart.report.build import build_report
from headstart.report.cost import Cost, public_cost
from headstart.report.differences import measured, undeclared
from headstart.report.facts import ERROR_TYPES, Facts
from headstart.report.findings import find
from headstart.report.headline import resampled
from headstart.report.references import earlier_study
from headstart.report.tables import error_tables
from headstart.study.folder import read_study_folder
from headstart.study.results import StudyFolder
from headstart.verdict.earned import ImageCounts
from headstart.verdict.numbers import large, minus
from headstart.weights.public import find_training, trainings
from study_folder import box_ap, build_study
from tiny import tiny_recipe


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(report, "write_figures", lambda *_, **__: [])


def build(root, **settings):
    options = {"schedules": ("1x", "2x"), "pictures": False, "log_every": 100, "fractions": (1.0,)} | settings
    return build_study(root, **options)


def summary_of(path):
    text = build_report(path).read_text()
    return json.loads((path / "report.json").read_text()), text


def table(path, name):
    with (path / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def answer(summary, question):
    every = [*summary["answers"], *summary["answers_with_seconds"]]
    return next((" ".join(a["lines"]) for a in every if a["question"].startswith(question)), None)


def level(arm, fraction, seed, step, in_tail):
    """Curves that do not rise: scratch is 5 points behind, in each seed by a little more or less."""
    return 0.45 - (0.05 + 0.001 * seed) * (arm == "scratch")


def test_an_earlier_study_stands_below_the_curves_of_one_that_names_it(tmp_path):
    earlier, text = (
        earlier_study("bccd_more"),
        summary_of(build(tmp_path / "with", settings={"beside": "bccd_more"}))[1],
    )
    shown = text[text.index('id="earlier"') : text.index("</section>", text.index('id="earlier"'))]
    for arm, ends in earlier.scores.items():
        (row,) = (part for part in shown.split("<tr>")[1:] if re.search(rf">\s*{arm}\s*<", part))
        assert re.findall(r'class="num">(\d+\.\d)<', row) == [f"{100 * np.mean(seeds):.1f}" for seeds in ends.values()]
    assert shown.count("<circle cx") == sum(len(seeds) for ends in earlier.scores.values() for seeds in ends.values())
    assert all(minus(sentence) in shown for sentence in earlier.sentences) and 'href="#earlier"' in text
    assert "earlier" not in summary_of(build(tmp_path / "without"))[1].split("</style>")[1]


def test_validation_images_of_a_split_are_found_from_another_folder(tmp_path, monkeypatch):
    generate(tmp_path / "made", 4, 2, 0, 64, processes=1)
    places = tmp_path / "made/train.json", tmp_path / "made/train"
    data = open_dataset(*places)
    names = {"train": list(data.file_names[1:]), "val": list(data.file_names[:1])}
    write_split_file(tmp_path / "parts.json", *places, None, names, seed=0, share=0.25, groups=None)
    monkeypatch.chdir("/")
    recipe = tiny_recipe(tmp_path, data__val="parts.json:val", data__val_images=None)
    run = SimpleNamespace(directory=tmp_path, recipe=recipe)
    found = pictures._validation_data(SimpleNamespace(path=tmp_path / "runs" / "study"), run)
    assert found.file_names == data.file_names[:1]


def test_error_types_come_from_the_files_of_the_runs(tmp_path):
    path = build(tmp_path, pictures=True, seeds=2)
    summary, text = summary_of(path)
    folder, rows = read_study_folder(path), table(path, "errors")
    assert len(rows) == len(summary["errors"]) == len(folder.plan.cells) * 2 * len(ERROR_TYPES)
    for row in rows:
        cell = next(
            c
            for c in folder.plan.cells
            if (c.arm, c.schedule, str(c.seed)) == (row["arm"], row["schedule"], row["seed"])
        )
        told = json.loads((folder.tail(cell).directory / f"errors-{cell.total}.json").read_text())[row["kind"]]
        assert int(row["count"]) == told["counts"][row["type"]]
        assert float(row["AP50_gain"] or "nan") == pytest.approx(told["gains"][row["type"]], nan_ok=True)
    for line in error_tables(folder)["box"]:
        for arm in folder.arms:
            own = [
                float(r["AP50_gain"]) for r in rows
                if (r["arm"], r["schedule"], r["kind"], r["type"]) == (arm, "2x", "box", line.name)
            ]  # fmt: skip
            assert line.gains[arm].mean == pytest.approx(np.mean(own)) and len(own) == 2
    assert 'id="mistake-chart"' in text and "Error types" in text


def test_where_an_arm_overfits_is_said_by_training_images_where_they_are_judged(tmp_path):
    plain = summary_of(build(tmp_path / "loss", seeds=3))[0]
    path = build(tmp_path / "judged", seeds=3, judge_training=True)
    summary, text = summary_of(path)
    assert "generalisation gap" not in answer(plain, "Does longer training hurt?")
    said = answer(summary, "Does longer training hurt?")
    rows = [row for row in table(path, "cells") if (row["arm"], row["schedule"]) == ("scratch", "2x")]
    gaps = [100 * (float(row["train:box.AP"]) - float(row["box.AP"])) for row in rows]
    assert f"scratch at 2x: generalisation gap {np.mean(gaps):+.1f} points, training minus validation" in said
    assert '<option value="train:box.AP">box AP (training images)</option>' in text
    curves = table(path, "curves")
    assert all(float(row["train:mask.AP"]) > float(row["mask.AP"]) for row in curves) and len(curves) > 10


def test_the_generalisation_gap_of_a_variant_is_that_of_plain_evaluations(tmp_path):
    """Training images are evaluated without the variant, which is 2 points better."""
    rule, patch = (
        {"metric": "tta:box.AP", "baseline": "pretrained", "candidate": "scratch"},
        {"evaluate.tta.flip": True},
    )
    settings = {"rule": rule | {"margin": 0.01}, "also_evaluate": {"tta": patch}}
    path = build(tmp_path, seeds=3, judge_training=True, settings=settings)
    for file in path.glob("segments/*x-*/rows.jsonl"):
        (final,) = [row for row in map(json.loads, file.open()) if row["kind"] == "eval" and row["split"] == "val"][-1:]
        final["metrics"]["box"]["AP"] += 0.02
        file.with_name("variants.jsonl").write_text(json.dumps(final | {"variant": "tta", "patch": patch}) + "\n")
    said = answer(summary_of(path)[0], "Does longer training hurt?")
    rows = [row for row in table(path, "cells") if (row["arm"], row["schedule"]) == ("scratch", "2x")]
    gaps = [100 * (float(row["train:box.AP"]) - float(row["box.AP"])) for row in rows]
    assert f"scratch at 2x: generalisation gap {np.mean(gaps):+.1f} points" in said


def test_an_arm_overfits_beyond_the_schedules_of_the_other(tmp_path):
    def ap(arm, fraction, seed, step, in_tail):
        return 0.4 + 0.002 * seed + (0.1 - 0.1 * step / 900) * (arm == "scratch") + 0.00001 * step

    own = {"scratch": ["1x", "2x", "6x"], "pretrained": ["1x", "2x"]}
    path = build(tmp_path, seeds=3, ap=ap, settings={"schedules": own, "fractions": [1.0]})
    said = answer(summary_of(path)[0], "Does longer training hurt?")
    assert "scratch overfits from about 300 steps on: validation loses 15.2 points by the end" in said
    assert "Validation is best at the longest schedule tried: pretrained." in said


def test_declared_uses_share_the_price_of_weights(tmp_path):
    once = build(tmp_path / "once")
    many = build(tmp_path / "many", settings={"pretrain": {"shapes": {"recipe": "demo_pretrain", "uses": 10}}})
    summary_of(once), summary_of(many)
    for a, b in zip(table(once, "cells"), table(many, "cells")):
        assert a["alone.images"] == b["alone.images"] and a["whole_as_spent.images"] == b["whole_as_spent.images"]
        before = 900 * 8 if a["arm"] == "pretrained" else 0
        assert float(a["whole.images"]) == float(a["alone.images"]) + before
        assert float(b["whole.images"]) == float(b["alone.images"]) + before / 10
    said = answer(json.loads((many / "report.json").read_text()), "What does the start cost?")
    assert "amortised over 10 uses: 720 images" in said


def test_curves_over_time_begin_after_the_training_time_of_the_pretraining(tmp_path):
    facts = Facts(read_study_folder(build(tmp_path)))
    data = sections.curves(facts, find(facts)).data
    (run,) = (run for run in facts.folder.runs.values() if run.segment.kind == "pretrain")
    end, (first, *_) = run.end["seconds"], data["stretches"]
    assert data["pretraining"]["pretrained"]["seconds"] == pytest.approx(end["train"] + end["other"])
    assert first["x"]["seconds"][0] == pytest.approx(0.22 * first["x"]["steps"][0])  # likewise without evaluation


def test_public_weights_are_priced_by_their_documented_recipe(tmp_path):
    arms = {"pretrained": {"start.kind": "backbone", "start.weights": "w.pth"}, "scratch": {}}
    settings = {"arms": arms, "pretrain": {}}
    unknown = build(tmp_path / "unknown", settings=settings)
    assert "made elsewhere" in answer(summary_of(unknown)[0], "What does the start cost?")
    entry = {"pretrained": {"name": "torchvision-resnet-v1", "uses": 100}}
    path = build(tmp_path / "known", settings=settings | {"public_weights": entry})
    _, text = summary_of(path)
    known = find_training("torchvision-resnet-v1")
    row = next(row for row in table(path, "cells") if row["arm"] == "pretrained")
    assert float(row["whole.images"]) == pytest.approx(float(row["alone.images"]) + public_cost(known).images / 100)
    assert row["whole_as_spent.images"] == row["as_spent.images"]  # this study paid nothing for them
    assert row["whole.seconds_train"] == "" and known.source in text
    name = next(iter(known.files))  # as `headstart weights download` has it: nothing to declare
    weights = {"field": "start.weights", "values": {"pretrained": name, "scratch": None}, "declared": True}
    sheet = [
        {"field": "start.kind", "values": {"pretrained": "backbone", "scratch": "random"}, "declared": True},
        weights,
    ]
    named = build(tmp_path / "named", settings=settings, differences=sheet)
    _, text = summary_of(named)
    row = next(row for row in table(named, "cells") if row["arm"] == "pretrained")
    assert float(row["whole.images"]) == pytest.approx(float(row["alone.images"]) + public_cost(known).images)
    assert row["whole_as_spent.images"] == row["as_spent.images"] and known.source in text
    assert Facts(read_study_folder(path)).starts["pretrained"].uses == 100  # a declaration wins


def test_public_weights_of_all_arms_are_priced_too(tmp_path):
    """The sheet of differences does not hold what is the same."""
    weights = "torchvision/resnet18.imagenet1k_v1"
    settings = {"set": {"start.kind": "backbone", "start.weights": weights}, "pretrain": {}}
    settings["arms"] = {"pretrained": {"start.freeze": "backbone"}, "scratch": {}}
    sheet = [{"field": "start.freeze", "values": {"pretrained": "backbone", "scratch": "none"}, "declared": True}]
    said = answer(summary_of(build(tmp_path, settings=settings, differences=sheet))[0], "What does the start cost?")
    images = large(public_cost(find_training(weights)).images)
    told = [f"Pre-training of {arm} (public weights {weights}) took {images} images" for arm in settings["arms"]]
    assert all(line in said for line in told) and "unknown" not in said


@pytest.mark.parametrize("weights", ["torchvision/resnet18.imagenet1k_v1", "made/elsewhere.pth"])
def test_weights_that_the_recipe_names_for_all_arms_are_priced(tmp_path, weights):
    """As `torchvision_r50` does; the study file names none, and the arms differ in precision."""
    sheet = [{"field": "train.precision", "values": {"pretrained": "fp32", "scratch": "bf16"}, "declared": True}]
    settings = {"arms": {"pretrained": {}, "scratch": {"train.precision": "bf16"}}, "pretrain": {}}
    path = build(tmp_path, differences=sheet, settings=settings)
    for file in path.glob("segments/*/recipe.yaml"):
        start = {"start": {"kind": "backbone", "weights": weights}}
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | start))
    said = answer(summary_of(path)[0], "What does the start cost?")
    whole = {row["whole.images"] for row in table(path, "cells") if row["schedule"] == "1x"}
    if weights.startswith("made"):
        assert "scratch starts from weights made elsewhere, whose cost is unknown" in said and whole == {""}
    else:
        images = public_cost(find_training(weights)).images
        assert f"Pre-training of scratch (public weights {weights}) took {large(images)} images" in said
        assert {float(each) for each in whole} == {2400 + images}


@pytest.mark.parametrize("weights", ["torchvision/resnet18.imagenet1k_v1", "made/elsewhere.pth"])
def test_what_a_pretraining_starts_from_is_in_its_price(tmp_path, weights):
    path = build(tmp_path, seeds=2)
    for file in path.glob("segments/pretrain-*/recipe.yaml"):
        start = {"start": {"kind": "backbone", "weights": weights}}
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | start))
    summary, page = summary_of(path)
    said, cells = answer(summary, "What does the start cost?"), table(path, "cells")
    whole, alone = ({row[f"{way}.images"] for row in cells if row["arm"] == "pretrained"} for way in ("whole", "alone"))
    if weights.startswith("made"):
        assert "The pre-training of pretrained starts from weights made elsewhere, whose cost is unknown" in said
        assert whole == {""} and "took" not in said
    else:
        images = public_cost(find_training(weights)).images + 7200
        assert f"Pre-training of pretrained took {large(images)} images" in said
        assert {float(w) for w in whole} == {float(a) + images for a in alone}
        assert f"which starts from {weights}." in page


def test_the_guide_lists_the_public_weights():
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    table = guide.split("| name | images seen | source |\n|---|---|---|\n")[1].split("\n\n")[0]
    known = [training for training in trainings().values() if training.images_seen]
    assert table.splitlines() == [f"| {each.name} | {large(each.images_seen)} | {each.source} |" for each in known]
    assert all(each.source and public_cost(each).images == each.images_seen > 0 for each in known)


def test_what_runs_held_is_compared_and_an_undeclared_difference_voids_the_verdict(tmp_path):
    path = build(tmp_path, seeds=3)
    summary, _ = summary_of(path)
    fields = {row["field"]: row["value"] for row in summary["compared"]}
    assert fields["parameters"] == "69,120" and fields["trained parameters"] == "all"
    runs = read_study_folder(path).runs.values()
    run = next(r for r in runs if r.segment.arm == "scratch" and (r.directory / "audit.json").exists())
    audit = json.loads((run.directory / "audit.json").read_text())
    audit["rows"][0]["num_params"] += 1
    (run.directory / "audit.json").write_text(json.dumps(audit))
    assert undeclared(read_study_folder(path)) == ("parameters",)
    summary, _ = summary_of(path)
    assert summary["state"] == "undeclared" and "undeclared fields: parameters" in summary["text"]
    row = next(row for row in summary["differences"] if row["field"] == "parameters")
    assert row["values"] == {"pretrained": "69,120", "scratch": "69,121"} and row["declared"] is False


def test_arms_are_compared_on_the_images_of_one_seed(tmp_path):
    """With data.fraction_seed per_seed each seed has images of its own; baseline has begun seed 0, the other seed 1."""
    path = build(tmp_path, seeds=2)
    for run in read_study_folder(path).runs.values():
        stored = json.loads((run.directory / "segment.json").read_text())
        other = {"fingerprint": f"{run.segment.seed}" * 12}
        (run.directory / "segment.json").write_text(json.dumps(stored | other))
        if (run.segment.arm, run.segment.seed) in (("scratch", 0), ("pretrained", 1)):
            (run.directory / "audit.json").unlink(missing_ok=True)
    assert undeclared(read_study_folder(path)) == ()
    assert "content of the data" not in {row["field"] for row in measured(read_study_folder(path))}
    run = next(r for r in read_study_folder(path).runs.values() if (r.segment.arm, r.segment.seed) == ("scratch", 1))
    start = next(r for r in read_study_folder(path).runs.values() if (r.directory / "audit.json").exists())
    for each in read_study_folder(path).runs.values():
        if each.segment.arm == "pretrained" and each.segment.seed == 1 and each.segment.parent is None:
            (each.directory / "audit.json").write_text((start.directory / "audit.json").read_text())
    shared = {row["field"]: row["values"] for row in measured(read_study_folder(path))}
    assert set(shared["content of the data"].values()) == {f"{'1' * 12} ({stored['num_images']} images)"} and run


def test_tuning_effort_is_shown_as_declared(tmp_path):
    tuning = {"scratch": {"trials": 12, "steps": 24_000, "note": "<b>rate</b> on a grid"}}
    _, text = summary_of(build(tmp_path, settings={"tuning": tuning}))
    assert "24,000" in text and "&lt;b&gt;rate&lt;/b&gt; on a grid" in text and "not declared" in text
    assert "not tuned with the same effort" in text


def test_time_by_kind_and_memory_are_shown(tmp_path):
    path = build(tmp_path)
    _, text = summary_of(path)
    row = next(row for row in table(path, "cells") if (row["arm"], row["schedule"]) == ("scratch", "2x"))
    assert int(row["memory"]) == 800_000_600 and "800 MB" in text
    assert float(row["alone.seconds_train"]) == pytest.approx(0.21 * 600)


def test_schedules_are_in_the_order_of_the_arms_that_are_asked_about():
    """An arm of small batches takes more steps to its 2x than others to their 3x."""
    totals = {"a": {"2x": 128, "3x": 192, "6x": 384}, "b": {"2x": 128, "3x": 192, "6x": 384}, "c": {"2x": 512}}
    cells = [
        SimpleNamespace(arm=arm, schedule=name, fraction=1.0, total=total)
        for arm, own in totals.items()
        for name, total in own.items()
    ]
    folder = SimpleNamespace(plan=SimpleNamespace(cells=cells))
    assert StudyFolder.schedules(folder, 1.0, "a", "b") == ("2x", "3x", "6x")
    assert StudyFolder.schedules(folder, 1.0, "a", "c") == ("2x",)
    assert StudyFolder.schedules(folder, 0.5) == ()


def test_an_arm_that_rises_at_the_schedule_compared_does_so_whatever_longer_ones_it_has(tmp_path):
    """At 1x pre-trained still rises; from 2x to 6x, which scratch does not have, it is level."""

    def ap(arm, fraction, seed, step, in_tail):
        return 0.3 - 0.002 * seed if arm == "scratch" else 0.1 + 0.4 * min(step, 600) / 600

    own = {"pretrained": ["1x", "2x", "6x"], "scratch": ["1x"]}
    summary, _ = summary_of(build(tmp_path, seeds=3, ap=ap, settings={"schedules": own, "fractions": [1.0]}))
    assert summary["title"] == "No answer yet: pretrained still rises"


def test_arms_without_equal_steps_are_compared_by_schedule_alone(tmp_path):
    path = build(tmp_path, seeds=3)
    plan = json.loads((path / "plan.json").read_text())
    for cell in plan["cells"]:
        cell["total"] *= 5 if cell["arm"] == "scratch" else 1
    (path / "plan.json").write_text(json.dumps(plan))
    summary, _ = summary_of(path)
    assert answer(summary, "When does") is None and [told["num_left_out"] for told in summary["comparisons"]] == [0, 0]
    assert summary["at_equal_effort"][0]["obstacle"]["title"] == "no common effort"


def test_schedules_in_another_order_by_the_steps_of_the_other_arm_make_no_curve(tmp_path):
    """Of an arm of small batches 1x may have more steps than a schedule of a fixed number."""
    path = build(tmp_path, seeds=3)
    plan = json.loads((path / "plan.json").read_text())
    for cell in plan["cells"]:
        cell["total"] += 900 if (cell["arm"], cell["schedule"]) == ("scratch", "1x") else 0
    (path / "plan.json").write_text(json.dumps(plan))
    summary, _ = summary_of(path)
    assert answer(summary, "When does") is None and summary["at_equal_effort"] == []
    assert {told["num_left_out"] for told in summary["comparisons"]} == {0}


def test_steps_and_images_a_step_are_told_where_all_arms_have_the_same(tmp_path):
    path = build(tmp_path, differences=[{"field": "train.batch", "values": {}, "declared": True}])
    plan = json.loads((path / "plan.json").read_text())
    for cell in plan["cells"]:
        cell["total"] += 150 * (cell["arm"] == "scratch" and cell["schedule"] == "1x")
    (path / "plan.json").write_text(json.dumps(plan))
    _, page = summary_of(path)
    assert re.findall(r"<small>([\d,]+) steps", page) == ["600"] and "A step is" not in page


def test_arms_without_a_common_schedule_meet_at_the_longest_of_each(tmp_path):
    """The paper holds scratch at 9x against 6x with pre-training."""
    own = {"scratch": ["2x", "3x"], "pretrained": ["1x"]}
    path = build(tmp_path, seeds=3, settings={"schedules": own, "fractions": [1.0]}, pictures=True)
    folder = read_study_folder(path)
    assert folder.headline_cell == ("3x against 1x", 1.0)
    assert [folder.total(arm, "3x against 1x", 1.0) for arm in ("scratch", "pretrained")] == [900, 300]
    summary, page = summary_of(path)
    assert "at 3x against 1x with all data" in summary["text"]
    scores = [folder.scores("box.AP", *pair, 1.0) for pair in (("scratch", "3x"), ("pretrained", "1x"))]
    assert summary["comparisons"][0]["mean"] == pytest.approx(float((scores[0] - scores[1]).mean()), abs=1e-6)
    assert "At 3x against 1x with" in page and "At equal" in page
    assert "on which the arms differ most at the end of 3x against 1x (seed 0)" in page
    assert page.count("the longest of each") == 2  # in what the page says of its scores and headline


def test_resamples_without_an_annotation_are_left_out(tmp_path):
    """Of three validation images one is annotated: 8 of 27 resamples miss it."""
    records = [np.array([image], dtype) for image, dtype in ((0, np.int32), (0, np.int16))]
    detection = {"image": records[0], "label": records[1], "score": np.array([0.9]), "matched": np.ones((1, 10), bool)}
    annotation = {"gt_image": records[0], "gt_label": records[1], "gt_count": np.array([1], np.int32)}
    own = Records(np.arange(3), np.arange(1), **detection, ignored=np.zeros((1, 10), bool), **annotation)
    path = build(tmp_path, seeds=3, ap=lambda arm, fraction, seed, step, in_tail: 1.0)
    for file in path.glob("segments/*/rows.jsonl"):
        own.save(file.with_name(f"records-box-{file.parent.name.split('-')[-2]}.npz"))
    differences, _ = resampled.resampled_differences(read_study_folder(path), "2x", 1.0)
    assert 600 < differences.shape[1] < 800 and np.array_equal(differences, np.zeros_like(differences))


def test_the_rule_is_applied_to_a_cell_when_all_its_seeds_have_finished(tmp_path):
    """Of five seeds three have finished both schedules, and the fourth the shorter one."""
    path = build(tmp_path, seeds=5, ap=level, num_begun=1 + 3 * 8 + 7)
    summary, page = summary_of(path)
    assert [told["obstacle"]["title"] for told in summary["comparisons"]] == [
        f"{n} of 5 seeds finished" for n in (4, 3)
    ]
    assert {told["obstacle"]["code"] for told in summary["at_equal_effort"]} == {"unfinished", "outside"}
    assert "is ahead" not in page.replace("Who is ahead early?", "")
    done = summary_of(build(tmp_path / "done", seeds=5, ap=level))[0]
    assert [told["outcome"] for told in done["comparisons"]] == ["worse", "worse"]


@pytest.mark.parametrize(("schedules", "told"), [(("6x",), ["at the end"]), (("1x", "6x"), ["early", "at the end"])])
def test_the_tiles_say_at_the_end_of_the_longest_schedule_alone(tmp_path, schedules, told):
    _, page = summary_of(build(tmp_path, seeds=3, schedules=schedules, ap=level))
    assert re.findall(r'class="note">pretrained is ahead ([a-z ]+):', page) == told


def measured_by(path, kind, main, of_class):
    """A study whose runs have one metric, in place of box AP, by which its rule decides."""
    study = yaml.safe_load((path / "study.yaml").read_text())
    study["rule"]["metric"] = "top1" if main == "top1" else f"{kind}.{main}"
    (path / "study.yaml").write_text(yaml.safe_dump(study))
    for file in path.glob("segments/*/rows.jsonl"):
        rows = [json.loads(line) for line in file.open()]
        for row in rows:
            if box := row.get("metrics", {}).get("box"):
                row["metrics"] = {kind: {main: box["AP"]}}
                row["per_class"] = {kind: {n: {of_class: own["AP"]} for n, own in row["per_class"]["box"].items()}}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("at_1x", "told"),
    [((0.15, 0.15), "pretrained has learnt nothing"), ((0.45, 0.0), "seed 4 of pretrained collapsed")],
)
def test_equal_efforts_know_the_seeds_and_chance(tmp_path, at_1x, told):
    """With a third of its pre-training the pre-trained arm has at 1x the cost of scratch at 2x; chance is 1 of 6."""

    def ap(arm, fraction, seed, step, in_tail):
        return at_1x[seed == 4] if arm == "pretrained" and step == 300 else 0.45 + 0.001 * seed * (arm == "scratch")

    pretrain = {"shapes": {"recipe": "demo_pretrain", "set": {"seed": 0, "data.fraction": 1.0}, "uses": 3}}
    rule = {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01, "scope": "schedule"}
    path = build(tmp_path, ap=ap, settings={"pretrain": pretrain, "seeds": [3, 4, 5], "rule": rule})
    summary, _ = summary_of(measured_by(path, "class", "top1", "top1"))
    (images, *_) = [entry for entry in summary["at_equal_effort"] if entry["effort"].startswith("images")]
    assert images["at"] == 4800 and images["baseline"] == pytest.approx((2 * at_1x[0] + at_1x[1]) / 3)
    assert images["obstacle"]["title"] == told


def test_few_images_tell_no_more_at_equal_effort_than_at_a_schedule(tmp_path):
    """At 2x pre-trained is 25 points ahead, at 1x, which costs as much as scratch at 2x, the arms are level."""

    def ap(arm, fraction, seed, step, in_tail):
        return 0.55 if arm == "pretrained" and step > 300 else 0.3 + 0.001 * seed * (arm == "scratch")

    pretrain = {"shapes": {"recipe": "demo_pretrain", "set": {"seed": 0, "data.fraction": 1.0}, "uses": 3}}
    rule = {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01, "scope": "schedule"}
    for num_val, told in ((20, "not decidable"), (400, "equivalent")):
        settings = {"pretrain": pretrain, "rule": rule}
        path = build(tmp_path / told, seeds=3, ap=ap, settings=settings, stored={"num_val_images": num_val})
        summary, _ = summary_of(path)
        assert [entry["outcome"] for entry in summary["comparisons"]] == [told, "worse"]
        assert [entry["outcome"] for entry in summary["at_equal_effort"]] == ["worse", told, told]


@pytest.mark.parametrize(
    ("kind", "main", "of_class"),
    [
        ("semantic", "mIoU", "IoU"),
        ("class", "top1", "top1"),
        ("semantic", "accuracy", "IoU"),
        ("keypoints", "AR", "AP"),
    ],
)
def test_the_metric_of_a_study_without_boxes_is_there_and_named(tmp_path, kind, main, of_class):
    path = measured_by(build(tmp_path, seeds=3), kind, main, of_class)
    _, page = summary_of(path)
    assert re.findall(r"<h3>([^<]* by class)</h3>", page) == [f"{kind.capitalize()} {of_class} by class"]
    assert page.count('class="by-rule"') == 1 and f'<option value="{kind}.{main}" selected>' in page
    scores = re.findall(r'seed \d</span></th>\s*<td class="num">([^<]*)<', page)
    assert scores == [f"{100 * float(row[f'{kind}.{main}']):.1f}" for row in table(path, "cells")]
    facts = Facts(read_study_folder(path))
    _, right = figures.training_figure(facts, facts.stretches, facts.losses).axes
    assert all(np.isfinite(line.get_ydata()).any() for line in right.lines) and len(right.lines) == 2


def test_the_worth_of_a_start_says_where_an_arm_has_learnt_nothing(tmp_path):
    def ap(arm, fraction, seed, step, in_tail):
        return 0.004 if arm == "scratch" and fraction < 1 else box_ap(arm, fraction, seed, step, in_tail)

    for given, told in (({"ap": ap}, True), ({}, False)):
        path = build(tmp_path / str(told), seeds=3, fractions=(1.0, 0.1), **given)
        worth = answer(summary_of(path)[0], "How many labelled images")
        assert ("With 80 images an arm has not learnt enough to compare" in worth) == told


def test_an_arm_that_differs_in_something_else_is_worth_images_not_its_start(tmp_path):
    sheet = [{"field": "augment", "values": {"pretrained": "strong", "scratch": "flip"}, "declared": True}]
    summary, _ = summary_of(build(tmp_path, seeds=3, fractions=(1.0, 0.1), differences=sheet))
    said = answer(summary, "How many labelled images is pretrained worth?")
    assert "At 80 labelled images pretrained is worth about" in said and "start" not in said


def test_shares_of_many_digits_are_found_again(tmp_path, monkeypatch):
    """Of 118,287 images 500 and 10, a share that scripts write without an exponent: in the page, and from Python."""
    shares = {500 / 118287: 500, 10 / 118287: 10}
    monkeypatch.setattr(study_folder, "IMAGES", study_folder.IMAGES | shares)
    path = build(tmp_path, seeds=3, fractions=tuple(shares))
    _, page = summary_of(path)
    data = json.loads(re.search(r'id="study-data">(.*?)</script>', page)[1])
    chosen = [float(value) for value in re.findall(r'type="radio" name="fraction" value="([^"]*)"', page)]
    assert chosen == [entry["value"] for entry in data["fractions"]]
    assert {stretch["fraction"] for stretch in data["stretches"]} == set(chosen)
    assert data["settled"] == {arm: ["2x", "2x"] for arm in ("pretrained", "scratch")}  # in the order of the fractions
    folder = read_study_folder(path)
    scratch, pretrained = (folder.scores("box.AP", arm, *folder.headline_cell) for arm in ("scratch", "pretrained"))
    assert result_of(path / "report.html").difference.mean == pytest.approx(
        float((scratch - pretrained).mean()), abs=1e-6
    )


def test_bars_are_drawn_of_what_is_known_alone(tmp_path):
    """Of a study whose large amount of data is still to run, and of an arm without a value."""
    facts = Facts(read_study_folder(build(tmp_path, seeds=2, schedules=("1x",), fractions=(0.1, 1.0), num_begun=5)))
    assert sections.data(facts, find(facts)).figures == {}
    _, (axes,) = plots.panels(1, width=3.0, height=2.0)
    plots.grouped_bars(axes, {"a": [1.0, np.nan], "b": [2.0, 3.0]}, {"a": "#8e3b8c", "b": "#d55e00"}, 7)
    assert [text.get_text() for text in axes.texts] == ["1.0", "2.0", "3.0", "■ a", "■ b"]
    unknown, known = Cost(images=np.nan, instances=np.nan, pixels=np.nan), Cost(images=8, instances=16, pixels=32)
    arms = {"pretrained": {"start.kind": "backbone", "start.weights": "w.pt"}, "scratch": {}}
    facts = Facts(read_study_folder(build(tmp_path / "weights", settings={"arms": arms, "pretrain": {}})))
    assert np.isnan(sections.curves(facts, find(facts)).data["pretraining"]["pretrained"]["images"])
    (first, *_) = figures.cost_figure(facts, [("pretrained", "pretrained 1x", known, unknown)]).axes
    assert [bar.get_height() for bar in first.patches] == [0, 8] and "+ ?" in [text.get_text() for text in first.texts]


def test_a_gap_has_the_colour_of_the_arm_that_leads(tmp_path):
    def ap(arm, fraction, seed, step, in_tail):
        return {"pretrained": 0.3, "scratch": 0.2, "third": 0.4}[arm] + 0.001 * seed * (arm == "third")

    arms = {"pretrained": {"start.kind": "backbone", "start.weights": "pretrain:shapes"}, "scratch": {}, "third": {}}
    _, page = summary_of(build(tmp_path, seeds=3, schedules=("1x",), ap=ap, settings={"arms": arms}))
    gaps = re.findall(r'data-kind="gap" data-arm="(\w+)".*?--own: var\(--text(\d)\)', page)
    assert set(gaps) == {("scratch", "0"), ("third", "2")}


@pytest.mark.parametrize(
    ("field", "num_images", "told"),
    [
        (
            "start.kind",
            40,
            "Until then use pre-trained weights, which few images need most, or measure on a larger set",
        ),
        ("start.kind", 800, "Until then measure on a larger set"),
        ("train.precision", 40, "Until then measure on a larger set"),
    ],
)
def test_pretrained_weights_are_advised_where_they_are_asked_about_and_images_are_few(
    tmp_path, field, num_images, told
):
    differences = [{"field": field, "values": {"scratch": "a", "pretrained": "b"}, "declared": True}]
    path = build(tmp_path, seeds=3, ap=level, differences=differences, stored={"num_val_images": 20})
    plan = json.loads((path / "plan.json").read_text())
    (path / "plan.json").write_text(json.dumps(plan | {"num_images": {"1.0": num_images}}))
    assert f"{told} of the same kind." in summary_of(path)[0]["text"]
    images, what = ImageCounts(20, 20 + num_images), "images" if num_images == 40 else "validation images"
    assert images.remedy.startswith(f"label about {images.wanted:,} {what}, for differences of 4 points; until then ")


@pytest.mark.parametrize(
    ("field", "other", "question"),
    [
        ("start.kind", {}, "Do you need the head start?"),
        ("train.precision", {}, "pretrained or scratch?"),
        ("start.kind", {"third": {"train.rate": 0.01}}, "pretrained or scratch?"),  # of the third alone
    ],
)
def test_the_page_asks_what_the_study_asks(tmp_path, field, other, question):
    values = {"scratch": "a", "pretrained": "a" if other else "b"} | dict.fromkeys(other, "b")
    arms = {"pretrained": {"start.kind": "backbone", "start.weights": "pretrain:shapes"}, "scratch": {}} | other
    differences = [{"field": field, "values": values, "declared": True}]
    _, text = summary_of(build(tmp_path, seeds=1, settings={"arms": arms}, differences=differences))
    asked = text.partition('class="eyebrow">')[2].partition("\n")[0]
    assert asked == question


def next_of(path):
    """Words of the first step, the changes of its command, and its seconds."""
    step = summary_of(path)[0]["next_with_seconds"][0]
    return step["sentence"], shlex.split(step["command"])[4:-2], step["seconds"]


def test_longer_training_is_of_the_most_data_alone(tmp_path):
    """Two amounts of data share the study's schedules."""
    path = build(tmp_path, seeds=3, fractions=(1.0, 0.1), settings={"fractions": [1.0, 0.1]})
    said, changes, _ = next_of(path)
    assert said.startswith("Train twice as long, about 20 min")
    assert changes == ["fractions=[{fraction: 1.0, schedules: [1x, 2x, 4x]}, {fraction: 0.1}]"]


@pytest.mark.parametrize(
    ("pretrained", "scratch", "longer", "minutes"),
    [
        (["1x"], ["2x"], "{pretrained: [1x, 2x], scratch: [4x]}", 15),  # 2x against 1x, then 4x against 2x
        (["1x"], ["1x", "2x"], "{pretrained: [1x, 2x], scratch: [1x, 2x]}", 5),  # at 1x, then at 2x
        (["1x", "3x"], ["1x"], "{pretrained: [1x, 3x, 2x], scratch: [1x, 2x]}", 10),
    ],
)
def test_longer_arms_are_compared_as_before(tmp_path, pretrained, scratch, longer, minutes):
    settings = {"schedules": {"pretrained": pretrained, "scratch": scratch}, "fractions": [1.0]}
    said, changes, seconds = next_of(build(tmp_path, seeds=3, settings=settings))
    assert said.startswith("Train twice as long") and changes == [f"schedules={longer}"]
    assert seconds == pytest.approx(60 * minutes)  # a quarter of a second a step, from the trunk's end on


@pytest.mark.parametrize("own", [False, True])
def test_half_the_learning_rate_is_half_of_each_arms_own(tmp_path, own):
    def ap(arm, fraction, seed, step, in_tail):
        return 0.0 if (arm, seed) == ("scratch", 1) else box_ap(arm, fraction, seed, step, in_tail)

    rates = {"pretrained": 0.3, "scratch": 0.04} if own else {"pretrained": 0.04, "scratch": 0.04}
    arms = {"pretrained": {"start.kind": "backbone", "start.weights": "pretrain:shapes"}, "scratch": {}}
    arms["pretrained"] |= {"train.rate": 0.3} if own else {}
    path = build(tmp_path, seeds=3, ap=ap, settings={"arms": arms})
    for arm, rate in rates.items():
        for file in path.glob(f"segments/{arm}-*/recipe.yaml"):
            recipe = yaml.safe_load(file.read_text())
            file.write_text(yaml.safe_dump(recipe | {"train": recipe["train"] | {"rate": rate}}))
    said, changes, _ = next_of(path)
    assert said.startswith("Train at half the learning rate")
    told = [f"arms.{arm}.train.rate={rate / 2:g}" for arm, rate in rates.items()]
    assert changes == (told if own else ["train.rate=0.02"])


@pytest.mark.parametrize("own", [False, True])
def test_further_seeds_cost_the_pretraining_that_each_of_them_has(tmp_path, own):
    settings = {"pretrain": {"shapes": {"recipe": "demo_pretrain", "set": {} if own else {"seed": 0}}}}
    path = build(tmp_path, seeds=1, settings=settings, ap=level)
    said, _, seconds = next_of(path)
    way = "whole_as_spent" if own else "as_spent"
    names = [f"{way}.seconds_{kind}" for kind in ("train", "eval", "other")]
    spent = sum(float(row[name]) for row in table(path, "cells") for name in names)
    assert said.startswith("Add 2 seeds") and seconds == pytest.approx(2 * spent, rel=1e-4)


def test_seeds_without_a_score_do_not_count_as_seeds(tmp_path):
    path = build(tmp_path, seeds=3, ap=level)
    for file in path.glob("segments/scratch-f1-s[12]-2x-*/rows.jsonl"):
        rows = [json.loads(line) for line in file.open()]
        rows[-2]["metrics"]["box"]["AP"] = None
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said, changes, _ = next_of(path)
    assert "of a seed with a score in one arm alone there is none" in (path / "report.html").read_text()
    assert said.startswith("Add 2 seeds") and changes == ["seeds=5"]  # with these 3 of the 3 that the rule requires


def test_no_seeds_are_told_beyond_those_that_the_test_takes(tmp_path):
    """About 42 seeds would decide by a t test."""

    def ap(arm, fraction, seed, step, in_tail):
        return 0.45 + (0.01 * seed - 0.02) * (arm == "scratch")

    rule = {"metric": "box.AP", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01, "test": "sign_flip"}
    summary, _ = summary_of(build(tmp_path, seeds=6, schedules=("1x",), ap=ap, settings={"rule": rule}))
    assert (summary["state"], summary["next"]) == ("open", [])
    assert "over 20 would be needed" in summary["text"]


def test_no_step_is_told_where_a_metric_has_no_value(tmp_path):
    rule = {"metric": "box.APl", "baseline": "pretrained", "candidate": "scratch", "margin": 0.01}
    summary, _ = summary_of(build(tmp_path, seeds=3, settings={"rule": rule}))
    assert (summary["state"], summary["next"]) == ("scores", [])


def test_shared_pictures_are_looked_for_in_the_splits_of_the_run(tmp_path):
    path = build(tmp_path, seeds=3, stored={"overlap": 1})
    data = {"train": "d/voc", "train_images": None, "train_split": "trainval"}
    data |= {"val": "d/voc", "val_images": None, "val_split": "test"}
    for file in path.glob("segments/*/recipe.yaml"):
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"data": data}))
    summary, _ = summary_of(path)
    command = summary["next_with_seconds"][0]["command"]
    assert "validation images share 1 picture, so" in summary["text"]
    assert command == "headstart data check d/voc:trainval d/voc:test"
