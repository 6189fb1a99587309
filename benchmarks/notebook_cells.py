"""Executes the notebook of the documents and keeps its outputs: `python benchmarks/notebook_cells.py` (a minute).

Each code cell keeps the digest of the source that its outputs belong to; a test compares them.
"""

import ast
import contextlib
import io
import json
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "from-folder-to-answer.ipynb"


def read_notebook() -> dict:
    """The notebook as JSON."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    """Cells with code, in their order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_digest(cell: dict) -> str:
    """Digest of a cell's source."""
    return sha256("".join(cell["source"]).encode()).hexdigest()[:16]


def execute(cell: dict, scope: dict) -> list[dict]:
    """Run a cell in `scope` and return its outputs: what it printed, and its last expression as a notebook shows it."""
    tree = ast.parse("".join(cell["source"]))
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), scope)
        value = None if last is None else eval(compile(last, "cell", "eval"), scope)
    outputs = []
    if printed.getvalue():
        lines = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None:
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown(value)})
    return outputs


def shown(value: object) -> dict:
    """A value by MIME type: its text, and its HTML or PNG where it has one."""
    data: dict = {"text/plain": [repr(value)]}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = [value._repr_html_()]
    if hasattr(value, "_repr_png_"):
        data["image/png"] = b64encode(value._repr_png_()).decode()
        data["text/plain"] = [f"<{value.width} x {value.height} picture>"]
    return data


def main() -> None:
    """Execute every code cell in the working directory and write the outputs into the notebook."""
    notebook, scope = read_notebook(), {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell["outputs"], cell["execution_count"] = execute(cell, scope), number
        cell["metadata"] = {"source": source_digest(cell)}
        print(f"cell {number}: {len(cell['outputs'])} outputs", file=sys.stderr)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
