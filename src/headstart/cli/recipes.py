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

    rows = [[name, first_line(path.read_text())] for name, path in shipped().items()]
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

    from headstart.data.buckets import Resize, bucket_of
    from headstart.model.detector import build
    from headstart.model.flops import num_parameters, predict_macs
    from headstart.tasks.classification import build_classifier
    from headstart.tasks.segmentation import build_segmenter

    num_channels = len(recipe.input.mean)
    # Some of timm's constructors compute with values; ours only need shapes.
    with torch.device("cpu" if recipe.model.backbone.kind == "timm" else "meta"):
        if recipe.task == "classification":
            model, size, num = build_classifier(recipe, 1000), (recipe.input.size,) * 2, 1000
        else:
            short, long = recipe.input.test_short, recipe.input.test_long
            size, num = bucket_of(short, long, Resize(short, long)), 80
            model = build(recipe, num, 17) if recipe.task == "detection" else build_segmenter(recipe, num)
    macs = predict_macs(model, *size, num_channels=num_channels)
    return {
        f"parameters ({num} classes)": f"{num_parameters(model):,}",
        f"GMAC of an image of {size[0]} x {size[1]} ({num} classes)": f"{macs / 1e9:.2f}",
    }


@app.command()
def explain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: Overrides = None
) -> None:
    """Every value and where it comes from: base file, recipe, override, or derived."""
    from headstart.recipe.dotted import flatten
    from headstart.recipe.load import resolve
    from headstart.recipe.recipe import digest, scaled_rate, to_dict

    found, origins = resolve(recipe, [("override", patch_of(overrides))])
    rows = [[key, value, origins.get(key, "model default")] for key, value in flatten(to_dict(found)).items()]
    part = found.train
    rate = f"{scaled_rate(found):g} = {part.rate:g} x {part.batch}/{part.reference_batch}"
    derived = {"train.rate (actual)": rate, "digest": digest(found), **costs(found)}
    rows += [[key, value, "derived"] for key, value in derived.items()]
    show(f"{recipe}, resolved", ["field", "value", "from"], rows)
