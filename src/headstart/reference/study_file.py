"""The reference of the study file, made from its models: `python -m headstart.reference.study_file`."""

import dataclasses
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

from headstart.recipe.reference import type_of
from headstart.study.sections import Account, DataFraction, Pretraining, PublicStart, Search, Tuning
from headstart.study.spec import STUDY_FIELDS, StudySpec
from headstart.verdict.rule import Rule

HEAD = f"""# Study file reference

Made by `make docs` from the models in `src/headstart/study/` and `src/headstart/verdict/rule.py`; a test keeps it in
step. The [guide](guide.md#step-2-describe-the-comparison) shows a whole file; `headstart study list` names the shipped
ones. A key that is not known is refused with the nearest one, and a key given twice too.

On the command line `key=value` changes the study for {", ".join(f"`{name}`" for name in STUDY_FIELDS)}, `size`,
and fields below `arms.`, `pretrain.` and `rule.`; any other field changes the recipe of every arm. Paths of data and
weights are relative to the working directory, as on the command line; where there is no such file, to the folder of the
study file.
"""

# field: (type in words where the model's is not a plain one, meaning)
FIELDS = {
    "name": ("", "name of the study's directory: letters, digits, `_ . + -`"),
    "recipe": ("", "a shipped recipe or a YAML file, the same for all arms"),
    "set": ("fields of the recipe", "changes for all arms, nested or with dots: `train.batch: 4`"),
    "arms": (
        "patch by name",
        "changes for one arm. `{}` is the recipe as it is; `seed` is added to the study's; the override "
        "`arms.NAME=null` leaves an arm out",
    ),
    "schedules": (
        "list, or lists by arm",
        "lengths: `2x` is twice `train.base`, `90k` are 90,000 steps of `train.reference_batch` images",
    ),
    "fractions": (
        "list",
        "shares of the training images, the smaller part of the larger: `0.25`, or `{fraction, images, schedules}`",
    ),
    "seeds": (
        "a number or a list",
        "`3` means 0, 1, 2; `[7]` is the seed 7; by default those of the last of `rule.looks`",
    ),
    "pretrain": ("entries by name", "the study's own trainings whose weights arms start from, as `pretrain:NAME`"),
    "public_weights": ("entries by arm", "the documented cost of weights made elsewhere"),
    "tuning": ("entries or text by arm", "the effort spent on an arm's settings before; stands in the report"),
    "rule": ("section", "the decision, fixed before the first run; without it nothing is decided"),
    "also_evaluate": ("patch by name", "variants of the evaluation of final checkpoints; `NAME:box.AP` is a metric"),
    "search": ("section", "values to try on one arm by `headstart study search`"),
    "share": ("", "`false` trains every cell from its own start, without shared trunks"),
    "runs": ("text", "folder beside the study's own for its segments, which studies that name it share"),
    "small": ("fields of a study", "whole fields that replace those of the file under `size=small`"),
    "paper": ("text", "a table of the paper whose numbers the report shows"),
    "beside": ("text", "an earlier, longer study whose curves the report shows below its own: bccd_more"),
    "account": ("section", "counts what arms would see; nothing is trained"),
    "allow_overlap": ("", "runs although validation images are training images; there is no answer then"),
}
SECTIONS: dict[str, tuple[type[BaseModel], dict[str, tuple[str, str]]]] = {
    "fractions": (DataFraction, {
        "fraction": ("", "share of the training images"),
        "images": ("number", "their number, in place of a share"),
        "schedules": ("list, or lists by arm", "replace the study's at this amount of data"),
    }),
    "pretrain": (Pretraining, {
        "recipe": ("", "any recipe; without one the study's own, with its `set` and the command line's changes"),
        "set": ("fields of the recipe", "changes; `seed` and `data.fraction` in it end following those of the arm"),
        "uses": ("number", "trainings over which its cost is shared"),
    }),
    "public_weights": (PublicStart, {
        "name": (
            "",
            "a name of `headstart weights list`, or of the table in the "
            "[guide](guide.md#declare-costs-tuning-and-other-study-fields)",
        ),
        "uses": ("number", "trainings over which their cost is shared"),
    }),
    "tuning": (Tuning, {
        "trials": ("number", "trainings tried"),
        "steps": ("number", "their steps in all"),
        "note": ("", "what was tried; a text in place of the section is this note"),
    }),
    "search": (Search, {
        "arm": ("", "the arm on which the values are tried"),
        "grid": ("lists by field", "every combination is tried"),
        "schedule": ("", "length of each trial"),
        "fraction": ("", "share of the training images (default: all)"),
        "images": ("number", "their number, in place of a share"),
        "seed": ("", "seed of all trials"),
        "metric": ("", "the highest one wins"),
    }),
    "account": (Account, {
        "num_images": ("number", "training images"),
        "instances_per_image": ("number", "annotated objects of an image, on average"),
        "pixels_per_image": ("number", "pixels of an image, on average"),
    }),
}  # fmt: skip
RULE = {
    "metric": "what is compared: `box.AP`, `mask.AP`, `keypoints.AP`, `voc.AP`, `semantic.mIoU`, `top1`; "
    "`tta:box.AP` of a variant `tta`",
    "baseline": "the arm that is subtracted",
    "candidate": "the arm that the question is about",
    "margin": "the smallest difference that matters, in 0..1: `0.01` is one point",
    "level": "certainty of the conclusion; 0.95 errs in 5 % of studies",
    "test": "see below",
    "min_seeds": 'with fewer the headline is "No answer yet"',
    "kind": "see below",
    "looks": "see below",
    "scope": "see below",
}
# Every value of the rule's choices, by an example: differences in points at a margin of one point and a level of 95 %.
VALUES = {
    "kind": {
        "equivalence": "do the arms differ by less than the margin? +0.2, 90 % interval -0.3 to +0.7: "
        '"Either start will do"',
        "non_inferiority": "is the candidate not worse by more than the margin? -0.1, 90 % interval -0.8 to +0.6: "
        '"scratch is not worse"',
        "superiority": "is one arm better by more than the margin? +3.0, 95 % interval +1.2 to +4.8: "
        '"scratch ends ahead"',
    },
    "scope": {
        "converged": "which start is better in the end? While the last doubling of the schedule adds more than the "
        'margin to an arm: "No answer yet: scratch still rises"',
        "schedule": "which start is better for training of this length? An arm may still rise: "
        '"imagenet is ahead at 6x"',
    },
    "test": {
        "t": "paired t test of the differences of seeds, which should be about normal: "
        "+2.4, +3.1, +2.7 decide with 3 seeds",
        "sign_flip": "exact test over all signs of the differences: +2.4, +3.1, +2.7 cannot decide; "
        "+2.2, +2.9 and +2.5 besides do",
    },
}
ARM = """An arm sets any field of its recipe, most often `start` ([which weights fit](starts.md)). Two keys are no
fields: `branch_of: ARM` with `last: DURATION` continues that arm's trunk for the last stretch of each schedule, with
the arm's own fields on top ([example](guide.md#train-cascade-r-cnn-or-switch-it-on-late)).
"""
LOOKS = """`looks` takes ascending numbers of seeds, the first at least `min_seeds`. Each look is tested at the same
nominal error rate, so that all together keep the level:

| `looks` | effect |
|---|---|
| `[]` (default) | the rule is applied once, at all seeds |
| `[3, 5, 8]` | 3 seeds first, 5 if they leave it open, then 8, each look at 2 % in place of 5 % |
"""


def study_page() -> str:
    """docs/study-file.md: every field of a study file, and every value of its rule's choices."""
    parts = [HEAD, "## The file", "", *_table(StudySpec, FIELDS), "## An arm", ""]
    parts += [ARM]
    for name, (model, meanings) in SECTIONS.items():
        parts += [f"## `{name}`", "", *_table(model, meanings)]
    parts += ["## `rule`", "", "| field | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Rule):
        parts.append(f"| `{field.name}` | {_default(field.default)} | {RULE[field.name]} |")
    for field, meanings in VALUES.items():
        parts += ["", f"### `rule.{field}`", "", "| value | example |", "|---|---|"]
        parts += [f"| `{value}` | {meanings[value]} |" for value in get_args(get_type_hints(Rule)[field])]
    parts += ["", "### `rule.looks`", "", LOOKS]
    parts += ["[Choosing](choosing.md) says which of these to take."]
    return "\n".join(parts) + "\n"


def _table(model: type[BaseModel], meanings: dict[str, tuple[str, str]]) -> list[str]:
    """A row for each field of a model; KeyError for one without a meaning."""
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        words, meaning = meanings[name]
        default = "" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append(f"| `{name}` | {words or type_of(model, name)} | {default} | {meaning} |")
    return [*rows, ""]


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return ""
    if value in (None, (), {}, ""):
        return "none"
    if isinstance(value, tuple):
        return f"`{[entry.fraction if isinstance(entry, DataFraction) else entry for entry in value]}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(study_page(), end="")
