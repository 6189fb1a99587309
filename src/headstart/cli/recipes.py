"""Verbs about recipes."""

from typing import Annotated

import typer
import yaml

from headstart.cli.console import Overrides, patch_of, say, show
from headstart.recipe.recipe import AnyRecipe

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """Shipped recipes and the first line of each."""
    from headstart.recipe.load import shipped
    from headstart.recipe.reference import first_line

    rows = [[name, first_line(path.read_text(encoding="utf-8"))] for name, path in shipped().items()]
    show("shipped recipes", ["name", "what"], rows)


@app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: Overrides = None
) -> None:
    """The resolved recipe as YAML."""
    from headstart.recipe.load import load_recipe
    from headstart.recipe.recipe import to_dict

    say(yaml.safe_dump(to_dict(load_recipe(recipe, patch_of(overrides))), sort_keys=False).rstrip())


def costs(recipe: AnyRecipe) -> dict[str, str]:
    """Parameters and multiply-adds of a recipe's model, for COCO's or ImageNet's number of classes."""
    import torch

    from headstart.model.build import build
    from headstart.model.flops import num_parameters, predict_macs
    from headstart.tasks import TASKS, input_size

    num_channels, size, num = len(recipe.input.mean), input_size(recipe), TASKS[recipe.task].num_classes
    # Some of timm's constructors compute with values; ours only need shapes.
    with torch.device("cpu" if recipe.model.backbone.kind == "timm" else "meta"):
        model = build(recipe, num, num_keypoints=17)
    macs = predict_macs(model, *size, num_channels=num_channels)
    return {
        f"parameters ({num} classes)": f"{num_parameters(model):,}",
        f"GMAC of an image of {size[0]} x {size[1]} ({num} classes)": f"{macs / 1e9:.2f}",
    }


@app.command()
def explain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: Overrides = None
) -> None:
    """Every value and where it comes from: base file, recipe, override, or derived; and what it is on this machine."""
    from headstart.recipe.load import choices_of, resolve, settle
    from headstart.recipe.recipe import derived, flatten, to_dict

    found, origins = resolve(recipe, [("override", patch_of(overrides))])
    rows = [[key, value, origins.get(key, "model default")] for key, value in flatten(to_dict(found)).items()]
    rows += [[key, value, "derived"] for key, value in {**derived(settle(found)[0]), **costs(found)}.items()]
    show(f"{recipe}, resolved", ["field", "value", "from"], rows)
    say("on this machine:")
    for field, choice in choices_of(found).items():
        say(choice.line(field))
