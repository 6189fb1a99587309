"""Who may know whom: ops <- model <- train <- study <- cli, and files that stay free of torch. Read from the source."""

import ast
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent
LAYERS = ("ops", "model", "train", "study", "cli")


def imported(path):
    """All modules that a file names in import statements, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = {
    ".".join(("headstart", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
GRAPH = {name: set(imported(path)) for name, path in FILES.items()}


def reach(name):
    """Everything that `name` imports, through the package's own files."""
    seen, queue = set(), [name]
    while queue:
        for target in GRAPH.get(queue.pop(), ()):
            if target not in seen:
                seen.add(target)
                queue.append(target)
    return seen


def inside(module, package):
    return module == f"headstart.{package}" or module.startswith(f"headstart.{package}.")


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_reaches_a_layer_above_its_own(name):
    own = next((index for index, layer in enumerate(LAYERS) if inside(name, layer)), None)
    above = LAYERS[own + 1 :] if own is not None else ()
    assert [m for m in reach(name) if any(inside(m, layer) for layer in above)] == []


@pytest.mark.parametrize("name", ["data", "evaluate", "schedule", "batch", "recipe", "resolve"])
def test_data_and_recipes_know_nothing_of_models(name):
    files = [file for file in FILES if inside(file, name)]
    assert files
    for file in files:
        assert [m for m in reach(file) if any(inside(m, layer) for layer in LAYERS[1:])] == [], file


@pytest.mark.parametrize("name", ["plan", "cost", "verdict", "report", "paired", "definition"])
def test_planning_and_reporting_need_no_torch(name):
    files = [file for file in FILES if inside(file, f"study.{name}")]
    if name == "report" and not files:
        pytest.skip("no report yet")
    assert files
    for file in files:
        assert [m for m in reach(file) if m.split(".")[0] in ("torch", "torchvision", "timm")] == [], file
