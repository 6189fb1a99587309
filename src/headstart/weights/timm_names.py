"""Names of timm's nets: its classifiers' in its feature nets, and EfficientNet-PyTorch's in timm's."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from headstart.weights.files import COUNTER

# First names of the last layers of classifiers, in torchvision, timm and others.
HEAD = r"(?:fc|head|classifier|last_linear)\..+"

# Layers of a block of EfficientNet-PyTorch in timm's names: with an expansion before the depthwise convolution, or not.
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def timm_key(name: str) -> str:
    """Key of a name, equal in a timm classifier and in its feature net, which writes "stages_0" for "stages.0"."""
    return re.sub(r"^(backbone_)?(body_)*(model_)?", "", name.replace(".", "_"))


def holds_net(theirs: Iterable[str], own: Iterable[str]) -> bool:
    """True if a file's names are those of a timm net, whose tensors are `own`: at least half of them occur."""
    names = [name for name in own if name.startswith("backbone.")]
    keys = _own_keys(names)
    return 2 * len({keys[key] for name in theirs if (key := timm_key(name)) in keys}) >= len(names)


def match_timm(
    found: Mapping[str, str], own: Iterable[str], classifier: Callable[[], Iterable[str]], features: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Found names {ours: theirs} under the names of a timm feature net, and those left out as the classifier's.

    own: the model's tensors; classifier: gives the names of timm's classifier, asked where a name does not match;
    features: those of its feature net. Left out is what only the classifier has; a norm that the model replaced by
    another kind is not.
    """
    ours_by = _own_keys(own)
    whole = () if all(timm_key(ours) in ours_by for ours in found if not ours.endswith(COUNTER)) else classifier()
    heads = {timm_key(name) for name in whole} - {timm_key(name) for name in features}
    matched, left_out = {}, []
    for ours, name in found.items():
        key = timm_key(ours)
        if key in ours_by:
            matched[ours_by[key]] = name
        elif not ours.endswith(COUNTER) and (key in heads or re.fullmatch(HEAD, ours.removeprefix("backbone."))):
            left_out.append(name)
        else:
            matched[ours] = name
    return matched, left_out


def efficientnet_names(path: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of an EfficientNet-PyTorch file in timm's {theirs: timm's}: "_blocks.3._bn0.bias" is "blocks.2.0.bn1.bias".

    Blocks are numbered through there, and by stage in timm; a stage begins where a block changes the number of
    channels. ValueError for a block without its convolutions.
    """
    places: dict[str, str] = {}
    stage, index = -1, 0
    count = 1 + max((int(match[1]) for name in tensors if (match := re.match(r"_blocks\.(\d+)\.", name))), default=-1)
    for number in range(count):
        block = f"_blocks.{number}"
        first = tensors.get(f"{block}._expand_conv.weight", tensors.get(f"{block}._depthwise_conv.weight"))
        last = tensors.get(f"{block}._project_conv.weight")
        if first is None or last is None:
            raise ValueError(f"{path}: {block} lacks its convolutions, expected those of EfficientNet-PyTorch")
        channels = first.shape[1 if f"{block}._expand_conv.weight" in tensors else 0]
        stage, index = (stage + 1, 0) if stage < 0 or channels != last.shape[0] else (stage, index + 1)
        places[block] = f"blocks.{stage}.{index}"
    return {name: _efficientnet_name(name, places, tensors) for name in tensors}


def _efficientnet_name(name: str, places: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """timm's name; a name that the layout does not have stays."""
    match = re.fullmatch(r"(_blocks\.\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        layer, _, rest = name.partition(".")
        return f"{_AROUND.get(layer, layer)}.{rest}" if rest else name
    block, layer, rest = match.groups()
    layers = (_EXPANDED if f"{block}._expand_conv.weight" in tensors else _PLAIN) | _SQUEEZE
    return f"{places[block]}.{layers.get(layer, layer)}.{rest}"


def _own_keys(own: Iterable[str]) -> dict[str, str]:
    """{key: name} of a model's tensors; a norm in a sequence with its activation also has the key of timm's own."""
    names = list(own)
    keys = {timm_key(re.sub(r"\.0\.(\w+)$", r".\1", name)): name for name in names}
    return keys | {timm_key(name): name for name in names}
