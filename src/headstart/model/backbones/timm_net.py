"""Backbones of timm through its features interface."""

from bisect import bisect_left
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from headstart.batch import InputSpec
from headstart.model.backbones import STAGES
from headstart.model.norm import norm
from headstart.ops.products import goes_to_onednn, linear

# Errors by which timm's constructors say that a model has no features interface.
_NO_FEATURES = (RuntimeError, AttributeError, AssertionError, NotImplementedError, KeyError, TypeError)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution that is oneDNN's dense layer where that is faster (ops/products.py), else torch's convolution.

    Our own layers are products everywhere; those of a narrow timm net lose by it without AVX-512 (docs/lab-book.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, weight = x.permute(0, 2, 3, 1), self.weight.flatten(1)
        if rows.is_contiguous() and goes_to_onednn(rows, weight):
            return linear(rows, weight, self.bias).permute(0, 3, 1, 2)
        return super().forward(x)


def _is_pointwise(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
    )


class TimmNet(nn.Module):
    """Any convolutional timm model with a features interface that gives maps at strides 4, 8, 16 and 32.

    `name` may have timm's tag of pre-trained weights ("resnet50.a1_in1k"), which decides `input`: the normalisation
    that timm states for them. Norm layers stay timm's own, except that `norm_kind` other than "batch" replaces
    BatchNorm throughout. Weights come from a file (weights/load.py); nothing is downloaded.
    """

    strides = (4, 8, 16, 32)
    initialiser = "timm's own"

    def __init__(self, name: str, *, norm_kind: str, norm_groups: int = 32, in_channels: int = 3):
        super().__init__()
        _check_name(name)
        self.name, self.body = name, _features(name, in_channels)
        reductions = self.body.feature_info.reduction()
        last = {stride: index for index, stride in enumerate(reductions)}
        if not set(self.strides) <= last.keys():
            raise ValueError(
                f"model.backbone.name: {name!r} gives maps at strides {reductions}, expected 4, 8, 16 and 32 among them"
            )
        if self.body.pretrained_cfg.get("fixed_input_size"):
            raise ValueError(
                f"model.backbone.name: {name!r} takes images of one size only, expected a convolutional net"
            )
        self.chosen = [last[stride] for stride in self.strides]
        self.channels = tuple(self.body.feature_info.channels()[index] for index in self.chosen)
        self.channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        config = self.body.pretrained_cfg
        mean, std = (tuple(255 * value for value in config[field]) for field in ("mean", "std"))
        self.input = InputSpec(mean, std, "rgb")
        self.first_conv = self._first_conv(config.get("first_conv"))
        self.feature_names = tuple(self.body.state_dict())
        if norm_kind != "batch":
            replace_batch_norms(self.body, norm_kind, norm_groups)
        for module in self.body.modules():
            if _is_pointwise(module):
                module.__class__ = PointwiseConv2d  # parameters, their names and hooks stay

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        found = [maps[index] for index in self.chosen]
        return [each.permute(0, 3, 1, 2) for each in found] if self.channels_last else found

    def _first_conv(self, name: Any) -> str:
        """Name of the weight that sees the image; "" where there are several, or it is standardised before use."""
        wanted = name.replace(".", "_") if isinstance(name, str) else None
        for own, module in self.body.named_modules():
            if own.replace(".", "_") == wanted and type(module) in (nn.Conv2d, Conv2dSame):
                return f"body.{own}.weight"
        return ""

    def classifier_names(self) -> tuple[str, ...]:
        """Names of all tensors of timm's classifier of this name, its head included."""
        try:
            with torch.device("meta"):
                whole = timm.create_model(self.name, pretrained=False)
        except (RuntimeError, NotImplementedError):  # some constructors compute with values
            with torch.random.fork_rng(devices=[]):
                whole = timm.create_model(self.name, pretrained=False)
        return tuple(whole.state_dict())

    def parts(self) -> dict[str, list[nn.Module]]:
        """Modules by part: each stage ends with the module that gives its map, counted in timm's order of layers.

        The stem ends with the last map of a stride below 4, or before the first stage. A net whose maps all come from
        its end (HRNet) has no such stages: its whole body is the last one.
        """
        parts: dict[str, list[nn.Module]] = {part: [] for part in STAGES}
        ends = self._stage_ends()
        if not ends:
            return parts | {STAGES[-1]: [self.body]}
        places = {id(module): place for place, (_, module) in enumerate(self.body.named_modules())}

        def part_of(place: int) -> str:
            return STAGES[min(bisect_left(ends, place), len(STAGES) - 1)]

        def sort(module: nn.Module) -> None:
            found = {part_of(places[id(owner)]) for owner in module.modules() if owner._parameters or owner._buffers}
            if len(found) == 1:
                parts[found.pop()].append(module)
            elif found:
                for child in module.children():
                    sort(child)

        sort(self.body)
        return parts

    def _stage_ends(self) -> list[int]:
        """Places in `named_modules` of the last module of stem and stages; [] where timm's maps do not follow them."""
        names = [name for name, _ in self.body.named_modules()]
        plain = {name.replace(".", "_"): name for name in names}
        plain |= {key.removeprefix("body_").removeprefix("model_"): name for key, name in plain.items()}
        info = self.body.feature_info
        modules = [plain.get(module.replace(".", "_")) for module in info.module_name()]
        if None in modules:
            return []
        spans = [
            [place for place, name in enumerate(names) if name == module or name.startswith(f"{module}.")]
            for module in modules
        ]
        first = self.chosen[0]
        stem = spans[first - 1][-1] if first else spans[first][0] - 1
        ends = [stem, *(spans[index][-1] for index in self.chosen)]
        return ends if ends == sorted(set(ends)) else []


def replace_batch_norms(module: nn.Module, kind: str, groups: int) -> None:
    """Replace every BatchNorm below `module` by another kind; epsilon, momentum and a fused activation stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            layer = norm(kind, child.num_features, groups=groups)
            layer.eps, layer.momentum = child.eps, child.momentum
            activation = getattr(child, "act", None)
            new = layer
            if activation is not None and not isinstance(activation, nn.Identity):
                new = nn.Sequential(layer, activation)
            new._forward_hooks.update(child._forward_hooks)  # by which timm may take a map
            module.add_module(name, new)
        else:
            replace_batch_norms(child, kind, groups)


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        near = get_close_matches(name, known, n=1)
        raise ValueError(
            f"model.backbone.name: timm has no model {name!r}" + (f"; the nearest name is {near[0]!r}" if near else "")
        )
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if tag and name not in tagged:
        raise ValueError(
            f"model.backbone.name: timm has no weights {name!r}, expected {architecture!r}"
            + (f" or one of {', '.join(tagged)}" if tagged else "")
        )


def _features(name: str, in_channels: int) -> nn.Module:
    try:
        return timm.create_model(name, features_only=True, pretrained=False, in_chans=in_channels)
    except _NO_FEATURES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"model.backbone.name: timm's {name!r} has no features interface ({reason})") from None
