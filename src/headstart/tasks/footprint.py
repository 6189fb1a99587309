"""Memory that a run needs at least, by formulas on its recipe: refused before data are read where it cannot fit.

A lower bound: weights with gradients and momentum, and of each convolution only its output. Real runs need about twice
as much (optimizers, norms, copies), so what fits is never refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from headstart import hardware
from headstart.model.backbones import STAGES
from headstart.model.backbones.hourglass import DEPTHS as HOURGLASS_DEPTHS
from headstart.model.backbones.resnet import DEPTHS, DETNET, DETNET_STRIDED
from headstart.model.backbones.vgg import DEPTHS as VGG_DEPTHS
from headstart.model.backbones.vgg import WIDEST
from headstart.ops import memory
from headstart.ops.processes import num_processes
from headstart.recipe.dotted import flatten
from headstart.recipe.net import DetNetPart, HourglassPart, ResNetPart, VggPart
from headstart.recipe.recipe import AnyRecipe, ClassifyRecipe, Recipe, SegmentRecipe, to_dict

GIB = 2**30


@dataclass(frozen=True)
class PartCost:
    """Weights of a part, numbers that it keeps for the backward pass of an image, and the fields that cause both."""

    weights: int
    kept: float
    fields: tuple[str, ...]


def check_memory(recipe: AnyRecipe) -> None:
    """ValueError where a recipe's model and batch cannot fit into memory, with the estimate and its main fields."""
    device = hardware.choose_device(recipe.device).value
    limit = memory.limit(device)
    if limit is None:
        return
    if device != "cuda" and recipe.processes > 1:  # all on this machine, each with the whole model
        copies, images = recipe.processes, float(recipe.train.batch)
    else:
        copies, images = 1, recipe.train.batch / max(recipe.processes, num_processes())
    width = 4 if recipe.train.precision == "fp32" else 2  # bytes
    sizes = [(cost.weights * 12 * copies + cost.kept * width * images, cost) for cost in costs(recipe)]
    needed = sum(size for size, _ in sizes)
    if needed <= limit:
        return
    most, cost = max(sizes, key=lambda pair: pair[0])
    values = flatten(to_dict(recipe))
    blamed = ", ".join(f"{field} {values[field]}" for field in (*cost.fields, "train.batch") if field in values)
    raise ValueError(
        f"{blamed}: {most / GIB:,.1f} of at least {needed / GIB:,.1f} GiB for a training step, but "
        f"{'the GPU' if device == 'cuda' else 'this machine'} has {limit / GIB:,.1f} GiB; expected smaller values"
    )


def costs(recipe: AnyRecipe) -> list[PartCost]:
    """Costs of the parts of a recipe's model, counted for one class."""
    if isinstance(recipe, Recipe) and recipe.input.jitter.enabled:
        side, field = recipe.input.jitter.crop, "input.jitter.crop"
    elif isinstance(recipe, Recipe) and recipe.input.crop.enabled:
        side, field = recipe.input.crop.size, "input.crop.size"
    elif isinstance(recipe, ClassifyRecipe):
        side, field = recipe.input.size, "input.size"
    else:
        side, field = max(recipe.input.short), "input.short"  # a padded image has at least this square
    maps, found = _backbone(recipe, side**2, field)
    found.append(PartCost(0, recipe.input.channels * side**2, (field,)))
    if isinstance(recipe, ClassifyRecipe):
        widths = [maps[-1][0] * recipe.model.pool**2 if maps else 0, *recipe.model.hidden]
        return [*found, PartCost(sum(a * b for a, b in pairwise(widths)), sum(widths), ("model.hidden", "model.pool"))]
    if isinstance(recipe, SegmentRecipe):
        return [*found, _pyramid(recipe, maps, side**2, field), _semantic(recipe, maps, side**2, field)]
    return [*found, *_detector(recipe, maps, side**2, field)]


Map = tuple[int, int]  # channels, stride


def _backbone(recipe: AnyRecipe, area: int, field: str) -> tuple[list[Map], list[PartCost]]:
    """Maps of the backbone, and its cost; a timm backbone counts as none, because its cost is not known."""
    part = recipe.model.backbone
    if part.kind == "timm":
        return [], []
    plan = list({"vgg": _vgg, "hourglass": _hourglass}.get(part.kind, _resnet)(part))
    parts = [*STAGES, "stage5"] if part.kind == "detnet" else list(STAGES)
    frozen = {"none": 0, "backbone": len(parts)}.get(recipe.start.freeze)
    frozen = parts.index(recipe.start.freeze) + 1 if frozen is None else frozen
    # Frozen weights have no gradient and no momentum: a third of the bytes.
    weights = sum(stage[1] for stage in plan[frozen:]) + sum(stage[1] for stage in plan[:frozen]) // 3
    kept = sum(channels / stride**2 * area for _, _, channels, stride in plan[frozen:])
    maps = [(stage[0], stage[3]) for stage in plan[1:]] if part.kind != "vgg" else [(plan[-1][0], plan[-1][3])]
    fields = [
        f"model.backbone.{name}"
        for name in ("depth", "width", "widths", "groups", "group_width")
        if hasattr(part, name)
    ]
    return maps, [PartCost(weights, kept, (*fields, field))]


Stage = tuple[int, int, int, int]  # channels of its map, weights, channels of all outputs of convolutions, stride


def _resnet(part: ResNetPart | DetNetPart) -> Iterator[Stage]:
    """The stem and the stages of a ResNet or DetNet, as `model/backbones/resnet.py` builds them."""
    known = DETNET if part.kind == "detnet" else DEPTHS
    if isinstance(part.depth, int):
        blocks, bottleneck = (known[part.depth], True) if part.kind == "detnet" else known[part.depth]
    else:
        blocks, bottleneck = part.depth, part.kind == "detnet" or bool(part.bottleneck)
    groups = getattr(part, "groups", 1)
    first = groups * (getattr(part, "group_width", None) or part.width) if bottleneck else part.width
    yield part.width, 3 * 49 * part.width, part.width, 2
    channels = part.width
    strided = DETNET_STRIDED if part.kind == "detnet" else len(blocks)
    for index, count in enumerate(blocks):
        scale = 2 ** min(index, strided - 1)
        middle, out = first * scale, part.width * scale * (4 if bottleneck else 1)
        own = 9 * middle**2 // groups + middle * out if bottleneck else 9 * middle * out
        entry = 1 if bottleneck else 9
        weights = count * own + entry * middle * (channels + (count - 1) * out)
        if index or channels != out:  # the shortcut of the first block
            weights += channels * out
        outputs = count * ((2 * middle if bottleneck else middle) + out)
        yield out, weights, outputs, 4 * scale
        channels = out


def _vgg(part: VggPart) -> Iterator[Stage]:
    """The stages of a VGG, as `model/backbones/vgg.py` builds them."""
    channels = 3
    for index, count in enumerate(VGG_DEPTHS[part.depth] if isinstance(part.depth, int) else part.depth):
        out = part.width * min(2**index, WIDEST)
        yield out, 9 * out * (channels + (count - 1) * out), count * out, 2**index
        channels = out


def _hourglass(part: HourglassPart) -> Iterator[Stage]:
    """The stem and the stacks of `model/backbones/hourglass.py`; outputs are counted as if all had stride 4."""
    known = isinstance(part.depth, int)
    stacks, widths, blocks = HOURGLASS_DEPTHS[part.depth] if known else (part.stacks, part.widths, part.depth)
    width, first = widths[0], max(widths[0] // 2, 1)
    yield width, 3 * 49 * first + _residual(first, width, 2), 4 * first + 2 * width, 4
    weights, outputs = 9 * width**2 + blocks[-1] * _residual(widths[-1], widths[-1]), width
    for depth, (own, below) in enumerate(pairwise(widths)):
        count = blocks[depth]
        weights += count * _residual(own, own) + _residual(own, below, 2) + _residual(below, own)
        weights += 2 * (count - 1) * _residual(below, below)
        outputs += (2 * count * own + count * below // 2) // 4**depth
    for stack in range(stacks):
        merge = 2 * width**2 + _residual(width, width) if stack else 0
        yield width, weights + merge, outputs, 4


def _residual(channels: int, out: int, stride: int = 1) -> int:
    """Weights of a basic residual block."""
    return 9 * out * (channels + out) + (channels * out if stride > 1 or channels != out else 0)


def _corners(recipe: Recipe, maps: list[Map], area: int, field: str) -> list[PartCost]:
    part, found = recipe.model.corners, []
    if recipe.model.pyramid:
        maps = [each for each in maps if each[1] >= part.stride]
        pyramid = _pyramid(recipe, maps[:1], area, field)  # of the other maps only the lateral convolution
        lateral = sum(channels for channels, _ in maps[1:]) * recipe.model.pyramid_channels
        found.append(replace(pyramid, weights=pyramid.weights + lateral))
        maps = [(recipe.model.pyramid_channels, part.stride)] if maps else []
    width, half = part.width, max(part.width // 2, 1)
    for channels, stride in maps:
        weights = 2 * (9 * half * (2 * channels + width) + channels * width + 4 * 9 * width**2 + 4 * width)
        found.append(PartCost(weights, 2 * (2 * half + 6 * width) * area / stride**2, ("model.corners.width", field)))
    return found


def _pyramid(recipe: Recipe | SegmentRecipe, maps: list[Map], area: int, field: str) -> PartCost:
    width = recipe.model.pyramid_channels
    weights = sum(channels * width + 9 * width**2 for channels, _ in maps)
    kept = sum(2 * width * area / stride**2 for _, stride in maps)
    return PartCost(weights, kept, ("model.pyramid_channels", field))


def _semantic(recipe: SegmentRecipe, maps: list[Map], area: int, field: str) -> PartCost:
    width = recipe.model.semantic.channels
    weights = 0
    for _, stride in maps:
        convs = max((stride // 4).bit_length() - 1, 1)  # one for each doubling up to stride 4
        weights += _convolutions(recipe.model.pyramid_channels, convs, width)
    return PartCost(weights, len(maps) * width * area / 16, ("model.semantic.channels", field))


def _detector(recipe: Recipe, maps: list[Map], area: int, field: str) -> list[PartCost]:
    model, rpn, box = recipe.model, recipe.model.rpn, recipe.model.box
    if model.corners.enabled:
        return _corners(recipe, maps, area, field)
    found: list[PartCost] = []
    if model.pyramid:
        found.append(_pyramid(recipe, maps, area, field))
        maps = [(model.pyramid_channels, stride) for _, stride in maps]
    channels = maps[-1][0] if maps else 0
    cells = sum(area / stride**2 for _, stride in maps)
    kept = rpn.num_convs * channels * cells
    fields = ("model.rpn.num_convs", "model.pyramid_channels", field)
    found.append(PartCost(rpn.num_convs * 9 * channels**2, kept, fields))
    # No more regions are drawn than proposals are there, and no more proposals than anchors.
    anchors = int(cells) * len(rpn.ratios) * (1 if model.pyramid else len(rpn.anchor_sizes))
    levels = len(rpn.anchor_sizes) if model.pyramid else 1
    regions = min(box.num_regions, rpn.train_after_nms, levels * rpn.train_before_nms, anchors)
    convs, cells = _convolutions(channels, box.convs, box.conv_channels), box.pool**2
    inputs = (box.conv_channels if box.convs else channels) * cells
    weights = convs + inputs * box.fc_width + (box.fcs - 1) * box.fc_width**2
    kept = regions * (cells * (channels + box.convs * box.conv_channels) + box.fcs * box.fc_width)
    heads = len(model.cascade.iou) if model.cascade.enabled else 1
    names = ("num_regions", "pool", "convs", "conv_channels", "fcs", "fc_width")
    found.append(PartCost(heads * weights, heads * kept, tuple(f"model.box.{name}" for name in names)))
    for name, part in (("mask", model.mask), ("keypoint", model.keypoint)):
        if part.enabled:
            slots = min(part.slots, int(regions * box.positive_fraction))
            weights = _convolutions(channels, part.convs, part.conv_channels)
            if name == "mask":  # its transposed convolution; that of keypoints has one channel a keypoint
                weights += 4 * (part.conv_channels if part.convs else channels) * part.conv_channels
            kept = slots * part.pool**2 * (channels + part.convs * part.conv_channels)
            fields = tuple(f"model.{name}.{field}" for field in ("slots", "pool", "convs", "conv_channels"))
            found.append(PartCost(weights, kept, fields))
    if recipe.data.max_objects and model.mask.enabled:  # frames of one byte a cell
        kept = recipe.data.max_objects * recipe.data.mask_frame**2 / 4
        found.append(PartCost(0, kept, ("data.max_objects", "data.mask_frame")))
    return found


def _convolutions(channels: int, convs: int, width: int) -> int:
    """Weights of 3x3 convolutions in a row."""
    return 9 * channels * width + (convs - 1) * 9 * width**2 if convs else 0
