"""Verbs about recipes."""

from dataclasses import asdict
from typing import Annotated

import typer
import yaml

from headstart.cli.console import Json, Overrides, patch_of, print_json, say, show

app = typer.Typer(no_args_is_help=True)


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
    if as_json:
        print_json(found)
    else:
        say(yaml.safe_dump(found, sort_keys=False).rstrip())


@app.command()
def explain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show the origin of every value (base file, recipe, override or derived), and what applies on this machine."""
    from headstart.hardware import Choice
    from headstart.recipe.dotted import flatten
    from headstart.recipe.load import choices_of, resolve
    from headstart.recipe.recipe import digest, rate_text, to_dict
    from headstart.study.timing import model_costs
    from headstart.tasks.settle import MASKS, asks_for_masks, mask_choice, settle

    found, origins = resolve(recipe, [("override", patch_of(overrides))])
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
