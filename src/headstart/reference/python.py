"""The Python reference, made from signatures and docstrings: `python -m headstart.reference.python`."""

import dataclasses
import inspect
import re
from typing import Any

import headstart
from headstart.api.outcome import ScoreDifference
from headstart.metrics.coco import Evaluation
from headstart.tasks.predict import ImagePrediction
from headstart.tasks.task import Trained
from headstart.training.lineage import RunResult

RETURNED = (RunResult, Trained, Evaluation, ImagePrediction, ScoreDifference)  # results of public functions
HEAD = """# Python reference

Made by `make docs` from signatures and docstrings; a test keeps it in step. The
[guide](guide.md#use-headstart-from-python) shows how the parts fit together. Everything here is imported as
`headstart.NAME`; all else is internal and may change.

`train`, `Study.run` and `ask` print progress as lines; `quiet=True` prints nothing. With `jobs` above 1, and for `ask`
on several cores, segments run in processes of their own: a script then needs `if __name__ == "__main__":`, a notebook
does not.

## Errors

| exception | meaning | exit code of the command line |
|---|---|---|
| `ValueError` or a subclass | wrong input, in one line: file or field, value, what was expected, nearest name | 2 |
| `OSError`, `MemoryError` | the system refused: a file, memory, a lost process | 1 |
| `FloatingPointError` | loss or weights are not finite | 3 |

A finished segment is never lost by an error or by Ctrl-C: the same call continues.
"""


def python_page() -> str:
    """docs/api.md: every name of headstart.__all__, and the classes that functions return."""
    public = {name: getattr(headstart, name) for name in headstart.__all__ if name != "__version__"}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    classes = {name: value for name, value in public.items() if inspect.isclass(value)}
    parts = [HEAD, "## Functions", ""]
    for name, function in functions.items():
        called = f"headstart.{name}{_signature(function)}"
        parts += [f"### headstart.{name}", "", "```text", called, "```", "", _text(function), ""]
    parts += ["## Classes", "", "`headstart.__version__` is the version as text.", ""]
    for name, kind in classes.items():
        parts += _class(f"headstart.{name}", kind)
    parts += ["## Results", ""]
    for kind in RETURNED:
        parts += _class(kind.__name__, kind)
    return "\n".join(parts).rstrip() + "\n"


def _class(name: str, kind: type[Any]) -> list[str]:
    """Name, docstring, fields and public methods of a class."""
    parts = [f"### {name}", "", _text(kind), ""]
    if dataclasses.is_dataclass(kind):
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(kind))
        parts += [f"Fields: {fields}.", ""]
    for attribute, value in vars(kind).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if (
            attribute.startswith(("_", "require"))
            or not inspect.isfunction(function)
            or kind.__module__.startswith("headstart.recipe")
        ):
            continue
        shown = "" if isinstance(value, property) else _signature(function)
        parts += [f"- `{attribute}{shown}`: {_text(function)}"]
    return [*parts, ""]


def _text(value: Any) -> str:
    """A docstring as one paragraph."""
    return " ".join((inspect.getdoc(value) or "").split()).replace("|", "\\|")


def _signature(function: Any) -> str:
    """Parameters and result, without the modules of types."""
    text = str(inspect.signature(function)).replace("self, ", "").replace("(self)", "()").replace("(cls, ", "(")
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", re.sub(r"(-> |: )'([^']*)'", r"\1\2", text))


if __name__ == "__main__":
    print(python_page(), end="")
