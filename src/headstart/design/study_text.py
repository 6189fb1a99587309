"""The study file of a question as text: each field with its reason as a comment."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from headstart.design.settings import Setting

WIDTH = 100  # characters of a comment line


def study_text(head: Sequence[str], fields: Sequence[Setting], settings: Sequence[Setting]) -> str:
    """YAML of a study: comments at the head, fields of its own, and settings of its recipe below `set`.

    Values are written as JSON, which is YAML on one line.
    """
    lines = [line for text in head for line in _comment(text, "")]
    for field in fields:
        lines += [*_comment(field.reason, ""), f"{field.field}: {_value(field.value)}"]
        if field.field == "recipe":
            lines.append("set:")
            for setting in settings:
                lines += [*_comment(setting.reason, "  "), f"  {setting.field}: {_value(setting.value)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ") if text else []


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
