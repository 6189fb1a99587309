"""The recipe reference is what its generator makes, and every field of the base recipes is in it."""

from pathlib import Path

from headstart.recipe.dotted import flatten
from headstart.recipe.load import shipped
from headstart.recipe.reference import comments_of, reference
from headstart.recipe.yaml_text import read_yaml

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_reference_is_up_to_date():
    assert (DOCS / "recipes.md").read_text() == reference(), "run `make docs`"


def test_every_field_of_the_base_recipes_is_listed():
    text = reference()
    for name in ("base", "base_classify"):
        for field in flatten(read_yaml(shipped()[name])):
            assert f"| `{field}` |" in text


def test_comments_keep_their_place_in_nested_sections():
    text = "a: 1  # top\nb:\n  a: 2  # inner\n  c: 3\nd: 4 # end\n"
    assert comments_of(text) == {"a": "top", "b.a": "inner", "d": "end"}
