"""The verb about this machine: the first thing to paste into a bug report."""

import textwrap
from typing import Any

from headstart.cli.console import Json, print_json, say

WIDTH, INDENT = 80, 11  # characters


def env(as_json: Json = False) -> None:
    """Show versions, processor, GPUs, memory, installed extras, and what `auto` in a recipe resolves to and why."""
    from headstart.hardware import report

    found = report()
    if as_json:
        print_json(found)
        return
    for name, texts in screen(found).items():
        for place, text in enumerate(texts):
            lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)
            for number, line in enumerate(lines):
                say(f"{name if place == number == 0 else '':{INDENT}}{line}")


def screen(found: dict[str, Any]) -> dict[str, list[str]]:
    """Texts of a report as they are shown, by name."""
    from headstart.hardware import PACKAGES, Choice

    has = [name for name, value in found["features"].items() if value]
    lacks = [name for name, value in found["features"].items() if not value]
    features = f"{', '.join(has) or 'none'}" + f"; without {', '.join(lacks)}" * bool(lacks)
    versions = [f"{name} {found[name] or 'missing'}" for name in ("headstart", "python", *PACKAGES)]
    gpus = [
        gpu["name"] + (f", {_gib(gpu['memory'])}, compute capability {gpu['capability']}" if gpu["memory"] else "")
        for gpu in found["gpus"]
    ]
    extras = [
        f"{extra}: {', '.join(f'{name} {own}' if own else f'{name} missing' for name, own in packages.items())}"
        for extra, packages in found["extras"].items()
    ]
    speed = (
        f"{found['bf16_speed']:g} times the speed of fp32 ({found['auto']['device']['value']}, small layers, timed now)"
    )
    return {
        "versions": [", ".join(versions), f"torch is built for {found['torch_built_for']}"],
        "system": [found["system"]],
        "processor": [found["processor"], features, f"torch's kernels: {found['kernels']}"],
        "cores": [f"{found['cores']['usable']} usable of {found['cores']['machine']}"],
        "memory": ["not known on this system" if found["memory"] is None else _gib(found["memory"])],
        "GPUs": gpus or ["none that torch sees"],
        "variables": [f"{name}={value}" for name, value in found["environment"].items()] or ["none that set limits"],
        "auto": [Choice(**choice).line(field) for field, choice in found["auto"].items()],
        "bf16": [speed],
        "extras": extras or ["not known: headstart is not installed as a package"],
    }


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
