"""Rooms of the package and their rows: imports go to a lower row or stay in the room, and never in a circle."""

import ast
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent

# Lowest row first. A file may import its own room and every lower row; rooms of one row do not know one another.
# A room in a room (data/read) counts as the outer one.
ROWS = (
    ("version", "batch", "files", "names", "typed_json", "hardware", "ops", "recipe", "verdict"),
    ("data", "model"),
    ("metrics", "weights"),
    ("tasks",),
    ("training",),
    ("study",),
    ("report",),
    ("design",),
    ("api",),
    ("cli", "reference"),
    ("__main__",),
)
# Files of the lowest row that the others of it may import: they import nothing of the package but one another.
GROUND = ("version", "batch", "files", "names", "typed_json", "hardware")
# What must be importable without torch: planning, statistics and reports start fast and run where torch is not used.
TORCH_FREE = ("hardware", "verdict", "report", "study.spec", "study.plan", "study.forecast", "study.folder", "recipe")
KNOW_RECIPES = ("tasks", "model.build")  # of rows 2 to 4, what may import the room recipe

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"  # the public names, imported when first used: it stands above all rows
}


def statements(node):
    """All nodes that run when a file is imported: not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from statements(child)


def imported(path, *, at_once=False):
    """Full names in a file's import statements; with `at_once`, only those executed when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in statements(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_files(path, *, at_once=False):
    """Files of this package that a file imports, by their names without 'headstart.'."""
    names = {
        name.removeprefix("headstart.") for name in imported(path, at_once=at_once) if name.startswith("headstart.")
    }
    return sorted(names & FILES.keys())


def room(file):
    return file.split(".")[0]


def row(file):
    found = [index for index, rooms in enumerate(ROWS) if room(file) in rooms]
    assert found, f"{file} is in no row of this table: add its room, or move the file"
    return found[0]


def allowed(file, target):
    if room(file) == room(target):
        return True
    if room(target) in GROUND:
        return row(file) > 0 or room(file) in (*GROUND, "ops", "recipe", "verdict")
    return row(target) < row(file)


def test_every_file_imports_only_its_own_room_and_lower_rows():
    wrong = [
        f"{file} (row {row(file)}) imports {target} (row {row(target)})"
        for file, path in FILES.items()
        for target in own_files(path)
        if not allowed(file, target)
    ]
    assert wrong == []


def test_no_circle_of_imports():
    """Deferred imports and those under TYPE_CHECKING count too."""
    graph = {file: set(own_files(path)) - {file} for file, path in FILES.items()}
    while free := [file for file, targets in graph.items() if not targets & graph.keys()]:
        for file in free:
            del graph[file]
    assert sorted(graph) == [], "these files import one another in a circle, or are imported by such"


def test_only_tasks_and_build_know_recipes():
    wrong = [
        f"{file} imports {target}"
        for file, path in FILES.items()
        if room(file) in ("ops", "data", "model", "metrics", "weights") and not file.startswith(KNOW_RECIPES)
        for target in own_files(path)
        if room(target) == "recipe" and target != "recipe.schedule"
    ]
    assert wrong == []


@pytest.mark.parametrize("name", TORCH_FREE)
def test_planning_and_reports_need_no_torch(name):
    files = [file for file in FILES if file == name or file.startswith(name + ".")]
    assert files
    seen, queue = set(), list(files)
    while queue:
        path = FILES.get(queue.pop())
        for target in imported(path, at_once=True) if path else ():
            target = target.removeprefix("headstart.")
            if target not in seen:
                seen.add(target)
                queue.append(target)
    assert not {target.split(".")[0] for target in seen} & {"torch", "torchvision", "timm"}


def test_sizes_and_names():
    long = {file: lines for file, path in FILES.items() if (lines := len(path.read_text("utf-8").splitlines())) > 270}
    assert long == {}
    folders = [path.parent for path in FILES.values()]
    assert {str(folder.relative_to(ROOT)): n for folder in set(folders) if (n := folders.count(folder)) > 15} == {}
    assert sorted({room(file) for file in FILES} & set(headstart.__all__)) == [], (
        "a room is named like a public function"
    )
    classes = [
        node.name
        for path in FILES.values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted({name for name in classes if classes.count(name) > 1}) == [], "two public classes of one name"
