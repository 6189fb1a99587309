"""Masks by the training data: settled before the digest, told by run, plan and explanation."""

import json
from math import ceil

import pytest
import yaml

from cli_call import call
from headstart.data.dataset import MASKED
from headstart.recipe.load import Provenance
from headstart.recipe.recipe import digest, to_dict
from headstart.study.prepare import prepare
from headstart.study.spec import parse_study
from headstart.study.timing import hardware_lines
from headstart.tasks import make_task
from headstart.tasks.settle import MASKS, settle
from headstart.training.run import train
from tiny import tiny_recipe, tiny_study

BOXES = "the objects have boxes only"


@pytest.fixture(name="outlined")
def outlined_fixture(data_root, tmp_path):
    """A copy of the training file in which only the first `num` objects have outlines; None: as many as masks need."""

    def write(num, less=0):
        content = json.loads((data_root / "scenes/train.json").read_text())
        total = len(content["annotations"])
        num = ceil(MASKED * total) if num is None else num
        for annotation in content["annotations"][num - less :]:
            del annotation["segmentation"]
        path = tmp_path / f"{num - less}.json"
        path.write_text(json.dumps(content))
        return path, f"{100 * (num - less) / total:.0f} % of the objects have outlines"

    return write


def test_the_share_of_outlines_decides(outlined, data_root):
    for num, less, value in ((None, 0, True), (None, 1, False), (0, 0, False)):
        path, reason = outlined(num, less)
        asked = tiny_recipe(data_root, data__train=str(path), model__mask__enabled="auto", data__fraction=0.25)
        given = tiny_recipe(data_root, data__train=str(path), model__mask__enabled=value, data__fraction=0.25)
        found, origins = settle(asked, Provenance({MASKS: "override"}))
        assert found == given and digest(found) == digest(given)
        assert origins[MASKS] == f"override, auto: {reason if num is None else BOXES}"
        assert settle(given, origins) == (given, origins)
    for use in (digest, make_task):
        with pytest.raises(ValueError, match=r"^model\.mask\.enabled: auto, expected true or false"):
            use(asked)
    with pytest.raises(ValueError, match=r"input\.copy_paste: pastes masks, but model\.mask\.enabled is false"):
        settle(
            tiny_recipe(
                data_root,
                **{"data__train": str(path), "model__mask__enabled": "auto"}
                | {"input__jitter__enabled": True, "input__copy_paste": True},
            )
        )


def test_a_run_and_a_study_hold_what_was_used(outlined, data_root, tmp_path):
    path, _ = outlined(0)
    boxes = {"data__train": str(path), "evaluate__every": "0 steps"}
    asked, said = tiny_recipe(data_root, model__mask__enabled="auto", **boxes), []
    result = train(asked, tmp_path, say=said.append)
    assert f"{MASKS}: false (recipe, auto: {BOXES})" in said
    assert train(tiny_recipe(data_root, model__mask__enabled=False, **boxes), tmp_path) == result
    assert yaml.safe_load((result.directory / "recipe.yaml").read_text())["model"]["mask"]["enabled"] is False
    study = tiny_study(data_root, arms={"scratch": {}, "slow": {"train.rate": 0.001}}, pretrain={})
    study["set"] |= {"data.train": str(path), MASKS: "auto"}
    prepared = prepare(parse_study(study, source="tiny"))
    assert [recipe.model.mask.enabled for recipe, _ in prepared.recipes.values()] == [False, False]
    assert [row["field"] for row in prepared.differences] == ["train.rate"]
    assert [line for line in hardware_lines(prepared) if line.startswith(MASKS)] == [
        f"{MASKS}: false (study, auto: {BOXES})"
    ]


def test_explain_says_what_decides(outlined, data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answer = call(monkeypatch, capsys, "recipe", "explain", "small", "data.train=none.json")
    assert answer.code == 0 and f"{MASKS}: auto (none.json: " in answer.out
    asked = tmp_path / "asked.yaml"
    path, _ = outlined(0)
    recipe = tiny_recipe(data_root, model__mask__enabled="auto", data__train=str(path))
    asked.write_text(yaml.safe_dump(to_dict(recipe)))
    answer = call(monkeypatch, capsys, "recipe", "explain", asked)
    assert f"{MASKS}: false (asked.yaml, auto: {BOXES})" in answer.out.splitlines()
    assert digest(settle(recipe)[0]) in answer.out
