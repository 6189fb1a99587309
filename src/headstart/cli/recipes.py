"""Verbs about recipes."""

from typing import Annotated

import typer
import yaml

from headstart.cli.console import Overrides, patch_of, say, show

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """Shipped recipes and the first line of each."""
    from headstart.reference import first_line
    from headstart.resolve import shipped

    rows = [[name, first_line(path.read_text())] for name, path in shipped().items()]
    show("shipped recipes", ["name", "what"], rows)


@app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: Overrides = None
) -> None:
    """The resolved recipe as YAML."""
    from headstart.recipe import to_dict
    from headstart.resolve import load_recipe

    say(yaml.safe_dump(to_dict(load_recipe(recipe, patch_of(overrides))), sort_keys=False).rstrip())


@app.command()
def explain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: Overrides = None
) -> None:
    """Every value and where it comes from: base file, recipe, override, or derived."""
    from headstart.recipe import derived, flatten, to_dict
    from headstart.resolve import resolve

    found, origins = resolve(recipe, [("override", patch_of(overrides))])
    rows = [[key, value, origins.get(key, "model default")] for key, value in flatten(to_dict(found)).items()]
    rows += [[key, value, "derived"] for key, value in derived(found).items()]
    show(f"{recipe}, resolved", ["field", "value", "from"], rows)
