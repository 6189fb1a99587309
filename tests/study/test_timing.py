"""What the forecast measures before a study runs: all of it there, and by as many processes as will work at once."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from headstart.cli import console
from headstart.cli.study_runs import plan_facts, show_plan
from headstart.hardware import Choice
from headstart.ops import memory
from headstart.study import run as run_file
from headstart.study import timing
from headstart.study.begin import rehearse as rehearse_file
from headstart.study.folder import read_plan
from headstart.study.forecast import Load
from headstart.study.prepare import prepare
from headstart.study.run import default_jobs, run_study
from headstart.study.spec import parse_study
from headstart.study.timing import kept_loads, measure_apart, measure_loads
from headstart.tasks import make_task
from headstart.verdict import numbers
from tiny import tiny_recipe, tiny_study


def test_loads_are_those_of_the_recipes_however_many_measure(data_root):
    prepared = prepare(parse_study(tiny_study(data_root), source="tiny"), None)
    one, two = measure_loads(prepared), measure_apart(prepared, jobs=2)
    assert list(one) == list(two) == list(prepared.plan_arms())
    for name, load in two.items():
        assert (load.batch, load.num_images, load.num_eval_images, load.eval_every) == (
            one[name].batch, one[name].num_images, one[name].num_eval_images, one[name].eval_every,
        )  # fmt: skip
        assert load.seconds_per_step > 0 and load.seconds_per_eval_image > 0 and load.seconds_to_start > 0
        assert load.peak_bytes > 2**27  # torch alone takes as much


@pytest.mark.parametrize(("most", "lacks"), [(10**12, ""), (6 * 10**9, ": NOT enough, expected fewer --jobs or a")])
def test_the_plan_says_what_memory_its_segments_take(data_root, monkeypatch, capsys, tmp_path, most, lacks):
    prepared = prepare(parse_study(tiny_study(data_root), source="tiny"), None)
    images = dict.fromkeys(prepared.num_images, 6)
    loads = {
        name: Load(batch=2, num_images=images, seconds_per_step=0.5, peak_bytes=3 * 10**9 // place)
        for place, name in enumerate(prepared.plan_arms(), start=1)
    }
    monkeypatch.setattr(timing, "measure_apart", lambda prepared, jobs: loads)
    monkeypatch.setattr(memory, "limit", lambda kind: most)
    facts = plan_facts(prepared, 2, tmp_path, keep=False)
    assert (facts["segment_bytes"], facts["memory_bytes"]) == (3 * 10**9, most)
    show_plan(facts, console.out)
    line = "memory: 3.0 GB in the timed steps and evaluation, 2 segments at a time; this machine has "
    assert f"{line}{numbers.memory(most)}{lacks}" in " ".join(capsys.readouterr().out.split())


def test_the_plan_of_a_study_that_goes_on_counts_what_is_left(data_root, monkeypatch, capsys, tmp_path):
    prepared = prepare(parse_study(tiny_study(data_root), source="tiny"), None)
    images = dict.fromkeys(prepared.num_images, 6)
    load = Load(batch=2, num_images=images, seconds_per_step=60.0, checkpoint_bytes=10**9)
    monkeypatch.setattr(timing, "measure_apart", lambda prepared, jobs: dict.fromkeys(prepared.plan_arms(), load))
    before = plan_facts(prepared, 1, tmp_path / prepared.study.name, keep=False)
    assert before["finished"] == 0 and before["seconds_left"] == before["seconds"]
    assert before["checkpoint_bytes_left"] == before["checkpoint_bytes"]
    directory = run_study(prepared, tmp_path)
    last = [entry for entry in read_plan(directory).segments if entry.kind == "tail"][-1]
    shutil.rmtree(directory / last.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=before["checkpoint_bytes"] - 1))
    facts = plan_facts(prepared, 1, directory, keep=False)
    assert facts["finished"] == len(prepared.plan.segments) - 1 and facts["seconds"] == before["seconds"]
    assert facts["seconds_left"] == 60 * (last.stop - last.start)
    show_plan(facts, console.out)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{facts['finished']} segments are finished: about {numbers.span(facts['seconds_left'])} left" in said
    assert f"{numbers.memory(facts['checkpoint_bytes_left'])} of it not yet written" in said and "NOT" not in said
    show_plan(facts | {"checkpoint_bytes_left": 0}, console.out)
    assert "not yet written" not in capsys.readouterr().out


def test_the_first_images_are_judged_like_all(data_root):
    prepared = prepare(parse_study(tiny_study(data_root), source="tiny"), None)
    recipe = prepared.recipes["scratch"][0]
    device = torch.device("cpu")
    task = make_task(recipe)
    first, whole = task.evaluate_first(device, task.num_eval_images + 9), task.evaluate(device)
    for kind, metrics in whole.metrics.items():
        assert first.metrics[kind] == pytest.approx(metrics, nan_ok=True)  # nan: no object of that size


def test_a_study_that_goes_on_is_not_timed_again(data_root, tmp_path, monkeypatch):
    calls = []
    measured = {"scratch": Load(batch=2, num_images={1.0: 6, 0.1: 1}, seconds_per_step=0.5, seconds_to_start=1.5)}
    monkeypatch.setattr(timing, "measure_apart", lambda prepared, jobs: calls.append(jobs) or measured)
    prepared = prepare(parse_study(tiny_study(data_root), source="tiny"), None)
    path = tmp_path / "runs" / "timing.json"
    assert kept_loads(path, prepared, 2) == kept_loads(path, prepared, 2) == measured and calls == [2]
    assert kept_loads(path, prepared, 1) == measured and calls == [2, 1]
    path.write_text(path.read_text()[:50])  # torn
    assert kept_loads(path, prepared, 1) == measured and calls == [2, 1, 1]
    other = prepare(parse_study(tiny_study(data_root, schedules=["1x"]), source="tiny"), None)
    assert kept_loads(path, other, 1) == measured and calls == [2, 1, 1, 1]


def test_a_frozen_backbone_is_timed_frozen_and_on_kept_maps(data_root):
    start = {"start__kind": "backbone", "start__weights": "w.pt", "start__freeze": "backbone"}
    recipe = tiny_recipe(data_root, data__cache_features=True, model__norm="batch", **start)
    task, calls = make_task(recipe), []
    task.model.backbone.register_forward_hook(lambda module, given, maps: calls.append(module.training))
    before = [value.clone() for value in task.model.backbone.state_dict().values()]
    assert timing.seconds_per_step(task, recipe, torch.device("cpu")) > 0
    assert 6 < len(calls) <= 12 and not any(calls)  # of 24: six images and their mirror images
    assert all(map(torch.equal, before, task.model.backbone.state_dict().values()))
    assert not any(parameter.requires_grad for parameter in task.model.backbone.parameters())


def test_a_step_is_tried_and_timed_with_one_gpu_s_share_of_the_batch(data_root, monkeypatch):
    """One process would need the memory of all GPUs for the whole batch."""
    own = tiny_study(data_root, arms={"scratch": {}}, pretrain={})
    own["set"] |= {"train.batch": 4, "processes": 2}
    prepared, made = prepare(parse_study(own, source="tiny"), None), []
    for module in (rehearse_file, timing):
        monkeypatch.setattr(module, "make_task", lambda recipe: made.append(recipe) or make_task(recipe))
    monkeypatch.setattr(timing, "seconds_per_step", lambda *given: 1.0)
    monkeypatch.setattr(timing, "seconds_per_image", lambda *given: 1.0)
    rehearse_file.rehearse(prepared, "scratch")
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    monkeypatch.setattr(rehearse_file, "choose_device", lambda asked: Choice("cuda", "for this test"))
    rehearse_file.rehearse(prepared, "scratch")
    rehearse_file.rehearse(prepared, "scratch", None, 4)
    assert freed == [True, True]
    assert timing.measure_loads(prepared)["scratch"].batch == 4
    assert [(recipe.processes, recipe.train.batch) for recipe in made] == [(2, 4), (1, 2), (1, 1), (1, 2)]


def test_one_segment_at_a_time_is_the_default_on_a_gpu(data_root, monkeypatch):
    """Recipes for small nets have one thread, and all cores would share the GPU."""
    prepared = prepare(parse_study(tiny_study(data_root), source="tiny"), None)
    monkeypatch.setattr(run_file, "usable_cores", lambda: 16)
    assert default_jobs(prepared) == 16
    monkeypatch.setattr(run_file, "choose_device", lambda asked: Choice("cuda", "for this test"))
    assert default_jobs(prepared) == 1
