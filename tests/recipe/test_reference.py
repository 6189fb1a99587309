"""The references are what their generators make, and complete; examples of rules are true."""

import re
from pathlib import Path

import numpy as np
import pytest

import headstart
from headstart.recipe.dotted import flatten
from headstart.recipe.load import shipped
from headstart.recipe.reference import comments_of, reference
from headstart.recipe.yaml_text import read_yaml
from headstart.reference.python import python_page
from headstart.reference.study_file import study_page
from headstart.verdict.earned import IMAGE_SPREAD
from headstart.verdict.rule import Rule, seeds_needed, smallest_difference
from headstart.verdict.verdict import decide

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "made"), [("recipes.md", reference), ("study-file.md", study_page), ("api.md", python_page)]
)
def test_the_committed_reference_is_up_to_date(page, made):
    assert (DOCS / page).read_text() == made(), "run `make docs`"


def test_every_public_name_is_listed():
    text = python_page()
    assert [name for name in headstart.__all__ if f"headstart.{name}" not in text] == []


@pytest.mark.parametrize(
    ("test", "points", "outcome"),
    [
        ("t", [2.4, 3.1, 2.7], "better"),
        ("sign_flip", [2.4, 3.1, 2.7], "not decidable"),
        ("sign_flip", [2.4, 3.1, 2.7, 2.2, 2.9, 2.5], "better"),
    ],
)
def test_the_examples_of_tests_are_true(test, points, outcome):
    rule = Rule(metric="box.AP", baseline="a", candidate="b", margin=0.01, test=test)
    assert decide(rule, np.array(points)[:, None] / 100).tolist() == [outcome]
    assert ", ".join(f"+{value}" for value in points[:3]) in study_page()


def test_every_field_of_the_base_recipes_is_listed():
    text = reference()
    for name in ("base", "base_classify"):
        for field in flatten(read_yaml(shipped()[name])):
            assert f"| `{field}` |" in text


def test_comments_keep_their_place_in_nested_sections():
    text = "a: 1  # top\nb:\n  a: 2  # inner\n  c: 3\nd: 4 # end\n"
    assert comments_of(text) == {"a": "top", "b.a": "inner", "d": "end"}


def test_the_tables_of_choosing_are_computed():
    """docs/choosing.md: noise of images, differences that seeds find, seeds that show equality."""
    text = (DOCS / "choosing.md").read_text(encoding="utf-8")
    images = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(images) == 5
    for number, points in images:
        assert points == f"{196 * IMAGE_SPREAD / np.sqrt(int(number.replace(',', ''))):.1f}"
    rule = {margin: Rule(metric="box.AP", baseline="a", candidate="b", margin=margin) for margin in (0.01, 0.02)}
    rows = re.findall(r"^\| ([\d.]+) points? \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for sd, cells in rows:
        sd, cells = float(sd) / 100, cells.split(" | ")
        found = [f"{100 * smallest_difference(rule[0.01], seeds, sd):.1f}" for seeds in (3, 5, 8, 10, 20)]
        assert cells == (found if len(cells) == 5 else [str(seeds_needed(each, 0.0, sd)) for each in rule.values()])
