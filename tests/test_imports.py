"""Who may know whom: ops <- model <- train <- study <- cli, and files that stay free of torch. Read from the source."""

import ast
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent
LAYERS = ("ops", "model", "train", "study", "cli")


def statements(node):
    """All nodes that run when a file is imported: not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from statements(child)


def imported(path, *, at_once):
    """All modules that a file names in import statements; with `at_once`, only those it needs to be imported itself."""
    tree = ast.parse(path.read_text())
    for node in statements(tree) if at_once else ast.walk(tree):
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
del FILES["headstart"]  # the public names, imported when first used: it stands above all layers


def reach(name, *, at_once=False):
    """Everything that a module imports, through the package's own files."""
    seen, queue = set(), [name]
    while queue:
        path = FILES.get(queue.pop())
        for target in imported(path, at_once=at_once) if path else ():
            if target not in seen:
                seen.add(target)
                queue.append(target)
    return seen


def inside(module, package):
    return module == f"headstart.{package}" or module.startswith(f"headstart.{package}.")


def known_of(name, layers):
    return sorted(module for module in reach(name) if any(inside(module, layer) for layer in layers))


@pytest.mark.parametrize("index", range(len(LAYERS)), ids=LAYERS)
def test_no_file_reaches_a_layer_above_its_own(index):
    files = [file for file in FILES if inside(file, LAYERS[index])]
    assert files
    assert [(file, known) for file in files if (known := known_of(file, LAYERS[index + 1 :]))] == []


@pytest.mark.parametrize(
    "name", ["data", "evaluate", "schedule", "batch", "recipe", "recipe_parts", "recipe_segment", "resolve"]
)
def test_data_and_recipes_know_nothing_of_models(name):
    files = [file for file in FILES if inside(file, name)]
    assert files
    assert [(file, known) for file in files if (known := known_of(file, LAYERS[1:]))] == []


@pytest.mark.parametrize("name", ["definition", "plan", "paired", "cost", "verdict", "report"])
def test_planning_and_reporting_need_no_torch(name):
    names = {module.split(".")[0] for module in reach(f"headstart.study.{name}", at_once=True)}
    assert names
    assert not names & {"torch", "torchvision", "timm"}
