"""Verbs about recipes, and about this machine, on which their `auto` is settled."""

import textwrap
from dataclasses import asdict
from typing import Annotated, Any

import typer
import yaml

from headstart.cli.console import Json, Overrides, answer, patch_of, print_json, resolved, say, show

app = typer.Typer(no_args_is_help=True)
WIDTH, INDENT = 80, 11  # characters of `headstart env`


def list_shipped(folder: str, as_json: bool) -> None:
    """Print names of the YAML files shipped in a folder of the package, with the first sentence of each."""
    from headstart.recipe.load import shipped
    from headstart.recipe.reference import first_line

    rows = [[name, first_line(path.read_text(encoding="utf-8"))] for name, path in shipped(folder).items()]
    if as_json:
        print_json([{"name": name, "what": what} for name, what in rows])
    else:
        show(f"shipped {folder}", ["name", "what"], rows)


@app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the shipped recipes."""
    list_shipped("recipes", as_json)


@app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Print the resolved recipe as YAML."""
    from headstart.recipe.load import load_recipe
    from headstart.recipe.recipe import to_dict

    found = to_dict(load_recipe(recipe, patch_of(overrides)))
    answer(as_json, found, yaml.safe_dump(found, sort_keys=False).rstrip())


@app.command()
def explain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show the origin of every value (base file, recipe, override or derived), and what applies on this machine."""
    from headstart.hardware import Choice
    from headstart.recipe.dotted import flatten
    from headstart.recipe.load import choices_of
    from headstart.recipe.recipe import digest, rate_text, to_dict
    from headstart.study.timing import model_costs
    from headstart.tasks.settle import MASKS, asks_for_masks, mask_choice, settle

    found, origins = resolved(recipe, overrides)
    rows = [[key, value, origins.get(key, "model default")] for key, value in flatten(to_dict(found)).items()]
    choices, derived = choices_of(found), {"train.rate (actual)": rate_text(found)}
    try:
        settled, told = settle(found, origins)
        choices |= mask_choice(found, settled, told)
        derived |= {"digest": digest(settled), **model_costs(settled)}
    except ValueError as error:  # data that are not there decide
        if not asks_for_masks(found):
            raise
        choices[MASKS] = Choice("auto", str(error))
        derived |= model_costs(found)
    rows += [[key, value, "derived"] for key, value in derived.items()]
    if as_json:
        fields = {key: {"value": value, "from": origin} for key, value, origin in rows}
        print_json({"fields": fields, "machine": {field: asdict(choice) for field, choice in choices.items()}})
        return
    show(f"{recipe}, resolved", ["field", "value", "from"], rows)
    say("on this machine:")
    for field, choice in choices.items():
        say(choice.line(field))


def env(as_json: Json = False) -> None:
    """Show versions, processor, GPUs, memory, installed extras, and what `auto` in a recipe resolves to and why."""
    from headstart.hardware import report

    found = report()
    lines = []
    for name, texts in screen(found).items():
        own = [line for text in texts for line in textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)]
        lines += [f"{name if place == 0 else '':{INDENT}}{line}" for place, line in enumerate(own)]
    answer(as_json, found, *lines)


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
