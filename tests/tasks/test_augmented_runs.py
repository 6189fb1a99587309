"""Runs and studies with all augmentation on: resumed, on a fraction a seed, with one's own code."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from headstart.data.augment.own import load_transform
from headstart.recipe.dotted import flatten
from headstart.study.prepare import prepare, refuse_undeclared
from headstart.study.run import run_study
from headstart.study.spec import parse_study, read_study
from headstart.tasks import data_fingerprint, make_task
from headstart.tasks.detection_images import augmentation_of
from headstart.training.rows import read_rows
from headstart.training.run import train
from killed import Killed, kill_at
from tiny import SIDE, outcome, scene_paths, tiny_recipe, tiny_study, without_clock

CODE = """import numpy as np

def shade(image, generator):
    return (image * generator.uniform(0.5, 1)).astype(np.uint8)

def cut(image, generator):
    return image[1:]
"""
RUN = {
    "augment": "strongest",
    "input__jitter__low": 0.5,
    "input__copy_paste": True,
    "input__quarter_turns": True,
    "input__flip_vertical": 0.5,
    "input__transform": "own_shade:shade",
    "data__repeat_threshold": 0.9,
    "train__schedule": "2x",
    "evaluate__every": "0 steps",
}


@pytest.fixture
def own_shade(tmp_path, monkeypatch):
    """A module in the current folder; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_shade.py").write_text(CODE)
    yield tmp_path / "own_shade.py"
    sys.modules.pop("own_shade", None)


def moved(run):
    return [row for row in without_clock(read_rows(run.directory / "rows.jsonl")) if row["kind"] == "train"]


def test_a_resumed_run_is_the_uninterrupted_one(data_root, tmp_path, own_shade):
    recipe = tiny_recipe(data_root, **RUN)
    straight = train(recipe, tmp_path / "straight")
    with pytest.raises(Killed):
        train(recipe, tmp_path / "killed", progress=kill_at(5))
    resumed = train(recipe, tmp_path / "killed")
    hashes = [read_rows(run.directory / "rows.jsonl")[-1]["hash"] for run in (straight, resumed)]
    assert hashes[0] == hashes[1] and moved(resumed) == moved(straight)


def test_the_source_of_a_transform_is_a_part_of_the_runs_digest(data_root, own_shade):
    recipe, plain = tiny_recipe(data_root, **RUN), tiny_recipe(data_root)
    first, task = data_fingerprint(recipe), make_task(recipe)
    assert task.fingerprint == first and str(own_shade) in task.files and first != data_fingerprint(plain)
    own_shade.write_text(CODE.replace("0.5", "0.6"))
    assert data_fingerprint(recipe) != first
    own_shade.write_text(CODE)
    assert data_fingerprint(recipe) == first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_shad:shade", r"'own_shad:shade': there is no module 'own_shad', expected one in the current folder"),
        ("own_shade:shad", r"'own_shade:shad': .*own_shade\.py has no function 'shad'; the nearest name is 'shade'"),
        ("own_shade:CODE", r"has no function 'CODE'"),
        ("own_shade.x:shade", r"there is no module 'own_shade\.x'"),
        ("numpy.random.mtrand:rand", r"its module has no source file"),
        ("sys:exit", r"there is no module 'sys'"),
        ("broken:shade", r"broken\.py cannot be imported: SyntaxError: "),
    ],
)
def test_a_transform_that_cannot_be_had_is_one_line(data_root, own_shade, name, message):
    own_shade.with_name("broken.py").write_text("def shade(:\n")
    with pytest.raises(ValueError, match=rf"^input\.transform: .*{message}") as error:
        augmentation_of(tiny_recipe(data_root, input__transform=name))
    assert "\n" not in str(error.value)


def test_a_transform_of_another_shape_stops_a_run_at_its_start(data_root, tmp_path, own_shade):
    with pytest.raises(ValueError, match=r"^input\.transform: own_shade:cut on .*: returned uint8 \[63, 64, 3\]"):
        train(tiny_recipe(data_root, **RUN | {"input__transform": "own_shade:cut"}), tmp_path)
    assert not list(tmp_path.glob("tiny-*/checkpoints/*"))


def test_the_guides_transform_is_one(own_shade):
    text = (Path(__file__).parents[2] / "docs/guide.md").read_text(encoding="utf-8")
    code = next(part for part in text.split("```python\n") if part.startswith("# transforms.py")).split("```")[0]
    own_shade.write_text(code)
    transform, image = load_transform("own_shade:blur"), np.arange(120, dtype=np.uint8).reshape(5, 8, 3)
    found = [transform(image, np.random.default_rng(seed), Path("a.png")).tobytes() for seed in (0, 1, 2, 3, 0)]
    assert len(set(found)) == 2 and found[0] == found[4]


def test_a_fraction_per_seed_is_another_sample_each(data_root):
    """The one that the seed alone draws; `fraction_seed: 1` draws that of seed 1."""
    chosen = {}
    for seed in (0, 1):
        recipe = tiny_recipe(data_root, data__fraction=0.5, data__fraction_seed="per_seed", seed=seed)
        chosen[seed] = make_task(recipe).image_ids
        assert len(chosen[seed]) == 3
        fixed = tiny_recipe(data_root, data__fraction=0.5, data__fraction_seed=seed)
        assert make_task(fixed).image_ids == chosen[seed]
        assert data_fingerprint(fixed) == data_fingerprint(recipe)
    assert chosen[0] != chosen[1]


def test_a_study_along_the_ladder_on_a_fraction_per_seed(data_root, tmp_path):
    """Arms declare their rung; each seed has its own images, the same for all arms."""
    arms = {"plain": {"augment": "none"}, "strong": {"augment": "strong", "input.jitter.low": 0.5}}
    study = tiny_study(data_root, arms=arms, pretrain={}, schedules=["2x"], fractions=[0.5], seeds=[0, 1])
    study["set"] |= {"data.fraction_seed": "per_seed", "evaluate.every": "0 steps"}
    prepared = prepare(parse_study(study, source="tiny"))
    refuse_undeclared(prepared)
    changed = {row["field"] for row in prepared.differences}
    assert changed == {"input.flip", "input.jitter.enabled", "input.jitter.low"}
    assert prepared.recipes["strong"][0].input.jitter.crop == SIDE
    directory = run_study(prepared, tmp_path)
    data = {}
    for path in directory.glob("*/segment.json"):
        facts = json.loads(path.read_text())
        data.setdefault(facts["seed"], set()).add(facts["fingerprint"])
    assert {seed: len(found) for seed, found in data.items()} == {0: 1, 1: 1} and data[0] != data[1]


def test_the_shipped_study_is_planned_and_its_twins_ladder_runs(data_root, tmp_path):
    """Eight arms at three amounts of data; of the twin three arms on tiny data, with its declared fields."""
    overrides = {**scene_paths(data_root), "data.num_workers": 0}
    prepared = prepare(read_study("augmentation"), overrides)
    refuse_undeclared(prepared)
    assert len(prepared.plan.cells) == 24 and set(prepared.num_images.values()) == {6, 3, 1}
    assert prepared.recipes["scratch-strong"][0].input.jitter.crop == 1024
    twin = read_study("augmentation", size="small")
    chosen = {arm: patch for arm, patch in twin.arms.items() if arm in ("scratch-flip", "scratch-strongest")}
    start = {"kind": "backbone", "weights": "pretrain:forms"}
    chosen["pretrained-strongest"] = {**twin.arms["pretrained-strongest"], "start": start}
    study = tiny_study(data_root, arms=chosen, schedules=["2x"], fractions=[0.5])
    own = ("data.train", "data.val", "train.", "evaluate.")  # those of the tiny study
    declared = {field: value for field, value in flatten(twin.set).items() if not field.startswith(own)}
    assert declared["data.fraction_seed"] == "per_seed" and declared["input.jitter.low"] == 0.5
    study["set"] |= declared | {"evaluate.every": "0 steps"}
    directory = run_study(prepare(parse_study(study, source="tiny")), tmp_path)
    rows = outcome(directory)
    assert len({rows[f"{arm}-f0.5-s0-2x-5-8"][1] for arm in chosen}) == 3
