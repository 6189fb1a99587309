"""CONTRIBUTING.md against the code: its table of rooms, and every file and function that it names."""

import ast
import re
from pathlib import Path

from test_imports import ROOT, ROWS

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([^`\s]+)`", TEXT)


def names_in(path):
    """Functions, classes and constants at the top level of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_the_table_has_every_room_in_its_row():
    table = {name: int(row) for row, name in re.findall(r"^\| (\d+) \| `([^`]+)` \|", TEXT, re.MULTILINE)}
    package = {path.name + "/" for path in ROOT.iterdir() if any(path.rglob("*.py"))}
    package |= {path.name for path in ROOT.glob("*.py") if path.name != "__init__.py"}
    rows = {room: number for number, rooms in enumerate(ROWS, start=1) for room in rooms}
    assert table == {name: rows[name.removesuffix("/").removesuffix(".py")] for name in package}


def test_every_file_and_folder_named_exists():
    paths = [name for name in NAMED if re.fullmatch(r"[\w./-]+(\.(py|yaml|md)|/)", name) and "NAME" not in name]
    assert len(paths) > 40
    own = {"train/", "val/"}  # of a data set
    wrong = [name for name in paths if not ((ROOT / name).exists() or (REPOSITORY / name).exists()) and name not in own]
    assert wrong == []


def test_every_function_named_exists():
    functions = [
        name.rpartition(".") for name in NAMED if re.fullmatch(r"[a-z_]+/[a-z_/]+\.(?!py$|yaml$|md$)\w+", name)
    ]
    assert len(functions) > 15
    wrong = [f"{file}.{name}" for file, _, name in functions if name not in names_in(ROOT / f"{file}.py")]
    assert wrong == []
