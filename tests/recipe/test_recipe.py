"""Recipes: complete, refused when wrong with the nearest right name, and a digest of exactly what changes results."""

import importlib.util
import json
import typing

import pytest
import torch
import yaml
from pydantic import BaseModel

from headstart.recipe import yaml_text
from headstart.recipe.dotted import flatten, unflatten
from headstart.recipe.load import (
    find,
    load_recipe,
    resolve,
    shipped,
    stored_recipe,
)
from headstart.recipe.recipe import (
    DIGESTED_BY_CONTENT,
    NOT_IN_DIGEST,
    ClassifyRecipe,
    Recipe,
    SegmentRecipe,
    digest,
    scaled_rate,
    schedule_of,
    to_dict,
)
from headstart.recipe.refusal import validate
from headstart.recipe.yaml_text import parse_override, read_yaml

KINDS = {"base": Recipe, "base_classify": ClassifyRecipe, "base_segment": SegmentRecipe}


def model_fields(model, prefix=""):
    """Dotted names of a model's leaves, of a resnet backbone where there is a choice."""
    for name, field in model.model_fields.items():
        options = [field.annotation, *typing.get_args(field.annotation)]
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if sections:
            yield from model_fields(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("name", KINDS)
def test_a_base_recipe_holds_exactly_the_fields_of_its_model(name):
    written = list(flatten(read_yaml(find(name))))
    assert sorted(written) == sorted(model_fields(KINDS[name]))
    assert len(written) == len(set(written))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_loads_and_builds(name):
    from headstart.model.build import build

    recipe = load_recipe(name)
    with torch.device("meta"):  # shapes are what can be wrong; drawing values takes seconds
        model = build(recipe, 3, num_keypoints=17)  # of COCO's people
    assert sum(parameter.numel() for parameter in model.parameters()) > 1000
    schedule = schedule_of(recipe, 10_000)
    assert 0 <= schedule.warmup <= schedule.first_drop <= schedule.total
    assert find(name).read_text().startswith("# ")


@pytest.mark.parametrize("name", shipped("studies"))
def test_every_shipped_study_is_read(name):
    from headstart.study.spec import read_study

    assert read_study(name).arms


def test_another_spelling_of_a_shipped_recipe_is_a_recipe_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(to_dict(load_recipe("demo"))))
    assert load_recipe(path) == load_recipe("demo") == load_recipe(str(find("demo")))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.rte=1", "base.yaml (override): train.rte: unknown field; the nearest name is 'train.rate'"),
        ("train.norm_groups=1", "train.norm_groups: unknown field; the nearest name is 'model.norm_groups'"),
        ("model.rpn.ratio=[1]", "model.rpn.ratio: unknown field; the nearest name is 'model.rpn.ratios'"),
        ("sed=1", "sed: unknown field; the nearest name is 'seed'"),
        ("train.rate=fast", "train.rate: 'fast' is not valid: input should be a valid number"),
        ("train.rate=-1", "train.rate: -1 is not valid: input should be greater than or equal to 0.000000001"),
        ("data.fraction=0", "data.fraction: 0 is not valid: input should be greater than 0"),
        ("data.fraction=1.5", "data.fraction: 1.5 is not valid: input should be less than or equal to 1"),
        ("train.batch=2.5", "train.batch: 2.5 is not valid"),
        ("model.norm=layer", "model.norm: 'layer' is not valid: input should be 'group', 'batch', 'sync_batch'"),
        ("start.kind=backbone", "start.weights: missing for start.kind 'backbone'; expected a weights file"),
        ("start.weights=a.pt", "start.weights: 'a.pt' is given but start.kind is 'random'"),
        ("input.short=[]", "input.short: [] is not valid"),
        ("train.rate.low=1", "train.rate"),
        ("model=3", "model: 3 is not valid"),
        ("task=tracking", "task: 'tracking' is unknown, expected one of detection, classification, segmentation"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(override, expected):
    with pytest.raises(ValueError) as caught:
        load_recipe("base", dict([parse_override(override)]))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "patch", "expected"),
    [
        ("base", {"model.norm_groups": 24}, "24 do not divide the 64 channels of model.backbone.width; expected a"),
        (
            "base",
            {"model.backbone.group_width": 9},
            "32 do not divide the 9 channels of model.backbone.groups x group_",
        ),
        ("base", {"model.backbone": {"kind": "detnet", "depth": 59, "width": 40}}, "the 40 channels of model.backbone"),
        ("base", {"model.pyramid_norm": True, "model.pyramid_channels": 40}, "the 40 channels of model.pyramid_chan"),
        ("base", {"model.box.norm": True, "model.box.conv_channels": 40}, "the 40 channels of model.box.conv_channels"),
        ("base", {"model.mask.norm": True, "model.mask.conv_channels": 40}, "channels of model.mask.conv_channels"),
        ("base_classify", {"model.norm_groups": 33}, "divisor, the nearest is 32"),
        ("base_segment", {"model.semantic.channels": 40}, "the 40 channels of model.semantic.channels"),
    ],
)
def test_groups_that_do_not_divide_channels_are_refused_before_a_model_is_built(base, patch, expected):
    with pytest.raises(ValueError) as caught:
        load_recipe(base, patch)
    assert ": model.norm_groups: " in str(caught.value) and expected in str(caught.value)
    load_recipe(base, patch | {"model.norm": "frozen_batch"})  # which has no groups


def test_unknown_recipe_names_get_the_nearest():
    with pytest.raises(
        ValueError, match="recipe 'demmo': no such file or shipped name; the nearest shipped name is 'demo'"
    ):
        load_recipe("demmo")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "1.0e-04", "+1e-4", "0.0001"])
def test_numbers_are_numbers(text):
    key, value = parse_override(f"train.weight_decay={text}")
    assert (key, value) == ("train.weight_decay", pytest.approx(1e-4))
    assert read_yaml("x", f"a: {text}") == {"a": pytest.approx(1e-4)}


@pytest.mark.parametrize("libyaml", [True, False])
def test_yaml_means_the_same_with_and_without_libyaml(monkeypatch, libyaml):
    """PyYAML may come without its C library: numbers, repeated keys and shipped files are read the same way."""
    assert issubclass(yaml_text._Loader, yaml.CSafeLoader)
    reader = yaml_text
    if not libyaml:
        monkeypatch.delattr(yaml, "CSafeLoader")
        spec = importlib.util.spec_from_file_location("yaml_text_without_libyaml", yaml_text.__file__)
        reader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(reader)
        assert issubclass(reader._Loader, yaml.SafeLoader)
    assert reader.read_yaml("x", "a: 1e-4\nb: 1e-4x\nc: '1e-4'") == {"a": 1e-4, "b": "1e-4x", "c": "1e-4"}
    for text, line in (("a: 1\na: 2", 2), ("a:\n  b: 1\n  c: 2\n  b: 1", 4), ("{a: 1, a: 1}", 1)):
        with pytest.raises(ValueError, match=rf"^x: line {line}: '[ab]' is given twice$"):
            reader.read_yaml("x", text)
    for path in [*shipped().values(), *shipped("studies").values()]:
        assert reader.read_yaml(path) == read_yaml(path)


@pytest.mark.parametrize(
    "name",
    ["a/b", "a:b", "con", "Nul.x", "a.", "a ", "", "a\nb", "x" * 201, "../../x", "/tmp/x", "..", ".",
     "x" * 101, "ä" * 51, "x" * 10**6, "a\0b", "a\x1b[2J", "a\x7fb", "a\x9bb", "a\udcff", "..\\x"])  # fmt: skip
def test_a_name_that_some_system_refuses_for_a_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"name: .* cannot name a folder on every platform") as error:
        load_recipe("demo", {"name": name})
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


@pytest.mark.parametrize("name", ["console", "a.b", "größe", "com", "con-1", "x" * 100, "ä" * 50])
def test_names_of_any_letters_are_kept(name):
    assert load_recipe("demo", {"name": name}).name == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=null", None),
        ("a.b=true", True),
        ("a.b=x=y", "x=y"),
        ("a.b=", None),
        ("a.b=2e3", 2000.0),
        ("a.b=1e5x", "1e5x"),
        ("a.b={c: 1}", {"c": 1}),
    ],
)
def test_overrides_are_read_as_yaml(text, expected):
    assert parse_override(text) == ("a.b", expected)


@pytest.mark.parametrize("text", ["train.rate", "=3", "train.rate:0.1"])
def test_overrides_without_a_key_or_value_are_refused(text):
    with pytest.raises(ValueError, match=r"expected key\.path=value"):
        parse_override(text)


def test_overrides_come_last_and_a_section_may_be_given_whole():
    recipe = load_recipe("demo", {"train.rate": 0.5, "model.box": {"convs": 2}})
    assert (recipe.train.rate, recipe.model.box.convs) == (0.5, 2)
    assert recipe.model.box.fc_width == load_recipe("demo").model.box.fc_width


def test_another_kind_of_backbone_replaces_the_whole_section():
    recipe = load_recipe("base", {"model.backbone": {"kind": "timm", "name": "resnet18"}})
    assert recipe.model.backbone.model_dump() == {"kind": "timm", "name": "resnet18"}
    with pytest.raises(ValueError, match=r"model\.backbone\.name: missing"):
        load_recipe("base", {"model.backbone.kind": "timm"})


def test_provenance_names_the_layer_of_every_value(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: demo\nname: mine\ntrain: {rate: 0.3}\n")
    recipe, origins = resolve(str(path), [("study", {"seed": 4}), ("override", {"train.batch": 4})])
    assert set(origins) >= set(flatten(to_dict(load_recipe("base")))) - {"model.backbone.bottleneck"}
    found = {key: origins[key] for key in ("name", "seed", "train.batch", "train.rate", "train.base", "train.momentum")}
    assert found == {
        "name": "mine.yaml", "seed": "study", "train.batch": "override", "train.rate": "mine.yaml",
        "train.base": "demo.yaml", "train.momentum": "base.yaml",
    }  # fmt: skip
    assert recipe.train.rate == 0.3 and recipe.seed == 4


@pytest.mark.parametrize("name", KINDS)
def test_values_of_a_base_recipe_need_no_origin_in_a_run(name):
    _, origins = resolve(name, [("override", {"train.rate": 0.5})])
    assert len(origins) > 40 and origins.beyond_base() == {"train.rate": "override"}


def test_a_key_named_like_a_backbone_stays_in_the_path_of_an_error():
    from headstart.study.spec import parse_study

    with pytest.raises(ValueError, match=r"^mine: arms\.vgg: 3 is not valid"):
        parse_study({"name": "a", "recipe": "demo", "arms": {"vgg": 3}, "schedules": ["2x"]}, source="mine")
    with pytest.raises(ValueError, match=r"model\.backbone\.width: 0 is not valid"):
        load_recipe("base", {"model.backbone.width": 0})


def test_a_recipe_extends_at_most_one_level(tmp_path):
    for name, parent in (("a", "demo"), ("b", tmp_path / "a.yaml")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}\nname: {name}\n")
    assert load_recipe(tmp_path / "a.yaml").name == "a"
    with pytest.raises(ValueError, match=r"a\.yaml: extends: 'demo' is a second level"):
        load_recipe(tmp_path / "b.yaml")


def other_value(value):
    """A value of the same type that is not the given one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value / 2 if isinstance(value, float) and value else value + 1
    if isinstance(value, (list, tuple)):
        return [other_value(value[0]), *value[1:]] if value else [1]
    return {
        "random": "backbone", "none": "stem", "group": "batch", "fp32": "bf16", "rgb": "bgr", None: 3, "resnet": "timm",
        "sgd": "adam",
    }.get(value, f"{value}0")  # fmt: skip


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("name", KINDS)
def test_the_digest_ignores_clerical_fields_and_changes_with_every_other(name):
    recipe = load_recipe(name)
    values, seen = flatten(to_dict(recipe)), {digest(recipe): "nothing"}
    for field, value in values.items():
        if field in DIGESTED_BY_CONTENT or field == "task":
            continue
        changed = recipe.model_copy(deep=True)
        part = changed
        *parents, leaf = field.split(".")
        for parent in parents:
            part = getattr(part, parent)
        object.__setattr__(part, leaf, other_value(value))
        assert flatten(to_dict(changed))[field] != value, field
        if field in NOT_IN_DIGEST:
            assert digest(changed) == digest(recipe), field
        else:
            assert digest(changed) not in seen, (field, seen.get(digest(changed)))
            seen[digest(changed)] = field
    assert len(seen) > 20


def test_clerical_and_replaced_fields_exist():
    known = {field for model in KINDS.values() for field in model_fields(model)}
    assert set(NOT_IN_DIGEST) | set(DIGESTED_BY_CONTENT) <= known
    assert "train.threads" not in NOT_IN_DIGEST


def test_the_digest_takes_what_stands_for_files_and_schedules():
    recipe = load_recipe("base")
    assert len({digest(recipe), digest(recipe, "data"), digest(recipe, "data", "weights")}) == 3
    assert digest(recipe, "a") == digest(load_recipe("base", {"data.train": "elsewhere.json"}), "a")


def test_rates_scale_with_the_batch():
    assert scaled_rate(load_recipe("base", {"train.batch": 4})) == pytest.approx(0.005)
    assert schedule_of(load_recipe("base"), 118_287, "6x").total == 540_000


def test_resolved_recipes_round_trip():
    for name in shipped():
        recipe = load_recipe(name)
        plain = json.loads(json.dumps(to_dict(recipe)))
        assert validate(type(recipe), plain, "x") == recipe
        assert unflatten(flatten(plain)) == plain


def test_recipes_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("base").train.rate = 1.0


@pytest.mark.parametrize("name", ["demo", "vgg16", "detnet59", "base_segment", "demo_pretrain", "paper/x152"])
def test_a_stored_recipe_from_before_a_field_has_its_base_value(name):
    recipe = load_recipe(name)
    base = {"detection": "base", "classification": "base_classify", "segmentation": "base_segment"}[recipe.task]
    whole, defaults = to_dict(recipe), flatten(to_dict(load_recipe(base)))
    assert stored_recipe(whole, "a.pt") == recipe
    for field, value in flatten(whole).items():
        if field != "task" and defaults.get(field, ...) == value and not field.startswith("model.backbone."):
            older = {key: kept for key, kept in flatten(whole).items() if key != field}
            assert stored_recipe(unflatten(older), "a.pt") == recipe, field
    with pytest.raises(ValueError, match=r"^a\.pt: train\.speed: unknown field"):
        stored_recipe({**whole, "train": {**whole["train"], "speed": 1}}, "a.pt")
    assert stored_recipe(whole, "a.pt", {"evaluate.batch": 3}).evaluate.batch == 3
