"""Verbs about recipes."""

from typing import Annotated

import typer
import yaml

from headstart.cli.console import Overrides, patch_of, say, show

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """List the shipped recipes."""
    from headstart.recipe.load import shipped
    from headstart.recipe.reference import first_line

    rows = [[name, first_line(path.read_text(encoding="utf-8"))] for name, path in shipped().items()]
    show("shipped recipes", ["name", "what"], rows)


@app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: Overrides = None
) -> None:
    """Print the resolved recipe as YAML."""
    from headstart.recipe.load import load_recipe
    from headstart.recipe.recipe import to_dict

    say(yaml.safe_dump(to_dict(load_recipe(recipe, patch_of(overrides))), sort_keys=False).rstrip())


@app.command()
def explain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: Overrides = None
) -> None:
    """Show the origin of every value (base file, recipe, override or derived), and what applies on this machine."""
    from headstart.recipe.dotted import flatten
    from headstart.recipe.load import choices_of, resolve, settle
    from headstart.recipe.recipe import digest, rate_text, to_dict
    from headstart.study.timing import model_costs

    found, origins = resolve(recipe, [("override", patch_of(overrides))])
    rows = [[key, value, origins.get(key, "model default")] for key, value in flatten(to_dict(found)).items()]
    derived = {"train.rate (actual)": rate_text(found), "digest": digest(settle(found)[0]), **model_costs(found)}
    rows += [[key, value, "derived"] for key, value in derived.items()]
    show(f"{recipe}, resolved", ["field", "value", "from"], rows)
    say("on this machine:")
    for field, choice in choices_of(found).items():
        say(choice.line(field))
