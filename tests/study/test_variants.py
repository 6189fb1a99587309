"""The end of a schedule judged in other ways: the same as evaluating its checkpoint so, and only that."""

import shutil
from dataclasses import replace

import pytest
import torch

from headstart.recipe.dotted import flatten
from headstart.report.facts import Facts
from headstart.report.tables import schedule_tables
from headstart.study.folder import read_study_folder
from headstart.study.forecast import Load, segment_rows
from headstart.study.plan import expand
from headstart.study.prepare import prepare
from headstart.study.run import run_study
from headstart.study.spec import parse_study
from headstart.study.variants import variants_worth
from headstart.tasks.detection import validation_data
from headstart.tasks.predict import evaluate, load_trained
from schedules import make_schedules
from tiny import CLASSIFIER, class_paths, tiny_recipe, tiny_study


def test_ends_are_judged_in_other_ways_too(data_root, tmp_path, monkeypatch):
    """A variant is the evaluation of that checkpoint under its patch; it is made once, and read beside the plain."""
    variants = {
        "small": {"input.test_short": 48},
        "tta": {"evaluate.tta": {"enabled": True, "shorts": [64], "long": 64}},
    }
    data = shutil.copytree(data_root, tmp_path / "data")
    settings = tiny_study(data, also_evaluate=variants, arms={"scratch": {}}, schedules=["2x"], pretrain={})
    prepared = prepare(parse_study(settings, source="tiny"))
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    directory = run_study(prepared, tmp_path)
    assert len(freed) == 2  # after the rehearsal and after the variants: other processes may train on the same GPU
    folder = read_study_folder(directory)
    assert tuple(folder.study.also_evaluate) == ("small", "tta")
    run = folder.tail(folder.plan.cells[0])
    assert [row["variant"] for row in run.variants.values()] == ["small", "tta"]
    for name, patch in variants.items():
        trained = load_trained(run.directory, flatten(patch))
        evaluation, _ = evaluate(trained, validation_data(trained.recipe))
        expected = evaluation.metrics["box"]["AP"]
        assert folder.scores(f"{name}:box.AP", "scratch", "2x", 1.0) == pytest.approx([expected], nan_ok=True)
    before = (run.directory / "variants.jsonl").stat().st_mtime_ns
    run_study(prepared, tmp_path)
    assert (run.directory / "variants.jsonl").stat().st_mtime_ns == before
    blocks = {block.name for block in schedule_tables(Facts(folder))[0].blocks}
    assert {"box.AP", "small:box.AP", "tta:mask.AP"} <= blocks
    shutil.rmtree(data)  # the run is found by its content; a further variant reads the data where they are now
    settings |= {"set": tiny_study(data_root)["set"], "also_evaluate": variants | {"tiny": {"input.test_short": 32}}}
    run_study(prepare(parse_study(settings, source="tiny")), tmp_path)
    assert list(read_study_folder(directory).tail(folder.plan.cells[0]).variants) == ["small", "tta", "tiny"]


def test_variants_that_change_nothing_or_suit_no_detector_are_refused(data_root):
    same = tiny_study(data_root, also_evaluate={"plain": {"input.test_short": 64}})
    with pytest.raises(ValueError, match=r"also_evaluate\.plain: is what the study evaluates anyway"):
        prepare(parse_study(same, source="tiny"))
    classify = {"name": "c", "recipe": "base_classify", "set": {**CLASSIFIER, **class_paths(data_root)}}
    tta = {"tta": {"evaluate.tta.enabled": True}}
    study = {**classify, "arms": {"a": {}}, "schedules": ["1x"], "also_evaluate": tta}
    with pytest.raises(ValueError, match=r"also_evaluate\.tta: only detections .* this study is about classification"):
        prepare(parse_study(study, source="c"))


def test_the_plan_expects_their_time(data_root):
    """Looks at all and a quarter of the pixels, mirrored too, masks a second time; only where a schedule ends."""
    tta = {"tta": {"evaluate.tta": {"enabled": True, "shorts": [64, 32], "long": 64, "flip": True}}}
    recipe = tiny_recipe(data_root)
    assert variants_worth(tta, recipe) == 2 * 2 * (1 + 0.25)
    assert variants_worth({"small": {"input.test_short": 32}}, recipe) == 0.25
    schedules = make_schedules(["2x"], base=4, base_rate=0.1, warmup=1, warmup_from=0.1)
    plan = expand(
        parse_study(tiny_study(data_root, schedules=["2x"], arms={"a": {}}, pretrain={}), source=""), schedules
    )
    load = Load(batch=2, num_images={1.0: 6}, seconds_per_step=1.0, seconds_per_eval_image=0.5, num_eval_images=3)
    plain, more = (segment_rows(plan, {"a": replace(load, variants=worth)}) for worth in (0, 5.0))
    extra = [b["seconds"] - a["seconds"] for a, b in zip(plain, more)]
    assert extra == [7.5 if segment.kind == "tail" else 0 for segment in plan.segments]
