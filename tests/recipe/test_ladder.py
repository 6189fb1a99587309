"""The ladder `augment`: shorthand for fields, expanded where it is written; what stands beside it or later wins."""

import pytest

from headstart.recipe.augment import LADDER, RUNG_FIELDS
from headstart.recipe.dotted import flatten
from headstart.recipe.load import load_recipe, resolve
from headstart.recipe.recipe import digest, to_dict

OFF = {
    "input.flip": 0.0, "input.flip_vertical": 0.0, "input.quarter_turns": False, "input.jitter.enabled": False,
    "input.crop.enabled": False, "input.copy_paste": False, "input.mosaic": 0.0, "input.colour.brightness": 0.0,
    "input.colour.contrast": 0.0, "input.colour.saturation": 0.0, "input.colour.lighting": 0.0, "input.colour.hue": 0.0,
}  # fmt: skip
COLOURS = {f"input.colour.{name}": 0.4 for name in ("brightness", "contrast", "saturation")}
EXPECTED = {
    "none": OFF,
    "flip": OFF | {"input.flip": 0.5},
    "scale": OFF | {"input.flip": 0.5},
    "strong": OFF | {"input.flip": 0.5, "input.jitter.enabled": True},
    "strongest": OFF
    | {"input.flip": 0.5, "input.jitter.enabled": True, "input.mosaic": 0.5, "input.colour.hue": 0.05}
    | COLOURS,
}
SIZES = {"base": ((800,), 1024), "demo": ((96,), 96), "cornernet": ((640,), 512), "small": ((256,), 288)}


@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("recipe", SIZES)
def test_a_rung_sets_its_fields_whatever_the_recipe_has(recipe, name):
    """All fields of random changes, at the recipe's size: a crop of as many pixels, or of the side that it has."""
    found = flatten(to_dict(load_recipe(recipe, {"augment": name})))
    short, crop = SIZES[recipe]
    assert {field: found[field] for field in OFF} == EXPECTED[name] and found["input.jitter.crop"] == crop
    if name != "scale":
        assert found["input.short"] == list(short)
    assert {*OFF, "input.short", "input.jitter.crop"} == RUNG_FIELDS and "augment" not in found


def test_scale_has_the_papers_sizes():
    assert load_recipe("base", {"augment": "scale"}).input.short == (640, 672, 704, 736, 768, 800)
    assert load_recipe("demo", {"augment": "scale"}).input.short == (77, 81, 84, 88, 92, 96)


def test_what_stands_beside_a_rung_or_later_wins_and_sizes_are_those_of_the_end():
    recipe, origins = resolve(
        "base",
        [
            ("study", {"input": {"flip": 0.9, "short": [300]}, "augment": "strongest"}),
            ("arm", {"augment": "scale", "input.mosaic": 0.0, "input.colour.hue": 0.2}),
            ("override", {"input.short": [100], "input.long": 150, "input.flip": 0.25}),
        ],
    )
    own = recipe.input
    assert own.short == (80, 84, 88, 92, 96, 100) and own.flip == 0.25 and own.colour.hue == 0.2
    assert own.colour.contrast == 0.0 and not own.jitter.enabled and own.jitter.crop == 128
    assert origins["input.short"] == "arm, augment scale"
    assert (origins["input.flip"], origins["input.colour.hue"]) == ("override", "arm")


def test_a_rung_is_its_fields_and_nothing_else():
    """Equal settings are equal runs, however they were written."""
    written = load_recipe("base", {"augment": "strong"})
    spelled = load_recipe("base", {"input.jitter.enabled": True})
    assert written == spelled and digest(written) == digest(spelled)
    assert digest(load_recipe("base", {"augment": "flip"})) == digest(load_recipe("base"))


@pytest.mark.parametrize(
    ("name", "patch", "message"),
    [
        ("base", {"augment": "srong"}, "augment: 'srong' is unknown, expected one of none, flip, scale, strong, "),
        ("base", {"augment": None}, "augment: None is unknown, expected one of none"),
        ("base", {"augment": 2}, "augment: 2 is unknown"),
        ("base", {"augment": {"strong": True}}, "augment: unknown field"),
        ("base_segment", {"augment": "flip"}, "augment: 'flip' is of detection recipes, this one is of segmentation"),
        ("base_classify", {"augment": "none"}, "augment: 'none' is of detection recipes, this one is of classific"),
        ("base", {"augment": "strong", "input.short": "x"}, "input.short: 'x' is not valid"),
        ("base", {"augment": "strong", "input.short": [10**400]}, "input.short.0: 1000"),
        ("base", {"augment": "strongest", "input.jitter.enabled": False}, "input.mosaic: needs a fixed crop"),
        (
            "base",
            {"augment": "strong", "data.cache_features": True, "start.freeze": "backbone", "start.kind": "backbone",
             "start.weights": "w.pt"},
            "data.cache_features: true keeps the features of an image, but input.jitter.enabled is True",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line(name, patch, message):
    with pytest.raises(ValueError) as error:
        load_recipe(name, patch)
    assert message in str(error.value) and "\n" not in str(error.value)
