"""The tables of docs/performance.md are what its script makes of the kept figures."""

from performance import BEGIN, END, PAGE, read_kept, rewritten


def test_the_tables_are_those_of_the_kept_figures():
    page = PAGE.read_text(encoding="utf-8")
    assert rewritten(page, read_kept()) == page, "run `python benchmarks/performance.py`"


def test_only_what_is_between_the_marks_is_made_anew():
    page = f"before\n{BEGIN}old\n{END}after\n"
    made = rewritten(page, read_kept())
    assert made.startswith(f"before\n{BEGIN}") and made.endswith(f"{END}after\n") and "old" not in made
